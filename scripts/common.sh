# shellcheck shell=sh
# SPDX-License-Identifier: MPL-2.0
#
# What the scripts share. Sourced, in sh or bash, from the root of the repository.

say() {
    echo "scribe: $*"
}

# Says what failed and how to mend it.
die() { # WHAT REMEDY
    echo "scribe: $1" >&2
    echo "  remedy: $2" >&2
    exit 1
}

# Puts cargo on PATH where a login shell would have: set-up must not need a new terminal after rustup.
find_cargo() {
    if ! command -v cargo >/dev/null || ! command -v rustc >/dev/null; then
        PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
        export PATH
    fi
    command -v cargo >/dev/null && command -v rustc >/dev/null
}
