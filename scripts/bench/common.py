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


def measure(command, log, limit=None):
    """Wall and CPU seconds of the whole process, loading included, and its peak resident memory in MiB.

    The peak is the kernel's own mark (VmHWM), read until the process ends: what wait4 says would hold
    the memory of this program too, from which the process was forked.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    peak = 0.0
    with open(log, "w", encoding="utf-8") as out:
        out.write(" ".join(map(str, command)) + "\n")
        out.flush()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.monotonic()
        process = subprocess.Popen(list(map(str, command)), stdout=out, stderr=out, cwd=ROOT, env=environment())
        while True:
            try:
                process.wait(0.05)
                break
            except subprocess.TimeoutExpired:
                peak = max(peak, high_water(process.pid) or 0.0)
                if limit and time.monotonic() - start > limit:
                    process.kill()
        wall = time.monotonic() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "exit": process.returncode,
        "wall": round(wall, 3),
        "cpu": round(cpu, 3),
        "peak_mib": round(peak, 1),
        "load_before": round(load, 2),
    }


def output_of(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), check=False, timeout=120).stdout.strip()
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


def engine():
    """What `stats` of scribetranscriber says it runs on: engine and instruction sets."""
    script = """
import gi, sys
gi.require_version('Gst', '1.0')
from gi.repository import Gst
Gst.init(None)
p = Gst.parse_launch('filesrc location=%s ! decodebin ! audioconvert ! scribetranscriber name=t ! fakesink' % sys.argv[1])
p.set_state(Gst.State.PLAYING)
p.get_bus().timed_pop_filtered(60 * Gst.SECOND, Gst.MessageType.EOS | Gst.MessageType.ERROR)
print(p.get_by_name('t').get_property('stats').get_string('engine'))
p.set_state(Gst.State.NULL)
"""
    return output_of("/usr/bin/python3", "-c", script, str(ROOT / "tests/data/speech_short.flac")) or "unknown"


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
