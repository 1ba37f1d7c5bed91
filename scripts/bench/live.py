# SPDX-License-Identifier: MPL-2.0
"""Live captions: how late words come, how many are wrong beside the same speech as a file, what it costs, and what happens
on a machine that is too slow. Called by scripts/bench-live.sh.

`examples/live_delay` plays streams in real time and notes when each word comes. What it wrote is kept in target/bench/live until
--fresh: a run takes fifty minutes.
"""

import argparse
import csv
import json
import os
import random
import subprocess
import time
from pathlib import Path

import common
import scoring

RATE = 16000
# An old recording, a speech with long pauses, changing readers, one reader, and two who talk over each other: those that the
# policy was chosen on (research notes, live.md). The others were not looked at before; the context's length and a step's texts
# were then chosen on all.
CHOSEN = ("jfk_1961", "bush_columbia_2003", "chain_other", "chain_lj", "d02_dialog")
OTHERS = ("chain_clean", "chain_vctk", "d03_three")
HERE = common.WORK / "live"
STREAMS = HERE / "streams"
OURS = "scribetranscriber unit=word"
# GStreamer's own element at its defaults but for two threads.
PEER = f"whispertranscriber model-path={common.ROOT}/models/ggml-tiny.en-q8_0.bin model-preset=tiny-en n-threads=2"
# Name, cores, streams that are played at once (a list of such groups, one after the other), processes that hold the cores, element.
CASES = (
    ("one core", 1, [[n] for n in CHOSEN], 0, OURS),
    ("one core, three more recordings", 1, [[n] for n in OTHERS], 0, OURS),
    ("two cores", 2, [["bush_columbia_2003"], ["chain_other"]], 0, OURS),
    ("two cores, the first of them", 2, [["bush_columbia_2003"]], 0, OURS),
    ("the same, whispertranscriber", 2, [["bush_columbia_2003"]], 0, PEER),
    ("two streams on one core", 1, [["bush_columbia_2003", "chain_other"]], 0, OURS),
    ("four streams on one core", 1, [["bush_columbia_2003", "chain_other", "chain_lj", "d02_dialog"]], 0, OURS),
    ("one core that two other processes want", 1, [["bush_columbia_2003"]], 2, OURS),
)


def manifest():
    with open(common.DATA / "manifest.tsv", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def references():
    with open(common.DATA / "wer" / "refs.tsv", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    return {row[0]: row[-1] for row in rows}


def spoken_words():
    """Words with their times, seconds, of utterances that have them."""
    found = {}
    for line in (common.DATA / "words" / "utterances.ctm").read_text().splitlines():
        name, _, start, length, word = line.split()[:5]
        found.setdefault(name, []).append((word, float(start), float(start) + float(length)))
    return found


def chain(ids, rows, texts, times, seed):
    """Utterances with pauses of half a second to a second between."""
    import numpy
    import soundfile

    rng = random.Random(seed)
    sound, text, words, at = [], [], [], 0
    for name in ids:
        samples, rate = soundfile.read(common.DATA / rows[name]["file"], dtype="float32")
        if samples.ndim > 1:
            samples = samples.mean(axis=1)
        if rate != RATE:
            import scipy.signal

            samples = scipy.signal.resample_poly(samples, RATE, rate).astype("float32")
        words += [(w, at / RATE + a, at / RATE + b) for w, a, b in times.get(name, [])]
        text.append(texts[name])
        pause = numpy.zeros(int(RATE * rng.uniform(0.5, 1.0)), dtype="float32")
        sound += [samples, pause]
        at += len(samples) + len(pause)
    return numpy.concatenate(sound), " ".join(text), words


def build(folder):
    import soundfile

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {row["id"]: row for row in manifest()}
    texts, times = references(), spoken_words()

    def some(category, count, seed, timed=True):
        ids = sorted(i for i, r in rows.items() if r["category"] == category and i in texts and (not timed or i in times))
        random.Random(seed).shuffle(ids)
        return ids[:count]

    chains = {
        "chain_other": chain(some("wer/librispeech_other", 23, 1), rows, texts, times, 11),
        "chain_lj": chain(some("wer/ljspeech", 21, 2, False), rows, texts, times, 12),
        "chain_clean": chain(some("wer/librispeech_clean", 20, 3), rows, texts, times, 13),
        "chain_vctk": chain(some("wer/vctk", 36, 4, False), rows, texts, times, 14),
    }
    index = []
    for name, (sound, text, words) in chains.items():
        soundfile.write(folder / f"{name}.flac", sound, RATE)
        index.append({"id": name, "text": text, "words": words})
    for name in ("jfk_1961", "bush_columbia_2003"):
        (folder / f"{name}{Path(rows[name]['file']).suffix}").write_bytes((common.DATA / rows[name]["file"]).read_bytes())
        index.append({"id": name, "text": texts[name], "words": []})
    derived = common.derived()
    if derived is None:
        common.die("composed recordings are missing", "../eval/make_derived.py beside the recordings")
    with open(derived / "refs.tsv", newline="") as file:
        composed = {row[0]: row[-1] for row in csv.reader(file, delimiter="\t")}
    for name in ("d02_dialog", "d03_three"):
        (folder / f"{name}.flac").write_bytes((derived / f"{name}.flac").read_bytes())
        index.append({"id": name, "text": composed[name], "words": []})
    (folder / "index.json").write_text(json.dumps(index))


def percentile(values, part):
    values = sorted(values)
    return values[min(len(values) - 1, int(part * len(values)))] if values else float("nan")


def fold(word):
    return "".join(c for c in word.lower() if c.isalnum())


def matched(reference, heard):
    """Pairs of a reference word's end and a heard word, where both are the same."""
    import jiwer

    a = [fold(w) or "_" for w, *_ in reference]
    b = [fold(w["text"]) or "_" for w in heard]
    if not a or not b:
        return
    for chunk in jiwer.process_words(" ".join(a), " ".join(b)).alignments[0]:
        if chunk.type == "equal":
            for i, j in zip(range(chunk.ref_start_idx, chunk.ref_end_idx), range(chunk.hyp_start_idx, chunk.hyp_end_idx)):
                yield reference[i][2], heard[j]


def file_words(path):
    document = json.loads(path.read_text())
    return [(w["word"].strip(), w["start"], w["end"]) for w in document["words"]]


def sound_of(name):
    return next(p for p in STREAMS.iterdir() if p.stem == name)


def as_file(options):
    """What file mode says of the same streams."""
    out = HERE / "file"
    if options.fresh or not all((out / f"{n}.json").is_file() for n in (*CHOSEN, *OTHERS)):
        inputs = HERE / "inputs"
        inputs.mkdir(parents=True, exist_ok=True)
        for name in (*CHOSEN, *OTHERS):
            link = inputs / sound_of(name).name
            link.unlink(missing_ok=True)
            link.symlink_to(sound_of(name))
        batch = [common.ROOT / "target/release/examples/batch", "--format", "json", "--out", out, inputs]
        subprocess.run(batch, check=True, env=common.environment(), stdout=subprocess.DEVNULL)
    return out


def played(case, options, done):
    """Raw figures of a case: one document for each group of streams. What two cases have in common is played once."""
    name, cores, groups, held, element = case
    documents = []
    for group in groups:
        peer = ["whispertranscriber"] if element == PEER else []
        path = HERE / f"{'-'.join([f'{cores}_cores', f'{held}_others', *peer, *group])}.json"
        if not path.is_file() or (options.fresh and path not in done):
            common.say(f"{name}: {', '.join(group)}")
            files = [sound_of(n) for n in group]
            own = sorted(os.sched_getaffinity(0))[:cores]
            pin = lambda: os.sched_setaffinity(0, own)
            others = [subprocess.Popen(["sh", "-c", "while :; do :; done"], preexec_fn=pin) for _ in range(held)]
            try:
                command = [common.ROOT / "target/release/examples/live_delay", f"element={element}", f"out={path}", *files]
                subprocess.run(command, check=True, env=environment(), preexec_fn=pin)
            finally:
                for other in others:
                    other.kill()
        done.add(path)
        documents.append(json.loads(path.read_text()))
    return documents


def environment():
    """The peer's plugin beside ours."""
    own = common.environment()
    folders = [str(common.WORK / "gst-whisper" / "plugins"), own.get("GST_PLUGIN_PATH", "")]
    return {**own, "GST_PLUGIN_PATH": ":".join(f for f in folders if f)}


def silence(options):
    """Processor time of a minute without a word, seconds."""
    import numpy
    import soundfile

    path = HERE / "silence.json"
    if options.fresh or not path.is_file():
        sound = HERE / "silence.flac"
        noise = numpy.random.default_rng(7).normal(0, 0.0005, 120 * RATE)
        soundfile.write(sound, noise, RATE)
        command = [common.ROOT / "target/release/examples/live_delay", f"element={OURS}", f"out={path}", sound]
        subprocess.run(command, check=True, env=common.environment())
    return json.loads(path.read_text())


def figures_of(documents, index, base):
    """Of each stream, and of all together."""
    streams, every, early, counts, counts_file = {}, [], [], [], []
    changed, words, partials, told = 0, 0, 0, []
    for stream in (s for d in documents for s in d["streams"]):
        entry = index[stream["id"]]
        heard = stream["words"]
        file = file_words(base / f"{stream['id']}.json")
        own = scoring.errors(entry["text"], " ".join(w["text"] for w in heard))
        other = scoring.errors(entry["text"], " ".join(w for w, *_ in file))
        pairs = list(matched(entry["words"] or file, heard))
        late = [w["at"] - end for end, w in pairs]
        seen = first_seen(stream, pairs)
        counts.append(own)
        counts_file.append(other)
        every += late
        early += seen
        changed += taken_back(stream)
        words += len(heard)
        partials += len(stream["partials"])
        told += stream["told"]
        streams[stream["id"]] = {
            "errors": own,
            "errors_file": other,
            "delay": [percentile(late, p) for p in (0.5, 0.9, 0.95, 1.0)],
            "first": [percentile(seen, p) for p in (0.5, 0.95)],
            "backwards": stream["backwards"],
        }
    return {
        "streams": streams,
        "errors": scoring.total(counts),
        "errors_file": scoring.total(counts_file),
        "delay": [percentile(every, p) for p in (0.5, 0.9, 0.95, 1.0)],
        "first": [percentile(early, p) for p in (0.5, 0.95)],
        "timed": len(every),
        "words": words,
        "partials": partials,
        "taken_back": changed,
        "backwards": sum(s["backwards"] for s in streams.values()),
        "told": told,
        "cpu": sum(d["cpu"] for d in documents),
        "seconds": sum(e for d in documents for e in d.get("seconds", [])),
    }


def first_seen(stream, pairs):
    """When each word was first shown, as it stands or as it may still change, after its end."""
    shown = {}
    for partial in stream["partials"]:
        for word in partial["text"].split():
            shown.setdefault(fold(word), []).append(partial["at"])
    out = []
    for end, word in pairs:
        before = [t for t in shown.get(fold(word["text"]), []) if end - 0.5 < t <= word["at"]]
        out.append(min([*before, word["at"]]) - end)
    return out


def taken_back(stream):
    """Words that were shown and are neither shown nor said a moment later."""
    out, before = 0, []
    for partial in stream["partials"]:
        now = [fold(w) for w in partial["text"].split()]
        said = [fold(w["text"]) for w in stream["words"] if w["at"] <= partial["at"] + 0.001]
        there = said[-60:] + now
        out += sum(1 for w in before if w not in there)
        before = now
    return out


def tables(figures):
    rows = [
        "| | words | WER % | as a file | delay median | 90 % | 95 % | most | first seen, median | 95 % | taken back a word | processor, s a second |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, f in figures["cases"].items():
        d, e = f["delay"], f["first"]
        cpu = f"{f['cpu'] / f['seconds']:.2f}" if f["seconds"] else "–"
        rows.append(
            f"| {name} | {f['words']} | {f['errors']['wer']:.2f} | {f['errors_file']['wer']:.2f} | {d[0]:.2f} | {d[1]:.2f} | {d[2]:.2f} | {d[3]:.1f}"
            f" | {e[0]:.2f} | {e[1]:.2f} | {f['taken_back'] / max(1, f['words']):.3f} | {cpu} |"
        )
    streams = [
        "",
        "Each stream alone on one core:",
        "",
        "| | WER % | as a file | delay median | 95 % |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    rate = lambda c: 100 * (c["sub"] + c["del"] + c["ins"]) / max(1, c["words"])
    for name in ("one core", "one core, three more recordings"):
        for stream, f in figures["cases"].get(name, {"streams": {}})["streams"].items():
            d = f["delay"]
            streams.append(f"| {stream} | {rate(f['errors']):.2f} | {rate(f['errors_file']):.2f} | {d[0]:.2f} | {d[2]:.2f} |")
    note = (
        "Delay: from the end of a word's sound (forced alignment where there is one, else file mode's word times) to its buffer, seconds, in real "
        "time. First seen: the same, in partial text or as it stands. Taken back: words of partial text that vanish, for each word said. Words "
        "that were changed after they stood: 0, since none can be. Text that went back in time: "
        f"{sum(f['backwards'] for f in figures['cases'].values())}."
    )
    told = [
        f"{name}: {len(f['told'])}" for name, f in figures["cases"].items() if f["told"]
    ]
    degraded = "Steps of the ladder that were told (`scribe/degraded`): " + ("; ".join(told) if told else "none") + "."
    quiet = f"Without a word: {3600 * figures['silence']['cpu'] / figures['silence']['seconds']:.0f} s of processor time an hour, start of the process and models included."
    return "\n".join([note, "", *rows, *streams, "", degraded, "", quiet])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fresh", action="store_true", help="play everything again")
    parser.add_argument("cases", nargs="*", help="these alone, by a part of their names; nothing is kept in benches/runs then")
    options = parser.parse_args()
    began = time.monotonic()
    if options.fresh or not (STREAMS / "index.json").is_file():
        build(STREAMS)
    index = {entry["id"]: entry for entry in json.loads((STREAMS / "index.json").read_text())}
    base = as_file(options)
    chosen = [c for c in CASES if not options.cases or any(part in c[0] for part in options.cases)]
    done = set()
    figures = {"cases": {c[0]: figures_of(played(c, options, done), index, base) for c in chosen}}
    quiet = silence(options)
    figures["silence"] = {"cpu": quiet["cpu"], "seconds": sum(quiet["seconds"])}
    text = tables(figures)
    print(text)
    if not options.cases:
        common.keep("live", "scripts/bench-live.sh", figures, text, time.monotonic() - began, peers={})


if __name__ == "__main__":
    main()
