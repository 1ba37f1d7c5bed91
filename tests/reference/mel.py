#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""Writes mel-*.f32: Whisper's log-mel of made-up sound, as openai-whisper's audio.py defines it, in numpy with 64-bit floats.

Rows are frames; 32-bit floats, little endian. README.md beside this file says how to run it.
"""

from pathlib import Path

import numpy as np

from sound import sound

HERE = Path(__file__).parent
RATE, FRAME, HOP = 16_000, 400, 160
WINDOW = 30 * RATE


def filters(bands: int) -> np.ndarray:
    """librosa.filters.mel(sr=16000, n_fft=400, n_mels=bands): [bands, 201]."""
    step = np.log(6.4) / 27.0
    mel = np.linspace(0.0, 15.0 + np.log(RATE / 2 / 1000.0) / step, bands + 2)
    hz = np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp(step * (mel - 15.0)))
    ramps = hz[:, None] - np.linspace(0.0, RATE / 2, FRAME // 2 + 1)[None]
    width = np.diff(hz)[:, None]
    triangles = np.maximum(0.0, np.minimum(-ramps[:-2] / width[:-1], ramps[2:] / width[1:]))
    return triangles * (2.0 / (hz[2:] - hz[:-2]))[:, None]


def window(samples: np.ndarray, bands: int) -> np.ndarray:
    """[3000, bands] of samples of 16 bits, which silence follows."""
    filled = np.zeros(WINDOW)
    filled[: len(samples)] = samples / 32_768.0
    padded = np.pad(filled, FRAME // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(FRAME) / FRAME)
    power = np.abs(np.fft.rfft(frames * hann)[:-1]) ** 2
    log = np.log10(np.maximum(power @ filters(bands).T, 1e-10))
    return ((np.maximum(log, log.max() - 8.0) + 4.0) / 4.0).astype("<f4")


def main() -> None:
    short, whole = sound(1, 9_600), sound(2, WINDOW)
    for name, rows in [
        ("80-start", window(short, 80)[:64]),
        ("80-end", window(whole, 80)[-20:]),
        ("128-start", window(short, 128)[:64]),
    ]:
        rows.tofile(HERE / f"mel-{name}.f32")
        print(f"mel-{name}.f32: {rows.shape}, {rows.min():.3f} to {rows.max():.3f}")


if __name__ == "__main__":
    main()
