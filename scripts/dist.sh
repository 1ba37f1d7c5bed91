#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# A build for other people's machines and an archive of it, laid out as below a prefix:
#
#   tar -C /usr -xf target-dist/scribe-VERSION-x86_64.tar.gz
#
# With SOURCE_DATE_EPOCH set, the archive's bytes depend on its files alone.
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

scripts/build.sh --dist
target-dist/dist/scribe-models runtime target-dist/dist/scribe ||
    die "ONNX Runtime could not be put into target-dist/dist/scribe" \
        "a network that reaches PyPI, or the wheel in a folder: SCRIBE_MODELS_FROM=FOLDER make dist"

version=$(sed -n 's/^version *= *"\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=scribe-$version-$(uname -m)
rm -rf target-dist/stage
# Models have licences and a home of their own: scribe-models gets them.
PREFIX=/usr FOR_USER='' DESTDIR=$PWD/target-dist/stage BUILD=target-dist/dist MODELS=0 scripts/install.sh
# Debug lines are for us: two thirds of the file.
strip --strip-debug target-dist/stage/usr/bin/* "$(find target-dist/stage -name libgstscribe.so)" \
    "$(find target-dist/stage -name scribe-worker)"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-$(date +%s)}" \
    -C target-dist/stage/usr -cf - . | gzip -9n >"target-dist/$name.tar.gz"
say "made target-dist/$name.tar.gz"
