#!/usr/bin/env bash
# Runs every test, with a GPU required: the same command on a developer's machine and in CI.
#
# On Debian and Ubuntu it installs Mesa's software Vulkan if no adapter is found (as root or with sudo); elsewhere it prints
# what is missing. `OPTIM_TEST_GPU=skip scripts/test.sh` runs without a GPU: its tests then show as ignored.
set -euo pipefail
cd "$(dirname "$0")/.."

adapter() { cargo run --quiet -p optim-gpu --example adapter; }

if [ "${OPTIM_TEST_GPU:-}" != skip ] && ! adapter; then
    packages='mesa-vulkan-drivers libvulkan1'
    if ! command -v apt-get >/dev/null; then
        echo "no GPU adapter: install a Vulkan driver (Debian and Ubuntu: apt-get install $packages), or set OPTIM_TEST_GPU=skip" >&2
        exit 1
    fi
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -q
    # shellcheck disable=SC2086
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qy $packages
    adapter
fi

cargo test --workspace
# Each backend alone.
cargo test -p optimizers -p optim-tests --no-default-features --features optimizers/cpu,optim-tests/cpu
cargo test -p optimizers -p optim-tests --no-default-features --features optimizers/gpu,optim-tests/gpu
