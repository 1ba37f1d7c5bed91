# SPDX-License-Identifier: MPL-2.0
"""pyannote.audio's own SpeakerDiarization on two ONNX files: what scribe's diarizer is measured against.

Windows, speaker count, clustering, reconstruction are pyannote.audio's code; here are only the two classes through which it
asks a network for scores and vectors. Raw sound in (16 kHz, mono, 32-bit floats), RTTM out:

    pyannote_peer.py --segmentation segmentation-3.0.onnx --embedding ge2e-resemblyzer.onnx --out turns FILE.f32...

A line of JSON for each file says what it took, once both models were loaded. tests/reference/diarization.py takes its arrays
from the same classes.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import numpy as np
import onnxruntime
import torch

# The newest torch and the newest torchaudio are built for two versions of CUDA, and torchaudio compares them on import even
# where no card is used, as here. What has none is not compared.
torch.version.cuda = None

from pyannote.audio import Model
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.pipelines import SpeakerDiarization, speaker_diarization
from pyannote.core import SlidingWindow

RATE = 16_000
# GE2E looks at 1.615 s, and is not asked for quieter sound than -30 dBFS.
PIECE, LEVEL = 25_840, 10.0 ** (-30 / 20)
# What the evaluation data's sweeps found best on the development recordings for these two models.
THRESHOLD, SMALLEST = 0.55, 3


def session(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Segmentation(Model):
    """segmentation-3.0 as a model that pyannote.audio takes."""

    def __init__(self, path, threads):
        super().__init__(sample_rate=RATE, num_channels=1)
        self.onnx = session(path, threads)
        self.specifications = Specifications(
            problem=Problem.MONO_LABEL_CLASSIFICATION,
            resolution=Resolution.FRAME,
            duration=10.0,
            classes=["first", "second", "third"],
            powerset_max_classes=2,
            permutation_invariant=True,
        )

    @property
    def receptive_field(self):
        return SlidingWindow(start=0.0, duration=991 / RATE, step=270 / RATE)

    def scores(self, windows):
        """(windows, 1, 160000) samples to (windows, 589, 7) logarithms of probabilities."""
        return self.onnx.run(None, {self.onnx.get_inputs()[0].name: windows})[0]

    def forward(self, windows):
        return torch.from_numpy(self.scores(windows.numpy().astype(np.float32)))


class Voices:
    """GE2E as an embedding that pyannote.audio takes: the sound under a mask is joined, and the vectors of up to `pieces`
    stretches of it, one more for each 1.25 s and evenly spread, are added. Stretches of equal length go to the network
    together."""

    sample_rate, dimension, metric, min_num_samples = RATE, 256, "cosine", 400

    def __init__(self, path, threads, pieces):
        self.onnx = session(path, threads)
        self.pieces = pieces

    def stretches(self, sound):
        level = float(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))
        if 0.0 < level < LEVEL:
            sound = sound * np.float32(LEVEL / level)
        spare = len(sound) - PIECE
        if spare <= 0:
            return [sound]
        count = min(self.pieces, 1 + -(-spare // 20_000))
        return [sound[start : start + PIECE] for start in np.linspace(0, spare, count).round().astype(int)]

    def vectors(self, sounds):
        """One vector of length 1 for each."""
        by_length = {}
        for n, sound in enumerate(sounds):
            for stretch in self.stretches(sound):
                by_length.setdefault(len(stretch), []).append((n, stretch))
        sums = np.zeros((len(sounds), self.dimension))
        for alike in by_length.values():
            found = self.onnx.run(None, {"waveform": np.stack([s for _, s in alike]).astype(np.float32)})[0]
            np.add.at(sums, [n for n, _ in alike], found)
        return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)

    def __call__(self, waveforms, masks=None):
        out = np.full((len(waveforms), self.dimension), np.nan)
        samples = waveforms.shape[-1]
        frame = np.arange(samples) * masks.shape[1] // samples
        sounds = {}
        for n, (waveform, mask) in enumerate(zip(waveforms[:, 0].numpy(), masks.numpy())):
            sound = waveform[mask[frame] > 0.5]
            if len(sound) >= self.min_num_samples:
                sounds[n] = sound
        if sounds:
            out[list(sounds)] = self.vectors(list(sounds.values()))
        return out


def pipeline(segmentation, voices, step):
    """`step` in seconds. How it clusters is said by `settings`."""
    # Both would be fetched from a server; the second belongs to a clustering that is not used.
    speaker_diarization.PretrainedSpeakerEmbedding = lambda *_, **__: voices
    speaker_diarization.get_plda = lambda *_, **__: None
    return SpeakerDiarization(
        segmentation=segmentation,
        segmentation_step=step / 10.0,
        segmentation_batch_size=4,
        embedding="as above",
        embedding_batch_size=24,
        embedding_exclude_overlap=True,
        plda=None,
        clustering="AgglomerativeClustering",
    )


def settings(threshold, smallest, min_silence):
    return {
        "segmentation": {"min_duration_off": min_silence},
        "clustering": {"method": "centroid", "threshold": threshold, "min_cluster_size": smallest},
    }


def rttm(annotation, name):
    for turn, _, speaker in annotation.itertracks(yield_label=True):
        yield f"SPEAKER {name} 1 {turn.start:.3f} {turn.duration:.3f} <NA> <NA> {speaker} <NA> <NA>\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--segmentation", required=True)
    parser.add_argument("--embedding", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--step", type=float, default=1.0)
    parser.add_argument("--pieces", type=int, default=5)
    parser.add_argument("--threshold", type=float, default=THRESHOLD)
    parser.add_argument("--smallest", type=int, default=SMALLEST)
    parser.add_argument("--min-silence", type=float, nargs="+", default=[0.0], help="seconds; each gets a folder, the networks run once")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    segmentation = Segmentation(options.segmentation, options.threads)
    voices = Voices(options.embedding, options.threads, options.pieces)
    made = pipeline(segmentation, voices, options.step)
    several = len(options.min_silence) > 1
    # Keeps what the networks said in the file's dictionary.
    made.training = several
    for path in options.files:
        sound = torch.from_numpy(np.fromfile(path, dtype="<f4"))[None]
        file = {"uri": path.stem, "waveform": sound, "sample_rate": RATE}
        wall, cpu = time.perf_counter(), time.process_time()
        for min_silence in options.min_silence:
            made.instantiate(settings(options.threshold, options.smallest, min_silence))
            found = made.apply(file).speaker_diarization
            folder = options.out / f"{min_silence:g}" if several else options.out
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{path.stem}.rttm").write_text("".join(rttm(found, path.stem)))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        seconds = sound.shape[1] / RATE
        print(json.dumps({"file": path.stem, "seconds": seconds, "wall": round(wall, 3), "cpu": round(cpu, 3)}), flush=True)


if __name__ == "__main__":
    main()
