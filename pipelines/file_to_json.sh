#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
# File to JSON with words, times and figures.
#   pipelines/file_to_json.sh talk.mp3 [talk.json]
set -eu
in=${1:?usage: $0 FILE [OUTPUT]}
out=${2:-${in%.*}.json}
# shellcheck source=pipelines/common.sh
. "$(dirname "$0")/common.sh"

gst-launch-1.0 -q -e filesrc location="$in" ! decodebin ! audioconvert ! scribetranscriber ! \
    scribeenc format=json ! filesink location="$out"
