#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# Removes what install.sh put there, and nothing else. Takes the same PREFIX, FOR_USER and DESTDIR;
# PURGE=1 removes the models too.
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
# shellcheck source=scripts/install_paths.sh
. scripts/install_paths.sh

: "${DESTDIR:=}" "${PURGE:=}"
lists=$DESTDIR$share_dir
[ -f "$lists/installed-files.txt" ] || [ -f "$lists/installed-models.txt" ] ||
    die "no list of installed files in $lists" "give the PREFIX (or USER=1) and DESTDIR of the installation"

# Folders are removed when nothing is left in them, as far up as they are ours.
remove_listed() { # LIST
    [ -f "$lists/installed-$1.txt" ] || return 0
    cp "$lists/installed-$1.txt" "$work"
    while IFS= read -r path; do
        rm -f "$DESTDIR$path" || die "cannot remove $DESTDIR$path" "run as the user who installed it, or with sudo"
    done <"$work"
    rm -f "$lists/installed-$1.txt"
}

work=$(mktemp)
trap 'rm -f "$work"' EXIT
remove_listed files
if [ "$PURGE" = 1 ]; then
    remove_listed models
fi
for folder in "$plugin_dir/scribe" "$share_dir/models"/whisper-* "$share_dir/models" "$share_dir"; do
    rmdir "$DESTDIR$folder" 2>/dev/null || true
done
if [ -d "$lists/models" ]; then
    say "removed; the models stay in $lists/models (PURGE=1 removes them)"
else
    say "removed"
fi
