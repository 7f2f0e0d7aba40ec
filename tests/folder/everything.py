"""A folder that has everything that folders of images have beside images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tests.fakes import picture

_PICTURES = {
    # What is found …
    "top.png": "PNG",
    "cats/a.png": "PNG",
    "dots.jfif": "JPEG",
    "old.JPE": "JPEG",
    "avatar": "WEBP",
    "bitmap": "BMP",
    "photo.JPG_large": "JPEG",
    "IMG.0001": "JPEG",
    "Mine.photoslibrary/originals/1/a.jpg": "JPEG",
    # … and what is not, though it is a picture.
    ".hidden.png": "PNG",
    ".thumbnails/x.png": "PNG",
    "@eaDir/thumb.jpg": "JPEG",
    "cats/@EADIR/thumb.jpg": "JPEG",
    "#recycle/x.png": "PNG",
    "lost+found/x.png": "PNG",
    "__MACOSX/y.png": "PNG",
    "Mine.photoslibrary/resources/derivatives/b.jpg": "JPEG",
    "Mine.lrdata/c.jpg": "JPEG",
    "raw.dng": "TIFF",
    "loading.part": "JPEG",
}
_OTHERS = {
    "notes.txt": b"text",
    "drawing.svg": b"<svg/>",
    "drawing2.svg": b"<svg/>",
    "Thumbs.db": b"\xd0\xcf\x11\xe0",
    "LICENSE": b"text",
    "data.bin": b"\0\1\2",
    "words.zzz": b"BM is how this begins",
    "sound": b"RIFF\x24\0\0\0WAVEfmt ",
    "._a.png": b"\0\5\x16\7",
}
IMAGES = [
    *("IMG.0001", "Mine.photoslibrary/originals/1/a.jpg", "avatar", "bitmap", "cats/a.png", "dots.jfif"),
    *("linked/b.png", "old.JPE", "photo.JPG_large", "top.png"),
]
"""Names of the images that are found."""

PASSED_OVER: Mapping[str, int] = {
    "hidden": 3,
    "@eaDir": 2,
    "#recycle": 1,
    "lost+found": 1,
    "__MACOSX": 1,
    "*.lrdata": 1,
    "folders in *.photoslibrary": 1,
    ".dng": 1,
    ".part": 1,
    ".txt": 1,
    ".svg": 2,
    ".db": 1,
    ".bin": 1,
    ".zzz": 1,
    "without suffix": 2,
    "broken links": 2,
    "pipes and devices": 1,
}
"""Kind → how many are passed over."""


def write_everything(folder: Path) -> None:
    """Fill a folder; beside it a folder is made that a link leads to."""
    for seed, (name, format) in enumerate(_PICTURES.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed, format=format))
    for name, content in _OTHERS.items():
        (folder / name).write_bytes(content)
    outside = folder.parent / f"{folder.name}-outside"
    outside.mkdir()
    (outside / "b.png").write_bytes(picture(90))
    (folder / "linked").symlink_to(outside)
    (folder / "twice").symlink_to(outside)
    (folder / "cats/up").symlink_to(folder)
    (folder / "drive").symlink_to(folder.parent / "away")
    (folder / "circle").symlink_to("circle")
    os.mkfifo(folder / "pipe")
