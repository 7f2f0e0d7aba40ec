#!/usr/bin/env bash
# Create a virtual environment and install embedserve from this folder into it, editable, with extras.
# Usage: scripts/venv.sh FOLDER train|dev|train,dev,peers          PYTHON and PIP_ARGS: see the Makefile
set -euo pipefail

venv=$1
extra=$2

suitable() {
    command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if suitable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "error: embedserve needs Python 3.11 or newer; found: $(python3 --version 2>/dev/null || echo none)" >&2
    echo "hint:  install it, or name one: make PYTHON=/path/to/python3.11 test" >&2
    return 1
}

# pip cannot repair an environment whose interpreter was removed or is too old.
if [ -e "$venv" ] && ! suitable "$venv/bin/python"; then
    echo "$venv has no working Python 3.11 or newer; it is created again"
    rm -rf "$venv"
fi

python=
if [ ! -e "$venv" ]; then
    python=$(find_python)
fi

if [ "$(uname -s)" = Linux ]; then
    torch="PyTorch for CUDA with its libraries, about 3 GB to download and 5.5 GB on disk, once"
else
    torch="PyTorch without CUDA, some hundreds of MB, once"
fi
echo "Installing embedserve[$extra] into $venv from the Python package index; existing packages are not downloaded again:"
echo "  the serving part (onnxruntime, FAISS, gRPC, Pillow): about 500 MB on disk"
case $extra in
train) echo "  $torch" ;;
dev) echo "  the tools (ruff, mypy, pytest, protobuf compiler, pyarrow, onnx): about 350 MB on disk" ;;
*) echo "  $torch" && echo "  the tools and the libraries to compare with: about 300 MB on disk" ;;
esac

if [ -n "$python" ] && ! "$python" -m venv "$venv"; then
    rm -rf "$venv"
    echo "error: $python cannot create a virtual environment" >&2
    echo "hint:  on Debian and Ubuntu: apt install python3-venv" >&2
    exit 1
fi

quiet=--quiet # in a log; on a terminal, show the progress of such a download
[ -t 1 ] && quiet=
# shellcheck disable=SC2086 # both are lists of words
"$venv/bin/python" -m pip install --disable-pip-version-check $quiet ${PIP_ARGS:-} --editable ".[$extra]"
