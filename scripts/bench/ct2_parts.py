# SPDX-License-Identifier: MPL-2.0
"""Encoder and decoder of a CTranslate2 model by themselves, one thread: ct2_parts.py MODEL RECORDING WINDOWS BATCH...

What examples/engine_profile.rs does with scribe's engine: the same windows, greedy, a fixed number of tokens; the text is not
looked at. Prints JSON.
"""

import json
import re
import sys
import time
from pathlib import Path

import ctranslate2
import numpy
from faster_whisper.audio import decode_audio
from faster_whisper.feature_extractor import FeatureExtractor

SECONDS, TOKENS = 28, 64
# Of max_length CTranslate2 gives half to the text.
# tiny.en's vocabulary, and that of all that is made of it.
START, NO_TIMESTAMPS, END = 50257, 50362, 50256


def status_mib(field):
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024


def main():
    model_path, recording, count, *batches = sys.argv[1:]
    count = int(count)
    before = status_mib("RssAnon")
    model = ctranslate2.models.Whisper(model_path, device="cpu", compute_type="int8", inter_threads=1, intra_threads=1)
    loaded = status_mib("RssAnon")
    sound = decode_audio(recording)
    length = SECONDS * 16000
    pieces = [sound[n : n + length] for n in range(0, len(sound) - length + 1, length)]
    extract = FeatureExtractor(feature_size=80)
    windows = []
    for n in range(count):
        mel = extract(numpy.concatenate([pieces[n % len(pieces)], numpy.zeros(30 * 16000 - length, dtype=numpy.float32)]))
        windows.append(numpy.ascontiguousarray(mel[:, :3000], dtype=numpy.float32))
    rows = []
    for batch in map(int, batches):
        encoder = decoder = tokens = steps = done = 0
        for at in range(0, count - batch + 1, batch):
            features = ctranslate2.StorageView.from_array(numpy.stack(windows[at : at + batch]))
            start = time.process_time()
            encoded = model.encode(features)
            encoder += time.process_time() - start
            start = time.process_time()
            results = model.generate(
                encoded, [[START, NO_TIMESTAMPS]] * batch, beam_size=1, max_length=2 * TOKENS, suppress_tokens=[END], suppress_blank=False
            )
            decoder += time.process_time() - start
            written = [len(result.sequences_ids[0]) for result in results]
            tokens += sum(written)
            steps += max(written)
            done += batch
        row = {"batch": batch, "encoder": encoder, "decoder": decoder, "windows": done, "steps": steps, "tokens": tokens}
        rows.append({**row, "rss_mib": status_mib("VmRSS"), "anon_mib": status_mib("RssAnon")})
    print(json.dumps({"model": model_path, "measured_weights_mib": loaded - before, "peak_mib": status_mib("VmHWM"), "rows": rows}))


if __name__ == "__main__":
    main()
