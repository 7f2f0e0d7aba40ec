#!/usr/bin/env bash
# Run everything that needs a CUDA GPU: the tests marked "gpu", then benchmarks/gpu.py. Downloads and installs nothing.
# Usage: [GPU=0] scripts/gpu.sh [arguments of benchmarks/gpu.py]
#
# Uses python3 if its PyTorch sees a GPU (a machine whose image comes with PyTorch), else .venv if its PyTorch does.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -n "${GPU:-}" ]; then export CUDA_VISIBLE_DEVICES="$GPU"; fi
export PYTHONPATH=.:training PYTHONUNBUFFERED=1

sees_gpu() {
    command -v "$1" >/dev/null &&
        "$1" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' >/dev/null 2>&1
}

python=
for candidate in python3 .venv/bin/python; do
    if sees_gpu "$candidate"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "SKIP: no CUDA GPU that the PyTorch of python3 or .venv can use"
    exit 0
fi
"$python" -c 'import sys, torch; print(f"{sys.executable}: PyTorch {torch.__version__}, {torch.cuda.get_device_name()}")'

failed=0
# Only files with GPU tests are collected: others may import what this machine does not have.
mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests || true)
if ! "$python" -c 'import pytest' 2>/dev/null; then
    echo "SKIP: GPU tests, since $python has no pytest"
elif [ "${#files[@]}" -eq 0 ]; then
    echo "SKIP: GPU tests, since no file under tests/ has any"
else
    # Without the settings in pyproject.toml: its plug-ins may be missing here, and warnings of other versions of the
    # packages are not failures.
    timeout 230 "$python" -m pytest -c /dev/null --rootdir . -o "markers=gpu: needs a CUDA GPU" -m gpu "${files[@]}" ||
        failed=$?
    if [ "$failed" -eq 5 ]; then failed=0; fi # nothing was selected
fi

timeout 360 "$python" benchmarks/gpu.py --out benchmarks/results/gpu.json "$@" || failed=$?
exit "$failed"
