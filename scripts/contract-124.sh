#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
#
# Runs tests/contract.rs with the newest transcriberbin (gst-plugin-closedcaption 0.15.4), which asks for GStreamer 1.24:
# on this machine if it has that, else in a system of Ubuntu 24.04 in a folder, made once. There the tests run as they were
# built here: what is linked to GStreamer 1.22 runs with 1.24.
#
#   scripts/contract-124.sh [arguments of the test program]       default: all of its tests
#
# CONTRACT_SYSTEM   where the system goes (default /tmp/scribe-contract-noble); it is left there, 1.6 GB
# DEBIAN_MIRROR     Ubuntu's archive, or a mirror of it
# KEYRING           the file of keys that has signed it; else Ubuntu's own is fetched, and its digest compared
#
# Exit status: 0 passed, 1 failed, 77 not run, with a line that begins with NOT RUN and says why.
set -euo pipefail

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
find_cargo || die "no Rust on this machine" "make setup says what to install"

not_run() { # WHY REMEDY
    echo "NOT RUN: contract-124: $1" >&2
    echo "  remedy: $2" >&2
    exit 77
}

profile=release target=target
# shellcheck source=scripts/engine.sh
. scripts/engine.sh
# Two at a time: the real one goes by a clock, and not every machine has many cores.
arguments=(--test-threads=2 "$@")
build=(cargo test --release --locked --features "cli prometheus test-support" --test contract)

if pkg-config --exists 'gstreamer-video-1.0 >= 1.24'; then
    say "GStreamer $(pkg-config --modversion gstreamer-1.0) is here"
    scripts/caption_plugins.sh 124 || not_run "the caption plugins could not be built" "the lines above say what is missing"
    SCRIBE_CAPTION_PLUGINS=$PWD/target/tools/gstreamer-124 SCRIBE_TEST_COMPLETE=1 "${build[@]}" -- "${arguments[@]}" ||
        die "the contract is not kept" "one alone: scripts/contract-124.sh PART_OF_ITS_NAME --nocapture"
    exit 0
fi

here="this machine has GStreamer $(pkg-config --modversion gstreamer-1.0 2>/dev/null || echo '(none)'), not 1.24"
[ "$(id -u)" -eq 0 ] || not_run "$here, and a system in a folder needs root" "sudo scripts/contract-124.sh, or Ubuntu 24.04"
command -v debootstrap >/dev/null || not_run "$here, and debootstrap is missing" "apt-get install debootstrap"
unshare --mount true 2>/dev/null || not_run "$here, and this system lets nobody mount" "a machine or container that does"

folder=${CONTRACT_SYSTEM:-/tmp/scribe-contract-noble}
mirror=${DEBIAN_MIRROR:-http://archive.ubuntu.com/ubuntu}
root=$folder/root
mkdir -p "$folder"

get_keyring() {
    keyring=${KEYRING:-/usr/share/keyrings/ubuntu-archive-keyring.gpg}
    [ ! -f "$keyring" ] || return 0
    keyring=$folder/usr/share/keyrings/ubuntu-archive-keyring.gpg
    [ ! -f "$keyring" ] || return 0
    local package=$folder/ubuntu-keyring.deb
    curl -sSf --max-time 120 -o "$package" "$mirror/pool/main/u/ubuntu-keyring/ubuntu-keyring_2023.11.28.1_all.deb" ||
        not_run "$here, and Ubuntu's archive cannot be reached ($mirror)" "a network, or DEBIAN_MIRROR=…"
    echo "36de43b15853ccae0028e9a767613770c704833f82586f28eb262f0311adb8a8  $package" | sha256sum --check --quiet ||
        die "$package is not Ubuntu's keyring" "KEYRING=… with one that can be trusted"
    dpkg -x "$package" "$folder"
}

if [ ! -f "$root/.complete" ]; then
    get_keyring
    say "Ubuntu 24.04 in $root (two minutes, once)"
    rm -rf "$root"
    # Debian 12's debootstrap does not know noble; its script is that of all of Ubuntu's.
    debootstrap --variant=minbase --components=main,universe "--keyring=$keyring" noble "$root" "$mirror" \
        /usr/share/debootstrap/scripts/gutsy >"$folder/debootstrap.log" 2>&1 ||
        not_run "debootstrap failed: $(tail -n 1 "$folder/debootstrap.log")" "less $folder/debootstrap.log"
    touch "$root/.complete"
fi
cp /etc/resolv.conf /etc/hosts "$root/etc/"

# Mounts in a name space of their own: gone with the process, whatever happens. This clone and Rust are where they are
# here, and cannot be written to.
inside() { # COMMAND...
    # shellcheck disable=SC2016 # the inner shell's variables
    unshare --mount bash -euc '
        root=$1 here=$2 rustup=$3 cargo=$4
        shift 4
        mount --make-rprivate /
        mount -t proc proc "$root/proc" 2>/dev/null || mount --rbind /proc "$root/proc"
        mount --rbind /dev "$root/dev"
        for place in "$here" "$rustup" "$cargo"; do
            mkdir -p "$root$place"
            mount --bind "$place" "$root$place"
            mount -o remount,bind,ro "$root$place"
        done
        exec chroot "$root" /usr/bin/env -i HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
            RUSTUP_HOME="$rustup" CARGO_HOME="$cargo" \
            PATH="$cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" "$@"
    ' contract "$root" "$PWD" "${RUSTUP_HOME:-$HOME/.rustup}" "${CARGO_HOME:-$HOME/.cargo}" "$@" </dev/null
}

if [ ! -f "$root/.packages" ]; then
    say "GStreamer 1.24 and a compiler into it (a minute, once)"
    inside sh -euc 'apt-get update && apt-get install -y --no-install-recommends build-essential pkg-config \
        libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev libpango1.0-dev libcairo2-dev \
        gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad' >"$folder/apt.log" 2>&1 ||
        not_run "apt-get failed: $(tail -n 1 "$folder/apt.log")" "less $folder/apt.log"
    touch "$root/.packages"
fi

cargo fetch --quiet --locked --manifest-path tools/captions-124/Cargo.toml ||
    not_run "crates.io cannot be reached" "a network, or a registry in ~/.cargo that has them"
inside env CARGO_NET_OFFLINE=true CAPTION_TARGET=/tools "$PWD/scripts/caption_plugins.sh" 124 ||
    die "the caption plugins could not be built in $root" "the lines above say why"

say "building the tests"
program=$("${build[@]}" --no-run --message-format=json | sed -n 's/.*"executable":"\([^"]*contract-[^"]*\)".*/\1/p' | tail -n 1)
[ -x "$program" ] || die "the tests were not built" "scripts/test.sh --test contract"
say "running them with GStreamer $(inside pkg-config --modversion gstreamer-1.0)"
inside env SCRIBE_CAPTION_PLUGINS=/tools/gstreamer-124 SCRIBE_TEST_COMPLETE=1 "$program" "${arguments[@]}" ||
    die "the contract is not kept" "one alone: scripts/contract-124.sh PART_OF_ITS_NAME --nocapture"
