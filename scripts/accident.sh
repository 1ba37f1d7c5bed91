#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# The accident on a made-up card: a table, 1,000 random seeds, each mechanism switched off; "20 of 20 …" at the end.
#
#   scripts/accident.sh [seeds]
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
find_cargo || die "no Rust on this machine" "make setup says what to install"

profile=release target=target
# shellcheck source=scripts/engine.sh
. scripts/engine.sh

cargo run --release --locked --quiet --features "cli test-support" --example accident -- "${1:-1000}"
