#!/usr/bin/env bash
# Sets everything up and runs all checks and tests: bash test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source .ci/setup.sh
setup_system
setup_venv test
setup_ffcv
setup_demo

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy

# Written with `=`: before tests/conftest.py is read, pytest takes a separate directory for tests.
goldens=()
if [ -d ../shared/goldens ]; then
    goldens=("--goldens=$(cd ../shared/goldens && pwd)")
fi
.venv/bin/python -m pytest -m "not gpu" "${goldens[@]}" "$@"
