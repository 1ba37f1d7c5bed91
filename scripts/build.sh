#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# Builds the plugin and the programs.
#
#   scripts/build.sh            for this machine's CPU, in target/release
#   scripts/build.sh --dist     for any x86-64 with AVX2, in target-dist/dist
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

find_cargo || die "no Rust on this machine" "make setup says what to install"

case ${1:-} in
    '') profile=release target=target ;;
    --dist) profile=dist target="target-dist" ;;
    *) die "unknown argument '$1'" "scripts/build.sh [--dist]" ;;
esac
# shellcheck source=scripts/engine.sh
. scripts/engine.sh

say "building in $target/$profile (the first time takes some minutes)"
# The programs' crates do not enter the plugin: its code names none of them.
cargo build --profile "$profile" --locked --target-dir "$target" --features cli ||
    die "the build failed" "the lines above say why. A missing header or tool: make setup. A Cargo.lock that does not fit: git checkout Cargo.lock. Strange errors of CMake: rm -rf $target"

[ -f "$target/$profile/libgstscribe.so" ] ||
    die "the build made no $target/$profile/libgstscribe.so" "see [lib] in Cargo.toml: name gstscribe, crate-type cdylib"
