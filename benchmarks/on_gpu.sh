#!/bin/bash
# Everything that needs a GPU, in at most 8 minutes on a machine with one GPU and 16 cores.
#
#     OUT=/tmp/gpu benchmarks/on_gpu.sh
#     OUT=/tmp/gpu benchmarks/on_gpu.sh --device cpu --quick     # whether the script itself works, without a GPU
#
# Installs headrace into .venv if it is not there, runs the tests marked `gpu`, and measures GpuSampler and
# AlternatingSampler with samples on the device (benchmarks/on_gpu.py). Each part has a deadline of its own, and one that
# fails does not keep the others from running. Writes gpu.json and the output of every part to $OUT.
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:-build/gpu}
PYTHON=${PYTHON:-.venv/bin/python}
device=cuda
for word in "$@"; do [ "$word" = cpu ] && device=cpu; done
mkdir -p "$OUT"
export PYTHONPATH=$PWD
status=0

if [ ! -x "$PYTHON" ]; then
    timeout 150 make -s install || exit 1
fi
nvidia-smi > "$OUT/nvidia-smi.txt" 2>&1 || echo "no GPU"

if [ "$device" = cuda ]; then
    timeout 150 "$PYTHON" -m pytest -m gpu -q -p no:cacheprovider > "$OUT/tests.txt" 2>&1 || status=1
    tail -n 15 "$OUT/tests.txt"
fi
timeout 260 "$PYTHON" benchmarks/on_gpu.py --out "$OUT/gpu.json" "$@" 2>&1 | tee "$OUT/gpu.txt"
[ "${PIPESTATUS[0]}" = 0 ] || status=1
exit $status
