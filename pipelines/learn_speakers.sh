#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
# File to JSON; whoever speaks and is not known yet gets a lasting identity, to be named later by scribe-voices.
#   pipelines/learn_speakers.sh meeting.mp3 [voices.db] [meeting.json]
set -eu
in=${1:?usage: $0 FILE [VOICES] [OUTPUT]}
voices=${2:-voices.db}
out=${3:-${in%.*}.json}
# shellcheck source=pipelines/common.sh
. "$(dirname "$0")/common.sh"

gst-launch-1.0 -q -e filesrc location="$in" ! decodebin ! audioconvert ! scribediarizer ! \
    scribeenroller policy=unknown voices="$voices" ! scribetranscriber ! scribeenc format=json ! filesink location="$out"
