#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# Enrolment and names through the elements, as a user has them: time and memory of 500 segments by batch size, one identity
# for a person who is met in several conversations, names in conversations, told at the end and live. Prints tables for docs/benchmarks.md
# ("Enrolment and names through the elements").
#
#   scripts/bench-enrol.sh             everything (the first table wants a quiet machine); after scripts/bench-voices.sh
#   scripts/bench-enrol.sh PART...     batches, identities, names
#
# Recordings: those of the folder SCRIBE_DATA (default ../shared/data), conversations that ../eval/make_derived.py beside it makes,
# and those that scripts/bench-voices.sh has composed.
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

data=${SCRIBE_DATA:-../shared/data}
if [ ! -d "$data/wer/ljspeech" ]; then
    say "SKIPPED: no recordings in $data (set SCRIBE_DATA): nothing of enrolment is measured"
    exit 0
fi
command -v ffmpeg >/dev/null || die "ffmpeg is missing" "make setup-test"
/usr/bin/python3 -c 'import gi' 2>/dev/null || die "Python's GObject bindings are missing" "make setup-test"
[ -f target/release/libgstscribe.so ] || die "the plugin is not built" "make build"

GST_PLUGIN_PATH=$PWD/target/release
GST_REGISTRY=$PWD/target/bench-registry.bin
export GST_PLUGIN_PATH GST_REGISTRY

run() {
    /usr/bin/python3 -B scripts/bench/enrol.py "$@"
}

for part in "${@:-batches identities names}"; do
    for one in $part; do
        say "$one"
        case $one in
        batches) run batches "$data" ;;
        identities)
            derived=target/bench/derived
            python=${SCRIBE_BENCH_PYTHON:-target/venv-bench/bin/python}
            [ -d "$derived" ] || "$python" -B "$data/../eval/make_derived.py" --data "$data" --out "$derived"
            run identities "$derived"
            ;;
        names)
            [ -d target/bench/voices/composed ] || die "no conversations with enrolled people" "scripts/bench-voices.sh"
            run names target/bench/voices
            ;;
        *) die "there is no part $one" "batches, identities, names" ;;
        esac
    done
done
