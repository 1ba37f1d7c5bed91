#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# Live captions in real time: delay, errors beside file mode, processor time, and a machine that is too slow. Figures go to
# benches/runs, the section "Live" of docs/benchmarks.md is written from them.
#
#   scripts/bench-live.sh                 everything that is not kept in target/bench/live (a quiet machine, fifty minutes)
#   scripts/bench-live.sh --fresh         everything anew
#   scripts/bench-live.sh "one core"      cases by a part of their names; nothing is kept in benches/runs
#
# Recordings: the folder SCRIBE_DATA (default ../shared/data), and what ../eval/make_derived.py beside it makes.
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
find_cargo || die "no Rust on this machine" "make setup says what to install"

if [ ! -d "${SCRIBE_DATA:-../shared/data}/wer" ]; then
    say "SKIPPED: no recordings in ${SCRIBE_DATA:-../shared/data} (set SCRIBE_DATA): nothing of live captions is measured"
    exit 0
fi
# SCRIBE_BENCH_BUILT=1: what is in target/release is measured as it is.
if [ "${SCRIBE_BENCH_BUILT:-0}" != 1 ]; then
    profile=release target=target
    # shellcheck source=scripts/engine.sh
    . scripts/engine.sh
    cargo build --release --locked --features cli --lib --bin scribe-worker --example batch --example live_delay || die "the build failed" "make build"
fi
# GStreamer's own whispertranscriber, as scripts/bench.sh builds it: the crate is a plugin, too.
peer=target/bench/gst-whisper
if [ ! -f "$peer/plugins/libgstwhisper.so" ]; then
    say "building whispertranscriber (crate gst-plugin-whisper 0.15.2) in target/bench (some minutes, once)"
    GGML_NATIVE=ON cargo build --quiet --release --locked --manifest-path scripts/bench/gst-whisper/Cargo.toml --target-dir "$peer" ||
        die "gst-plugin-whisper 0.15.2 could not be built" "the lines above say why"
    mkdir -p "$peer/plugins"
    # shellcheck disable=SC2012
    cp "$(ls -t "$peer"/release/deps/libgstwhisper-*.so | head -1)" "$peer/plugins/libgstwhisper.so"
fi
for program in batch live_delay; do
    [ -x "target/release/examples/$program" ] || die "target/release/examples/$program is missing" "make build"
done

# SCRIBE_BENCH_PYTHON: an environment that has scripts/requirements-bench.txt.
python=${SCRIBE_BENCH_PYTHON:-$PWD/target/venv-bench/bin/python}
[ -x "$python" ] || die "no Python environment for benches" "scripts/bench.sh nonspeech makes target/venv-bench"

export SCRIBE_MODELS="$PWD/models"
exec "$python" -B scripts/bench/live.py "$@"
