# SPDX-License-Identifier: MPL-2.0
"""docs/benchmarks.md from the newest figures of each part in benches/runs."""

import json

from common import ROOT, RUNS, die
from systems import EXPLAINED

PARTS = (
    ("wer", "Word error rate", "Both sides through Whisper's English normaliser; errors are summed over files and then divided."),
    ("speed", "Speed", "Wall time above all: it is what a user waits for. More than 1 is faster than the peer. A system with (FAILED) gave no text for some file: its time is that until it died."),
    ("where", "Where the time goes", ""),
    ("scale", "Batches and streams", ""),
    ("sizes", "Larger models", ""),
    ("words", "Word times", "Against forced alignments of short utterances (`words/utterances.ctm`)."),
    ("nonspeech", "Sounds without speech", ""),
    ("isolation", "In a process of its own", ""),
    ("memory", "Memory", ""),
    ("live", "Live", ""),
    ("diarize", "Who spoke when", ""),
    ("voices", "Voices", ""),
)

HEAD = """# Benchmarks

<!-- Written by `scripts/bench.sh report` from benches/runs: do not edit. -->

Made by `make bench`, one part by `scripts/bench.sh PART`. All systems run on the same machine, in the same run, with the
same weights (Whisper tiny.en) in the precision that each uses by default; all are told that the language is English, and
all have two threads. The raw figures, file by file and run by run, are in `benches/runs/`, with command and commit.

What the names mean:

{systems}

The recordings are those of `SCRIBE_DATA` (read books, VCTK, speeches, verse: its README has sources and licences), development
set: parameters were chosen on it. Composed recordings are short utterances one after the other with pauses; their words are
also in the short ones. A system's times for words it does not say are not measured by anything here.
"""


def newest(part):
    """By the time that the figures themselves bear: folders have the day alone."""
    found = [(json.loads(path.read_text())["time"], path) for path in RUNS.glob(f"*/{part}.json")]
    return max(found)[1] if found else None


def main():
    text = [HEAD.format(systems="\n".join(f"- **{name}**: {what}." for name, what in EXPLAINED.items()))]
    any_part = False
    for part, title, note in PARTS:
        path = newest(part)
        text.append(f"## {title}\n")
        if note:
            text.append(note + "\n")
        if not path:
            text.append("Not measured yet.\n")
            continue
        any_part = True
        document = json.loads(path.read_text())
        if document["data"] != "$SCRIBE_DATA":
            text.append("**Only the recordings of tests/data were there: these figures show that the bench runs, and no more.**\n")
        versions = ", ".join(f"{k} {v}" for k, v in document["peers"].items())
        text.append(path.with_suffix(".md").read_text().strip() + f" {versions}. Raw: `{path.relative_to(ROOT)}`.\n")
    if not any_part:
        die("there are no figures in benches/runs", "scripts/bench.sh")
    text.append("Speakers live, words with speakers, long recordings: [speakers.md](speakers.md).\n")
    text.append("Figures of the registry (the accident replayed, full arenas, killed workers): [memory.md](memory.md).\n")
    (ROOT / "docs" / "benchmarks.md").write_text("\n".join(text))
    print("scribe: docs/benchmarks.md written")


if __name__ == "__main__":
    main()
