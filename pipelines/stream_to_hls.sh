#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
# Live stream to HLS with captions: RTSP or RTMP in (or a file), segments of a transport stream and of WebVTT out. Players
# open index.m3u8 in the folder, once a web server has it. Ctrl-C ends the stream and its playlists.
#   pipelines/stream_to_hls.sh rtsp://camera/1 /var/www/live --window 10
#   pipelines/stream_to_hls.sh rtmp://server/app/key out --speakers
#
# GStreamer 1.22 writes no playlist of captions: examples/hls.rs does.
set -eu
in=${1:?usage: $0 URI FOLDER [OPTION]...}
out=${2:?usage: $0 URI FOLDER [OPTION]...}
shift 2
# shellcheck source=pipelines/common.sh
. "$(dirname "$0")/common.sh"
need splitmuxsink "apt-get install gstreamer1.0-plugins-good"
need mpegtsmux "apt-get install gstreamer1.0-plugins-bad"
need avenc_aac "apt-get install gstreamer1.0-libav"
program=$(dirname "$0")/../target/release/examples/hls
need_program "$program" hls

exec "$program" "$@" "$in" "$out"
