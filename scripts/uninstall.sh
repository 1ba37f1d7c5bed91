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

remove_listed() { # LIST
    [ -f "$lists/installed-$1.txt" ] || return 0
    cp "$lists/installed-$1.txt" "$work/$1"
    while IFS= read -r path; do
        rm -f "$DESTDIR$path" || die "cannot remove $DESTDIR$path" "run as the user who installed it, or with sudo"
        dirname "$DESTDIR$path" >>"$work/folders"
    done <"$work/$1"
    rm -f "$lists/installed-$1.txt"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
remove_listed files
if [ "$PURGE" = 1 ]; then
    remove_listed models
fi
# Folders of ours in which nothing is left, the deepest first. Those of the system stay.
LC_ALL=C sort -ru "$work/folders" | while IFS= read -r folder; do
    case $folder in
        "$lists" | "$lists"/* | "$DESTDIR$plugin_dir/scribe" | "$DESTDIR$cards_dir") rmdir "$folder" 2>/dev/null || true ;;
    esac
done
rmdir "$DESTDIR$plugin_dir/scribe" "$(dirname "$DESTDIR$cards_dir")" "$lists/models" "$lists" 2>/dev/null || true
if [ -f "$lists/installed-models.txt" ]; then
    say "removed; the models stay in $lists/models (PURGE=1 removes them)"
else
    say "removed"
fi
