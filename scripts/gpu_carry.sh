#!/usr/bin/env bash
# gpu_carry.sh [FOLDER]: what scripts/gpu_check.sh needs on a GPU machine that reaches nothing, in loads that can be carried.
#
#   scripts/gpu_carry.sh              downloads wheels for Python 3.12 on x86-64 Linux into build/carry, and packs them
#   scripts/gpu_carry.sh --pack DIR   packs the wheels of DIR/wheels; nothing is downloaded
#
# The wheels are those of requirements/gpu.txt, but for NVIDIA's libraries, which come with that machine's own torch, and
# what the tests import. Nothing is installed here. Packed, they lie in DIR/1, DIR/2, ...: parts of at most PART_BYTES
# (40 MiB), no more than LOAD_BYTES (44 MiB) in a folder, each with the same LIST of all parts and their sums.
set -euo pipefail
cd "$(dirname "$0")/.."
PART_BYTES=${PART_BYTES:-$((40 << 20))}
LOAD_BYTES=${LOAD_BYTES:-$((44 << 20))}
PYTHON=${PYTHON:-python3}
TESTS="pytest pluggy iniconfig pygments pytest-timeout httpx2"

pack() {
    local folder=$1 wheel name part size load=1 used=0
    rm -rf "$folder"/[0-9]* "$folder/parts" "$folder/LIST"
    mkdir -p "$folder/parts"
    for wheel in "$folder"/wheels/*.whl; do
        name=$(basename "$wheel")
        split --bytes="$PART_BYTES" --numeric-suffixes --suffix-length=3 "$wheel" "$folder/parts/$name.part-"
        printf 'wheel %s %s\n' "$(sha256sum "$wheel" | cut -d' ' -f1)" "$name" >>"$folder/LIST"
    done
    while IFS= read -r part; do # the largest first, each into the load that is being filled
        size=$(stat --format=%s "$part")
        if ((used > 0 && used + size > LOAD_BYTES)); then
            load=$((load + 1)) used=0
        fi
        used=$((used + size))
        mkdir -p "$folder/$load"
        mv "$part" "$folder/$load/"
        printf 'part %s %s\n' "$load" "$(basename "$part")" >>"$folder/LIST"
    done < <(find "$folder/parts" -type f -printf '%s %p\n' | sort -rn | cut -d' ' -f2-)
    rmdir "$folder/parts"
    for part in "$folder"/[0-9]*/; do
        cp "$folder/LIST" "$part"
        printf '%s: %s MiB\n' "${part%/}" "$(du --apparent-size --block-size=1M -s "$part" | cut -f1)"
    done
    printf 'carry one folder after the other: scripts/gpu_check.sh --assemble keeps what has come, and says what is missing\n'
}

if [ "${1:-}" = --pack ]; then
    pack "${2:?--pack wants the folder that holds wheels/}"
    exit
fi

folder=${1:-build/carry}
mkdir -p "$folder/wheels"
wanted=$folder/wanted.txt
sed -n 's/^\([a-z0-9][a-z0-9._-]*==[^ ;\\]*\).*/\1/p' requirements/gpu.txt | grep -v '^nvidia-' >"$wanted"
for name in $TESTS $("$PYTHON" - requirements/dev.txt <<'PYTHON'
import re, sys
# what httpx2 brings besides itself, as the lock tells
text = open(sys.argv[1], encoding="utf-8").read()
entries = re.split(r"\n(?=[a-z0-9])", text)
print(*(entry.split("==")[0] for entry in entries if re.search(r"#\s+(via )?httpx2\b", entry) and "== 'emscripten'" not in entry))
PYTHON
); do
    grep -q "^$name==" "$wanted" || sed -n "s/^\($name==[^ ;\\]*\).*/\1/p" requirements/dev.txt >>"$wanted"
done
platforms=(--platform manylinux1_x86_64 --platform manylinux2014_x86_64)
for minor in 17 24 26 27 28 31 34 35; do platforms+=(--platform "manylinux_2_${minor}_x86_64"); done
"$PYTHON" -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
    --dest "$folder/wheels" --requirement "$wanted"
pack "$folder"
