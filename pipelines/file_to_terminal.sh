#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
# File to words on the terminal, as they are found.
#   pipelines/file_to_terminal.sh talk.mp3
set -eu
in=${1:?usage: $0 FILE}
# shellcheck source=pipelines/common.sh
. "$(dirname "$0")/common.sh"

gst-launch-1.0 -q -e filesrc location="$in" ! decodebin ! audioconvert ! scribetranscriber ! \
    scribeenc format=vtt ! fdsink fd=1
