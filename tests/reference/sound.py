# SPDX-License-Identifier: MPL-2.0
"""Made-up sound for the makers of the arrays in this folder."""

import numpy as np

MASK = 0xFFFF_FFFF


def sound(seed: int, samples: int) -> np.ndarray:
    """Whole numbers of 16 bits: the same as `sound` in sound.rs."""
    out = np.empty(samples, dtype=np.int16)
    noise, phase, step = seed, 0, 26_843_546 * seed & MASK
    for k in range(samples):
        noise = (noise * 1_664_525 + 1_013_904_223) & MASK
        phase = (phase + step) & MASK
        step = (step + 100_000 * seed) & MASK
        hiss = (noise >> 20) - 2048
        tone = (min(phase, phase ^ MASK) >> 17) - 8192
        place = k % 9600
        if place < 4000:
            out[k] = tone + hiss
        elif place < 5600:
            out[k] = hiss >> 8
        elif place < 7200:
            out[k] = 0
        else:
            out[k] = (tone >> 1) + hiss + 300
    return out
