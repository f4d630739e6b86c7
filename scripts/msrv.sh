#!/usr/bin/env bash
# Checks the published crates, with all features, by the oldest compiler that the workspace's `rust-version` promises.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
rustup toolchain install "$version" --profile minimal
# Not in the folder of other builds: each compiler would throw away what the other built.
cargo "+$version" check -p optimizers --all-features --target-dir "${CARGO_TARGET_DIR:-target}/msrv"
echo "checked with $(rustc "+$version" --version)"
