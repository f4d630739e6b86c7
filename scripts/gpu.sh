#!/usr/bin/env bash
# Tests and measures the library on this machine's GPU, and writes one table: benches/results/ADAPTER-DATE.txt. It also runs on a
# software adapter, and says so in the heading.
#
#     scripts/gpu.sh [PYTHON]         a Python that has PyTorch with CUDA; python3 if it is not named. Without one, that part is left out
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}

# Without an adapter it ends here, with the install line.
adapter=$(cargo run --quiet --example adapter)
name=$(tr '[:upper:]' '[:lower:]' <<<"${adapter%%,*}" | tr -cs '[:alnum:]' - | sed 's/^-*//; s/-*$//')
table=benches/results/$name-$(date +%F).txt
log=$(mktemp) part=$(mktemp)
trap 'rm -f "$log" "$part"' EXIT

measure() {
    echo "# $adapter"
    case $adapter in
        *software*) echo '# A software adapter: this shows that everything works. Its times say nothing of GPUs.' ;;
    esac
    echo "# $(date +%F), commit $(git describe --always --dirty), $(rustc --version)"

    printf '\n## Tests of the GPU backend, and of its numbers against the CPU backend\n\n'
    cargo test --quiet -p optim-tests --test suite -- gpu parity >"$log" 2>&1 || {
        cat "$log" >&2
        return 1
    }
    grep '^test result' "$log"

    printf '\n## Steps: cargo bench -p optim-benches -- gpu\n\n'
    cargo bench --quiet -p optim-benches -- gpu 2>&1 | grep -v XDG_RUNTIME_DIR

    printf '\n## PyTorch on the same device: benches/peers/torch_adamw.py --cuda\n\n'
    if [ -e benches/peers/torch_adamw.py ] && "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
        "$python" benches/peers/torch_adamw.py --cuda
    else
        echo 'left out: no PyTorch with CUDA here'
    fi
}
measure | tee "$part"
mkdir -p benches/results
cp "$part" "$table"
echo "written: $table" >&2
