"""What decoding takes at most: 16 bytes of memory per pixel, as docs/serving.md promises, at its peak."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SIDE_PX = 3000
PROGRAM = """
import sys
from pathlib import Path
from embedserve.images import codec

def highest() -> int:
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

codec.decode(Path(sys.argv[1]).read_bytes())
data = Path(sys.argv[2]).read_bytes()
before = highest()
pixels = codec.decode(data)
print((highest() - before) / (pixels.shape[0] * pixels.shape[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("mode", "format", "turned"),
    [
        ("RGBA", "PNG", False),
        ("RGBA", "PNG", True),
        ("LA", "PNG", False),
        ("I;16", "PNG", True),
        ("CMYK", "TIFF", False),
    ],
)
def test_decoding_takes_no_more_bytes_per_pixel_than_the_documents_say(
    mode: str, format: str, turned: bool, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    options = {"exif": exif, "compress_level": 1} if format == "PNG" else {"compression": "tiff_lzw"}
    for name, side in (("small", 8), ("large", SIDE_PX)):
        image = Image.new(mode, (side, side))
        image.save(tmp_path / name, format, **options)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "small", tmp_path / "large"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) <= 16.5  # of which 0.5 are the file and the allocator's
