#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# Runs odd files through a real pipeline, each in a process of its own, and judges what came of it: text, no
# text or a clear error, never a hang or a crash. Prints a Markdown table; docs/robustness.md holds one.
#
#   scripts/sweep.sh FOLDER...
#
# A folder has a list.tsv with a head line. Its columns: file, what, and `expect` (text, silent, error, any)
# or `text` (the words that must come). A folder that is not there is skipped, loudly.
#   SCRIBE_SWEEP_SECONDS   how long a file may take (180: one sweeps 4 hours)
#   SCRIBE_SWEEP_PLUGIN    folder of the plugin (target/release)
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

[ $# -gt 0 ] || die "no folder given" "scripts/sweep.sh FOLDER..., each with files and a list.tsv"
GST_PLUGIN_PATH=${SCRIBE_SWEEP_PLUGIN:-$PWD/target/release}
[ -f "$GST_PLUGIN_PATH/libgstscribe.so" ] || die "there is no plugin in $GST_PLUGIN_PATH" "make build"
command -v gst-launch-1.0 >/dev/null || die "there is no gst-launch-1.0 on this machine" "make setup"
seconds=${SCRIBE_SWEEP_SECONDS:-180}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# A cache of its own, as in inspect.sh.
GST_REGISTRY=$work/registry.bin
export GST_PLUGIN_PATH GST_REGISTRY
gst-inspect-1.0 scribe >/dev/null || die "GStreamer does not load the plugin" "make inspect shows why"

# Share of the wanted words that came, in percent. Both sides in small letters, without signs.
share() { # WANTED-FILE GOT-FILE
    for side in "$1" "$2"; do
        tr '[:upper:]' '[:lower:]' <"$side" | tr -cs "a-z'" '\n' | sed '/^$/d' | LC_ALL=C sort >"$side.words"
    done
    wanted=$(wc -l <"$1.words")
    LC_ALL=C comm -12 "$1.words" "$2.words" >"$work/both"
    echo $(($(wc -l <"$work/both") * 100 / (wanted > 0 ? wanted : 1)))
}

run() { # FILE
    # Headerless sound has no name of its own: the pipeline says what it is, as a person would have to.
    case $1 in
        *.raw) decoder="rawaudioparse use-sink-caps=false format=pcm pcm-format=s16le sample-rate=16000 num-channels=1" ;;
        *) decoder=decodebin ;;
    esac
    rm -f "$work/out"
    : >"$work/err"
    rc=0
    # Words of the decoder's settings: split on purpose.
    # shellcheck disable=SC2086
    timeout -k 5 "$seconds" gst-launch-1.0 -q filesrc location="$1" ! $decoder ! scribetranscriber ! \
        scribeenc format=text ! filesink location="$work/out" >"$work/err" 2>&1 || rc=$?
    [ -f "$work/out" ] || : >"$work/out"
}

judge() { # EXPECT RC
    words=$(wc -w <"$work/out")
    case $2 in
        124 | 137) came=hang ;;
        0) if [ "$words" -gt 0 ]; then came=text; else came=silent; fi ;;
        1) if grep -q '^ERROR' "$work/err"; then came=error; else came="exit 1 without a message"; fi ;;
        *) came="crash ($2)" ;;
    esac
    grep -q 'panicked' "$work/err" && came="panic"
    case $came in hang | crash* | panic | exit*) verdict=FAIL; return ;; esac
    # What this GStreamer has no decoder for, it says itself.
    if [ "$1" = text ] && [ "$came" = error ] && grep -q 'missing a plug-in' "$work/err"; then
        verdict='ok, no decoder here'
        return
    fi
    case $1 in
        any | "$came") verdict=ok ;;
        *) verdict=FAIL ;;
    esac
}

failures=0
count=0
for folder in "$@"; do
    if [ ! -f "$folder/list.tsv" ]; then
        echo "scribe: SKIPPED: there is no $folder/list.tsv" >&2
        continue
    fi
    kind=$(head -n 1 "$folder/list.tsv" | awk -F '\t' '{ print ($3 == "expect") ? "expect" : "text" }')
    printf '\n| file | what | expected | came | seconds | |\n| --- | --- | --- | --- | --- | --- |\n'
    sed 1d "$folder/list.tsv" >"$work/list"
    while IFS="$(printf '\t')" read -r file what third fourth; do
        if [ "$kind" = expect ]; then
            expect=$third
        else
            expect=text
            case $what in *"no text expected"*) expect=error ;; esac
            printf '%s\n' "$fourth" >"$work/wanted"
        fi
        began=$(date +%s%N)
        # A list on standard input must not be eaten by what runs.
        run "$folder/$file" </dev/null
        took=$((($(date +%s%N) - began) / 100000000))
        judge "$expect" "$rc"
        note=$came
        if [ "$came" = text ] && [ "$kind" = text ]; then
            found=$(share "$work/wanted" "$work/out")
            note="text, $found % of the words"
            [ "$found" -ge 60 ] || verdict=FAIL
        elif [ "$came" = error ]; then
            note="error: $(sed -n 's/^ERROR: from element [^:]*: *//p' "$work/err" | head -n 1 | cut -c 1-150)"
        fi
        count=$((count + 1))
        if [ "$verdict" = FAIL ]; then
            failures=$((failures + 1))
            { echo "--- $folder/$file: expected $expect, came $came"; cat "$work/err"; head -c 400 "$work/out"; echo; } >&2
        fi
        # A bar would end the table's cell.
        # Backticks are Markdown here.
        # shellcheck disable=SC2016
        printf '| `%s` | %s | %s | %s | %d.%d | %s |\n' "$file" "$what" "$expect" "$(echo "$note" | tr '|' '/')" \
            "$((took / 10))" "$((took % 10))" "$verdict"
    done <"$work/list"
done
echo
echo "$count files, $failures not as expected."
[ "$failures" -eq 0 ] || exit 1
