#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
# File to JSON lines, each written as it comes: what is there after a crash is good.
#   pipelines/file_to_jsonl.sh talk.mp3 [talk.jsonl]
set -eu
in=${1:?usage: $0 FILE [OUTPUT]}
out=${2:-${in%.*}.jsonl}
# shellcheck source=pipelines/common.sh
. "$(dirname "$0")/common.sh"

gst-launch-1.0 -q -e filesrc location="$in" ! decodebin ! audioconvert ! scribetranscriber ! \
    scribeenc format=jsonl ! filesink buffer-mode=unbuffered location="$out"
