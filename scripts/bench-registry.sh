#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# Figures of the registry for docs/memory.md: memory and throughput of 1 to 16 transcribers beside GStreamer's own
# whispertranscriber, and the delay of a live stream beside 15 files. Sound from tests/data; half an hour in all.
#
#   scripts/bench-registry.sh [--rounds N] [streams|live]...
#   scripts/bench-registry.sh --trial --rounds 1 --streams 1,8 streams        a look; nothing is kept
#   scripts/bench-registry.sh --trial --rounds 1 --windows 20 live
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
find_cargo || die "no Rust on this machine" "make setup says what to install"

work=$PWD/target/bench
mkdir -p "$work"
# SCRIBE_BENCH_BUILT=1: what is in target is measured as it is.
if [ "${SCRIBE_BENCH_BUILT:-0}" != 1 ]; then
    profile=release target=target
    # shellcheck source=scripts/engine.sh
    . scripts/engine.sh
    cargo build --release --locked --features cli --lib --example live_beside_files || die "the build failed" "make build"
    [ -x "$work/gst-whisper/release/bench-streams" ] ||
        say "building whispertranscriber (crate gst-plugin-whisper 0.15.2) in target/bench (some minutes, once)"
    # As scribe's whisper.cpp is built: for this CPU, GGML_LLAMAFILE=ON by .cargo/config.toml.
    GGML_NATIVE=ON cargo build --quiet --release --locked --manifest-path scripts/bench/gst-whisper/Cargo.toml \
        --target-dir "$work/gst-whisper" || die "gst-plugin-whisper 0.15.2 could not be built" "the lines above say why"
fi
[ -f models/ggml-tiny.en-q8_0.bin ] || die "the default models are missing" "make models"

export SCRIBE_MODELS="$PWD/models"
exec /usr/bin/python3 -B scripts/bench/registry.py "$@"
