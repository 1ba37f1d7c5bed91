#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
# File to JSON: words, speakers, turns.
#   pipelines/file_to_json_with_speakers.sh talk.mp3 [talk.json]
set -eu
in=${1:?usage: $0 FILE [OUTPUT]}
out=${2:-${in%.*}.json}
# shellcheck source=pipelines/common.sh
. "$(dirname "$0")/common.sh"

gst-launch-1.0 -q -e filesrc location="$in" ! decodebin ! scribebin format=json ! filesink location="$out"
