#!/usr/bin/env bash
# Measures what benches/README.md and the front page show, beside PyTorch and candle, and draws the chart: half an hour on a quiet machine.
#
#     benches/measure.sh [PYTHON]         a Python that has PyTorch; python3 if it is not named
set -euo pipefail
python=$(command -v -- "${1:-python3}") || { echo "no ${1:-python3} here" >&2; exit 1; }
[[ $python = /* ]] || python=$PWD/$python
# Before anything is removed.
"$python" -c 'import torch'
cd "$(dirname "$0")"
adamw=results/adamw.jsonl rules=results/rules.jsonl rows=results/rows.jsonl
bench() { cargo bench -q -p optim-benches "$@"; }

rm -f "$adamw" "$rules"
# Paired: ours, PyTorch's, ours, ….
peers/paired.py --python "$python" --save "$adamw" --rule adamw --form fused
peers/paired.py --python "$python" --save "$adamw" --rule adamw --form foreach --rounds 1
peers/paired.py --python "$python" --save "$adamw" --rule adamw --form fused --clip yes --case gpt2-small resnet50
peers/paired.py --python "$python" --save "$rules" --rule sgd momentum adam adagrad --form fused --case resnet50 --rounds 3
peers/paired.py --python "$python" --save "$rules" --form default foreach --case resnet50 --rounds 3 --rule \
    rms_prop_plain nadam radam ada_max adadelta rprop asgd ada_factor_plain

# The states that PyTorch does not have, and candle.
for state in bf16 8bit; do
    for case in flat64M gpt2-small resnet50; do
        bench -- --json all "cpu $case adamw 2 f32 $state-state no_clip" >>"$adamw"
    done
done
bench --features candle -- --json candle ' adamw 2 ' >>"$adamw"

head -n 1 "$adamw" >"$rows"
bench -- --json >>"$rows"
bench -- chart "$PWD/$adamw"
