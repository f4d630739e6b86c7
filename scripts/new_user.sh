#!/usr/bin/env bash
# What a new user does: a crate of their own, outside of this repository, that depends on the library and holds the README's first
# example. It must compile without a warning and train.
#
# It shares the folder of other builds (CARGO_TARGET_DIR, default: target) and their profile, so that little is built anew.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
target=$(mkdir -p "${CARGO_TARGET_DIR:-target}" && cd "${CARGO_TARGET_DIR:-target}" && pwd)

crate=$(mktemp -d)
trap 'rm -rf "$crate"' EXIT
cd "$crate"
cargo init --quiet --vcs none --name new-user
cargo add --quiet --path "$root/crates/optimizers"
{
    printf '[lints.rust]\nwarnings = "deny"\n\n'
    sed -n '/^\[profile\./,$p' "$root/Cargo.toml"
} >>Cargo.toml
# The versions that are known to work together, so that nothing is asked of the network but what the tests have asked.
cp "$root/Cargo.lock" .
awk '/^```/ { if (inside) exit; inside = /^```rust/; next } inside' "$root/README.md" >src/main.rs
[ -s src/main.rs ] || { echo 'the README has no Rust example' >&2; exit 1; }
cargo run --quiet --target-dir "$target"
echo "the README's example trains in a crate of its own"
