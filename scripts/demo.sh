#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# The main job on a recording of the repository: captions as they come, and three files.
#
#   scripts/demo.sh [FILE]
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
find_cargo || die "no Rust on this machine" "make setup says what to install"

[ -f target/release/libgstscribe.so ] || die "the plugin is not built" "make build"
GST_PLUGIN_PATH=$PWD/target/release${GST_PLUGIN_PATH:+:$GST_PLUGIN_PATH}
# A cache of its own, as in inspect.sh: the demo must not fail for what an older build left behind.
GST_REGISTRY=$PWD/target/demo-registry.bin
export GST_PLUGIN_PATH GST_REGISTRY

file=${1:-tests/data/demo.opus}
cargo build --quiet --release --locked --features cli --example demo ||
    die "the demo program does not build" "make build shows whether the plugin does"
target/release/examples/demo "$file" demo-output ||
    die "the demo failed on $file" "the message above says what to do; more in docs/troubleshooting.md"
