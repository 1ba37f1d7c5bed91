# SPDX-License-Identifier: MPL-2.0
"""Where things are, how a program is run and measured, how figures are kept."""

import contextlib
import csv
import datetime
import hashlib
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "target" / "bench"
DATA = Path(os.environ.get("SCRIBE_DATA") or ROOT / ".." / "shared" / "data").resolve()
EVAL = DATA.parent / "eval"
RUNS = ROOT / "benches" / "runs"
HERE = Path(__file__).resolve().parent
# A file from here on counts as long: Whisper needs more than two windows for it.
LONG_SECONDS = 60.0


def say(text):
    print(f"scribe: {text}", flush=True)


def die(what, remedy):
    print(f"scribe: {what}\n  remedy: {remedy}", file=sys.stderr)
    sys.exit(1)


def has_data():
    return (DATA / "wer" / "refs.tsv").is_file()


def relative(path):
    """As it is shown and kept: no folder of one person's machine."""
    path = Path(path)
    for base, name in ((ROOT, ""), (DATA, "$SCRIBE_DATA/")):
        with contextlib.suppress(ValueError):
            return name + str(path.relative_to(base))
    return path.name


# --- Running ---------------------------------------------------------------------------------------


def environment():
    env = dict(os.environ)
    env["GST_PLUGIN_PATH"] = str(ROOT / "target" / "release")
    env["GST_REGISTRY"] = str(WORK / "registry.bin")
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    # Threads of numpy and OpenMP would otherwise be as many as there are cores on top of the asked ones.
    env.setdefault("OMP_NUM_THREADS", "2")
    return env


def high_water(pid):
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        if found:
            return int(found.group(1)) / 1024
    return None


def family(pid):
    """A process and those that it has started."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for children in Path(f"/proc/{one}/task").glob("*/children"):
                found += map(int, children.read_text().split())
    return found


def proportional(pid):
    """Resident memory in MiB, of which what several processes share counts in part."""
    with contextlib.suppress(OSError):
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
        if found:
            return int(found.group(1)) / 1024
    return None


def measure(command, log, limit=None, shares=False):
    """Wall and CPU seconds of the whole process, loading included, and its peak resident memory in MiB; with `shares` the
    most of its proportional memory too, looked at five times a second.

    The peak is the kernel's own mark (VmHWM), read until the process ends: what wait4 says would hold
    the memory of this program too, from which the process was forked. Where it has started others, the marks
    of those that run are added up.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    peak = pss = 0.0
    with open(log, "w", encoding="utf-8") as out:
        out.write(" ".join(map(str, command)) + "\n")
        out.flush()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.monotonic()
        process = subprocess.Popen(list(map(str, command)), stdout=out, stderr=out, cwd=ROOT, env=environment())
        while True:
            try:
                process.wait(0.2 if shares else 0.05)
                break
            except subprocess.TimeoutExpired:
                pids = family(process.pid)
                peak = max(peak, sum(high_water(pid) or 0.0 for pid in pids))
                pss = max(pss, sum(proportional(pid) or 0.0 for pid in pids) if shares else 0.0)
                if limit and time.monotonic() - start > limit:
                    process.kill()
        wall = time.monotonic() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures = {
        "exit": process.returncode,
        "wall": round(wall, 3),
        "cpu": round(cpu, 3),
        "peak_mib": round(peak, 1),
        "load_before": round(load, 2),
    }
    return {**figures, "pss_mib": round(pss, 1)} if shares else figures


def last_json(log):
    """What a program printed last, if that is JSON."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    with contextlib.suppress(json.JSONDecodeError, IndexError):
        found = json.loads(lines[-1])
        return found if isinstance(found, dict) else None
    return None


def two_cores():
    """All that this program starts has two cores, on a machine of more too: what is told to the peers, and what scribe finds
    by itself."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


def output_of(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), check=False, timeout=1200).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def digest(*paths):
    sha = hashlib.sha256()
    for path in paths:
        sha.update(Path(path).read_bytes())
    return sha.hexdigest()[:16]


# --- The machine and the run -----------------------------------------------------------------------


def cpu_model():
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
        if found:
            return found.group(1)
    return platform.processor() or platform.machine()


def machine():
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory.group(1)) / 2**20, 1) if memory else None,
        "kernel": platform.release(),
        "system": output_of("sh", "-c", ". /etc/os-release && echo $PRETTY_NAME"),
        "gstreamer": output_of("gst-launch-1.0", "--version").splitlines()[:1],
    }


# scribe's engines, by the model that each is for: named, whatever the default is.
MODELS = {"onnx": "whisper-tiny.en-onnx-int8", "whispercpp": "whisper-tiny.en-q8_0"}


def stats(model, files):
    """`stats` of a scribetranscriber that has done the first of these files, the others beside it in the same process."""
    script = """
import gi, json, sys
gi.require_version('Gst', '1.0')
from gi.repository import Gst
Gst.init(None)
branch = 'filesrc location="%s" ! decodebin ! audioconvert ! scribetranscriber name=t%d model=%s ! fakesink'
p = Gst.parse_launch(' '.join(branch % (f, n, sys.argv[1]) for n, f in enumerate(sys.argv[2:])))
p.set_state(Gst.State.PLAYING)
p.get_bus().timed_pop_filtered(Gst.CLOCK_TIME_NONE, Gst.MessageType.EOS | Gst.MessageType.ERROR)
s = p.get_by_name('t0').get_property('stats')
names = [s.nth_field_name(n) for n in range(s.n_fields())]
print(json.dumps({n: v for n in names if isinstance(v := s.get_value(n), (str, int, float))}))
p.set_state(Gst.State.NULL)
"""
    said = output_of("/usr/bin/python3", "-c", script, model, *map(str, files))
    with contextlib.suppress(json.JSONDecodeError):
        return json.loads(said)
    return {}


def engine():
    """What scribetranscriber says it runs on: engines and instruction sets."""
    found = [stats(model, [ROOT / "tests/data/speech_short.flac"]).get("engine", "unknown") for model in MODELS.values()]
    return "; ".join(found)


def run_folder():
    name = re.sub(r"\((R|TM)\)|CPU|Processor|@.*", " ", cpu_model())
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    folder = RUNS / f"{datetime.date.today().isoformat()}-{slug}-{len(os.sched_getaffinity(0))}cores"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def keep(part, command, figures, tables, took, peers=None, runs_on=None):
    """PART.json with every figure, PART.md with the tables. `peers`: versions of what it was compared with; `runs_on`: what scribe
    computes with, where that is not what transcribes."""
    dirty = bool(output_of("git", "status", "--porcelain", "--untracked-files=no", "--", "src", "Cargo.lock", "examples"))
    document = {
        "part": part,
        "command": command,
        "commit": output_of("git", "rev-parse", "HEAD"),
        "changed_since_commit": dirty,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "took_seconds": round(took),
        "data": "$SCRIBE_DATA" if has_data() else "tests/data",
        "machine": machine(),
        "engine": runs_on or engine(),
        "peers": peers or versions(),
        "figures": figures,
    }
    folder = run_folder()
    (folder / f"{part}.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / f"{part}.md").write_text(tables.strip() + "\n\n" + footer(document) + "\n")
    say(f"{part}: {relative(folder)}/{part}.json and .md, {took:.0f} s")
    print(tables.strip(), flush=True)


def footer(document):
    m = document["machine"]
    changed = " with changes not committed" if document["changed_since_commit"] else ""
    return (
        f"`{document['command']}`, commit `{document['commit'][:10]}`{changed}, {document['time'][:10]}, "
        f"{m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB, {m['system']}. Engine: {document['engine']}."
    )


def versions():
    import importlib.metadata as metadata

    names = ("faster-whisper", "ctranslate2", "pywhispercpp", "onnxruntime", "jiwer", "whisper-normalizer")
    found = {"gst-plugin-whisper": "0.15.2"}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def table(head, rows):
    right = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [head, right, *rows])


# --- What is measured ------------------------------------------------------------------------------


def read_tsv(path):
    with open(path, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def derived():
    """Long recordings composed of the short ones, made once."""
    folder = WORK / "derived"
    if not (folder / "refs.tsv").is_file():
        maker = EVAL / "make_derived.py"
        if not maker.is_file():
            say(f"SKIPPED: no {relative(maker)}: no composed long recordings")
            return None
        say("making long recordings")
        subprocess.run([sys.executable, maker, "--data", DATA, "--out", folder], check=True, stdout=subprocess.DEVNULL)
    return folder


# Without overlapping speech: there one text can be right.
DERIVED = ("d01_single", "d09_panel12", "d12_anthology", "d13_lj_chapter", "d14_clean20")


def joined(name, seconds, part=0, of=1):
    """Recordings of wer/ one after the other, 0.7 s of faint noise between, at least so long: in an order by chance, always
    the same, and in another one once all are in. Parts of the same order have none in common."""
    import numpy

    folder = WORK / "joined"
    file, noted = folder / f"{name}-{seconds:.0f}s.flac", folder / f"{name}-{seconds:.0f}s.json"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        random = numpy.random.default_rng(1)
        rows = read_tsv(DATA / "wer" / "refs.tsv")
        parts, chosen, long, order = [], [], 0.0, []
        while long < seconds:
            if not order:
                order = [rows[n] for n in random.permutation(len(rows))[part::of]]
            row = order.pop()
            # The longest one would make a short file much longer than was asked for.
            if long + float(row["seconds"]) > seconds + LONG_SECONDS:
                continue
            command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(DATA / row["file"]), "-ac", "1", "-ar", "16000", "-f", "s16le", "-"]
            sound = subprocess.run(command, capture_output=True, check=True).stdout
            pause = (5 * numpy.random.default_rng(len(parts)).standard_normal(11200)).astype("<i2").tobytes()
            parts += [sound, pause]
            chosen.append(row)
            long += len(sound + pause) / 32000
        unfinished = file.with_suffix(".part.flac")
        command = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-f", "s16le", "-ar", "16000", "-ac", "1", "-i", "-", str(unfinished)]
        subprocess.run(command, input=b"".join(parts), check=True)
        ids = [row["id"] for row in chosen]
        document = {"seconds": round(long, 1), "ids": ids, "different": len(set(ids)), "text": " ".join(row["text"] for row in chosen)}
        noted.write_text(json.dumps(document))
        unfinished.rename(file)
    known = json.loads(noted.read_text())
    return {"id": file.stem, "category": "joined", "seconds": known["seconds"], "file": file, "text": known["text"], "different": known["different"], "of": len(known["ids"])}


def recordings():
    """(short, long): each a list of {id, category, seconds, file, text}."""
    if not has_data():
        say(f"SKIPPED: no recordings in {DATA} (SCRIBE_DATA): only the few in tests/data are measured, which shows little")
        short, long = [], []
        for name, suffix, seconds, where in (("speech_short", "flac", 4, short), ("demo", "opus", 69, long)):
            file = ROOT / "tests" / "data" / f"{name}.{suffix}"
            text = " ".join(file.with_name(f"{name}.ref.txt").read_text().split())
            where.append({"id": name, "category": "tests/data", "seconds": seconds, "file": file, "text": text})
        return short, long
    rows = []
    for row in read_tsv(DATA / "wer" / "refs.tsv"):
        rows.append({**{k: row[k] for k in ("id", "category", "text")}, "seconds": float(row["seconds"]), "file": DATA / row["file"]})
    short = [row for row in rows if row["seconds"] < LONG_SECONDS]
    long = [row for row in rows if row["seconds"] >= LONG_SECONDS]
    folder = derived()
    if folder:
        lengths = {row["id"]: float(row["seconds"]) for row in read_tsv(DATA / "derived_manifest.tsv")}
        for row in read_tsv(folder / "refs.tsv"):
            if row["id"] in DERIVED:
                file = next(folder.glob(f"{row['id']}.[fw]*[cv]"))
                long.append({"id": row["id"], "category": "composed", "seconds": lengths[row["id"]], "file": file, "text": row["text"]})
    return short, long
