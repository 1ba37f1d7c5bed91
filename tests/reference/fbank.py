#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""Writes fbank-*.f32: Kaldi's filter banks of 0.6 s of made-up sound, as kaldi-native-fbank computes them.

Frames of 80 values, 32-bit floats, little endian. README.md beside this file says how to run it.
"""

from pathlib import Path

import kaldi_native_fbank as knf
import numpy as np

from sound import sound

HERE = Path(__file__).parent


def fbank(samples: np.ndarray, window: str) -> np.ndarray:
    """Frames of samples at 16 kHz, whatever their scale; nothing is subtracted."""
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = 16_000
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = True
    options.frame_opts.window_type = window
    options.mel_opts.num_bins = 80
    options.mel_opts.low_freq = 20.0
    options.mel_opts.high_freq = 8_000.0
    options.use_energy = False
    online = knf.OnlineFbank(options)
    online.accept_waveform(16_000, samples.astype(np.float32).tolist())
    online.input_finished()
    frames = range(online.num_frames_ready)
    return np.stack([online.get_frame(n).copy() for n in frames]).astype("<f4")


def main() -> None:
    samples = sound(1, 9600)
    for name, window, scale in [
        ("hamming", "hamming", 1.0),
        ("povey", "povey", 1.0),
        ("povey-unit", "povey", 1.0 / 32_768.0),
    ]:
        frames = fbank(samples * np.float32(scale), window)
        frames.tofile(HERE / f"fbank-{name}.f32")
        print(f"fbank-{name}.f32: {frames.shape}, {frames.min():.3f} to {frames.max():.3f}")


if __name__ == "__main__":
    main()
