# SPDX-License-Identifier: MPL-2.0
"""How long an enrolment of 500 segments takes, by batch size; and whether a person who is met in several conversations gets
one identity. Through the elements, as a user has them. Started by scripts/bench-enrol.sh; wants Debian's python3-gst-1.0."""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

SEGMENTS = 500
# As long as the recording of the accident: 1,808 segments of 3 s every 1.5 s.
SECONDS = 2714.877
BATCHES = [1, 2, 4, 8, 16, 32, 0]


def played(line, heard):
    """Plays a pipeline; `heard` is told of each element message with the time. Raises on an ERROR."""
    import gi

    gi.require_version("Gst", "1.0")
    from gi.repository import Gst

    Gst.init(None)
    pipeline = Gst.parse_launch(line)
    pipeline.set_state(Gst.State.PLAYING)
    bus = pipeline.get_bus()
    wanted = Gst.MessageType.EOS | Gst.MessageType.ERROR | Gst.MessageType.ELEMENT
    try:
        while True:
            message = bus.timed_pop_filtered(Gst.CLOCK_TIME_NONE, wanted)
            if message.type == Gst.MessageType.ELEMENT:
                heard(message.get_structure(), time.monotonic())
            elif message.type == Gst.MessageType.ERROR:
                raise RuntimeError(message.parse_error()[0].message)
            else:
                return
    finally:
        pipeline.set_state(Gst.State.NULL)


def enrol(sound, batch):
    """One enrolment, in this process: what it took."""
    marks = []

    def heard(structure, now):
        if structure.get_name() == "scribe/progress":
            text = structure.get_string("text")
            if text.startswith("Processing") or "embeddings extracted" in text:
                marks.append((now, text))

    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        played(
            f"filesrc location={sound} ! rawaudioparse format=pcm pcm-format=s16le sample-rate=16000 num-channels=1 ! "
            f"scribeenroller name-of=A voices={folder}/v.db batch-size={batch} max-segments={SEGMENTS} ! fakesink sync=false",
            heard,
        )
        whole = time.monotonic() - began
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "batch": batch,
                "said": marks[0][1],
                "embedding_s": marks[-1][0] - marks[0][0],
                "whole_s": whole,
                "cpu_s": usage.ru_utime + usage.ru_stime,
                "peak_mib": usage.ru_maxrss / 1024,
            }
        )
    )


def batches(data, rounds):
    """One reader, again and again, to the length of the recording of the accident."""
    files = sorted((data / "wer/ljspeech").glob("*.opus"))
    with tempfile.TemporaryDirectory() as folder:
        sound = pathlib.Path(folder) / "long.s16"
        decoded = b"".join(
            subprocess.run(
                ["ffmpeg", "-v", "error", "-i", str(f), "-ar", "16000", "-ac", "1", "-f", "s16le", "-"],
                check=True,
                stdout=subprocess.PIPE,
            ).stdout
            for f in files
        )
        wanted = int(SECONDS * 16000) * 2
        sound.write_bytes((decoded * (wanted // len(decoded) + 1))[:wanted])
        found = {}
        for _ in range(rounds):
            for batch in BATCHES:
                out = subprocess.run(
                    [sys.executable, __file__, "one", str(sound), str(batch)],
                    check=True,
                    stdout=subprocess.PIPE,
                )
                found.setdefault(batch, []).append(json.loads(out.stdout))
    print(f"{SEGMENTS} segments of a recording of {SECONDS:.3f} s, best of {rounds}:\n")
    print("| batch size | it says | embedding, s | whole enrolment, s | processor, s | peak, MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for batch, runs in found.items():
        best = min(runs, key=lambda r: r["embedding_s"])
        said = best["said"].split(" (")[0]
        print(
            f"| {batch or 'auto'} | {said} | {best['embedding_s']:.1f} | {best['whole_s']:.1f} | {best['cpu_s']:.1f} "
            f"| {best['peak_mib']:.0f} |"
        )


def reference(path):
    """Turns of an RTTM file: speaker, start, end."""
    turns = []
    for line in path.read_text().splitlines():
        fields = line.split()
        start = float(fields[3])
        turns.append((fields[7], start, start + float(fields[4])))
    return turns


def conversation(sound, voices):
    """Turns of a recording with the identities that they have got, in this process."""
    turns, names = [], {}

    def heard(structure, _now):
        name = structure.get_name()
        if name == "scribe/turn":
            start, end = (structure.get_uint64(f).value / 1e9 for f in ("start", "end"))
            turns.append((structure.get_string("speaker-id"), start, end))
        elif name == "scribe/relabel":
            names[structure.get_string("old-id")] = structure.get_string("new-id")

    played(
        f"filesrc location={sound} ! decodebin ! audioconvert ! scribediarizer ! "
        f"scribeenroller policy=unknown voices={voices} ! fakesink sync=false",
        heard,
    )
    print(json.dumps([(names.get(who, who), start, end) for who, start, end in turns]))


def identities(derived):
    """All conversations one after the other into one store."""
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for sound in sorted(derived.glob("d*.flac")):
            out = subprocess.run(
                [sys.executable, __file__, "conversation", str(sound), f"{folder}/v.db"],
                check=True,
                stdout=subprocess.PIPE,
            )
            told = json.loads(out.stdout)
            for who, start, end in reference(sound.with_suffix(".rttm")):
                for identity, first, last in told:
                    shared = min(end, last) - max(start, first)
                    if shared > 0:
                        key = (who, sound.stem)
                        seconds.setdefault(key, {}).setdefault(identity, 0.0)
                        seconds[key][identity] += shared
    of_person = {}
    left = 0
    for (who, _recording), own in sorted(seconds.items()):
        most = max(own, key=own.get)
        if most.startswith("voice-"):
            of_person.setdefault(who, []).append(most)
        else:
            left += 1
    met_again = {who: ids for who, ids in of_person.items() if len(ids) > 1}
    one = [who for who, ids in met_again.items() if len(set(ids)) == 1]
    people = {}
    for who, ids in of_person.items():
        for identity in ids:
            people.setdefault(identity, set()).add(who)
    shared = {identity: who for identity, who in people.items() if len(who) > 1}
    print(f"speakers of a recording: {len(seconds)}; without an identity: {left}")
    print(f"people with an identity: {len(of_person)}; met in more than one recording: {len(met_again)}")
    print(f"of those with one identity throughout: {len(one)}; with several: {len(met_again) - len(one)}")
    print(f"identities: {len(people)}; of more than one person: {len(shared)}")
    for who, ids in sorted(met_again.items()):
        if len(set(ids)) > 1:
            print(f"  {who}: {len(set(ids))} identities in {len(ids)} recordings")
    for identity, who in shared.items():
        print(f"  {identity}: {', '.join(sorted(who))}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    sub = parser.add_subparsers(dest="what", required=True)
    several = sub.add_parser("batches")
    several.add_argument("data", type=pathlib.Path)
    several.add_argument("--rounds", type=int, default=3)
    one = sub.add_parser("one")
    one.add_argument("sound")
    one.add_argument("batch", type=int)
    met = sub.add_parser("identities")
    met.add_argument("derived", type=pathlib.Path)
    talk = sub.add_parser("conversation")
    talk.add_argument("sound")
    talk.add_argument("voices")
    options = parser.parse_args()
    if options.what == "batches":
        batches(options.data, options.rounds)
    elif options.what == "one":
        enrol(options.sound, options.batch)
    elif options.what == "identities":
        identities(options.derived)
    else:
        conversation(options.sound, options.voices)


if __name__ == "__main__":
    os.environ.setdefault("GST_REGISTRY_FORK", "no")
    main()
