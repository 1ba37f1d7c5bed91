# SPDX-License-Identifier: MPL-2.0
"""Live captions: how late words come, and how many of them are wrong, beside the same speech as a file.

    live.py build FOLDER                 streams out of $SCRIBE_DATA, with references
    live.py score FOLDER FILE_MODE RUN.json...   figures of what examples/live_delay wrote
"""

import csv
import json
import random
import sys
from pathlib import Path

import common
import scoring

RATE = 16000
# Of changing speakers, of one, and two who talk over each other. The second half was not looked at while the policy was
# chosen.
FIRST = ("jfk_1961", "bush_columbia_2003", "chain_other", "chain_lj", "d02_dialog")


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
    derived = common.WORK / "derived"
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


def score(folder, as_file, runs):
    index = {entry["id"]: entry for entry in json.loads((Path(folder) / "index.json").read_text())}
    streams = {}
    cpu = 0.0
    for run in runs:
        document = json.loads(Path(run).read_text())
        cpu += document["cpu"]
        for stream in document["streams"]:
            streams[stream["id"]] = stream
    figures, delays, firsts = [], [], []
    counts, file_counts = [], []
    unstable = 0
    for name, stream in sorted(streams.items()):
        entry = index[name]
        heard = stream["words"]
        said = " ".join(w["text"] for w in heard)
        own = scoring.errors(entry["text"], said)
        file = file_words(Path(as_file) / f"{name}.json")
        base = scoring.errors(entry["text"], " ".join(w for w, *_ in file))
        reference = entry["words"] or file
        late = [w["at"] - end for end, w in matched(reference, heard)]
        # First seen in a text that may still change, or as it stands.
        seen = {}
        for partial in stream["partials"]:
            for word in partial["text"].split():
                seen.setdefault(fold(word), []).append(partial["at"])
        early = []
        for end, word in matched(reference, heard):
            at = [t for t in seen.get(fold(word["text"]), []) if end - 0.5 < t <= word["at"]]
            early.append(min(at + [word["at"]]) - end)
        before = []
        for partial in stream["partials"]:
            now = [fold(w) for w in partial["text"].split()]
            after = [fold(w["text"]) for w in heard if w["at"] <= partial["at"] + 0.001]
            same = sum(1 for a, b in zip(before, after[len(after) - 40 :] + now) if a == b)
            whole = [w for w in after[-60:]] + now
            # What was shown before and is neither shown nor said now.
            unstable += sum(1 for w in before if w not in whole)
            before = now
            del same
        counts.append(own)
        file_counts.append(base)
        delays += late
        firsts += early
        wer = lambda c: 100 * (c["sub"] + c["del"] + c["ins"]) / max(1, c["words"])
        stops = lambda t: sum(t.count(c) for c in ".?!")
        figures.append(
            f"{name:20} WER {wer(own):6.2f} (file {wer(base):6.2f}, {wer(own) - wer(base):+.2f}; sub {own['sub']} del {own['del']} ins {own['ins']})"
            f" delay {percentile(late, 0.5):.2f} / {percentile(late, 0.9):.2f} / {percentile(late, 0.95):.2f} max {max(late, default=0):.1f}"
            f" first {percentile(early, 0.5):.2f}/{percentile(early, 0.95):.2f}"
            f" stops {stops(said)}/{stops(' '.join(w for w, *_ in file))} back {stream['backwards']} told {len(stream['told'])}"
        )
    print("\n".join(figures))
    both = [scoring.total(counts), scoring.total(file_counts)]
    words = sum(len(s["words"]) for s in streams.values())
    print(
        f"all: WER {both[0]['wer']} (file {both[1]['wer']}), delay p50 {percentile(delays, 0.5):.2f} p90 {percentile(delays, 0.9):.2f}"
        f" p95 {percentile(delays, 0.95):.2f} max {max(delays, default=0):.1f}, first p50 {percentile(firsts, 0.5):.2f} p95 {percentile(firsts, 0.95):.2f},"
        f" timed {len(delays)} of {words}, unstable {unstable / max(1, words):.3f}, cpu {cpu:.0f} s"
    )


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(sys.argv[2])
    else:
        score(sys.argv[2], sys.argv[3], sys.argv[4:])
