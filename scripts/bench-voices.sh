#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# Who is known again: speakers by seconds of enrolment and of test, conversations by name, meeting rooms, look-up among 10,000.
# Figures go to benches/runs, a section of docs/benchmarks.md is written from them.
#
#   scripts/bench-voices.sh            everything, some minutes
#   scripts/bench-voices.sh --trial    a look; nothing is kept in benches/runs
#
# Recordings: those of the folder SCRIBE_DATA (default ../shared/data), and conversations that ../eval/make_derived.py beside
# it composes of what is not enrolled. Sound and answers are kept in target/bench/voices.
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
find_cargo || die "no Rust on this machine" "make setup says what to install"

data=${SCRIBE_DATA:-../shared/data}
if [ ! -f "$data/spk/enroll.tsv" ] || [ ! -f "$data/../eval/make_derived.py" ]; then
    say "SKIPPED: no speakers in $data (set SCRIBE_DATA): nothing of recognition is measured"
    exit 0
fi
command -v ffmpeg >/dev/null || die "ffmpeg is missing" "make setup-test"

# SCRIBE_BENCH_BUILT=1: what is in target/release is measured as it is.
if [ "${SCRIBE_BENCH_BUILT:-0}" != 1 ]; then
    profile=release target=target
    # shellcheck source=scripts/engine.sh
    . scripts/engine.sh
    cargo build --release --locked --features cli --lib --example recognise || die "the build failed" "make build"
fi
[ -x target/release/examples/recognise ] || die "target/release/examples/recognise is missing" "make build"
for model in segmentation-3.0 ge2e-resemblyzer silero-vad-6.2-rows; do
    [ -f "models/$model.onnx" ] || die "the model $model is missing" "make models"
done

# SCRIBE_BENCH_PYTHON: an environment that has the requirements; the same as that of scripts/bench.sh.
python=${SCRIBE_BENCH_PYTHON:-}
if [ -z "$python" ]; then
    python=$PWD/target/venv-bench/bin/python
    wanted=$(sha256sum <scripts/requirements-bench.txt | cut -d ' ' -f 1)
    if [ "$(cat target/venv-bench/.made-from 2>/dev/null || true)" != "$wanted" ]; then
        say "making target/venv-bench from scripts/requirements-bench.txt"
        rm -rf target/venv-bench
        /usr/bin/python3 -m venv target/venv-bench || die "python3 -m venv failed" "apt-get install python3-venv"
        "$python" -m pip install --quiet --disable-pip-version-check --no-input -r scripts/requirements-bench.txt ||
            die "pip could not install scripts/requirements-bench.txt" "a network that reaches PyPI"
        echo "$wanted" >target/venv-bench/.made-from
    fi
fi

export SCRIBE_MODELS="$PWD/models"
exec "$python" -B scripts/bench/voices.py "$@"
