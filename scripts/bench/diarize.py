# SPDX-License-Identifier: MPL-2.0
"""Who spoke when: scribe beside pyannote.audio with the same two models. Run by scripts/bench-diarize.sh."""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
import warnings

from common import DATA, HERE, ROOT, RUNS, WORK, derived, die, keep, measure, say, table

SOUND = WORK / "diarize" / "sound"
TURNS = WORK / "diarize" / "turns"
LOGS = WORK / "logs"
SCRIBE = ROOT / "target" / "release" / "examples" / "diarize"
SEGMENTATION = ROOT / "models" / "segmentation-3.0.onnx"
EMBEDDING = ROOT / "models" / "ge2e-resemblyzer.onnx"
# Two talks of two people and a meeting of four: 361 s.
SPEED_FILES = ("d02_dialog", "d08_stereo", "ami_EN2002a_000_030")
THREADS = (1, 2)


def scribe(step):
    def command(out, threads, files):
        models = ["--segmentation", SEGMENTATION, "--embedding", EMBEDDING]
        return [SCRIBE, *models, "--out", out, "--threads", threads, "--step", step, *files]

    return command


def pyannote(step, pieces, smallest, *min_silences):
    def command(out, threads, files):
        models = ["--segmentation", SEGMENTATION, "--embedding", EMBEDDING]
        how = ["--threshold", 0.55, "--smallest", smallest, "--min-silence", *min_silences]
        steps = ["--threads", threads, "--step", step, "--pieces", pieces]
        return [sys.executable, "-B", HERE / "pyannote_peer.py", *models, "--out", out, *steps, *how, "--", *files]

    return command


OURS, PEER, FILLED = "scribe, step 2 s", "pyannote.audio, step 1 s", "pyannote.audio, step 1 s, pauses filled"
SYSTEMS = {
    "scribe, step 1 s": scribe(1),
    OURS: scribe(2),
    "scribe, step 3 s": scribe(3),
    PEER: pyannote(1, 5, 3, 0),
    FILLED: pyannote(1, 5, 3, 0.3),
    "pyannote.audio, step 2 s, pauses filled, 3 pieces": pyannote(2, 3, 2, 0.3),
}
# Filled pauses take no time that could be measured: one run of the networks serves both.
BOTH = pyannote(1, 5, 3, 0, 0.3)
TIMED = [name for name in SYSTEMS if name != FILLED]

EXPLAINED = """**scribe** is `examples/diarize`: what `scribediarizer` computes, offline, with its own defaults (step 2 s, pauses up to
0.3 s filled). **pyannote.audio** is 4.0.7's `SpeakerDiarization` on the same two ONNX files and the same ONNX Runtime
(`scripts/bench/pyannote_peer.py`): its own windows, count, clustering and reconstruction; threshold 0.55 and clusters of 3 windows
and more are the best of a sweep over these recordings; up to 5 pieces of a local speaker go to GE2E. It is shown also with pauses
filled as scribe fills them, and with scribe's economies (step 2 s, 3 pieces; then clusters of 2 windows and more: not swept for
itself). Scribe's thresholds come from the same recordings too: on others both may be worse. Those of AMI are 30 s of a meeting
each: two have half a second of speech that counts."""


# --- Recordings ------------------------------------------------------------------------------------


def recordings():
    """{name: (original, reference, scored stretches)}"""
    found = {}
    folders = [DATA / "conv" / "ami", derived()]
    for folder in filter(None, folders):
        for reference in sorted(folder.glob("*.rttm")):
            sound = [path for path in folder.glob(f"{reference.stem}.*") if path.suffix in (".flac", ".wav")]
            if sound:
                found[reference.stem] = (sound[0], reference, reference.with_suffix(".uem"))
    return found


def decoded(name, original):
    """16 kHz, mono, 32-bit floats: the same samples for both."""
    out = SOUND / f"{name}.f32"
    if not out.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_suffix(".part")
        command = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-i", original, "-ac", "1", "-ar", "16000", "-f", "f32le", part]
        subprocess.run(list(map(str, command)), check=True)
        part.rename(out)
    return out


# --- Error rates -----------------------------------------------------------------------------------


def annotation(path):
    from pyannote.core import Annotation, Segment

    found = Annotation(uri=path.stem)
    for n, line in enumerate(path.read_text().splitlines()):
        field = line.split()
        if field and field[0] == "SPEAKER" and float(field[4]) > 0:
            found[Segment(float(field[3]), float(field[3]) + float(field[4])), n] = field[7]
    # Turns of one speaker that overlap are one.
    return found.support()


def stretches(path):
    from pyannote.core import Segment, Timeline

    fields = [line.split() for line in path.read_text().splitlines() if line.strip()]
    return Timeline([Segment(float(f[2]), float(f[3])) for f in fields])


def scored(turns, found):
    """No collar, overlaps count; sums over files and then a quotient."""
    from pyannote.metrics.diarization import DiarizationErrorRate, JaccardErrorRate

    warnings.filterwarnings("ignore")
    files, groups = {}, {}
    for name, (_, reference, uem) in found.items():
        truth, ours, where = annotation(reference), annotation(turns / f"{name}.rttm"), stretches(uem)
        counts = (len(truth.labels()), len(ours.labels()))
        for group in (name, "AMI" if name.startswith("ami") else "composed", "all"):
            of = groups.setdefault(group, (DiarizationErrorRate(collar=0.0), JaccardErrorRate(collar=0.0), []))
            of[0](truth, ours, uem=where)
            of[1](truth, ours, uem=where)
            of[2].append(counts[0] == counts[1])
        files[name] = counts
    out = {}
    for group, (der, jer, right) in groups.items():
        sums = {key: der[key] for key in ("total", "missed detection", "false alarm", "confusion")}
        speech = sums["total"] or 1e-9
        out[group] = {
            "speech": round(sums["total"], 3),
            "miss": round(100 * sums["missed detection"] / speech, 2),
            "fa": round(100 * sums["false alarm"] / speech, 2),
            "confusion": round(100 * sums["confusion"] / speech, 2),
            "der": round(100 * abs(der), 2),
            "jer": round(100 * abs(jer), 2),
            "files": len(right),
            "count_right": sum(right),
        }
        if group in files:
            out[group]["speakers"] = files[group]
    return out


def folder_of(name):
    """Where its turns are."""
    if name in (PEER, FILLED):
        return TURNS / "pyannote.audio-step-1-s" / ("0" if name == PEER else "0.3")
    return TURNS / slug(name)


def slug(name):
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def der(found, options):
    figures = {}
    for name, command in SYSTEMS.items():
        out = folder_of(name)
        there = all((out / f"{stem}.rttm").is_file() for stem in found)
        # What scribe says changes with every build.
        if name.startswith("scribe") or name != FILLED and options.fresh or not there:
            say(f"{name}: {len(found)} recordings")
            for old in out.glob("*.rttm"):
                old.unlink()
            if name in (PEER, FILLED):
                command, out = BOTH, out.parent
            files = [decoded(stem, original) for stem, (original, *_) in found.items()]
            log = LOGS / f"diarize-{slug(name)}.log"
            if measure(command(out, 2, files), log)["exit"]:
                die(f"{name} failed", f"{log} says why")
        figures[name] = scored(folder_of(name), found)
    return figures


# --- Speed -----------------------------------------------------------------------------------------


def took(log):
    """(seconds of sound, wall, CPU) of all files, models being loaded: what the program itself says."""
    sums = [0.0, 0.0, 0.0]
    for line in log.read_text().splitlines():
        if line.startswith("{"):
            told = json.loads(line)
            values = [told["seconds"], told["wall"], told["cpu"]]
        else:
            told = re.search(r": ([\d.]+) s in ([\d.]+) s, ([\d.]+) s of CPU", line)
            if not told:
                continue
            values = map(float, told.groups())
        sums = [a + b for a, b in zip(sums, values)]
    return sums


def speed(found, options):
    files = [decoded(stem, found[stem][0]) for stem in SPEED_FILES if stem in found]
    runs = {}
    for round_ in range(options.rounds):
        for threads in THREADS:
            for name in TIMED:
                log = LOGS / f"diarize-speed-{slug(name)}-{threads}.log"
                result = measure(SYSTEMS[name](WORK / "diarize" / "timed", threads, files), log)
                if result["exit"]:
                    die(f"{name} failed", f"{log} says why")
                sound, wall, cpu = took(log)
                if sound <= 0.0:
                    die(f"{name} does not say what it took", "build examples/diarize afresh")
                run = {"round": round_, "sound": round(sound, 2), "wall_of_work": round(wall, 3), "cpu_of_work": round(cpu, 3), **result}
                runs.setdefault(name, {}).setdefault(str(threads), []).append(run)
                say(f"round {round_ + 1}, {name}, {threads} thread(s): {wall:.2f} s wall, {cpu:.2f} s CPU for {sound:.0f} s")
    return {"files": list(SPEED_FILES), "rounds": options.rounds, "runs": runs}


def medians(runs):
    sound = runs[0]["sound"]
    return {
        "wall": statistics.median(run["wall_of_work"] for run in runs) / sound,
        "cpu": statistics.median(run["cpu_of_work"] for run in runs) / sound,
        "peak_mib": statistics.median(run["peak_mib"] for run in runs),
    }


# --- Tables ----------------------------------------------------------------------------------------


def totals_table(rates):
    rows = []
    for name, groups in rates.items():
        for group in ("all", "composed", "AMI"):
            if group in groups:
                g = groups[group]
                first = f"**{name}**" if group == "all" else ""
                rows.append([first, f"{group} ({g['files']})", *(f"{g[k]:.2f}" for k in ("miss", "fa", "confusion", "der", "jer")), f"{g['count_right']} of {g['files']}"])
    return table(["", "recordings", "missed", "false alarm", "confusion", "DER", "JER", "count right"], rows)


def files_table(rates):
    rows = []
    for name, ours in rates[OURS].items():
        if "speakers" not in ours:
            continue
        row = [name, f"{ours['speech']:.1f}", ours["speakers"][0]]
        for one in (ours, rates[PEER][name]):
            row += [f"{one['miss']:.1f} / {one['fa']:.1f} / {one['confusion']:.1f}", f"{one['der']:.2f}", f"{one['jer']:.1f}", one["speakers"][1]]
        rows.append(row)
    head = ["", "speech s", "speakers", "**scribe** missed / FA / conf.", "DER", "JER", "found", "**pyannote.audio** missed / FA / conf.", "DER", "JER", "found"]
    return table(head, rows)


def speed_table(rates, timed):
    peers = {threads: medians(timed["runs"][PEER][str(threads)]) for threads in THREADS}
    rows, ratios = [], {}
    for name in TIMED:
        rate = (rates or {}).get(name, {}).get("all")
        row = [name, f"{rate['der']:.2f}" if rate else "", f"{rate['confusion']:.2f}" if rate else ""]
        for threads in THREADS:
            own = medians(timed["runs"][name][str(threads)])
            ratio = peers[threads]["wall"] / own["wall"]
            ratios.setdefault(name, {})[str(threads)] = {"wall": round(ratio, 2), "cpu": round(peers[threads]["cpu"] / own["cpu"], 2)}
            row += [f"{own['wall']:.4f}", f"{own['cpu']:.4f}", f"{ratio:.2f} x"]
        row.append(f"{own['peak_mib']:.0f}")
        rows.append(row)
    head = ["", "DER, all", "confusion", "1 thread: wall", "CPU", "speed", "2 threads: wall", "CPU", "speed", "peak MiB"]
    timed["ratios"] = ratios
    return table(head, rows)


def tables(figures):
    text = [EXPLAINED]
    rates, timed = figures.get("der"), figures.get("speed")
    if rates:
        text.append("Diarization error rate in percent of speech: no collar, overlaps count, sums over recordings and then divided\n\n" + totals_table(rates))
    if timed:
        text.append(
            "Error against speed: seconds for a second of sound, models being loaded; speed relative to pyannote.audio at its own step "
            f"({', '.join(timed['files'])}; one run of each in turn, {timed['rounds']} rounds, medians). Peak: resident memory of the whole process "
            "with two threads.\n\n" + speed_table(rates, timed)
        )
    if rates:
        text.append("Recording by recording, scribe at a step of 2 s, pyannote.audio at 1 s\n\n" + files_table(rates))
    return "\n\n".join(text)


def before():
    """The newest figures that are kept, for a part that is not run now."""
    found = [(json.loads(path.read_text())["time"], path) for path in RUNS.glob("*/diarize.json")]
    return json.loads(max(found)[1].read_text())["figures"] if found else {}


def versions():
    import importlib.metadata as metadata

    return {name: metadata.version(name) for name in ("pyannote-audio", "pyannote-metrics", "torch", "onnxruntime", "scipy", "numpy")}


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench-diarize.sh", description="The diarizer beside pyannote.audio")
    parser.add_argument("parts", nargs="*", choices=["der", "speed", []], help="none: both")
    parser.add_argument("--fresh", action="store_true", help="also redo what pyannote.audio said")
    parser.add_argument("--rounds", type=int, default=3, help="of part speed")
    parser.add_argument("--trial", action="store_true", help="nothing is kept in benches/runs")
    options = parser.parse_args()
    start = time.monotonic()
    found = recordings()
    parts = options.parts or ["der", "speed"]
    figures = {} if set(parts) == {"der", "speed"} else before()
    if "der" in parts:
        figures["der"] = der(found, options)
    if "speed" in parts:
        figures["speed"] = speed(found, options)
    text = tables(figures)
    if options.trial:
        print(text)
        say(f"a trial of {time.monotonic() - start:.0f} s, not kept")
        return
    command = " ".join(["scripts/bench-diarize.sh", *sys.argv[1:]])
    engine = f"ONNX Runtime {versions()['onnxruntime']} on both sides"
    keep("diarize", command, figures, text, time.monotonic() - start, peers=versions(), runs_on=engine)
    subprocess.run([sys.executable, "-B", HERE / "report.py"], check=True)


if __name__ == "__main__":
    main()
