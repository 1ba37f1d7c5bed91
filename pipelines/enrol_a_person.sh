#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
# Learns a voice from a recording of one person, so that transcripts have the name.
#   pipelines/enrol_a_person.sh alice.wav Alice [voices.db]
set -eu
usage="usage: $0 FILE NAME [VOICES]"
in=${1:?$usage}
name=${2:?$usage}
voices=${3:-voices.db}
# shellcheck source=pipelines/common.sh
. "$(dirname "$0")/common.sh"

gst-launch-1.0 -q filesrc location="$in" ! decodebin ! audioconvert ! audioresample ! \
    scribeenroller name-of="$name" voices="$voices" ! fakesink
