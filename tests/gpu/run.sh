#!/usr/bin/env bash
# Run first whenever a GPU machine is at hand: bash tests/gpu/run.sh [options of python -m tests.gpu]
# The machine needs PyTorch for CUDA and Python 3.12, no network. Bring the wheels of wheels.txt:
# `bash tests/gpu/fetch.sh` puts them into tests/gpu/wheels where a registry can be reached.
# Each call takes less than nine minutes and goes on where the last one stopped; 75: call again.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
site=build/gpu_site
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if ! "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("deepspeed") is None)'; then
    if [ ! -e "$site/.complete" ]; then
        ls tests/gpu/wheels/*.whl >/dev/null || { echo "run tests/gpu/fetch.sh first" >&2; exit 2; }
        rm -rf "$site"
        mkdir -p "$site"
        for wheel in tests/gpu/wheels/*.whl; do
            "$python" -m zipfile -e "$wheel" "$site"  # a wheel is a zip of its packages
        done
        touch "$site/.complete"
    fi
    PYTHONPATH="$PWD/$site:$PYTHONPATH"
fi
code=0
"$python" -m tests.gpu "$@" || code=$?
if [ -n "${OUT:-}" ]; then  # where the machine's lender fetches results from
    cp build/gpu/results.json "$OUT/" || true
    find build/gpu/work -name 'trace_*.gz' -size -16M -exec cp {} "$OUT/" ';' || true
fi
exit "$code"
