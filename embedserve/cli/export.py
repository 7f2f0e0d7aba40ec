"""`embedserve export`: a run → an encoder file that is verified against PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from embedserve.cli.terminal.options import GivenPath, existing_folder, existing_run, overwrite_option
from embedserve.errors import EncoderFileError, InvalidInput

if TYPE_CHECKING:
    from embedserve.encoder.encoder_file import EncoderFile


@click.command("export")
@click.argument("run", type=existing_run)
@click.option("-o", "--out", type=GivenPath(), default=Path("encoder.onnx"), help="Encoder file to write.")
@click.option(
    "--precision",
    default="fp32",
    type=click.Choice(["fp32", "fp16", "int8"]),
    help="Precision of the network: fp16 is for GPUs, int8 for CPUs.",
)
@click.option(
    "--calibration",
    type=existing_folder,
    metavar="FOLDER",
    help="Images to compare fp16 and int8 on, and to calibrate int8 with.  [default: the run's own folder]",
)
@overwrite_option
@click.option("--force", is_flag=True, help="Write fp16 or int8 even if it loses more accuracy than allowed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document about the encoder.")
def command(
    run: Path, out: Path, precision: str, calibration: Path | None, overwrite: bool, force: bool, as_json: bool
) -> None:
    """Write the encoder of a run to one self-describing ONNX file.

    An encoder file at OUT is replaced with --overwrite, and named; another file never is.

    Before anything is written, the ONNX graph is compared with PyTorch on images of the run. For fp16 and int8 the
    vectors, neighbours and speed are compared too, and printed. To a server they are different encoders from the fp32
    one.

    \b
    embedserve export runs/photos -o encoder.onnx
    embedserve export runs/photos -o encoder-int8.onnx --precision int8
    """
    from embedserve.atomic_write import check_writable
    from embedserve.cli.terminal.output import print_json, say
    from embedserve.cli.training import training_installed

    replaced = _replaceable(out)
    check_writable(out, overwrite=overwrite)
    with training_installed():
        from embedserve_training.export.export import export

        file = export(run, out, precision=precision, calibration=calibration, force=force, report=say)
    if replaced is not None and replaced.fingerprint != file.fingerprint:
        say(
            f"replaced encoder {replaced.metadata.name} ({replaced.fingerprint[:12]}) in {out}: collections that are"
            " bound to it need it, or their images added to a new collection"
        )
    if as_json:
        print_json({"path": str(out), "fingerprint": file.fingerprint, "metadata": file.metadata.to_json()})
    say(f"next: embedserve serve {out} --data data/")


def _replaceable(out: Path) -> EncoderFile | None:
    """The encoder file that will be replaced; None if there is none.

    Raises:
        InvalidInput: there is another file, which would be lost.
    """
    from embedserve.encoder import encoder_file

    try:
        if not out.is_file() or not out.stat().st_size:
            return None
        return encoder_file.read(out)
    except (EncoderFileError, OSError) as error:
        raise InvalidInput(
            f"{out} exists and would be replaced, and is no encoder file that can be read: {error}",
            hint="choose another path with -o, or remove the file",
        ) from error
