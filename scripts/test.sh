#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# All tests. Wants what `make setup-test build models` leaves: under SCRIBE_TEST_COMPLETE=1 a missing
# model or tool is a failure; a bare `cargo test` skips such tests and says so.
#
#   scripts/test.sh [arguments of cargo test]
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
find_cargo || die "no Rust on this machine" "make setup says what to install"

# The release profile: whisper.cpp and most crates are then built once for plugin, linters and tests.
profile=release target=target
# shellcheck source=scripts/engine.sh
. scripts/engine.sh

# Programs that tests start (gst-launch-1.0, Python) load the plugin as it was built for users.
GST_PLUGIN_PATH=$PWD/target/release
GST_REGISTRY=$PWD/target/test-registry.bin
SCRIBE_TEST_COMPLETE=1
export GST_PLUGIN_PATH GST_REGISTRY SCRIBE_TEST_COMPLETE
rm -f "$GST_REGISTRY"

cargo test --release --locked --no-fail-fast --features "cli prometheus test-support" "$@" ||
    die "tests failed" "one alone: scripts/test.sh --test NAME -- PART_OF_ITS_NAME --nocapture"

# The elements' tests on fakes once more, with fakes that work on eight windows side by side, as ONNX Runtime does.
if [ "$#" -eq 0 ]; then
    SCRIBE_TEST_PLACES=8 cargo test --release --locked --no-fail-fast --features "cli prometheus test-support" \
        --test transcriber --test timeline --test diarizer ||
        die "tests fail with windows side by side" "SCRIBE_TEST_PLACES=8 scripts/test.sh --test NAME"
fi

# The registry's leases and evictions under shuttle, whose locks are other ones: a build of the library for itself.
if [ "$#" -eq 0 ]; then
    cargo test --release --locked --lib --features "cli prometheus test-support model-check" model_check ||
        die "an interleaving of threads fails" "SHUTTLE_RANDOM_SEED, as printed above, runs it again"
fi
