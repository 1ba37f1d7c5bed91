#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
#
# Proves that a command works on a fresh Debian: a minimal system in a folder, a clone of what is committed
# here, Rust from this user's rustup, nothing else; then the command, and once more without a network.
#
#   scripts/prove-fresh.sh [-s SUITE] [-d FOLDER] [-e VARIABLE]... [-c PATH]... [-k] [COMMAND...]
#
#   COMMAND      default: make demo
#   -s SUITE     bookworm (default), or another that debootstrap knows; also noble, Ubuntu 24.04
#   -d FOLDER    where the system goes (default /tmp/scribe-fresh-SUITE); it is left there. A second run
#                takes a fresh copy of the system, not the used one
#   -e VARIABLE  an environment variable of this machine that the command needs (a proxy, a folder of certificates)
#   -c PATH      a file or folder of this machine to copy to the same place (apt's settings, certificates)
#   -k           keep the used system of the last run, and go on in it
#   -n           no second run without a network
#
# Mirror: DEBIAN_MIRROR, or debootstrap's own; KEYRING names the file of keys that has signed it, where debootstrap
# does not know it. Needs root, debootstrap, git, and about 8 GB.
set -euo pipefail

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

suite=bookworm
folder=''
keep=no
offline_run=yes
variables=()
copies=()
while getopts s:d:e:c:kn option; do
    case $option in
        s) suite=$OPTARG ;;
        d) folder=$OPTARG ;;
        e) variables+=("$OPTARG") ;;
        c) copies+=("$OPTARG") ;;
        k) keep=yes ;;
        n) offline_run=no ;;
        *) die "unknown option" "sed -n 3,20p scripts/prove-fresh.sh" ;;
    esac
done
shift $((OPTIND - 1))
if [ $# -eq 0 ]; then
    set -- make demo
fi
: "${folder:=/tmp/scribe-fresh-$suite}"

[ "$(id -u)" -eq 0 ] || die "a system in a folder needs root" "sudo scripts/prove-fresh.sh"
command -v debootstrap >/dev/null || die "debootstrap is missing" "apt-get install debootstrap"
rustup_home=${RUSTUP_HOME:-$HOME/.rustup}
cargo_bin=${CARGO_HOME:-$HOME/.cargo}/bin
[ -x "$cargo_bin/cargo" ] || die "no rustup in $cargo_bin" "install Rust with rustup for this user"

base=$folder/base
root=$folder/root
components=main mirror=${DEBIAN_MIRROR:-} script=''
case $suite in
    jammy | noble)
        # As Ubuntu's installer leaves it. Debian 12's debootstrap does not know noble; its script is that of all of them.
        components=main,universe mirror=${mirror:-http://archive.ubuntu.com/ubuntu}
        script=/usr/share/debootstrap/scripts/gutsy
        ;;
esac
if [ ! -f "$base/.complete" ]; then
    say "a minimal $suite in $base"
    rm -rf "$base"
    mkdir -p "$base"
    # What the README asks of a reader beside Rust: make, and the certificates that a clone by https needs.
    debootstrap --variant=minbase "--components=$components" ${KEYRING:+"--keyring=$KEYRING"} \
        --include=make,ca-certificates "$suite" "$base" ${mirror:+"$mirror"} ${script:+"$script"} \
        >"$folder/debootstrap.log" 2>&1 || die "debootstrap failed" "tail $folder/debootstrap.log"
    touch "$base/.complete"
fi
if [ "$keep" = no ] || [ ! -d "$root" ]; then
    rm -rf "$root"
    cp -a "$base" "$root"
    # Only what is committed: a file that somebody forgot to add must be missed here.
    git clone --quiet "file://$PWD" "$root/root/scribe"
fi

cp /etc/resolv.conf /etc/hosts "$root/etc/"
for path in "${copies[@]}"; do
    # Not cp: it would follow a link inside the system, absolute as such links are, out to this machine's file.
    tar -C / -chf - "${path#/}" | tar -C "$root" -xf -
done

# Its own registry of crates, so that this machine's does not help; the programs are rustup's.
mkdir -p "$root/root/.cargo/bin" "$root/root/.rustup"
cp -a "$cargo_bin/." "$root/root/.cargo/bin/"

environment=(HOME=/root USER=root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
for name in "${variables[@]}"; do
    if [ -n "${!name+set}" ]; then
        environment+=("$name=${!name}")
    fi
done

# Mounts in a name space of their own: gone with the process, whatever happens.
run_inside() { # UNSHARE_OPTIONS... -- COMMAND...
    local -a options=()
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    # shellcheck disable=SC2016 # the inner shell's variables
    unshare --mount "${options[@]}" bash -euc '
        root=$1 rustup_home=$2
        shift 2
        mount --make-rprivate /
        mount -t proc proc "$root/proc" 2>/dev/null || mount --rbind /proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount --bind "$rustup_home" "$root/root/.rustup"
        mount -o remount,bind,ro "$root/root/.rustup"
        exec chroot "$root" /usr/bin/env -i "$@"
    ' prove "$root" "$rustup_home" "${environment[@]}" /bin/sh -euc 'cd /root/scribe && exec "$@"' sh "$@" </dev/null
}

say "in $root: $*"
started=$SECONDS
run_inside -- "$@" || die "failed after $((SECONDS - started)) s: $*" \
    "look around in it: scripts/prove-fresh.sh -k -n -d $folder … sh -c 'ls -l'"
say "passed in $((SECONDS - started)) s: $*"
if [ "$offline_run" = yes ]; then
    say "again, without a network"
    started=$SECONDS
    run_inside --net -- "$@" || die "the second run needs a network: $*" "see which step the lines above name"
    say "passed in $((SECONDS - started)) s without a network: $*"
fi
