#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# Builds the plugin and the programs.
#
#   scripts/build.sh            for this machine's CPU, in target/release
#   scripts/build.sh --dist     for any x86-64 with AVX2, in target-dist/dist
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

find_cargo || die "no Rust on this machine" "make setup says what to install"

case ${1:-} in
    '')
        target=target
        profile=release
        # Said aloud: with SOURCE_DATE_EPOCH in the environment whisper.cpp would otherwise take no
        # instruction set at all, and be many times slower without a word.
        : "${GGML_NATIVE:=ON}"
        export GGML_NATIVE
        ;;
    --dist)
        target="target-dist"
        profile=dist
        export GGML_NATIVE=OFF
        if [ "$(uname -m)" = x86_64 ]; then
            export GGML_SSE42=ON GGML_AVX=ON GGML_AVX2=ON GGML_FMA=ON GGML_F16C=ON GGML_BMI2=ON
        fi
        ;;
    *) die "unknown argument '$1'" "scripts/build.sh [--dist]" ;;
esac

# Everything that whisper.cpp's build looks at and cargo does not know of. CMake keeps old answers in
# its cache (GGML_AVX2=OFF of a native build stays when NATIVE is turned off: no SIMD left), and objects
# made for one CPU die on another. So whisper.cpp starts afresh when any of it has changed.
engine_settings() {
    env | grep -E '^(GGML|WHISPER|CMAKE)_' | LC_ALL=C sort || true
    cat .cargo/config.toml
    echo "SOURCE_DATE_EPOCH ${SOURCE_DATE_EPOCH:+set}"
    if [ "$GGML_NATIVE" = ON ]; then
        grep -m 1 -E '^(flags|Features)' /proc/cpuinfo 2>/dev/null || uname -m
    fi
    c++ --version 2>/dev/null | head -n 1
}

stamp=$target/$profile/.engine-settings
settings=$(engine_settings | sha256sum | cut -d ' ' -f 1)
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$settings" ]; then
    # Also without a stamp: who knows with which settings a bare `cargo build` was run.
    if ls -d "$target"/$profile/build/whisper-rs-sys-* >/dev/null 2>&1; then
        say "the settings of whisper.cpp's build have changed: building it afresh"
        cargo clean --quiet --profile "$profile" --target-dir "$target" -p whisper-rs-sys ||
            die "cargo clean failed" "rm -rf $target"
    fi
    mkdir -p "$target/$profile"
    echo "$settings" >"$stamp"
fi

say "building in $target/$profile (the first time takes some minutes)"
# The programs' crates do not enter the plugin: its code names none of them.
cargo build --profile "$profile" --locked --target-dir "$target" --features cli ||
    die "the build failed" "the lines above say why. A missing header or tool: make setup. A Cargo.lock that does not fit: git checkout Cargo.lock. Strange errors of CMake: rm -rf $target"

[ -f "$target/$profile/libgstscribe.so" ] ||
    die "the build made no $target/$profile/libgstscribe.so" "see [lib] in Cargo.toml: name gstscribe, crate-type cdylib"
