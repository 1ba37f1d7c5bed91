#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
# File to RTTM: who spoke when, without words.
#   pipelines/who_spoke_when.sh talk.mp3 [talk.rttm]
set -eu
in=${1:?usage: $0 FILE [OUTPUT]}
out=${2:-${in%.*}.rttm}
# shellcheck source=pipelines/common.sh
. "$(dirname "$0")/common.sh"

gst-launch-1.0 -q -e filesrc location="$in" ! decodebin ! scribediarizer name=d d.turns ! scribeenc format=rttm ! \
    filesink location="$out"
