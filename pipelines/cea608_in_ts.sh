#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
# File, with pictures or without, to an MPEG transport stream with its words as closed captions (CEA-608, channel 1)
# inside H.264, as broadcast and HLS have them. A file without pictures gets black ones.
#   pipelines/cea608_in_ts.sh film.mp4 [film.captioned.ts]
#
# Wants `tttocea608` and `textwrap` of GStreamer's own plugins in Rust, which Debian 12 has no package of:
# scripts/caption_plugins.sh builds them. Another folder that has them: SCRIBE_CAPTION_PLUGINS.
#
# The file is read twice, once for its words and once for its pictures and sound: neither waits for the other before
# they meet in cccombiner, and so every queue keeps its bound. 29.97 pictures a second, because a caption rides on them,
# two characters each. A line leaves the screen five seconds after its last word.
set -eu
in=${1:?usage: $0 FILE [OUTPUT]}
out=${2:-${in%.*}.captioned.ts}
# shellcheck source=pipelines/common.sh
. "$(dirname "$0")/common.sh"
captions=${SCRIBE_CAPTION_PLUGINS:-$(dirname "$0")/../target/tools/gstreamer}
if [ -d "$captions" ]; then
    GST_PLUGIN_PATH=$(cd "$captions" && pwd)${GST_PLUGIN_PATH:+:$GST_PLUGIN_PATH}
    export GST_PLUGIN_PATH
fi

need tttocea608 "scripts/caption_plugins.sh builds it (or cargo-c: gst-plugin-closedcaption; 0.14.2 is the newest for GStreamer 1.22)"
need textwrap "scripts/caption_plugins.sh builds it (or cargo-c: gst-plugin-textwrap)"
need cccombiner "apt-get install gstreamer1.0-plugins-bad"
need x264enc "apt-get install gstreamer1.0-plugins-ugly"
need avenc_aac "apt-get install gstreamer1.0-libav"
need scribetranscriber "make build, or GST_PLUGIN_PATH=… to where libgstscribe.so is"

# One picture tells that there are any.
if gst-launch-1.0 -q filesrc location="$in" ! decodebin ! video/x-raw ! identity eos-after=2 ! fakesink >/dev/null 2>&1; then
    gst-launch-1.0 -q -e mpegtsmux name=m ! filesink location="$out" filesrc location="$in" ! decodebin name=d \
        d. ! queue ! videoconvert ! videorate ! video/x-raw,framerate=30000/1001 ! cccombiner name=c ! x264enc tune=zerolatency ! h264parse ! queue ! m. \
        d. ! queue ! audioconvert ! audioresample ! avenc_aac ! aacparse ! queue ! m. \
        filesrc location="$in" ! decodebin ! audioconvert ! scribetranscriber unit=word ! textwrap columns=32 ! \
        tttocea608 roll-up-timeout=5000000000 ! closedcaption/x-cea-608,framerate=30000/1001 ! ccconverter ! \
        closedcaption/x-cea-708,format=cc_data ! queue ! c.caption
else
    # As many black pictures as the sound is long: a byte is an eighth of a millisecond. A drawing of the sound (wavescope)
    # would end by itself, but calls itself live, and then cccombiner waits for no words.
    pictures=$(($(gst-launch-1.0 -q filesrc location="$in" ! decodebin ! audioconvert ! audioresample ! \
        audio/x-raw,format=U8,rate=8000,channels=1 ! fdsink fd=1 | wc -c) * 30000 / 1001 / 8000 + 1))
    gst-launch-1.0 -q -e mpegtsmux name=m ! filesink location="$out" \
        videotestsrc pattern=black num-buffers="$pictures" ! video/x-raw,width=640,height=360,framerate=30000/1001 ! \
        cccombiner name=c ! x264enc tune=zerolatency ! h264parse ! queue ! m. \
        filesrc location="$in" ! decodebin ! audioconvert ! audioresample ! avenc_aac ! aacparse ! queue ! m. \
        filesrc location="$in" ! decodebin ! audioconvert ! scribetranscriber unit=word ! textwrap columns=32 ! \
        tttocea608 roll-up-timeout=5000000000 ! closedcaption/x-cea-608,framerate=30000/1001 ! ccconverter ! \
        closedcaption/x-cea-708,format=cc_data ! queue ! c.caption
fi
