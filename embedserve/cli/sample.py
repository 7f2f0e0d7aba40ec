"""The sample images: 3,000 training and 1,000 test images of Fashion-MNIST in class folders, unpacked on demand."""

from __future__ import annotations

import zipfile
from pathlib import Path

from embedserve.errors import DataError

NAME = "fashion-mnist-sample"


def unpack(directory: Path) -> tuple[Path, Path]:
    """The folders of the training and the test images below ``directory``, unpacked if they do not exist.

    Raises:
        DataError: the archive is missing, or the directory is not writable.
    """
    target = directory / NAME
    if not (target / "test").is_dir():
        partial = directory / f".{NAME}.partial"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(_archive()) as archive:
                archive.extractall(partial)
            partial.rename(target)
        except OSError as error:
            raise DataError(f"the sample images cannot be unpacked into {directory}: {error}") from error
    return target / "train", target / "test"


def _archive() -> Path:
    package = Path(__file__).parents[1]
    # In the package if it is installed; among the examples in a checkout.
    for path in (package / "sample_data" / f"{NAME}.zip", package.parent / "examples" / f"{NAME}.zip"):
        if path.exists():
            return path
    raise DataError("the sample images are not part of this installation", hint="give a folder of your own images")
