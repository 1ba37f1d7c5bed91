#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
# File, with pictures or without, to WebVTT that says who speaks.
#   pipelines/file_to_vtt_with_speakers.sh talk.mp3 [talk.vtt]
set -eu
in=${1:?usage: $0 FILE [OUTPUT]}
out=${2:-${in%.*}.vtt}
# shellcheck source=pipelines/common.sh
. "$(dirname "$0")/common.sh"

gst-launch-1.0 -q -e filesrc location="$in" ! decodebin ! scribebin format=vtt ! filesink location="$out"
