#!/usr/bin/env bash
# Fetch the wheels that tests/gpu/run.sh brings to a machine without network: bash tests/gpu/fetch.sh
# Versions and hashes are those of wheels.txt; DeepSpeed comes from its source, without operators.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3}
mkdir -p wheels
platforms=()
for glibc in 28 27 17 12; do
    platforms+=(--platform "manylinux_2_${glibc}_x86_64")
done
export DS_BUILD_OPS=0
"$python" -m pip download --no-deps --require-hashes --dest wheels --no-build-isolation \
    --only-binary :all: --no-binary deepspeed \
    --implementation cp --python-version 3.12 --abi cp312 --abi abi3 --abi none \
    "${platforms[@]}" --platform manylinux2014_x86_64 --platform any -r wheels.txt
"$python" -m pip wheel --no-deps --no-build-isolation --wheel-dir wheels wheels/deepspeed-*.tar.gz
rm wheels/deepspeed-*.tar.gz
du -sh wheels
