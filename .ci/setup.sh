# Sourced by quickstart.sh and test.sh: makes the virtual environment `.venv` with pinned wheels.
#
#   setup_venv EXTRA    installs relaywave[EXTRA]; does nothing if that is already there.
#
# It needs Python 3.11 or newer with venv, and neither root nor a compiler. An interrupted set-up
# starts again; one that is out of date with pyproject.toml or constraints.txt is brought up to date.

PYTHON=${PYTHON:-python3}

find_python() {
    local candidate
    for candidate in "$PYTHON" python3.11 python3.12 python3.13 python3; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "relaywave needs Python 3.11 or newer with venv; on Debian or Ubuntu: apt-get install python3.11-venv" >&2
    return 1
}

setup_venv() {
    local extra=$1 python stamp
    python=$(find_python) || return 1
    stamp=.venv/ready-$extra-$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)
    if [ -e "$stamp" ]; then
        return
    fi
    echo "Setting up .venv (once; a few minutes, mostly downloads) ..."
    make_venv .venv "$python"
    # The build-time flag keeps DeepSpeed from looking for compilers: nothing is built for it.
    .venv/bin/python -m pip install --quiet -c constraints.txt setuptools wheel torch
    DS_BUILD_OPS=0 .venv/bin/python -m pip install --quiet -c constraints.txt \
        --no-build-isolation -e ".[$extra]"
    rm .venv/installing
    touch "$stamp"
}

# An environment whose `installing` is still there was left by a killed pip, which cannot go on from
# what it half wrote: it is emptied. Every other one is kept, and what is missing is added.
make_venv() {
    local directory=$1 python=$2
    if [ -e "$directory/installing" ]; then
        "$python" -m venv --clear "$directory"
    else
        "$python" -m venv "$directory"
    fi
    touch "$directory/installing"
}

# With root on Debian or Ubuntu, installs what some tests run on: a real Slurm, a browser, and the
# libraries that FFCV is built with. Elsewhere those tests skip, and say so.
SYSTEM_PACKAGES="slurmctld slurmd slurm-client slurmdbd munge mariadb-server
    build-essential pkg-config libturbojpeg0-dev libopencv-dev chromium chromium-driver
    fonts-dejavu-core"

setup_system() {
    local missing=() known=() package
    for package in $SYSTEM_PACKAGES; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    if [ ${#missing[@]} -eq 0 ]; then
        return
    fi
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "WARNING: without root these are not installed: ${missing[*]}; tests that need them skip" >&2
        return
    fi
    echo "Installing system packages for the tests: ${missing[*]} ..."
    apt-get update -qq
    for package in "${missing[@]}"; do
        apt-cache show "$package" >/dev/null 2>&1 && known+=("$package") ||
            echo "WARNING: this distribution has no package $package; tests that need it skip" >&2
    done
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${known[@]}" >/dev/null
}

setup_ffcv() {
    if .venv/bin/python -c 'import ffcv' 2>/dev/null; then
        return
    fi
    if ! pkg-config --exists opencv4 libturbojpeg 2>/dev/null; then
        echo "WARNING: FFCV is not built (no OpenCV or TurboJPEG headers); its tests skip" >&2
        return
    fi
    echo "Building FFCV ..."
    .venv/bin/python -m pip install --quiet -c constraints.txt --no-build-isolation ffcv
}

# The demo's gradio needs Pillow 12, the numbers of the official implementations Pillow 13: it gets an
# environment of its own, on top of .venv, and is looked at again when that changes: pip leaves out what
# .venv has. Without it the tests of its page skip.
setup_demo() {
    local demo=.venv/demo stamp
    stamp=$demo/ready-$(cat .ci/constraints-demo.txt pyproject.toml constraints.txt | sha256sum | cut -c1-16)
    if [ -e "$stamp" ]; then
        return
    fi
    make_venv "$demo" .venv/bin/python
    .venv/bin/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
        > "$("$demo/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
    if "$demo/bin/python" -m pip install --quiet -c .ci/constraints-demo.txt gradio; then
        rm "$demo/installing"
        touch "$stamp"
    else
        echo "WARNING: gradio could not be installed; the tests of the demo's page skip" >&2
    fi
}
