# shellcheck shell=sh disable=SC2034
# SPDX-License-Identifier: MPL-2.0
#
# Where things go: shared by install.sh and uninstall.sh, so that they cannot disagree. Sourced.
# (SC2034: they use the variables.) In: PREFIX, FOR_USER (1: this user's folders). Out: plugin_dir, cards_dir (an ONNX
# Runtime for cards), bin_dir, share_dir, data_dir (of manual pages and completions), all without DESTDIR.

if [ "${FOR_USER:-}" = 1 ]; then
    data_home=${XDG_DATA_HOME:-$HOME/.local/share}
    # GStreamer looks here by itself.
    plugin_dir=$data_home/gstreamer-1.0/plugins
    bin_dir=$HOME/.local/bin
    share_dir=$data_home/scribe
    data_dir=$data_home
else
    : "${PREFIX:=/usr/local}"
    case $PREFIX in
        /*) ;;
        *) die "PREFIX=$PREFIX is not an absolute path" "make install PREFIX=/usr/local" ;;
    esac
    # lib/gstreamer-1.0, lib64/… or Debian's lib/x86_64-linux-gnu/…: as GStreamer itself lies under its own prefix.
    gst_prefix=$(pkg-config --variable=prefix gstreamer-1.0 2>/dev/null || echo /usr)
    gst_plugins=$(pkg-config --variable=pluginsdir gstreamer-1.0 2>/dev/null || true)
    case $gst_plugins in
        "$gst_prefix"/*) plugin_dir=$PREFIX/${gst_plugins#"$gst_prefix"/} ;;
        *) plugin_dir=$PREFIX/lib/gstreamer-1.0 ;;
    esac
    bin_dir=$PREFIX/bin
    share_dir=$PREFIX/share/scribe
    data_dir=$PREFIX/share
fi
# Found from the plugin, and not below its folder: GStreamer would try each .so in there as a plugin.
cards_dir=$(dirname "$plugin_dir")/scribe/cuda
