#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# Builds the plugin and the programs.
#
#   scripts/build.sh            for this machine's CPU, in target/release
#   scripts/build.sh --dist     for any x86-64 with AVX2, in target-dist/dist
#   CUDA=1 scripts/build.sh     whisper.cpp on NVIDIA cards too; needs the CUDA toolkit
#   GPU=cuda scripts/build.sh   and an ONNX Runtime that can use NVIDIA cards, with CUDA's libraries, from PyPI; needs
#                               neither toolkit nor compiler, and at run time NVIDIA's driver
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

find_cargo || die "no Rust on this machine" "make setup says what to install"

case ${1:-} in
    '') profile=release target=target ;;
    --dist) profile=dist target="target-dist" ;;
    *) die "unknown argument '$1'" "scripts/build.sh [--dist]" ;;
esac
case ${GPU:-} in
    '' | cuda) ;;
    *) die "GPU=$GPU is not known" "GPU=cuda, or leave it out" ;;
esac
features=cli
if [ "${CUDA:-0}" = 1 ]; then
    features='cli cuda'
    [ -e /usr/local/cuda/lib64/libcudart.so ] || [ -e /opt/cuda/lib64/libcudart.so ] ||
        die "CUDA=1 was given, and no CUDA toolkit is in /usr/local/cuda or /opt/cuda" \
            "install NVIDIA's toolkit (nvcc, cudart, cublas), or link its folder to /usr/local/cuda"
    command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin:/opt/cuda/bin
    # Word times need the plain attention: half of the kernels would never be called.
    : "${GGML_CUDA_FA:=OFF}"
    export PATH GGML_CUDA_FA
fi
# shellcheck source=scripts/engine.sh
. scripts/engine.sh

say "building in $target/$profile (the first time takes some minutes)"
# The programs' crates do not enter the plugin: its code names none of them.
cargo build --profile "$profile" --locked --target-dir "$target" --features "$features" ||
    die "the build failed" "the lines above say why. A missing header or tool: make setup. A Cargo.lock that does not fit: git checkout Cargo.lock. Strange errors of CMake: rm -rf $target"

for built in libgstscribe.so scribe-worker; do
    [ -f "$target/$profile/$built" ] ||
        die "the build made no $target/$profile/$built" "see [lib] and [[bin]] in Cargo.toml: names gstscribe and scribe-worker, crate-type cdylib"
done

if [ "${GPU:-}" = cuda ]; then
    # Not below the plugin's folder: GStreamer would try each .so in there as a plugin.
    say "an ONNX Runtime for NVIDIA cards: 740 MB of downloads, 1 GB in $target/scribe/cuda (once)"
    "$target/$profile/scribe-models" runtime --provider cuda "$target/scribe/cuda" ||
        die "the ONNX Runtime for NVIDIA cards could not be put into $target/scribe/cuda" \
            "a network that reaches PyPI, or the wheels in a folder: SCRIBE_MODELS_FROM=FOLDER make build GPU=cuda"
fi
