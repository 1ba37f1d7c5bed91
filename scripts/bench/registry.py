# SPDX-License-Identifier: MPL-2.0
"""What the registry is for, in figures: many streams on one model, and a live one beside files. Run by
scripts/bench-registry.sh; docs/memory.md has what came out. Python's own library is enough."""

import argparse
import concurrent.futures
import json
import os
import random
import statistics
import subprocess
import sys
import time
import wave

from common import ROOT, WORK, environment, keep, measure, say, table

OPTIONS = argparse.Namespace()
STREAMS = WORK / "gst-whisper" / "release" / "bench-streams"
LIVE = ROOT / "target" / "release" / "examples" / "live_beside_files"
GGML = ROOT / "models" / "ggml-tiny.en-q8_0.bin"
RECORDING = ROOT / "tests" / "data" / "demo.opus"
FOLDER = WORK / "streams"
RATE = 16000
# More than two windows: with one stream all lanes of two cores are at work too.
SECONDS = 60

# Greedy both, so that both do the same; scribe with its default of four beams beside it. A whispertranscriber's threads:
# all of the machine's for one stream, one each for more.
SYSTEMS = {
    "scribe": lambda threads: "scribetranscriber",
    "scribe, greedy": lambda threads: "scribetranscriber beam-size=1",
    "whispertranscriber": lambda threads: (
        f"whispertranscriber model-path={GGML} model-preset=tiny-en language=en use-gpu=false greedy-best-of=1 n-threads={threads}"
    ),
}
OURS, THEIRS = "scribe, greedy", "whispertranscriber"


# --- streams ---------------------------------------------------------------------------------------


def utterances():
    """Those of tests/data/demo.opus, 16 kHz mono, two bytes a sample, with a twentieth of a second around each."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    whole = FOLDER / "whole.wav"
    if not whole.is_file():
        part = whole.with_suffix(".part")
        form = f"audio/x-raw,format=S16LE,rate={RATE},channels=1"
        command = f"gst-launch-1.0 -q filesrc location={RECORDING} ! decodebin ! audioconvert ! audioresample ! {form} ! wavenc ! filesink location={part}"
        subprocess.run(command.split(), check=True, env=environment())
        part.rename(whole)
    with wave.open(str(whole)) as sound:
        data = sound.readframes(sound.getnframes())
    found = []
    for line in RECORDING.with_name("demo.ref.tsv").read_text(encoding="utf-8").splitlines():
        start, end = (float(field) for field in line.split("\t")[:2])
        found.append(data[2 * int((start - 0.05) * RATE) : 2 * int((end + 0.05) * RATE)])
    return found


def recording(seed, seconds=SECONDS):
    """A minute of them in an order of its own, 0.3 s apart; or its beginning."""
    file = FOLDER / f"{seed:03}-{seconds}s.wav"
    if not file.is_file():
        parts, order, random_ = [], [], random.Random(seed)
        while sum(map(len, parts)) < 2 * RATE * SECONDS:
            if not order:
                order = utterances()
                random_.shuffle(order)
            parts += [order.pop(), bytes(2 * int(0.3 * RATE))]
        with wave.open(str(file), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(RATE)
            out.writeframes(b"".join(parts)[: 2 * RATE * seconds])
    return file


def recordings(count, cores):
    """The first `count` that whispertranscriber gets through by itself. On others whisper.cpp's alignment, asked for the
    times of a piece of a few frames, aborts the process ("filter_width < a->ne[2]"): no figure could be had of it."""
    known = FOLDER / f"survived-{OPTIONS.their_seconds}s.json"
    survived = json.loads(known.read_text()) if known.is_file() else {}
    seed = 0
    while sum(survived.values()) < count:
        seeds = [n for n in range(seed, seed + cores) if str(n) not in survived]
        seed += cores
        if not seeds:
            continue
        files = {n: recording(n, OPTIONS.their_seconds) for n in seeds}
        with concurrent.futures.ThreadPoolExecutor(cores) as pool:
            results = pool.map(lambda n: (n, one(THEIRS, [files[n]], 1, f"alone-{n}")), seeds)
        survived |= {str(n): not result["failed"] for n, result in results}
        known.write_text(json.dumps(survived))
        say(f"recordings that {THEIRS} gets through: {sum(survived.values())} of {len(survived)}")
    good = sorted(int(n) for n, alive in survived.items() if alive)[:count]
    return good, {"tried": len(survived), "survived": sum(survived.values()), "seeds": good}


def one(system, files, cores, name=None):
    threads = cores if len(files) == 1 else 1
    log = WORK / "logs" / f"streams-{system.replace(', ', '-')}-{name or len(files)}.log"
    result = measure([STREAMS, SYSTEMS[system](threads), *files], log)
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.startswith('{"wall"')]
    if not said:
        say(f"{system}, {len(files)} streams: no figures, exit status {result['exit']}: {log}")
        return {**result, "failed": True}
    own = json.loads(said[-1])
    return {
        **result,
        "failed": own["failed"] or bool(result["exit"]),
        "seconds": own["sound"],
        "took": own["wall"],
        "peak_mib": round(own["peak_kib"] / 1024, 1),
        "words": own["words"],
        "speed": round(own["sound"] / own["wall"], 3),
    }


def streams():
    cores = len(os.sched_getaffinity(0))
    seeds, chosen = recordings(max(OPTIONS.streams), cores)
    figures = {"streams": {}, "rounds": OPTIONS.rounds, "recordings": chosen}
    runs = {(system, count): [] for count in OPTIONS.streams for system in SYSTEMS}
    for round_ in range(OPTIONS.rounds):
        for count in OPTIONS.streams:
            for system in SYSTEMS:
                seconds = OPTIONS.their_seconds if system == THEIRS else SECONDS
                result = one(system, [recording(n, seconds) for n in seeds[:count]], cores)
                runs[system, count].append(result)
                shown = "FAILED" if result["failed"] else f"{result['peak_mib']:.0f} MiB, {result['speed']:.1f} times real time"
                say(f"streams, round {round_ + 1}: {system}, {count}: {shown}, load before {result['load_before']}")
    for (system, count), results in runs.items():
        figures["streams"].setdefault(system, {})[str(count)] = results
    good = {key: [r for r in results if not r["failed"]] for key, results in runs.items()}

    def peak(system, count):
        return max((r["peak_mib"] for r in good[system, count]), default=None)

    def memory(system, count):
        most, first = peak(system, count), peak(system, OPTIONS.streams[0])
        return "failed" if most is None else f"{most:.0f}" + (f" ({most / first:.2f} x)" if first else "")

    def speed(system, count):
        found = [r["speed"] for r in good[system, count]]
        return f"{statistics.median(found):.1f}" if found else "failed"

    def ratio(count):
        pairs = zip(runs[OURS, count], runs[THEIRS, count])
        found = [ours["speed"] / theirs["speed"] for ours, theirs in pairs if not ours["failed"] and not theirs["failed"]]
        return f"{statistics.median(found):.1f} ({min(found):.1f}-{max(found):.1f})" if found else "-"

    rows = [
        [count, *(memory(s, count) for s in SYSTEMS), *(speed(s, count) for s in SYSTEMS), ratio(count)] for count in OPTIONS.streams
    ]
    head = ["streams", *(f"{s}: peak MiB" for s in SYSTEMS), *(f"{s}: s of sound a s" for s in SYSTEMS), "ratio, greedy"]
    loads = [r["load_before"] for results in runs.values() for r in results]
    note = (
        f"One process a point, an element a stream, {SECONDS} s of speech each; peak resident memory (times that of one stream), "
        f"seconds of sound done a second by all together. {OPTIONS.rounds} rounds, systems in turn; ratio of {OURS} to {THEIRS} within a round. Load of the machine before a "
        f"run: median {statistics.median(loads):.1f}, most {max(loads):.1f}; {cores} cores. {THEIRS} got through "
        f"{chosen['survived']} of the {chosen['tried']} recordings that were tried, and those serve; it heard {OPTIONS.their_seconds} s of each."
    )
    return figures, note + "\n\n" + table(head, rows)


# --- live ------------------------------------------------------------------------------------------


def live():
    figures, text = {"runs": []}, []
    for round_ in range(OPTIONS.rounds):
        log = WORK / "logs" / f"live-{round_ + 1}.log"
        result = measure([LIVE, OPTIONS.windows, OPTIONS.files, RECORDING], log)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
        if result["exit"] or not lines or not lines[-1].startswith("{"):
            sys.exit(f"scribe: {LIVE.name} failed, see {log}")
        figures["runs"].append({**result, **json.loads(lines[-1])})
        shown = lines[next(i for i, line in enumerate(lines) if line.startswith("seconds")) : -1]
        text.append(f"Run {round_ + 1}, load of the machine before it {result['load_before']}:\n\n```text\n" + "\n".join(shown) + "\n```")
        say(f"live, run {round_ + 1} of {OPTIONS.rounds}")
    return figures, "\n\n".join(text)


# ---------------------------------------------------------------------------------------------------

PARTS = {"streams": streams, "live": live}


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench-registry.sh", description="Figures for docs/memory.md")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=f"of {', '.join(PARTS)}; none: both")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--streams", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 4, 8, 16], help="most 16")
    parser.add_argument("--their-seconds", type=int, default=SECONDS, help=f"how much of each recording {THEIRS} hears")
    parser.add_argument("--windows", type=int, default=120, help="of the live stream, one a second")
    parser.add_argument("--files", type=int, default=15, help="beside the live stream")
    parser.add_argument("--trial", action="store_true", help="nothing is kept in benches/runs")
    parser.parse_args(namespace=OPTIONS)
    command = " ".join(["scripts/bench-registry.sh", *sys.argv[1:]])
    for part in OPTIONS.parts or PARTS:
        start = time.monotonic()
        figures, tables = PARTS[part]()
        if OPTIONS.trial:
            print(tables)
        else:
            keep(part, command, figures, tables, time.monotonic() - start)


if __name__ == "__main__":
    main()
