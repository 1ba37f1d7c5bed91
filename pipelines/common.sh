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
