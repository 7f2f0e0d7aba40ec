#!/usr/bin/env bash
# tifffile packs the 12-bit samples of a big-endian TIFF after it has swapped the bytes of each: the file holds another
# picture.
#
#   bash findings/tifffile-packed-big-endian.sh
#
# Software: tifffile 2026.3.3 with imagecodecs 2026.3.6. Input: four samples, 0, 1, 2048 and 4095, written with
# bitspersample=12 and byteorder "<" and ">", and the same with 16 bits.
# Behaviour seen: nothing is raised. From the little-endian file, and from both with 16 bits, the samples come back as
# they were; from the big-endian file with 12 bits they come back as 0, 256, 8 and 3855. The bits in the file are these, so
# that other readers see the same.
# What embedserve does: nothing can tell such a file from a right one; the table of TIFFs in its tests leaves them out.
#
# Exits with 0 while that is so, with 1 once it is not. Installs into a temporary folder, which is removed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tifffile==2026.3.3 imagecodecs==2026.3.6 numpy==2.4.6

"$folder/venv/bin/python" - <<'PROGRAM'
import io
import sys

import numpy as np
import tifffile

SAMPLES = [0, 1, 2048, 4095]


def back(order: str, bits: int) -> list[int]:
    """The samples as they are read from a file of this byte order."""
    file = io.BytesIO()
    picture = np.array([SAMPLES], np.uint16)
    with tifffile.TiffWriter(file, byteorder=order) as writer:
        writer.write(picture, photometric="minisblack", bitspersample=bits, metadata=None)
    return tifffile.imread(io.BytesIO(file.getvalue())).ravel().tolist()


found = {f"{order} {bits}": back(order, bits) for order in "<>" for bits in (12, 16)}
print(f"tifffile {tifffile.__version__}: {SAMPLES} come back as")
for name, samples in found.items():
    print(f"  {name:5} {samples}")
expected = {"< 12": SAMPLES, "< 16": SAMPLES, "> 12": [0, 256, 8, 3855], "> 16": SAMPLES}
if found != expected:
    sys.exit("the behaviour has changed")
print("as described: only the big-endian file with 12 bits holds other samples")
PROGRAM
