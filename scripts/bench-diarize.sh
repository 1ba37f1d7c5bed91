#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# The diarizer beside pyannote.audio's own pipeline on the same two models: error rates on the development recordings that
# have references, and speed. Figures go to benches/runs, a section of docs/benchmarks.md is written from them.
#
#   scripts/bench-diarize.sh                       everything (a quiet machine)
#   scripts/bench-diarize.sh [--fresh] der         error rates alone: any machine will do
#   scripts/bench-diarize.sh [--rounds N] speed    speed alone, on three recordings, beside the error rates kept before
#   scripts/bench-diarize.sh --trial [PART]...     a look; nothing is kept in benches/runs
#
# Recordings: conv/ami of the folder SCRIBE_DATA (default ../shared/data), and what ../eval/make_derived.py beside it makes.
# Sound, turns and pyannote.audio (3 GB) go to target; what pyannote.audio said is kept there until --fresh.
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
find_cargo || die "no Rust on this machine" "make setup says what to install"

if [ ! -d "${SCRIBE_DATA:-../shared/data}/conv/ami" ]; then
    say "SKIPPED: no recordings with speakers in ${SCRIBE_DATA:-../shared/data} (set SCRIBE_DATA): nothing of the diarizer is measured"
    exit 0
fi
command -v ffmpeg >/dev/null || die "ffmpeg is missing" "make setup-test"

# SCRIBE_BENCH_BUILT=1: what is in target/release is measured as it is.
if [ "${SCRIBE_BENCH_BUILT:-0}" != 1 ]; then
    profile=release target=target
    # shellcheck source=scripts/engine.sh
    . scripts/engine.sh
    cargo build --release --locked --features cli --lib --example diarize || die "the build failed" "make build"
fi
[ -x target/release/examples/diarize ] || die "target/release/examples/diarize is missing" "make build"
for model in segmentation-3.0 ge2e-resemblyzer; do
    [ -f "models/$model.onnx" ] || die "the model $model is missing" "make models"
done

# SCRIBE_PYANNOTE_PYTHON: an environment that has the requirements.
python=${SCRIBE_PYANNOTE_PYTHON:-}
if [ -z "$python" ]; then
    python=$PWD/target/venv-pyannote/bin/python
    wanted=$(sha256sum <scripts/requirements-pyannote.txt | cut -d ' ' -f 1)
    if [ "$(cat target/venv-pyannote/.made-from 2>/dev/null || true)" != "$wanted" ]; then
        say "making target/venv-pyannote from scripts/requirements-pyannote.txt (3 GB)"
        rm -rf target/venv-pyannote
        /usr/bin/python3 -m venv target/venv-pyannote || die "python3 -m venv failed" "apt-get install python3-venv"
        "$python" -m pip install --quiet --disable-pip-version-check --no-input -r scripts/requirements-pyannote.txt ||
            die "pip could not install scripts/requirements-pyannote.txt" "a network that reaches PyPI, and 7 GB of disk"
        echo "$wanted" >target/venv-pyannote/.made-from
    fi
fi

export SCRIBE_MODELS="$PWD/models"
exec "$python" -B scripts/bench/diarize.py "$@"
