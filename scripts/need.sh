#!/bin/sh
# need.sh [COMMAND:PACKAGE]...: makes sure that the commands are there. As root with apt-get the
# missing packages are installed; otherwise they are named, and it fails. The Rust toolchain and a C
# compiler are the user's to choose, so they are only asked for.
set -eu

command -v cargo >/dev/null || {
    echo "cargo is missing: install Rust from https://rustup.rs (rust-toolchain.toml names the version)" >&2
    exit 1
}
command -v cc >/dev/null || {
    echo "a C compiler (cc) is missing: install gcc or clang, on Debian: apt-get install gcc libc6-dev" >&2
    exit 1
}

packages=
for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || packages="$packages ${pair#*:}"
done
[ -n "$packages" ] || exit 0

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "installing with apt-get:$packages"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq </dev/null
    # shellcheck disable=SC2086 # a list of words
    apt-get install -qq -y --no-install-recommends $packages </dev/null
else
    echo "these packages are missing, please install them (Debian names):$packages" >&2
    exit 1
fi
