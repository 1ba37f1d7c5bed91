# shellcheck shell=sh
# SPDX-License-Identifier: MPL-2.0
#
# Sourced by the pipelines: the plugin of this clone, unless GST_PLUGIN_PATH names another or the clone
# has none (then GStreamer's own folders have it).

built=$(dirname "$0")/../target/release
if [ -z "${GST_PLUGIN_PATH:-}" ] && [ -f "$built/libgstscribe.so" ]; then
    GST_PLUGIN_PATH=$(cd "$built" && pwd)
    export GST_PLUGIN_PATH
fi

need() { # ELEMENT REMEDY
    # Not --exists: that wants a plugin's version to be GStreamer's own, or newer.
    if ! gst-inspect-1.0 "$1" >/dev/null 2>&1; then
        echo "scribe: GStreamer has no element $1" >&2
        echo "  remedy: $2" >&2
        exit 1
    fi
}

need_program() { # PATH EXAMPLE
    if [ ! -x "$1" ]; then
        echo "scribe: $1 is not built" >&2
        echo "  remedy: cargo build --release --features cli --example $2" >&2
        exit 1
    fi
}
