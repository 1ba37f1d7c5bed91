#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""Writes diarization-* and linkage-*: what pyannote.audio, scipy and Resemblyzer make of a recording of our own, stage by
stage, with the models of `make models`.

The recording is put together from tests/data by `sound`, and alike in tests/diarize_reference.rs: FLAC of 16 bits, so that
both have the same samples. README.md beside this file says how to run it and what each file holds.
"""

import sys
import types
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "scripts" / "bench"))

import pyannote_peer as peer
import numpy as np
import soundfile
import torch
from pyannote.audio import Inference
from pyannote.audio.pipelines.clustering import AgglomerativeClustering
from scipy.cluster.hierarchy import fcluster, linkage, maxdists
from scipy.optimize import linear_sum_assignment

MODELS = ROOT / "models"
# Seconds from window to window: scribe's own.
STEP = 2.0
# Of the scores every so many frames are kept.
EVERY = 10
# First sample and length of the pieces whose vectors are compared: whole ones of GE2E, one of two voices at once,
# and shorter ones.
PIECES = [(108_000, 25_840), (128_000, 25_840), (175_000, 25_840), (249_000, 25_840), (356_000, 25_840)]
PIECES += [(510_000, 25_840), (180_000, 16_000), (60_000, 8_000), (130_000, 6_400)]
# The last of them once more, at a hundredth of its level.
QUIET = 0.01
# Distances at which trees are cut: scribe's and the peer's threshold among them.
CUTS = [0.35, 0.45, 0.55, 0.7]


def sound() -> np.ndarray:
    def read(name: str) -> np.ndarray:
        samples, rate = soundfile.read(ROOT / "tests" / "data" / name, dtype="int16", always_2d=True)
        assert rate == peer.RATE
        return samples.astype(np.float32)

    two, one = read("stereo.flac"), read("speech_short.flac")
    parts = [two[:, 1], one[:, 0], two[:, 0], (two[:, 0] + two[:, 1]) / 2]
    return np.concatenate(parts) / np.float32(32_768)


def write(name: str, values, kind: str) -> None:
    values = np.asarray(values)
    values.astype(kind).tofile(HERE / name)
    print(f"{name}: {values.shape}, {values.min():.4g} to {values.max():.4g}")


def resemblyzer():
    """Its encoder and its features. What detects speech there is not used, and needs a compiler to install."""
    sys.modules["webrtcvad"] = types.ModuleType("webrtcvad")
    from resemblyzer import VoiceEncoder, audio

    return VoiceEncoder("cpu", verbose=False), audio


def voices(samples: np.ndarray) -> np.ndarray:
    """Vectors of PIECES and of the quiet one, by Resemblyzer's own code. Its frames are centred and padded where sound ends;
    those that lie within the piece are taken, by giving it what surrounds the piece too."""
    encoder, audio = resemblyzer()
    out = []
    for scale, (start, length) in [(1.0, piece) for piece in PIECES] + [(QUIET, PIECES[-1])]:
        around = samples[start - 120 : start + length + 400] * np.float32(scale)
        piece = samples[start : start + length] * np.float32(scale)
        louder = audio.normalize_volume(piece, -30, increase_only=True)
        at = np.argmax(np.abs(piece))
        mels = audio.wav_to_mel_spectrogram(around * (louder[at] / piece[at]))
        # The third frame's middle is 200 samples behind the piece's first.
        frames = 1 + (length - 400) // 160
        with torch.no_grad():
            vector = encoder(torch.from_numpy(mels[2 : 2 + frames][None].astype(np.float32)))
        out.append(vector[0].numpy())
    return np.stack(out)


def tree(name: str, vectors: np.ndarray) -> None:
    """Centroid linkage of rows of length 1."""
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("<f4")
    steps = linkage(vectors.astype(np.float64), method="centroid", metric="euclidean")
    write(f"linkage-{name}.f32", vectors, "<f4")
    write(f"linkage-{name}-heights.f32", np.sort(maxdists(steps)), "<f4")
    write(f"linkage-{name}-labels.u8", [fcluster(steps, cut, criterion="distance") - 1 for cut in CUTS], "u1")


def made_up() -> np.ndarray:
    """Five directions that are alike, as voices are, and wide clouds around them: trees with inversions."""
    random = np.random.default_rng(20_261_126)
    people = 0.35 * random.standard_normal((5, 16)) + 0.25
    return np.concatenate([p + 0.12 * random.standard_normal((16, 16)) for p in people])[random.permutation(80)]


def assignments() -> None:
    """Windows of three vectors against centroids; which each is given by pyannote.audio, freely and with nobody twice."""
    random = np.random.default_rng(7)
    unit = lambda rows: rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    centroids = unit(0.5 * random.standard_normal((4, 8)) + 0.3)
    # Near one of them, or between two.
    of = random.integers(0, 4, (60, 3))
    vectors = unit(centroids[of] + random.choice([0.1, 0.35], (60, 1, 1)) * random.standard_normal((60, 3, 8)))
    likeness = vectors @ centroids.T
    free = likeness.argmax(axis=2)
    apart = AgglomerativeClustering().constrained_argmax(likeness)
    for window, speakers in zip(likeness, apart):
        assert (linear_sum_assignment(window, maximize=True)[1] == speakers).all()
    write("assignment-centroids.f32", centroids, "<f4")
    write("assignment-vectors.f32", vectors, "<f4")
    write("assignment.u8", np.stack([free, apart], axis=1), "u1")


def main() -> None:
    samples = sound()
    file = {"uri": "diarization", "waveform": torch.from_numpy(samples)[None], "sample_rate": peer.RATE}
    segmentation = peer.Segmentation(MODELS / "segmentation-3.0.onnx", 1)
    ge2e = peer.Voices(MODELS / "ge2e-resemblyzer.onnx", 1, 3)

    scores = Inference(segmentation, duration=10.0, step=STEP, skip_aggregation=True, skip_conversion=True)(file)
    write("diarization-scores.f32", scores.data[:, ::EVERY], "<f4")

    kept = {}
    made = peer.pipeline(segmentation, ge2e, STEP)
    made.instantiate(peer.settings(peer.THRESHOLD, 2, 0.3))
    found = made.apply(file, hook=lambda step, what, **_: kept.setdefault(step, what) if what is not None else None)
    activity = kept["segmentation"].data
    write("diarization-activity.u8", activity @ [1, 2, 4], "u1")
    # Later steps of pyannote.audio change this one in place.
    count = made.speaker_count(kept["segmentation"], segmentation.receptive_field, warm_up=(0.0, 0.0))
    write("diarization-count.u8", count.data[:, 0], "u1")
    write("diarization-voices.f32", voices(samples), "<f4")
    turns = "".join(peer.rttm(found.speaker_diarization, "diarization"))
    (HERE / "diarization.rttm").write_text(turns)
    print(turns)

    # As its clustering takes them.
    vectors, *_ = AgglomerativeClustering().filter_embeddings(made.get_embeddings(file, kept["segmentation"], True), kept["segmentation"])
    tree("recording", vectors)
    tree("made-up", made_up())
    assignments()


if __name__ == "__main__":
    main()
