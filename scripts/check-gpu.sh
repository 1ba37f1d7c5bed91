#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# Whisper on ONNX Runtime on an NVIDIA card: its text beside the processor's, its speed by batch, its memory beside what is
# reserved. What it prints belongs into docs/memory.md and the README's matrix.
#
#   scripts/check-gpu.sh                   on a machine with a card and a network: builds, fetches, measures
#   scripts/check-gpu.sh pack [FOLDER]     on one with a network: all that is needed, in parts of 55 MiB (default .gpu)
#   scripts/check-gpu.sh run [FOLDER]      on one with a card: from those parts, with no network and nothing installed
#
# With CUDA_LIBS=no a pack leaves out CUDA's own libraries: `run` then takes those of PyTorch or of the system.
# Environment: MODEL (whisper-tiny.en-onnx-f16), DEVICE (cuda:0).
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

: "${MODEL:=whisper-tiny.en-onnx-f16}" "${DEVICE:=cuda:0}" "${CUDA_LIBS:=yes}"
folder=${2:-.gpu}

# Program, ONNX Runtime, model and sound, all in target/release and models.
make_all() {
    scripts/setup.sh
    find_cargo || die "no Rust on this machine" "make setup says what to install"
    profile=release target=target
    # shellcheck source=scripts/engine.sh
    . scripts/engine.sh
    cargo build --release --locked --features "cli test-support" --bins --example card ||
        die "the build failed" "the lines above say why"
    target/release/scribe-models runtime --provider cuda target/scribe/cuda ||
        die "no ONNX Runtime for cards" "a network that reaches PyPI, or SCRIBE_MODELS_FROM=FOLDER"
    target/release/scribe-models fetch "$MODEL" || die "no model $MODEL" "scribe-models list"
    mkdir -p target/gpu
    gst-launch-1.0 -q filesrc location=tests/data/demo.opus ! decodebin ! audioconvert ! audioresample ! \
        audio/x-raw,format=S16LE,rate=16000,channels=1 ! wavenc ! filesink location=target/gpu/sound.wav ||
        die "no sound could be made of tests/data/demo.opus" "make setup"
}

# Measures. In: where the program, the libraries, the model and the sound lie.
measure() { # PROGRAM RUNTIME ENCODER SOUND OUT
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
    fi
    export SCRIBE_ORT_LIB="$2"
    mkdir -p "$5"
    "$1" onnx "$3" "$4" "$5/card.txt" device="$DEVICE" ||
        die "the card could not be used" "the line above says why; scribe-doctor says more"
    "$1" onnx "$3" "$4" "$5/cpu.txt" device=cpu windows=8
    "$1" compare "$5/cpu.txt" "$5/card.txt"
}

pack() {
    make_all
    rm -rf "$folder"
    mkdir -p "$folder" target/gpu/pack/lib target/gpu/pack/cuda
    strip -o target/gpu/pack/card target/release/examples/card
    # GStreamer's libraries and what they need, less the C library's, which must be the machine's own.
    ldd target/release/examples/card | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p' |
        grep -v -E '/(libc|libm|libdl|librt|libpthread|ld-linux[^/]*|libstdc\+\+|libgcc_s)\.so' |
        while read -r library; do cp -L "$library" target/gpu/pack/lib/; done
    cp -d target/scribe/cuda/libonnxruntime* target/gpu/pack/cuda/
    if [ "$CUDA_LIBS" = yes ]; then
        cp -d target/scribe/cuda/*.so* target/gpu/pack/cuda/
    fi
    cp "models/$MODEL.encoder.onnx" "models/$MODEL.decoder.onnx" target/gpu/sound.wav target/gpu/pack/
    say "packing: some minutes"
    tar -C target/gpu/pack -cf - . | xz -T0 -6 | split -b 55m -d - "$folder/part-"
    rm -rf target/gpu/pack
    say "$folder has $(find "$folder" -type f | wc -l) parts, $(du -sm "$folder" | cut -f 1) MB: carry them, then scripts/check-gpu.sh run $folder"
}

run() {
    [ -e "$folder/part-00" ] || die "there is no $folder/part-00" "scripts/check-gpu.sh pack, on a machine with a network"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cat "$folder"/part-* | xz -dc | tar -C "$work" -xf - ||
        die "the parts in $folder do not make a whole" "carry all of them, and no old ones"
    if [ ! -e "$work/cuda/libcublasLt.so.13" ]; then
        # PyTorch for CUDA 13 brings them along.
        found=$(find / -name 'libcublasLt.so.13' -path '*nvidia*' 2>/dev/null | head -n 1)
        if [ -n "$found" ]; then
            for library in libcudart.so.13 libcublas.so.13 libcublasLt.so.13 libcurand.so.10; do
                ln -s "$(dirname "$found")/$library" "$work/cuda/"
            done
        fi
    fi
    # For the program's GStreamer alone: CUDA's libraries are found without it.
    LD_LIBRARY_PATH=$work/lib
    export LD_LIBRARY_PATH
    measure "$work/card" "$(find "$work/cuda" -name 'libonnxruntime.so.1.*' -type f)" "$work/$MODEL.encoder.onnx" "$work/sound.wav" "${OUT:-$work/out}"
}

case ${1:-} in
    '')
        make_all
        measure target/release/examples/card "$(find target/scribe/cuda -name 'libonnxruntime.so.1.*' -type f)" \
            "models/$MODEL.encoder.onnx" target/gpu/sound.wav target/gpu/out
        ;;
    pack) pack ;;
    run) run ;;
    *) die "unknown argument '$1'" "scripts/check-gpu.sh [pack [FOLDER] | run [FOLDER]]" ;;
esac
