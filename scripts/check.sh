#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# Everything that judges the source without running it.
#
# All with --release: the build scripts, whisper.cpp's above all, then run once for the plugin, the
# linters and the tests together, instead of once more for the dev profile.
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
find_cargo || die "no Rust on this machine" "make setup says what to install"
PATH=$PWD/target/tools/bin:$PATH
profile=release target=target
# shellcheck source=scripts/engine.sh
. scripts/engine.sh

step() {
    say "check: $1"
}

step "formatting"
cargo fmt --check || die "the formatting differs" "cargo fmt"

step "scripts"
mkdir -p target
find . -path ./target -prune -o -path ./target-dist -prune -o -name '*.sh' -print | LC_ALL=C sort >target/scripts.list
# File names without spaces: ours.
# shellcheck disable=SC2046
shellcheck -x .ci/run $(cat target/scripts.list) || die "shellcheck found something" "each finding has a page: shellcheck.net/wiki/SCnnnn"

step "licences, sources, duplicates of dependencies"
cargo deny --log-level warn check bans licenses sources ||
    die "cargo deny found something" "take another crate, or an exception with its reason in deny.toml"

step "clippy, all targets with all features that need no GPU"
cargo clippy --release --locked --all-targets --features "cli prometheus test-support" -- -D warnings ||
    die "clippy found something" "mend it, or allow it in place with a reason"
step "clippy, the plugin as released"
cargo clippy --release --locked -- -D warnings ||
    die "clippy found something without the features" "mend it, or allow it in place with a reason"

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --no-deps --document-private-items --features cli ||
    die "the documentation has broken links or the like" "the lines above name file and line"
say "check: all in order"
