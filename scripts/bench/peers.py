# SPDX-License-Identifier: MPL-2.0
"""The systems that scribe is compared with, as a program: peers.py SYSTEM --out DIR FILE...

One JSON a file: {"id", "text", "words": [{"word", "start", "end"}]}. SYSTEM is faster-whisper or whisper.cpp. The last line
that it prints has the seconds from its start (`start`: what came before the first recording) and the processor's.
"""

import argparse
import concurrent.futures
import json
import time
from pathlib import Path

BEGAN = time.monotonic()


def decoded(path):
    """Mono float samples at 16 kHz, by FFmpeg's libraries, as faster-whisper decodes."""
    import av
    import numpy

    chunks = []
    with av.open(str(path), metadata_errors="ignore") as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=16000)
        for frame in container.decode(audio=0):
            chunks += [out.to_ndarray().reshape(-1) for out in resampler.resample(frame)]
        chunks += [out.to_ndarray().reshape(-1) for out in resampler.resample(None)]
    return numpy.concatenate(chunks) if chunks else numpy.zeros(0, dtype=numpy.float32)


def faster_whisper(options):
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    # Two cores are two threads on one file, or two files of one thread each.
    workers = min(options.jobs, options.threads)
    model = WhisperModel(
        options.model, device="cpu", compute_type="int8", cpu_threads=max(1, options.threads // workers), num_workers=workers
    )
    settings = {"language": "en", "beam_size": options.beam, "word_timestamps": options.words}
    if options.vad:
        settings["vad_filter"] = True
    target = model
    if options.batch:
        target = BatchedInferencePipeline(model=model)
        settings["batch_size"] = options.batch

    def one(path):
        segments, _ = target.transcribe(str(path), **settings)
        segments = list(segments)
        words = [{"word": w.word, "start": w.start, "end": w.end} for s in segments for w in s.words or []]
        return "".join(s.text for s in segments).strip(), words

    return one


def whisper_cpp(options):
    from pywhispercpp.model import Model

    model = Model(
        options.model,
        params_sampling_strategy=1,
        beam_search={"beam_size": options.beam, "patience": -1.0},
        language="en",
        n_threads=options.threads,
        print_progress=False,
        print_realtime=False,
    )

    def one(path):
        segments = model.transcribe(decoded(path))
        return " ".join(s.text.strip() for s in segments).strip(), []

    return one


def work(options, files):
    one = {"faster-whisper": faster_whisper, "whisper.cpp": whisper_cpp}[options.system](options)
    ready, cpu = time.monotonic(), time.process_time()

    def store(path):
        text, words = one(path)
        (options.out / f"{path.stem}.json").write_text(json.dumps({"id": path.stem, "text": text, "words": words}))

    if options.system == "faster-whisper" and options.jobs > 1:
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(store, files))
    else:
        for path in files:
            store(path)
    figures = {"start": ready - BEGAN, "start_cpu": cpu, "work": time.monotonic() - ready, "work_cpu": time.process_time() - cpu}
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=("faster-whisper", "whisper.cpp"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="files at once")
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--words", action="store_true")
    parser.add_argument("--vad", action="store_true")
    parser.add_argument("files", nargs="+", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.system == "whisper.cpp" and options.jobs > 1:
        # A context takes one file at a time: one process for each core, a thread each.
        workers = min(options.jobs, options.threads)
        options.threads = max(1, options.threads // workers)
        with concurrent.futures.ProcessPoolExecutor(workers) as pool:
            for future in [pool.submit(work, options, options.files[n::workers]) for n in range(workers)]:
                future.result()
    else:
        work(options, options.files)


if __name__ == "__main__":
    main()
