# SPDX-License-Identifier: MPL-2.0
"""Word error rates, word times, and whether a difference counts."""

import functools
import re


@functools.cache
def normaliser():
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


def errors(reference, hypothesis):
    """Counts after Whisper's English normaliser on both sides."""
    import jiwer

    reference, hypothesis = normaliser()(reference), normaliser()(hypothesis)
    words = len(reference.split())
    if not words or not hypothesis.strip():
        return {"words": words, "sub": 0, "del": words, "ins": len(hypothesis.split()) if not words else 0}
    found = jiwer.process_words(reference, hypothesis)
    return {"words": words, "sub": found.substitutions, "del": found.deletions, "ins": found.insertions}


# Words of a piece of a long recording: about ten seconds.
PIECE = 25


def pieces(reference, hypothesis):
    """The counts of `errors` by pieces of 25 words of the reference: those of a long recording that a bootstrap draws. Which
    piece an error is in, the alignment of the whole says."""
    import jiwer

    reference, hypothesis = normaliser()(reference), normaliser()(hypothesis)
    words = len(reference.split())
    count = max(1, round(words / PIECE))
    found = [{"words": 0, "sub": 0, "del": 0, "ins": 0} for _ in range(count)]

    def piece(word):
        return found[min(word, words - 1) * count // words]

    for word in range(words):
        piece(word)["words"] += 1
    if not words or not hypothesis.strip():
        for own in found:
            own["del"] = own["words"]
        return found
    for chunk in jiwer.process_words(reference, hypothesis).alignments[0]:
        key = {"substitute": "sub", "delete": "del"}.get(chunk.type)
        if key:
            for word in range(chunk.ref_start_idx, chunk.ref_end_idx):
                piece(word)[key] += 1
        elif chunk.type == "insert":
            piece(chunk.ref_start_idx)["ins"] += chunk.hyp_end_idx - chunk.hyp_start_idx
    return found


def total(counts):
    """Errors summed over files and then divided: no mean of files."""
    summed = {key: sum(c[key] for c in counts) for key in ("words", "sub", "del", "ins")}
    wrong = summed["sub"] + summed["del"] + summed["ins"]
    summed["files"] = len(counts)
    summed["wer"] = round(100 * wrong / summed["words"], 2) if summed["words"] else None
    summed["deleted_share"] = round(100 * summed["del"] / summed["words"], 2) if summed["words"] else None
    return summed


def bootstrap(ours, theirs, rounds=10000, seed=20261124):
    """Difference of the error rates (ours - theirs, in points) with its 95 % interval: whole files, or pieces, are
    drawn with replacement, the same ones for both."""
    import numpy

    def wrong(counts):
        return numpy.array([c["sub"] + c["del"] + c["ins"] for c in counts], dtype=float)

    difference = wrong(ours) - wrong(theirs)
    words = numpy.array([c["words"] for c in ours], dtype=float)
    drawn = numpy.random.default_rng(seed).integers(0, len(words), (rounds, len(words)))
    rates = 100 * difference[drawn].sum(axis=1) / words[drawn].sum(axis=1)
    low, high = numpy.percentile(rates, [2.5, 97.5])
    return {
        "difference": round(100 * float(difference.sum() / words.sum()), 3),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
        "counts": bool(low > 0 or high < 0),
        "rounds": rounds,
        "seed": seed,
    }


# --- Word times ------------------------------------------------------------------------------------


def read_ctm(path):
    words = {}
    for line in open(path, encoding="utf-8"):
        field = line.split()
        if field and not line.startswith(";;"):
            start = float(field[2])
            words.setdefault(field[0], []).append((start, start + float(field[3]), field[4]))
    return words


def plain(word):
    return re.sub(r"[^a-z0-9']+", "", word.lower().replace("\u2019", "'"))


def time_errors(reference, hypothesis):
    """[(start, end)]: hypothesis - reference in seconds, for words that an alignment finds equal."""
    from rapidfuzz.distance import Levenshtein

    ours = [(s, e, plain(w)) for s, e, w in reference if plain(w)]
    theirs = [(s, e, plain(w)) for s, e, w in hypothesis if plain(w)]
    pairs = []
    for block in Levenshtein.opcodes([w for *_, w in ours], [w for *_, w in theirs]):
        if block.tag == "equal":
            span = range(block.src_end - block.src_start)
            pairs += [(ours[block.src_start + n], theirs[block.dest_start + n]) for n in span]
    return [(h[0] - r[0], h[1] - r[1]) for r, h in pairs], len(ours)


def spread(values):
    """In milliseconds."""
    import numpy

    values = 1000 * numpy.array(values)
    size = numpy.abs(values)
    return {
        "median": round(float(numpy.median(size)), 1),
        "p90": round(float(numpy.percentile(size, 90)), 1),
        "signed_mean": round(float(values.mean()), 1),
        "signed_median": round(float(numpy.median(values)), 1),
        "within_50": round(100 * float((size <= 50).mean()), 1),
        "within_100": round(100 * float((size <= 100).mean()), 1),
    }
