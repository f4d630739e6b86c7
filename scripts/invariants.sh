#!/usr/bin/env bash
# Checks the invariants of ARCHITECTURE.md that a script can check. Prints what breaks them; exits 1 if anything does.
set -euo pipefail
cd "$(dirname "$0")/.."
failed=0

# forbid NAME PATTERN PATH...: no line of Rust code (comments aside) may match, but for lines that match $except, if set.
forbid() {
    local name=$1 pattern=$2 hits
    shift 2
    hits=$(git grep -nE "$pattern" -- "$@" | grep -vE "^[^:]+:[0-9]+:[[:space:]]*(//${except:+|$except})" || true)
    if [ -n "$hits" ]; then
        printf 'broken: %s\n%s\n' "$name" "$hits" >&2
        failed=1
    fi
}

# no_dependency CRATE PATTERN: none of the crate's normal dependencies may match.
no_dependency() {
    local tree hits
    tree=$(cargo tree --quiet -e normal -p "$1" "${@:3}" --prefix none)
    hits=$(grep -E "$2" <<<"$tree" || true)
    if [ -n "$hits" ]; then
        printf 'broken: %s depends on\n%s\n' "$1" "$hits" >&2
        failed=1
    fi
}

forbid 'optim-core names no thread, GPU, SIMD crate, file, clock or environment' \
    '\b(rayon|wgpu|multiversion|pulp)\b|std::(\{.*\b)?(fs|env|time|thread|net|process)\b' 'crates/optim-core/src/*.rs'
no_dependency optim-core '^(rayon|wgpu|multiversion|optim-(cpu|gpu|shaders)|optimizers) '
no_dependency optim-cpu '^(wgpu|optim-(gpu|shaders)|optimizers) '
no_dependency optim-checkpoint '^(rayon|wgpu|optim-(cpu|gpu|shaders)|optimizers) '
no_dependency optim-gpu '^(rayon|optim-cpu|optimizers) '
no_dependency optim-candle '^(wgpu|optim-(gpu|shaders)|optimizers) '
# Without `-p` cargo takes the default members.
hits=$(cargo tree --quiet -e all --prefix none | grep -E '^(candle-core|candle-nn|optim-candle) ' || true)
others=$(cargo tree --quiet --workspace --exclude optim-candle --depth 0 --prefix none | sort -u)
if [ -n "$hits" ] || [ "$others" != "$(cargo tree --quiet --depth 0 --prefix none | sort -u)" ]; then
    printf 'broken: the default members are all crates but optim-candle, and none depends on candle\n%s\n' "$hits" >&2
    failed=1
fi
no_dependency optimizers '^wgpu' --no-default-features --features cpu
no_dependency optimizers '^rayon' --no-default-features --features gpu
# Derives change no code, and one whole module is there or not.
except='#\[cfg_attr\(feature = "serde", (derive\(serde::Serialize, serde::Deserialize\)(, serde\([^()]*\))?|serde\([^()]*\))\)\]$' \
    forbid 'cfg(feature) stands in the facade only, but for the derives of serde' 'cfg(_attr|!)?\(.*feature *=' \
    'crates/optim-*/src/*.rs' 'shaders/*.rs' ':!crates/optim-core/src/lib.rs'
except='#\[cfg\(feature = "serde"\)\]$' \
    forbid 'the one module of a feature is serialization' 'cfg(_attr|!)?\(.*feature *=' 'crates/optim-core/src/lib.rs'
no_dependency optim-core '^serde'
# The one place where both may stand.
arch=':!crates/optim-cpu/src/arch/*'
forbid 'cfg(target_arch) stands in arch only' 'cfg(_attr|!)?\(.*target_arch' 'crates/*.rs' 'shaders/*.rs' "$arch"
forbid 'unsafe code stands in arch only' '\bunsafe\b *(\{|fn|impl|extern)|allow\(unsafe_code' 'crates/*.rs' 'shaders/*.rs' "$arch"
except='.*"x86_64\+avx512f\+avx512vl\+avx512dq\+avx512bw", "x86_64\+avx2", "aarch64\+neon"|.*" => "' \
    forbid 'every kernel is compiled for the same instruction sets' '"(x86_64|aarch64)\+' 'crates/optim-cpu/src/*.rs'
forbid 'the CPU never fuses a multiplication and an addition' 'mul_add' 'crates/optim-cpu/src/*.rs'
forbid 'wgpu types are public in optim-gpu only' '\bwgpu::' 'crates/optim-core/src/*.rs' 'crates/optim-cpu/src/*.rs' 'crates/optimizers/src/*.rs'
forbid 'matches on the rules have no catch-all arm' '^ *_ =>' 'crates/optim-core/src/rule.rs' 'crates/optim-cpu/src/rules/mod.rs'

# One rule, one name, four places. A rule that shares another's kernel names it, and shares its judge too.
for file in crates/optim-core/src/rules/*.rs; do
    rule=$(basename "$file" .rs)
    [ "$rule" = mod ] && continue
    shared=$(sed -n '/fn source(/,/}/s/^ *"\(.*\)"$/\1/p' "$file")
    kernel=${shared:-$rule}
    for twin in "crates/optim-cpu/src/rules/$kernel.rs" "shaders/rules/$kernel.wgsl" "tests/src/reference/$kernel.rs"; do
        if [ ! -e "$twin" ]; then
            echo "broken: the rule $rule has no $twin" >&2
            failed=1
        fi
    done
done

# Each published crate carries the licences and a README.
for crate in crates/* shaders; do
    cmp -s LICENSE-MIT "$crate/LICENSE-MIT" && cmp -s LICENSE-APACHE "$crate/LICENSE-APACHE" || {
        echo "broken: $crate lacks a copy of the licences" >&2
        failed=1
    }
    readme=$(sed -n 's/^readme = "\(.*\)"$/\1/p' "$crate/Cargo.toml")
    if [ ! -f "$crate/$readme" ]; then
        echo "broken: $crate lacks a README" >&2
        failed=1
    fi
done
[ $failed = 0 ] && echo 'invariants hold'
exit $failed
