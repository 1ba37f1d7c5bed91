#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
# File to SubRip.
#   pipelines/file_to_srt.sh talk.mp3 [talk.srt]
set -eu
in=${1:?usage: $0 FILE [OUTPUT]}
out=${2:-${in%.*}.srt}
# shellcheck source=pipelines/common.sh
. "$(dirname "$0")/common.sh"

gst-launch-1.0 -q -e filesrc location="$in" ! decodebin ! audioconvert ! scribetranscriber ! \
    scribeenc format=srt ! filesink location="$out"
