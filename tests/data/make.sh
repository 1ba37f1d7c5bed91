#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
#
# Makes the recordings of this folder and their true words out of the speech in Debian's package
# pocketsphinx-testdata. What is made is committed: run this only to change it.
#
#   apt-get install pocketsphinx-testdata sox ffmpeg flac
#   tests/data/make.sh [FOLDER]        # default: beside this script
#
# The same packages give the same files, byte for byte: SoX starts its noise from a fixed seed (-R),
# nothing is dithered (-D), and no file carries a date or a random number.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
out=${1:-$here}
src=${POCKETSPHINX_TESTDATA:-/usr/share/pocketsphinx/test/data}

for tool in sox soxi ffmpeg flac; do
    if ! command -v "$tool" >/dev/null; then
        echo "make.sh: $tool is missing: apt-get install sox ffmpeg flac" >&2
        exit 1
    fi
done
if [ ! -d "$src/librivox" ]; then
    echo "make.sh: no speech in $src: apt-get install pocketsphinx-testdata" >&2
    exit 1
fi
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rate=16000 # of all sources, and so of all that is made

# Every call of SoX goes through here: repeatable, no dither, no question asked.
run_sox() { sox -R -D --no-show-progress "$@"; }

# One utterance to "$work/NAME.wav": equal loudness, and 5 ms of fade so that a cut does not click.
clip() { # NAME FILE
    local -a input=("$2")
    case $2 in *.raw) input=(-t raw -r "$rate" -e signed -b 16 -c 1 "$2") ;; esac
    run_sox "${input[@]}" -b 16 "$work/$1.wav" fade h 0.005 -0 0.005 norm -4
}

silence() { # NAME SECONDS
    run_sox -n -r $rate -c 1 -b 16 "$work/$1.wav" trim 0 "$2"
}

# Noise with soft edges. Volume in dB below full scale.
noise() { # NAME KIND SECONDS DB
    run_sox -n -r $rate -c 1 -b 16 "$work/$1.wav" \
        synth "$3" "$2" fade h 0.5 "$3" 0.5 vol "$4dB"
}

librivox=$src/librivox/sense_and_sensibility_01_austen_64kb
clip leisure "$librivox-0870.wav"
clip illdisposed "$librivox-0880.wav"
clip coldhearted "$librivox-0890.wav"
clip married "$librivox-0920.wav"
clip amiable "$librivox-0930.wav"
clip ten "$src/cards/001.wav"
clip queen "$src/cards/002.wav"
clip seven "$src/cards/003.wav"
clip spades "$src/cards/005.wav"
clip forward "$src/goforward.raw"
clip somewhere "$src/something.raw"
clip digits "$src/tidigits/dhd.2934z.raw"

# The words, as spoken. The package writes "a more a amiable woman": the reader and the book have
# one "a". Of something.raw it gives no text; README.md says how it was checked.
declare -A words=(
    [leisure]="And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power to do for them."
    [illdisposed]="He was not an ill-disposed young man,"
    [coldhearted]="unless to be rather cold-hearted and rather selfish is to be ill-disposed."
    [married]="Had he married a more amiable woman, he might have been made still more respectable than he was."
    [amiable]="He might even have been made amiable himself."
    [ten]="Ten of clubs."
    [queen]="Four, queen of clubs."
    [seven]="Seven of clubs."
    [spades]="Eight of spades, four of clubs, seven of hearts."
    [forward]="Go forward ten meters."
    [somewhere]="Go somewhere and do something."
    [digits]="Two nine three four zero."
)
# Who speaks: three people, named by what they read.
declare -A voices=(
    [leisure]=reader [illdisposed]=reader [coldhearted]=reader [married]=reader [amiable]=reader
    [ten]=player [queen]=player [seven]=player [spades]=player
    [forward]=caller [somewhere]=caller [digits]=caller
)

# How many samples of quiet stand before the first sound (or, with "reverse", after the last):
# what SoX's gate of 1 % for 20 ms takes away.
quiet_edge() { # NAME [reverse]
    local reversed=()
    if [ $# -eq 2 ]; then reversed=("$2"); fi
    run_sox "$work/$1.wav" "$work/edge.wav" "${reversed[@]}" silence 1 0.02 1%
    echo $(($(soxi -s "$work/$1.wav") - $(soxi -s "$work/edge.wav")))
}

seconds() { # SAMPLES
    printf '%d.%03d' $(($1 / rate)) $(($1 % rate * 1000 / rate))
}

# A line of a reference: start and end of the sound, the words, the voice.
reference() { # FIRST_SAMPLE NAME
    local length before after
    length=$(soxi -s "$work/$2.wav")
    before=$(quiet_edge "$2")
    after=$(quiet_edge "$2" reverse)
    printf '%s\t%s\t%s\t%s\n' "$(seconds $(($1 + before)))" \
        "$(seconds $(($1 + length - after)))" "${words[$2]}" "${voices[$2]}"
}

# Puts parts one after another into "$work/FILE.wav"; those with words go to "$work/FILE.tsv".
compose() { # FILE PART...
    local file=$1 position=0 part
    local -a inputs=()
    shift
    : >"$work/$file.tsv"
    for part in "$@"; do
        inputs+=("$work/$part.wav")
        if [ -n "${words[$part]:-}" ]; then
            reference "$position" "$part" >>"$work/$file.tsv"
        fi
        position=$((position + $(soxi -s "$work/$part.wav")))
    done
    run_sox "${inputs[@]}" "$work/$file.wav"
}

keep_reference() { # FILE
    cp "$work/$1.tsv" "$out/$1.ref.tsv"
    cut -f 3 "$work/$1.tsv" >"$out/$1.ref.txt"
}

to_flac() { # FILE
    flac --silent --force --best --no-padding "$work/$1.wav" -o "$out/$1.flac"
}

to_opus() { # FILE KBITS
    # At 48 kHz, as Opus always plays: SoX resamples, so that no version of ffmpeg's resampler matters.
    run_sox "$work/$1.wav" -r 48000 "$work/$1.48k.wav" rate -h
    ffmpeg -v error -nostdin -y -i "$work/$1.48k.wav" -map_metadata -1 -fflags +bitexact \
        -flags:a +bitexact -c:a libopus -b:a "$2k" -application audio "$out/$1.opus"
}

silence s05 0.5
silence s1 1
silence s2 2
silence s5 5
noise room pinknoise 6 -26
noise hiss whitenoise 5 -40
noise rumble brownnoise 4 -20

# demo: three voices; pauses within a sentence's reach and beyond; 5 s of nothing; noise of three kinds.
compose demo s1 leisure s05 illdisposed s05 coldhearted s2 \
    somewhere s1 forward room \
    ten s05 queen s1 seven s5 \
    married s05 amiable rumble \
    spades s2 digits hiss s2
keep_reference demo
to_opus demo 24

# speech_short: one utterance with a little silence around it.
compose speech_short s05 amiable s05
keep_reference speech_short
to_flac speech_short

# stereo: a talk of two, each on a channel of their own; near the end they speak at once.
compose stereo_left s05 forward s2 s2 somewhere
compose stereo_right s05 s2 s05 s05 ten s2 spades
run_sox -M "$work/stereo_left.wav" "$work/stereo_right.wav" -b 16 "$work/stereo.wav"
to_flac stereo
sort -n "$work/stereo_left.tsv" "$work/stereo_right.tsv" >"$work/stereo.tsv"
keep_reference stereo

# silence_noise: nothing anybody says: silence, hiss, rumble, mains hum, a tone, a knock.
run_sox -n -r $rate -c 1 -b 16 "$work/hum.wav" \
    synth 2 sine 50 sine 150 sine 250 remix - fade h 0.1 2 0.1 vol -24dB
run_sox -n -r $rate -c 1 -b 16 "$work/tone.wav" synth 1 sine 440 fade h 0.01 1 0.4 vol -14dB
run_sox -n -r $rate -c 1 -b 16 "$work/knock.wav" synth 0.06 brownnoise fade h 0 0.06 0.055 vol -6dB
compose silence_noise s2 hiss s1 rumble s05 hum s05 tone s1 knock s05 knock s2
to_flac silence_noise
