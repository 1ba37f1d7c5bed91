#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
# Many files to captions, several at once in one process: the model is loaded once, and the cores are shared out.
#   pipelines/many_files.sh transcripts talks/ talk.mp3
#   pipelines/many_files.sh transcripts --format srt --speakers talks/
#
# What is there already is not done again; one bad file harms no other. --help lists the options.
set -eu
out=${1:?usage: $0 FOLDER [OPTION]... FILE|FOLDER...}
shift
# shellcheck source=pipelines/common.sh
. "$(dirname "$0")/common.sh"
program=$(dirname "$0")/../target/release/examples/batch
need_program "$program" batch

exec "$program" --out "$out" "$@"
