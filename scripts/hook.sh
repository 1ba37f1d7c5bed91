#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
#   scripts/hook.sh NAME        runs scripts/NAME.sh, or says that there is none yet
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

[ -x "scripts/$1.sh" ] || die "there is no scripts/$1.sh yet" "CHANGELOG.md says what this version has"
exec "scripts/$1.sh"
