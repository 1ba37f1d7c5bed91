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


def named(sound, voices, mode):
    """Turns of a recording with names: as they were told, and as they are in the end."""
    turns = []

    def heard(structure, _now):
        name = structure.get_name()
        if name == "scribe/turn":
            start, end = (structure.get_uint64(f).value / 1e9 for f in ("start", "end"))
            who = structure.get_string("speaker-id")
            turns.append({"told": structure.get_string("speaker"), "id": who, "start": start, "end": end, "at": end})
            turns[-1]["name"] = turns[-1]["told"]
        elif name == "scribe/relabel":
            old, new = structure.get_string("old-id"), structure.get_string("new-id")
            bounds = [structure.get_uint64(f) for f in ("from", "to")]
            first, last = (b.value / 1e9 if b[0] else None for b in bounds)
            for turn in turns:
                inside = (first is None or turn["start"] >= first - 1e-6) and (last is None or turn["start"] < last - 1e-6)
                if turn["id"] == old and inside:
                    turn["id"], turn["name"] = new, structure.get_string("name")

    played(
        f"filesrc location={sound} ! decodebin ! audioconvert ! scribediarizer mode={mode} voices={voices} ! fakesink sync=false",
        heard,
    )
    print(json.dumps(turns))


def names(folder):
    """Conversations in which people speak who are enrolled from other recordings, in both modes."""
    with tempfile.TemporaryDirectory() as made:
        voices = f"{made}/v.db"
        enrolled = set()
        for take in sorted((folder / "sound").glob("take-*.f32")):
            speaker = take.stem.removeprefix("take-")
            if speaker.startswith("ami_"):
                continue
            played(
                f"filesrc location={take} ! rawaudioparse format=pcm pcm-format=f32le sample-rate=16000 num-channels=1 ! "
                f"scribeenroller name-of={speaker} voices={voices} ! fakesink sync=false",
                lambda _structure, _now: None,
            )
            enrolled.add(speaker)
        print(f"{len(enrolled)} people enrolled through scribeenroller, three recordings each\n")
        print("| | speech of enrolled, s | right | wrong | without name | strangers, s | named | median s of speech until the name |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for mode in ("offline", "online"):
            sums = {"as told": [0.0] * 5, "in the end": [0.0] * 5}
            until = []
            for sound in sorted([*(folder / "composed").glob("d*.flac"), *(folder / "composed").glob("d*.wav")]):
                out = subprocess.run(
                    [sys.executable, __file__, "named", str(sound), voices, mode],
                    check=True,
                    stdout=subprocess.PIPE,
                )
                turns = json.loads(out.stdout)
                truth = reference(sound.with_suffix(".rttm"))
                spoken = {}
                for turn in sorted(turns, key=lambda t: t["start"]):
                    for who, start, end in truth:
                        shared = min(end, turn["end"]) - max(start, turn["start"])
                        others = [t for t in truth if t[0] != who and t[1] < turn["end"] and t[2] > turn["start"]]
                        # Who of two is meant where both speak cannot be said.
                        if shared <= 0 or any(min(e, end) > max(s, start) for _, s, e in others):
                            continue
                        for when, name in (("as told", turn["told"]), ("in the end", turn["name"])):
                            own = sums[when]
                            if who not in enrolled:
                                own[3] += shared
                                own[4] += 0.0 if name.startswith("Unknown") else shared
                            elif name == who:
                                own[0] += shared
                            elif name.startswith("Unknown"):
                                own[2] += shared
                            else:
                                own[1] += shared
                        if who in enrolled and who not in until_of(until, sound):
                            spoken[who] = spoken.get(who, 0.0) + shared
                            if turn["told"] == who:
                                until.append((sound.stem, who, spoken[who]))
            for when, (right, wrong, none, strangers, bad) in sums.items():
                if mode == "offline" and when == "as told":
                    continue
                whole = max(right + wrong + none, 0.1)
                seconds = sorted(s for _, _, s in until)
                median = f"{seconds[len(seconds) // 2]:.1f}" if mode == "online" and seconds else "–"
                print(
                    f"| {mode}, {when} | {whole:.0f} | {100 * right / whole:.1f} % | {100 * wrong / whole:.1f} % "
                    f"| {100 * none / whole:.1f} % | {strangers:.0f} | {100 * bad / max(strangers, 0.1):.1f} % | {median} |"
                )


def until_of(until, sound):
    return {who for recording, who, _ in until if recording == sound.stem}


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
    known = sub.add_parser("names")
    known.add_argument("folder", type=pathlib.Path)
    one_named = sub.add_parser("named")
    one_named.add_argument("sound")
    one_named.add_argument("voices")
    one_named.add_argument("mode")
    options = parser.parse_args()
    if options.what == "batches":
        batches(options.data, options.rounds)
    elif options.what == "one":
        enrol(options.sound, options.batch)
    elif options.what == "identities":
        identities(options.derived)
    elif options.what == "names":
        names(options.folder)
    elif options.what == "named":
        named(options.sound, options.voices, options.mode)
    else:
        conversation(options.sound, options.voices)


if __name__ == "__main__":
    os.environ.setdefault("GST_REGISTRY_FORK", "no")
    main()
