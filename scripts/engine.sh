# shellcheck shell=sh disable=SC2154
# SPDX-License-Identifier: MPL-2.0
#
# How whisper.cpp is built; sourced by whatever may start its build. In: profile and target, cargo's (SC2154).

if [ "$profile" = dist ]; then
    export GGML_NATIVE=OFF
    if [ "$(uname -m)" = x86_64 ]; then
        # Named one by one: with SOURCE_DATE_EPOCH in the environment whisper.cpp takes none by itself,
        # and is many times slower without a word.
        export GGML_SSE42=ON GGML_AVX=ON GGML_AVX2=ON GGML_FMA=ON GGML_F16C=ON GGML_BMI2=ON
    fi
else
    # Its default, said aloud for the same reason.
    : "${GGML_NATIVE:=ON}"
    export GGML_NATIVE
fi

# Everything that whisper.cpp's build looks at and cargo does not know of.
engine_settings() {
    env | grep -E '^(GGML|WHISPER|CMAKE)_' | LC_ALL=C sort || true
    cat .cargo/config.toml native/*
    echo "SOURCE_DATE_EPOCH ${SOURCE_DATE_EPOCH:+set}"
    if [ "$GGML_NATIVE" = ON ]; then
        grep -m 1 -E '^(flags|Features)' /proc/cpuinfo 2>/dev/null || uname -m
    fi
    c++ --version 2>/dev/null | head -n 1
}

# CMake keeps old answers in its cache (GGML_AVX2=OFF of a native build stays when NATIVE is turned off: no
# SIMD left), and objects made for one CPU die on another: whisper.cpp starts afresh when anything has changed.
renew_engine() {
    stamp=$target/$profile/.engine-settings
    settings=$(engine_settings | sha256sum | cut -d ' ' -f 1)
    if [ "$(cat "$stamp" 2>/dev/null || true)" = "$settings" ]; then
        return 0
    fi
    # Also without a stamp: who knows with which settings a bare `cargo build` was run.
    if ls -d "$target/$profile/build"/whisper-rs-sys-* >/dev/null 2>&1; then
        say "the settings of whisper.cpp's build have changed: building it afresh"
        cargo clean --quiet --profile "$profile" --target-dir "$target" -p whisper-rs-sys ||
            die "cargo clean failed" "rm -rf $target"
    fi
    mkdir -p "$target/$profile"
    echo "$settings" >"$stamp"
}
renew_engine
