#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# Fuzzes the reader of ggml files and keeps the smallest corpus that reaches the same.
#
#   FUZZ_SECONDS=600 scripts/fuzz.sh
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
find_cargo || die "no Rust on this machine" "make setup says what to install"
PATH=$PWD/target/tools/bin:$PATH

cargo_fuzz_version=0.13.2
seconds=${FUZZ_SECONDS:-600}

if ! cargo fuzz --version >/dev/null 2>&1; then
    say "building cargo-fuzz $cargo_fuzz_version from crates.io into target/tools (a minute, once)"
    nice -n 5 cargo install --quiet --locked --version "$cargo_fuzz_version" --root target/tools \
        --target-dir target/tools/build cargo-fuzz ||
        die "cargo-fuzz $cargo_fuzz_version could not be built" "cargo install --locked cargo-fuzz, wherever it works, and put it on PATH"
    rm -rf target/tools/build
fi

# The flags of coverage are those of a compiler in the making; this lets a released one take them.
RUSTC_BOOTSTRAP=1
export RUSTC_BOOTSTRAP

corpus=fuzz/corpus/ggml
mkdir -p "$corpus"
nice -n 5 cargo run --quiet --release --manifest-path fuzz/Cargo.toml --bin seeds -- "$corpus" ||
    die "the seeds could not be made" "the lines above say why"
# The reader has no unsafe code: what an address sanitizer looks for cannot be there, and it halves the speed.
# An input that takes ten seconds is a finding; the target itself looks at memory.
say "fuzzing for $seconds s"
nice -n 5 cargo fuzz run --sanitizer none ggml "$corpus" -- -max_total_time="$seconds" -max_len=32768 \
    -timeout=10 -print_final_stats=1 ||
    die "the fuzzer found something" "the input is in fuzz/artifacts/ggml: put it into tests/malformed.rs, then mend the reader"

# What is kept: the fewest inputs, the shortest first.
smallest=$(mktemp -d)
trap 'rm -rf "$smallest"' EXIT
cargo fuzz run --sanitizer none ggml "$smallest" "$corpus" -- -merge=1 -max_len=32768 ||
    die "the corpus could not be merged" "the lines above say why"
rm -rf "$corpus"
mkdir -p "$corpus"
cp "$smallest"/* "$corpus"
say "fuzz: nothing found; $(find "$corpus" -type f | wc -l) inputs of $(du -sb "$corpus" | cut -f 1) bytes are kept in $corpus"
