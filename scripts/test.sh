#!/usr/bin/env bash
# Runs every test, with a GPU required: the same command on a developer's machine and in CI.
#
# On Debian and Ubuntu it installs Mesa's software Vulkan if no adapter is found (as root or with sudo); elsewhere it prints
# what is missing. `OPTIM_TEST_GPU=skip scripts/test.sh` runs without a GPU: its tests then show as ignored.
set -euo pipefail
cd "$(dirname "$0")/.."

# Without `-p`, so that what it builds serves the tests as well.
adapter() { cargo run --quiet --example adapter; }

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

# The default members: all but optim-candle.
cargo test

# By itself, since candle takes minutes to build at first (seven of a core; then the tests are seconds) and would set features of
# dependencies that others share.
cargo test -p optim-candle

# Without an adapter a program ends with one clear line and exit code 1.
code=0
lines=$(VK_DRIVER_FILES=/nonexistent VK_ICD_FILENAMES=/nonexistent WGPU_BACKEND=vulkan \
    cargo run --quiet --example digits -- --backend gpu 2>&1) || code=$?
case "$code $(echo "$lines" | wc -l) $lines" in
    '1 1 error: no GPU adapter found: '*) ;;
    *)
        printf 'without an adapter: expected exit code 1 and one line, got %s and:\n%s\n' "$code" "$lines" >&2
        exit 1
        ;;
esac

# Each backend alone. What is about files has been tested at length.
unset OPTIM_TEST_FUZZ_SECONDS OPTIM_TEST_KILLS
cargo test -p optimizers -p optim-tests --no-default-features --features optimizers/cpu,optim-tests/cpu
cargo test -p optimizers -p optim-tests --no-default-features --features optimizers/gpu,optim-tests/gpu
