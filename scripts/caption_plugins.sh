#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# GStreamer's own plugins for captions, from crates.io, for the recipe of CEA-608 and the tests of the contract:
# Debian 12 has no package of them. Built once, into a folder for GST_PLUGIN_PATH.
#
#   scripts/caption_plugins.sh         gst-plugin-closedcaption 0.14.2, for GStreamer 1.22 and newer,
#                                      in target/tools/gstreamer; part of setup.sh --test
#   scripts/caption_plugins.sh 124     0.15.4, for GStreamer 1.24 and newer, in target/tools/gstreamer-124
#
# CAPTION_TARGET names another folder than target/tools.
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
find_cargo || die "no Rust on this machine" "make setup says what to install"

case ${1:-} in
    '') list=tools/captions folder=gstreamer gstreamer=1.22 ;;
    124) list=tools/captions-124 folder=gstreamer-124 gstreamer=1.24 ;;
    *) die "unknown argument '$1'" "scripts/caption_plugins.sh [124]" ;;
esac
place=${CAPTION_TARGET:-target/tools}

# What is linked is part of what was built: after an upgrade of the system the old ones are of no use.
wanted=$(cat "$list/Cargo.toml" "$list/Cargo.lock" - <<END | sha256sum | cut -d ' ' -f 1
$(pkg-config --modversion gstreamer-1.0 pango cairo 2>/dev/null || true)
END
)
if [ "$(cat "$place/$folder/.made-from" 2>/dev/null || true)" = "$wanted" ]; then
    exit 0
fi

pkg-config --exists "gstreamer-video-1.0 >= $gstreamer" ||
    die "GStreamer $(pkg-config --modversion gstreamer-video-1.0 2>/dev/null || echo '(none)') is too old or not seen by pkg-config: these plugins need $gstreamer" \
        "make setup; for 1.24, Ubuntu 24.04 or newer"
pkg-config --exists pangocairo cairo-gobject ||
    die "the libraries for drawing text are missing, and the caption plugins need them" \
        "make setup-test, or apt-get install libpango1.0-dev libcairo2-dev"

say "building $(sed -n 's/^\(gst-plugin-.*\) = "=\(.*\)"/\1 \2/p' "$list/Cargo.toml" | paste -s -d ,) into $place/$folder (three minutes or more, once)"
nice -n 5 cargo build --quiet --release --locked --manifest-path "$list/Cargo.toml" \
    --target-dir "$place/build-$folder" -p gst-plugin-closedcaption -p gst-plugin-textwrap ||
    die "the caption plugins could not be built" "a network that reaches crates.io; the lines above say what is missing"
rm -rf "${place:?}/$folder"
mkdir -p "$place/$folder"
cp "$place/build-$folder/release/libgstrsclosedcaption.so" "$place/build-$folder/release/libgsttextwrap.so" "$place/$folder"
rm -rf "$place/build-$folder"
echo "$wanted" >"$place/$folder/.made-from"
