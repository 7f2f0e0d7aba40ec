"""`embedserve export`: a run → an encoder file that is verified against PyTorch."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=Path("encoder.onnx"), help="Encoder file to write."
)
@click.option(
    "--precision",
    default="fp32",
    type=click.Choice(["fp32", "fp16", "int8"]),
    help="Precision of the network: fp16 is for GPUs, int8 for CPUs.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Images to compare fp16 and int8 on, and to calibrate int8 with.  [default: the run's own folder]",
)
@click.option("--force", is_flag=True, help="Write fp16 or int8 even if it loses more accuracy than allowed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document about the encoder.")
def command(run: Path, out: Path, precision: str, calibration: Path | None, force: bool, as_json: bool) -> None:
    """Write the encoder of a run to one self-describing ONNX file.

    Before anything is written, the ONNX graph is compared with PyTorch on images of the run. For fp16 and int8 the
    vectors, neighbours and speed are compared too, and printed. To a server they are different encoders from the fp32
    one.

    \b
    embedserve export runs/photos -o encoder.onnx
    embedserve export runs/photos -o encoder-int8.onnx --precision int8
    """
    from embedserve.cli.terminal.output import print_json, say
    from embedserve.cli.training import training_installed

    with training_installed():
        from embedserve_training.export.export import export

        file = export(run, out, precision=precision, calibration=calibration, force=force, report=say)
    if as_json:
        print_json({"path": str(out), "fingerprint": file.fingerprint, "metadata": file.metadata.to_json()})
    say(f"next: embedserve serve {out} --data data/")
