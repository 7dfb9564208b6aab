#!/usr/bin/env bash
# gpu_check.sh: everything of maskserve that needs a GPU, in one call of less than ten minutes, with a report.
#
#   scripts/gpu_check.sh                the tests marked gpu, then parity, batch scaling and images/s end to end
#   scripts/gpu_check.sh --assemble     only takes in what scripts/gpu_carry.sh packed, and says what is still missing
#   scripts/gpu_check.sh --dry-run      all steps on this machine's CPU: whether they can be gone, in less than 3 minutes
#
# The machine needs an NVIDIA driver, Python 3.12 and CUDA's libraries as torch brings them; torch itself is never touched.
# Packages either are installed (requirements/gpu.txt and pytest), or were carried: wheels in parts under CARRY, loads that may
# come one by one, kept in CACHE until all are there. Nothing is fetched.
#
#   OUT     where the report goes (runs/gpu_check)          CARRY   loads of gpu_carry.sh (build/carry)
#   CACHE   stays between calls (/tmp/maskserve-gpu)         PYTHON  (.venv/bin/python for --dry-run, else python3)
#   GPU_CHECK_THEN  a command that runs last, a training say, in what is left of the time
set -uo pipefail
cd "$(dirname "$0")/.."
mode=${1:-check}
OUT=${OUT:-runs/gpu_check} CARRY=${CARRY:-build/carry} CACHE=${CACHE:-/tmp/maskserve-gpu}
LIMIT_S=${LIMIT_S:-570} # of all steps; the machine's own limit may be ten minutes
began=$SECONDS failed=0
mkdir -p "$OUT"

# Take in the loads that have come; true when every wheel is whole.
assemble() {
    local load name sum missing=()
    mkdir -p "$CACHE/parts" "$CACHE/wheels"
    for load in "$CARRY"/[0-9]*/; do
        [ -f "$load/LIST" ] || continue
        if [ -f "$CACHE/LIST" ] && ! cmp -s "$load/LIST" "$CACHE/LIST"; then
            rm -rf "$CACHE/parts" "$CACHE/wheels" "$CACHE/site" # another packing
            mkdir -p "$CACHE/parts" "$CACHE/wheels"
        fi
        cp "$load"/* "$CACHE/parts/" && mv "$CACHE/parts/LIST" "$CACHE/LIST"
    done
    [ -f "$CACHE/LIST" ] || return 0 # nothing is carried: what is installed must do
    while read -r _ sum name; do
        [ -f "$CACHE/wheels/$name" ] && continue
        local parts=() whole=yes part number
        while read -r _ number part; do
            parts+=("$CACHE/parts/$part")
            [ -f "$CACHE/parts/$part" ] || { whole=no && missing+=("$number"); }
        done < <(grep -F " $name.part-" "$CACHE/LIST" | sort -k3)
        [ $whole = yes ] || continue
        cat "${parts[@]}" >"$CACHE/wheels/.$name"
        if [ "$(sha256sum "$CACHE/wheels/.$name" | cut -d' ' -f1)" != "$sum" ]; then
            echo "gpu_check: $name came damaged; carry its parts again" >&2
            rm -f "$CACHE/wheels/.$name" "${parts[@]}"
            return 1
        fi
        mv "$CACHE/wheels/.$name" "$CACHE/wheels/$name"
        rm -f "${parts[@]}"
    done < <(grep '^wheel ' "$CACHE/LIST")
    if ((${#missing[@]})); then
        echo "gpu_check: still missing: $(printf '%s\n' "${missing[@]}" | sort -nu | sed "s|^|$CARRY/|" | paste -sd' ' -)" >&2
        return 1
    fi
    echo "gpu_check: all wheels are here: $(find "$CACHE/wheels" -name '*.whl' | wc -l)"
}

# Put the carried wheels on the path, before whatever is installed; torch stays as it is.
install() {
    compgen -G "$CACHE/wheels/*.whl" >/dev/null || return 0
    if [ ! -f "$CACHE/site/.ok" ]; then
        rm -rf "$CACHE/site"
        "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$CACHE/site" \
            "$CACHE"/wheels/*.whl || return 1
        touch "$CACHE/site/.ok"
    fi
    local libraries
    libraries=$("$PYTHON" -c '
import importlib.util, pathlib
spec = importlib.util.find_spec("nvidia")
folders = [pathlib.Path(f) for f in (spec.submodule_search_locations or [])] if spec else []
print(":".join(str(path) for folder in folders for path in sorted(folder.glob("*/lib"))))')
    export PYTHONPATH=$CACHE/site${PYTHONPATH:+:$PYTHONPATH} LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}

# step NAME SECONDS COMMAND...: runs it with a limit, keeps its output, and notes how it ended.
step() {
    local name=$1 limit=$2 left=$((LIMIT_S - (SECONDS - began))) start=$SECONDS code
    shift 2
    ((left < limit)) && limit=$left
    if ((limit < 5)); then
        echo "- $name: **not run**, the time was over" >>"$OUT/steps.md"
        failed=1
        return
    fi
    echo "== $name (at most $limit s)"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$OUT/$name.txt"
    code=${PIPESTATUS[0]}
    ((code == 0)) || failed=1
    echo "- $name: $([ "$code" = 0 ] && echo 'went well' || echo "**ended with $code**") in $((SECONDS - start)) s" >>"$OUT/steps.md"
}

export PYTHONUNBUFFERED=1
rm -f "$OUT"/*.md "$OUT"/*.txt
case $mode in
--assemble)
    assemble
    exit 0
    ;;
--dry-run)
    PYTHON=${PYTHON:-.venv/bin/python}
    step tests 60 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider tests/server/engines/test_gpu.py
    step cuda 150 "$PYTHON" -m bench.gpu --pretend --seconds 0.1 --clients 2 --out "$OUT/cuda.md"
    ;;
check)
    PYTHON=${PYTHON:-python3}
    assemble || exit 3
    install || exit 3
    export MASKSERVE_GPU=required
    step tests 240 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider tests/server/engines/test_gpu.py
    step cuda 200 "$PYTHON" -m bench.gpu --engine cuda --seconds 3 --out "$OUT/cuda.md"
    if compgen -G 'bundles/*/*/model.plan' >/dev/null; then
        step tensorrt 150 "$PYTHON" -m bench.gpu --engine tensorrt --seconds 3 --out "$OUT/tensorrt.md"
    else
        echo "- tensorrt: not run, no bundle has a model.plan" >>"$OUT/steps.md"
    fi
    ;;
*)
    sed -n '2,/^set /{/^#/p}' "$0" >&2
    exit 2
    ;;
esac
[ -z "${GPU_CHECK_THEN:-}" ] || step then 600 bash -c "$GPU_CHECK_THEN"
{
    echo "# scripts/gpu_check.sh${1:+ $1}"
    echo
    cat "$OUT/steps.md"
    for part in cuda tensorrt; do
        [ -f "$OUT/$part.md" ] && echo && sed 's/^#/##/' "$OUT/$part.md"
    done
} >"$OUT/report.md"
echo "== $OUT/report.md"
cat "$OUT/steps.md"
exit $failed
