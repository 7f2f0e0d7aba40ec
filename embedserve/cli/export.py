"""`embedserve export`: a run → one encoder file that was checked against PyTorch."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=Path("encoder.onnx"), help="Encoder file to write."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document about the encoder.")
def command(run: Path, out: Path, as_json: bool) -> None:
    """Write the encoder of a run to one self-describing ONNX file.

    Before anything is written, the ONNX graph is compared with PyTorch on images of the run.

    \b
    embedserve export runs/photos -o encoder.onnx
    """
    from embedserve.cli.output import print_json, say
    from embedserve.cli.training import training_installed

    with training_installed():
        from embedserve_training.export import export

        file = export(run, out, report=say)
    if as_json:
        print_json({"path": str(out), "fingerprint": file.fingerprint, "metadata": file.metadata.to_json()})
    say(f"next: embedserve serve {out} --data data/")
