#!/usr/bin/env bash
# The main job at pocket size, on real images, on CPU if there is no GPU:
# pack -> train RDM (two stages) and WaveDiff on two DeepSpeed ranks -> sample -> evaluate.
#
#   bash quickstart.sh [--data PATH] [--out DIR]
#
#   --data PATH   your own directory, zip or tar of images (class = sub-directory) instead of
#                 the photographs inside the scikit-image wheel; at most 6,000 of them are taken
#   --out DIR     where everything goes (default: runs/quickstart, or runs/quickstart-NAME)
#
# The same command resumes where it was stopped, or shows the results.
set -euo pipefail

reject() { echo "quickstart.sh: $*" >&2; exit 2; }

data='' out=''
while [ $# -gt 0 ]; do
    case $1 in
        --data) data=${2:-} && [ -e "$data" ] || reject "--data needs a path that exists, not '$data'"; shift 2 ;;
        --out) out=${2:-} && [ -n "$out" ] || reject "--out needs a directory"; shift 2 ;;
        -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit ;;
        *) reject "unknown option $1 (see --help)" ;;
    esac
done
[ -z "$data" ] || data=$(realpath -- "$data")
[ -z "$out" ] || out=$(realpath -m -- "$out")
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ -z "$out" ]; then
    out=runs/quickstart${data:+-$(basename -- "$data" | tr -c 'A-Za-z0-9\n' '_')}
fi

source .ci/setup.sh
setup_venv quickstart

ranks=2
seeds=0-127
export WANDB_SILENT=true

# Runs a command of relaywave; it ends with this script, whatever ends this script.
relaywave() { setpriv --pdeathsig TERM .venv/bin/relaywave "$@"; }

phase() { printf '\n== %s\n' "$*"; }

train() { # train NAME key=value ...
    local name=$1
    shift
    relaywave train "quickstart_$name" --run-dir "$out/$name" --ranks $ranks \
        "data.path=$out/data" "$@"
}

snapshots() { # snapshots first|last RUN ... : prints the snapshot directories of runs
    local which=$1 run
    shift
    for run in "$@"; do
        find "$out/$run/snapshots" -mindepth 1 -maxdepth 1 -name '[0-9]*' | sort |
            if [ "$which" = first ]; then head -n 1; else tail -n 1; fi
    done
}

evaluate() { # evaluate TITLE NAME SNAPSHOT ...
    local title=$1 name=$2
    shift 2
    echo "$title"
    relaywave eval run "$@" --ranks $ranks --seeds $seeds --batch-size 32 \
        --keep-images "$out/samples/$name" \
        --reference "$out/reference.npz" --metrics fd:block4,fd:block10 \
        --title "$title" --out "$out/evaluation/$name.json" >/dev/null
}

look() { # look NAME: real images, samples of the untrained model and of the trained one
    relaywave eval sheet sets "$out/data" "$out/samples/$1"{_untrained,} \
        --rows 6 --upscale 2 --out "$out/$1.png" >/dev/null
}

# Whatever stopped it, say how to resume.
trap 'code=$?; [ $code -eq 0 ] || echo "quickstart.sh stopped (exit code $code); the same command resumes." >&2' EXIT

started=$SECONDS
mkdir -p "$out"

phase "Data: 64x64 shards"
if [ -n "$data" ]; then
    relaywave data pack images "$data" "$out/data" --resolution 64 --subset 6000
else
    relaywave data pack photographs "$out/data" --resolution 64
fi
classes=$(relaywave data info "$out/data" --classes)

phase "RDM stage 1: EDM at 16x16"
train edm16 "objective.unet.label_dim=$classes"
phase "RDM stage 2: relay from 16x16 to 64x64"
train relay64 "objective.unet.label_dim=$classes"
phase "WaveDiff: generator and discriminator at 64x64"
train wavediff64

phase "Reference statistics of the data"
relaywave eval reference "$out/data" "$out/reference.npz" --ranks $ranks

phase "Samples and Fréchet distances"
mapfile -t rdm < <(snapshots last edm16 relay64)
mapfile -t rdm_untrained < <(snapshots first edm16 relay64)
evaluate "RDM, untrained" rdm_untrained "${rdm_untrained[@]}"
evaluate "RDM" rdm "${rdm[@]}"
evaluate "WaveDiff, untrained" wavediff_untrained "$(snapshots first wavediff64)"
evaluate "WaveDiff" wavediff "$(snapshots last wavediff64)"
look rdm
look wavediff

phase "Results"
relaywave eval table "$out"/evaluation/{rdm_untrained,rdm,wavediff_untrained,wavediff}.json
relaywave report "$out" --out "$out/report" >/dev/null
echo
echo "Report: $out/report/index.html (open it in a browser; it needs no server)"
echo "Real, untrained, trained: $out/rdm.png $out/wavediff.png   Samples: $out/samples   Runs: $out/{edm16,relay64,wavediff64}"
echo "Set-up excluded, this took $((SECONDS - started)) s."
