#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
#   scripts/inspect.sh [ELEMENT]
#
# Looks at the plugin just built, with a plugin cache of its own: GStreamer remembers a file that once
# failed to load and would not look again (docs/troubleshooting.md).
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

GST_PLUGIN_PATH=$PWD/target/release
GST_REGISTRY=$PWD/target/inspect-registry.bin
export GST_PLUGIN_PATH GST_REGISTRY
rm -f "$GST_REGISTRY"
gst-inspect-1.0 "${1:-scribe}" ||
    die "GStreamer does not load target/release/libgstscribe.so" \
        "see why: GST_DEBUG=GST_PLUGIN_LOADING:5 GST_REGISTRY=$GST_REGISTRY GST_PLUGIN_PATH=$GST_PLUGIN_PATH gst-inspect-1.0 scribe"
