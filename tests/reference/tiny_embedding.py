#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""Writes tiny-embedding.onnx, a model with the contract of WeSpeaker's and made-up weights, and tiny-embedding.f32, the
vectors that numpy computes for four pieces of made-up sound from the frames of kaldi-native-fbank.

Per piece: a layer of 16 with tanh for each frame, mean and deviation of its values over time, a layer of 16.
README.md beside this file says how to run it.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fbank import fbank
from sound import MASK, sound

HERE = Path(__file__).parent
BANDS, HIDDEN, DIMENSION = 80, 16, 16
FRAMES_MOST = 998
# Seed and samples, as in tests/fbank_embedding.rs: short and whole, cut to 120 frames, cut to 288, two pieces of 800.
SEGMENTS = [(1, 6_400), (2, 20_000), (3, 47_123), (4, 260_000)]


def weights(seed: int, *shape: int) -> np.ndarray:
    """Evenly spread over -1/16 to 1/16."""
    values, state = [], seed
    for _ in range(int(np.prod(shape))):
        state = (state * 1_664_525 + 1_013_904_223) & MASK
        values.append(((state >> 16) - 32_768) / 524_288)
    return np.array(values, dtype=np.float32).reshape(shape)


# What all bands, or all deviations, have in common cancels: vectors of different sounds would be nearly the same.
W1 = weights(1, BANDS, HIDDEN)
W1 -= W1.mean(axis=0)
W2 = weights(2, 2 * HIDDEN, DIMENSION)
W2[HIDDEN:] -= W2[HIDDEN:].mean(axis=0)


def model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["feats", "w1"], ["layer"]),
        helper.make_node("Tanh", ["layer"], ["hidden"]),
        helper.make_node("ReduceMean", ["hidden"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["hidden", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "centred"], ["squares"]),
        helper.make_node("ReduceMean", ["squares"], ["variance"], axes=[1], keepdims=1),
        helper.make_node("Add", ["variance", "epsilon"], ["above_zero"]),
        helper.make_node("Sqrt", ["above_zero"], ["deviation"]),
        helper.make_node("Concat", ["mean", "deviation"], ["both"], axis=2),
        helper.make_node("Squeeze", ["both", "one"], ["statistics"]),
        helper.make_node("MatMul", ["statistics", "w2"], ["embs"]),
    ]
    constants = {
        "w1": W1,
        "w2": W2,
        "epsilon": np.array(1e-6, dtype=np.float32),
        "one": np.array([1], dtype=np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "tiny-embedding",
        [helper.make_tensor_value_info("feats", TensorProto.FLOAT, ["B", "T", BANDS])],
        [helper.make_tensor_value_info("embs", TensorProto.FLOAT, ["B", DIMENSION])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def kept(frames: int) -> int:
    """Frames that are used of a piece, as in src/inference/onnx/embedding/fbank.rs."""
    if frames < 64 or frames >= FRAMES_MOST:
        return min(frames, FRAMES_MOST)
    return frames - frames % (1 << (frames.bit_length() - 5))


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def of_piece(samples: np.ndarray) -> np.ndarray:
    frames = fbank(samples, "hamming").astype(np.float64)
    frames -= frames.mean(axis=0)
    hidden = np.tanh(frames @ W1)
    deviation = np.sqrt(hidden.var(axis=0) + 1e-6)
    return unit(np.concatenate([hidden.mean(axis=0), deviation]) @ W2)


def of_segment(samples: np.ndarray) -> np.ndarray:
    frames = 1 + (len(samples) - 400) // 160
    number = -(-frames // FRAMES_MOST)
    total = np.zeros(DIMENSION)
    for n in range(number):
        start, end = n * frames // number, (n + 1) * frames // number
        length = kept(frames // number)
        start += (end - start - length) // 2
        total += of_piece(samples[160 * start : 160 * (start + length - 1) + 400])
    return unit(total)


def main() -> None:
    (HERE / "tiny-embedding.onnx").write_bytes(model().SerializeToString(deterministic=True))
    vectors = np.stack([of_segment(sound(*segment)) for segment in SEGMENTS])
    vectors.astype("<f4").tofile(HERE / "tiny-embedding.f32")
    print(f"tiny-embedding.f32: {vectors.shape}\n{np.round(vectors @ vectors.T, 3)}")


if __name__ == "__main__":
    main()
