#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# Makes a Debian 12 or Ubuntu 24.04 machine ready to build scribe and to run it.
#
#   scripts/setup.sh            what building and running need
#   scripts/setup.sh --test     and what `make check` and `make test` need on top
#
# Asks the package database what is missing and installs only that: a second run needs neither root
# nor network. Never asks a question; a failed step says what failed and how to mend it.
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

for_tests=no
case ${1:-} in
    '') ;;
    --test) for_tests=yes ;;
    *) die "unknown argument '$1'" "scripts/setup.sh [--test]" ;;
esac

# A packager or a machine without apt brings the packages itself.
if [ "${SCRIBE_SKIP_SETUP:-0}" = 1 ]; then
    say "set-up skipped (SCRIBE_SKIP_SETUP=1)"
    exit 0
fi

# Of these, the second line is for running: decoders, muxers and gst-launch-1.0.
packages='build-essential cmake pkg-config libclang-dev libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev
    gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad
    gstreamer1.0-libav ca-certificates'
# Parsers that are not ours (ffmpeg, xmllint, Python's: one of which has no wheel and is compiled, hence
# python3-dev), a server of RTSP, reading examples in Python, linters, textoverlay (gstreamer1.0-x), and what CEA-608 wants: x264enc, and
# the libraries that GStreamer's own caption plugins are built with.
test_packages='python3-venv python3-dev python3-gi python3-gst-1.0 gir1.2-gstreamer-1.0 gir1.2-gst-plugins-base-1.0
    gir1.2-gst-rtsp-server-1.0 ffmpeg libxml2-utils espeak-ng shellcheck gstreamer1.0-x gstreamer1.0-plugins-ugly libpango1.0-dev libcairo2-dev'
# What looks at pages. Ubuntu has it as a snap alone, which no container runs: there the tests say that they look at
# none.
if ! grep -q '^ID=ubuntu$' /etc/os-release 2>/dev/null; then
    test_packages="$test_packages chromium chromium-driver"
fi

# --- Rust -----------------------------------------------------------------------------------------

# Before apt: who lacks it learns so at once, not after the downloads.
need_rust() {
    rust_wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
    remedy="install it with rustup, as user $(id -un):
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c clippy -c rustfmt
  or, where rustup is there already:  rustup update stable && rustup default stable"
    find_cargo || die "no Rust on this machine (cargo is neither on PATH nor in ~/.cargo/bin): scribe needs $rust_wanted or newer" "$remedy"
    rust_found=$(rustc --version 2>/dev/null | sed -n 's/^rustc \([0-9.]*\).*/\1/p')
    [ -n "$rust_found" ] || die "rustc does not answer: 'rustc --version' fails" "$remedy"
    if [ "$(version_number "$rust_found")" -lt "$(version_number "$rust_wanted")" ]; then
        die "Rust $rust_found ($(command -v rustc)) is too old: scribe needs $rust_wanted or newer" "$remedy"
    fi
    if [ "$for_tests" = yes ]; then
        for tool in cargo-clippy cargo-fmt; do
            "$tool" --version >/dev/null 2>&1 ||
                die "$tool is missing, and 'make check' needs it" "rustup component add clippy rustfmt"
        done
    fi
}

# 1.92 and 1.92.0 alike as 1092: enough to compare.
version_number() {
    echo "$1" | awk -F. '{ print $1 * 1000 + $2 }'
}

# --- Debian packages ------------------------------------------------------------------------------

missing_packages() {
    for package in "$@"; do
        # "install ok installed", or "hold ok installed" where a person has pinned it.
        case $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true) in
            *' ok installed') ;;
            *) echo "$package" ;;
        esac
    done
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        # Sudo drops the environment: what apt and debconf must know goes along by name.
        sudo -n env DEBIAN_FRONTEND=noninteractive ${http_proxy:+"http_proxy=$http_proxy"} \
            ${https_proxy:+"https_proxy=$https_proxy"} "$@"
    fi
}

# Another apt at work (a fresh cloud machine updates itself) holds the lock for minutes: wait for it,
# ten minutes at most. Apt's own timeout covers dpkg's lock alone, not that of the lists: hence the loop.
apt_patiently() { # ARGUMENTS...
    give_up=$(($(date +%s) + 600))
    log=$(mktemp)
    while :; do
        if as_root apt-get -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3 "$@" >"$log" 2>&1; then
            rm -f "$log"
            return 0
        fi
        if [ "$(date +%s)" -ge "$give_up" ] || ! grep -q -i 'could not get lock\|unable to lock' "$log"; then
            tail -n 15 "$log" >&2
            rm -f "$log"
            return 1
        fi
        say "another apt is at work; trying again in 10 s"
        sleep 10
    done
}

need_packages() {
    # Words, one a package: split on purpose.
    # shellcheck disable=SC2086
    missing=$(missing_packages $1)
    [ -n "$missing" ] || return 0
    missing=$(echo "$missing" | tr '\n' ' ')
    command -v apt-get >/dev/null ||
        die "this machine has no apt-get, and these are missing: $missing" \
            "install what they are called here, then run with SCRIBE_SKIP_SETUP=1"
    if [ "$(id -u)" -ne 0 ] && ! sudo -n true 2>/dev/null; then
        die "these packages are missing, and there is neither root nor sudo without a password: $missing" \
            "as root:  apt-get update && apt-get install -y --no-install-recommends $missing"
    fi
    export DEBIAN_FRONTEND=noninteractive
    say "installing: $missing"
    # Lists may be absent or older than the archive: always renewed, and only needed when something is missing.
    apt_patiently update ||
        die "apt-get update failed" "look at the lines above: is the network there, and are the sources in /etc/apt right?"
    # shellcheck disable=SC2086
    apt_patiently install -y --no-install-recommends $missing ||
        die "apt-get install failed for: $missing" "look at the lines above; 'apt-get -f install' mends a half-done installation"
}

need_gstreamer() {
    wanted=1.22
    pkg-config --exists "gstreamer-1.0 >= $wanted" "gstreamer-audio-1.0 >= $wanted" ||
        die "GStreamer $(pkg-config --modversion gstreamer-1.0 2>/dev/null || echo '(none)') is too old or not seen by pkg-config: scribe needs $wanted" \
            "use Debian 12, Ubuntu 24.04 or newer; if another GStreamer is in PKG_CONFIG_PATH, take it out"
}

need_rust
need_packages "$packages"
need_gstreamer
if [ "$for_tests" = yes ]; then
    need_packages "$test_packages"
    scripts/test_tools.sh
fi
say "set-up complete"
