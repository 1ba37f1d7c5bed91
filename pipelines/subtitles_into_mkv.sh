#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
# Video file to Matroska with its words as a subtitle track.
#   pipelines/subtitles_into_mkv.sh film.mp4 [film.subtitled.mkv]
#
# The queues are open (no bound): text comes up to 30 s after the sound it belongs to, and the muxer waits for it.
# With GStreamer's default of one second the tee would block, no more sound would reach the transcriber, and the
# pipeline would stand still for ever.
set -eu
in=${1:?usage: $0 FILE [OUTPUT]}
out=${2:-${in%.*}.subtitled.mkv}
# shellcheck source=pipelines/common.sh
. "$(dirname "$0")/common.sh"

gst-launch-1.0 -q -e filesrc location="$in" ! decodebin name=d matroskamux name=m ! filesink location="$out" \
    d. ! videoconvert ! queue max-size-time=0 max-size-bytes=0 max-size-buffers=0 ! vp8enc deadline=1 ! m. \
    d. ! audioconvert ! tee name=t \
    t. ! queue max-size-time=0 max-size-bytes=0 max-size-buffers=0 ! vorbisenc ! m. \
    t. ! queue max-size-time=0 max-size-bytes=0 max-size-buffers=0 ! scribetranscriber ! m.subtitle_0
