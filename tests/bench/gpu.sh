#!/bin/bash
# What only a CUDA GPU can tell, in twelve minutes: tests, tables of passes and steps, a sweep, and curves.
#
#     tests/bench/gpu.sh [WHEELS [OUT [OPTIONS OF gpu.py]]]
#
# WHEELS is a folder with the wheels of PACKAGES, for a machine without a network; without it, or where it is "-", they
# come from the index. All else that hbench needs must be there, torch above all. OUT gets logs and tables, a few MB; by
# default it is $OUT, else runs/gpu. Each part has a time limit of its own, and a failure stops none of the others.
# A rehearsal takes a minute or two on a CPU: tests/bench/gpu.sh - runs/rehearsal --device cpu --small
set -u
cd "$(dirname "$0")/../.." || exit 1
PACKAGES="annotated-types krippendorff pydantic pydantic_core torch_fidelity typing-inspection"
WHEELS=${1:--}
OUT=$(realpath -m "${2:-${OUT:-runs/gpu}}")
OPTIONS=("${@:3}")
SITE=$(mktemp -d)
trap 'rm -rf "$SITE"' EXIT
BEGAN=$(date +%s)
mkdir -p "$OUT"

part() { # NAME SECONDS COMMAND...: run it, keep its output, and show the end
    local name=$1 limit=$2
    shift 2
    timeout "$limit" "$@" > "$OUT/$name.log" 2>&1
    echo "=== $name: exit code $?, $(($(date +%s) - BEGAN)) s since the start"
    tail -n 25 "$OUT/$name.log"
}

export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:$SITE${PYTHONPATH:+:$PYTHONPATH}"
if [ "$WHEELS" != - ]; then
    part install 60 python3 -m pip install -q --no-index --no-deps --no-compile --target "$SITE" "$WHEELS"/*.whl
elif ! python3 -c "import pydantic, torch_fidelity, krippendorff" 2> /dev/null; then
    # shellcheck disable=SC2086 # several packages
    part install 60 python3 -m pip install -q --no-deps --no-compile --target "$SITE" -c constraints.txt $PACKAGES
fi
nvidia-smi -L 2> /dev/null

table() { # NAME SECONDS OPTIONS...
    part "$1${3:+-compiled}" "$2" python3 tests/bench/gpu.py "$1" "${@:3}" --out "$OUT" "${OPTIONS[@]}"
}

part tests 150 python3 -m pytest tests/gpu -q -p no:cacheprovider --tb=short -k "not compiled"
table passes 60
table steps 150
if [[ " ${OPTIONS[*]} " == *" --small "* ]]; then
    SWEEP=(digits16 --steps 5 --repeats 1 --device cpu --batch-size 4 --strategies node)
else
    SWEEP=(mnist32 --steps 5,20 --repeats 3 --memory-limit 24GiB)
fi
part sweep 150 python3 cli.py vram-sweep "${SWEEP[@]}" --out "$OUT/sweep" --overwrite
table curves 90
table pretraining 40
part tests-compiled 120 python3 -m pytest tests/gpu -q -p no:cacheprovider --tb=short -k compiled
[[ " ${OPTIONS[*]} " == *" --small "* ]] || table passes 100 --compile # minutes on a CPU
echo "=== all of it: $(du -sm "$OUT" | cut -f1) MB in $OUT"
