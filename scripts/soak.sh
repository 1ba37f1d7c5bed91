#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# The tests that take long: a worker killed 50 times, 2,000 damaged ONNX files, 1,000 loads and evictions of each model, 500
# changes of state and seeks, a day of live sound.
set -eu

cd "$(dirname "$0")/.."
scripts/test.sh --test isolation --test onnx_mutants --test cycles --test live_soak -- --ignored --nocapture
