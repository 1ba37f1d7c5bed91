#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
# File to JSON, words with the names of people whose voices are known.
#   pipelines/file_to_json_with_names.sh talk.mp3 voices.db [talk.json]
set -eu
usage="usage: $0 FILE VOICES [OUTPUT]"
in=${1:?$usage}
voices=${2:?$usage}
out=${3:-${in%.*}.json}
# shellcheck source=pipelines/common.sh
. "$(dirname "$0")/common.sh"

gst-launch-1.0 -q -e filesrc location="$in" ! decodebin ! scribebin voices="$voices" format=json ! filesink location="$out"
