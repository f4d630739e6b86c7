#!/usr/bin/env bash
# Tests and measures the library on this machine's GPU, and writes one table: benches/results/ADAPTER-DATE.txt. It also runs on a
# software adapter, and says so in the heading. Where a test fails it measures all the same, and ends with an error.
#
#     scripts/gpu.sh [PYTHON]               a Python that has PyTorch with CUDA; python3 if it is not named. Without one, that part is left out
#     scripts/gpu.sh pack FOLDER            only builds, into a folder for a machine that has a GPU and no Rust. The checkout goes there
#                                           too, to the same path: the tests read their data from it
#     scripts/gpu.sh unpacked FOLDER [PYTHON]    the first, with what was built into the folder
set -euo pipefail

# The place of a program or a folder, from where this was called.
whole() { [[ $1 = /* ]] && echo "$1" || echo "$PWD/$1"; }
program() { whole "$(command -v -- "$1" || echo "$1")"; }

case ${1-} in
    pack) folder=$(whole "$2") ;;
    unpacked) folder=$(whole "$2") python=$(program "${3:-python3}") ;;
    *) python=$(program "${1:-python3}") ;;
esac
cd "$(dirname "$0")/.."

# Where `cargo ARGUMENTS…` put the program that it made, whatever its target folder is. Errors of the compiler go to the error output.
built() { cargo "$@" --quiet --message-format json-render-diagnostics | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1; }

pack() {
    local adapter suite bench
    mkdir -p "$1"
    adapter=$(built build --release -p optim-gpu --example adapter)
    suite=$(built test --no-run --release -p optim-tests --test suite)
    bench=$(built bench --no-run -p optim-benches --bench main)
    install --strip "$adapter" "$1/adapter"
    install --strip "$suite" "$1/suite"
    install --strip "$bench" "$1/bench"
    echo "commit $(git describe --always --dirty), $(rustc --version)" >"$1/version"
}

case ${1-} in
    pack)
        pack "$folder"
        exit
        ;;
    unpacked)
        programs=$folder
        ;;
    *)
        programs=${CARGO_TARGET_DIR:-target}/gpu
        pack "$programs"
        programs=$(realpath "$programs")
        ;;
esac

# Without an adapter it ends here, with the install line.
adapter=$("$programs/adapter")
name=$(tr '[:upper:]' '[:lower:]' <<<"${adapter%%,*}" | tr -cs '[:alnum:]' - | sed 's/^-*//; s/-*$//')
table=benches/results/$name-$(date +%F).txt
log=$(mktemp) part=$(mktemp)
trap 'rm -f "$log" "$part"' EXIT

measure() {
    echo "# $adapter"
    case $adapter in
        *software*) echo '# A software adapter: this shows that everything works. Its times say nothing of GPUs.' ;;
    esac
    echo "# $(date +%F), $(<"$programs/version")"

    printf '\n## Tests of the GPU backend, and of its numbers against the CPU backend\n\n'
    if ! (cd tests && "$programs/suite" gpu parity) >"$log" 2>&1; then
        cat "$log" >&2
        grep '^test .* FAILED$' "$log" || true
    fi
    grep '^test result' "$log" || echo 'test result: FAILED. The tests ended without a result'

    printf '\n## Steps: cargo bench -p optim-benches -- gpu\n\n'
    "$programs/bench" gpu 2>&1 | grep -v XDG_RUNTIME_DIR

    printf '\n## PyTorch on the same device: benches/peers/torch_adamw.py --cuda --form fused foreach --table\n\n'
    if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
        "$python" benches/peers/torch_adamw.py --cuda --form fused foreach --table
    else
        echo 'left out: no PyTorch with CUDA here'
    fi
}
measure | tee "$part"
mkdir -p benches/results
cp "$part" "$table"
echo "written: $table" >&2
! grep -q '^test result: FAILED' "$table"
