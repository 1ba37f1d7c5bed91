# SPDX-License-Identifier: MPL-2.0
"""The parts of `make bench`. Run by scripts/bench.sh, which makes what they need."""

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import time
import wave

import engines
import scoring
from common import (
    DATA,
    EVAL,
    MODELS,
    ROOT,
    WORK,
    has_data,
    joined,
    keep,
    last_json,
    measure,
    output_of,
    read_tsv,
    recordings,
    say,
    table,
    two_cores,
)
from systems import COMMANDS, LAUNCHED, folder_name, outputs

OPTIONS = argparse.Namespace()


# --- wer -------------------------------------------------------------------------------------------

SCRIBES = ("scribe onnx", "scribe onnx, beam-size=1", "scribe whispercpp", "scribe whispercpp, beam-size=1")
FASTER = ("faster-whisper", "faster-whisper batched")
WER_SYSTEMS = (*SCRIBES, *FASTER, "whisper.cpp")
# No worse than the better of faster-whisper's two by more than this, in points, at the upper end of the interval.
GOAL_POINTS = 0.3


def wer():
    short, long = recordings()
    if has_data() and not OPTIONS.few:
        long = long + [ten_minutes(), hour()]
    short, long = few(short), few(long)
    figures, tables = {"systems": {}, "bootstrap": {}, "score.py": {}}, []
    drawn = {}
    systems = asked_for(WER_SYSTEMS)
    for name in systems:
        documents = outputs(name, short + long, OPTIONS.fresh)
        files = {}
        for row in short + long:
            text = documents.get(row["id"], {}).get("text", "")
            counts = scoring.errors(row["text"], text)
            # What a bootstrap draws: short recordings whole, long ones in pieces.
            drawn[name, row["id"]] = [counts] if row in short else scoring.pieces(row["text"], text)
            files[row["id"]] = {**counts, "category": row["category"], "seconds": row["seconds"]}
            if row["id"] not in documents:
                files[row["id"]]["failed"] = True
        figures["systems"][name] = {"files": files}
    groups = [(category, [r for r in short if r["category"] == category]) for category in sorted({r["category"] for r in short})]
    groups.append(("**short, all**", short))
    if has_data():
        groups.append(("*refs.tsv, all (short and the one over 60 s)*", short + [r for r in long if r["category"] not in ("composed", "joined")]))
    long_groups = [(r["id"], [r]) for r in long] + [("**long, all**", long)]
    for title, wanted in (("Short utterances", groups), ("Long recordings", long_groups)):
        rows = []
        for group, members in wanted:
            if not members:
                continue
            cells = [group, len(members), None]
            for name in systems:
                sums = scoring.total([figures["systems"][name]["files"][r["id"]] for r in members])
                figures["systems"][name].setdefault("groups", {})[group.strip("*")] = sums
                cells[2] = sums["words"]
                cells.append(f"{sums['wer']:.2f} ({sums['sub']}/{sums['del']}/{sums['ins']})")
            rows.append(cells)
        if rows:
            tables.append(f"{title}: WER % (substituted/deleted/inserted words)\n\n" + table(["", "files", "words", *systems], rows))
    rows = []
    for group, members in (("short, all", short), ("long, all", long)):
        if len(members) < 2:
            continue

        def whole(name):
            return not any(figures["systems"][name]["files"][r["id"]].get("failed") for r in members)

        def best(names):
            return min(filter(whole, names), key=lambda n: figures["systems"][n]["groups"][group]["wer"], default=None)

        for ours in asked_for(SCRIBES):
            # The better of faster-whisper's two is what the goal speaks of; the best of all beside it, if that is another.
            for theirs in dict.fromkeys((best(asked_for(FASTER)), best(n for n in systems if n not in SCRIBES))):
                if not theirs:
                    continue
                both = [[piece for r in members for piece in drawn[n, r["id"]]] for n in (ours, theirs)]
                result = scoring.bootstrap(*both)
                result["drawn"] = len(both[0])
                figures["bootstrap"][f"{ours} against {theirs}, {group}"] = result
                said = ("better" if result["difference"] < 0 else "worse") if result["counts"] else "no difference that counts"
                goal = ("met" if result["high"] <= GOAL_POINTS else "not met") if theirs in FASTER else ""
                rows.append([f"{ours}, {group}", theirs, f"{result['difference']:+.2f}", f"{result['low']:+.2f} to {result['high']:+.2f}", said, goal])
    if rows:
        head = ["", "peer", "difference", "95 % interval", "", f"upper end at most {GOAL_POINTS:+.1f}"]
        tables.append(
            "Against the better of faster-whisper's two, and against the best of all, in points of WER (negative: scribe makes fewer errors); "
            f"paired bootstrap over short recordings, and over pieces of {scoring.PIECE} words of long ones, 10000 resamples\n\n" + table(head, rows)
        )
    failed = {n: sorted(i for i, c in s["files"].items() if c.get("failed")) for n, s in figures["systems"].items()}
    for name, ids in failed.items():
        if ids:
            tables.append(f"{name} gave nothing for {len(ids)} files, counted as deleted: {', '.join(ids[:5])}")
    figures["score.py"] = second_opinion()
    return figures, "\n\n".join(tables)


def second_opinion():
    """The same outputs by the evaluation's own scorer, where it is there: the totals must be equal."""
    if OPTIONS.few or not has_data() or not (EVAL / "score.py").is_file():
        return None
    result = {}
    for name in asked_for(WER_SYSTEMS):
        command = [sys.executable, str(EVAL / "score.py"), "wer", "--ref", str(DATA / "wer/refs.tsv"), "--json"]
        said = output_of(*command, "--hyp", str(WORK / "out" / folder_name(name)))
        try:
            result[name] = json.loads(said)["groups"]["all"]
        except (json.JSONDecodeError, KeyError):
            result[name] = None
    return result


# --- speed -----------------------------------------------------------------------------------------

SPEED_SYSTEMS = (*SCRIBES, *FASTER, "whisper.cpp", "whispertranscriber")
# A round of them is longer than one of all others together: they run in the first round alone.
SLOW = ("scribe whispercpp", "scribe whispercpp, beam-size=1", "whisper.cpp", "whispertranscriber")
# It would take twenty minutes for an hour.
SLOWEST = ("whispertranscriber",)
# Of so many seconds of sound there is one round: they are long enough for the machine's moods to even out.
LONG = 1800
# Of the short recordings every third is taken: all of them take longer than everything else together.
EVERY = 3


def ten_minutes():
    return joined("ten-minutes", 30 if OPTIONS.few else 600)


def hour():
    return joined("hour", 60 if OPTIONS.few else 3600)


def speed_cases():
    """(title, recordings, whether they are at work at once)"""
    short, long = recordings()
    if not has_data():
        return [("many short files", short, False), ("one long file", long, False)]
    each = 15 if OPTIONS.few else 300
    return [
        ("start-up, a file of 2 s", [min(short, key=lambda r: r["seconds"])], False),
        ("ten minutes", [ten_minutes()], False),
        ("an hour", [hour()], False),
        ("many short files", short[: OPTIONS.few] if OPTIONS.few else short[::EVERY], False),
        ("four files of five minutes at once", [joined(f"five-minutes-{n + 1}", each, n, 4) for n in range(4)], True),
    ]


def ways(name, rows):
    """How the files can be had from a system: (title, command). Where there are several ways, the first round says which is
    faster, and the others go that one."""
    files = [row["file"] for row in rows]
    if name in LAUNCHED and len(rows) <= 4:
        return [("gst-launch-1.0", lambda out: LAUNCHED[name](out, files))]
    if name in LAUNCHED:
        # Three pipelines at once, as batch has by default on two cores.
        return [("examples/batch", lambda out: COMMANDS[name](out, files, 3))]
    in_turn = ("one after the other", lambda out: COMMANDS[name](out, files, 1))
    if name in FASTER and len(rows) > 1:
        at_once = min(4, len(rows))
        return [in_turn, (f"one model, {at_once} threads", lambda out: COMMANDS[name](out, files, at_once))]
    # whisper.cpp: a process for each core. whispertranscriber: a pipeline for each core.
    return [in_turn if len(rows) == 1 else ("two at once, a thread each", lambda out: COMMANDS[name](out, files, 2))]


def once(name, way, rows, case, round_):
    title, command = way
    out = WORK / "speed" / folder_name(name)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    log = WORK / "logs" / f"speed-{folder_name(name)}.log"
    result = {**measure(command(out), log), "way": title, "round": round_ + 1}
    # What came before the first recording: Python's imports and the model.
    known = last_json(log) if not name.startswith("scribe") else None
    result["wall_without_start"] = known["work"] if known and "work" in known else None
    counts, done = [], 0
    for row in rows:
        found = next((f for f in (out / f"{row['file'].stem}{s}" for s in (".json", ".txt")) if f.is_file() and f.stat().st_size), None)
        done += found is not None
        text = found.read_text(encoding="utf-8") if found else ""
        with contextlib.suppress(json.JSONDecodeError):
            text = json.loads(text)["text"] if found and found.suffix == ".json" else text
        counts.append(scoring.errors(row["text"], text))
    result["files_done"] = done
    result["wer"] = scoring.total(counts)["wer"]
    short = "" if done == len(rows) else f", only {done} of {len(rows)} files"
    say(f"speed, {case}, round {round_ + 1}: {name}, {title}: {result['wall']:.1f} s, CPU {result['cpu']:.1f} s, WER {result['wer']}{short}")
    return result


def speed():
    figures = {"rounds": OPTIONS.rounds, "without": OPTIONS.without, "cases": {}}
    for case, rows, at_once in speed_cases():
        if not rows:
            continue
        seconds = sum(row["seconds"] for row in rows)
        systems = [name for name in asked_for(SPEED_SYSTEMS) if seconds < LONG or name not in SLOWEST]
        runs = {name: [] for name in systems}
        open_ways = {name: ways(name, rows) for name in systems}
        for round_ in range(OPTIONS.rounds if seconds < LONG else 1):
            # Each round goes the other way round: who comes first has a cooler machine, or a warmer cache.
            for name in systems[:: -1 if round_ % 2 else 1]:
                if name in SLOW and round_ > 0:
                    continue
                tried = [once(name, way, rows, case, round_) for way in open_ways[name]]
                best = min(tried, key=lambda r: (r["files_done"] < len(rows), r["wall"]))
                open_ways[name] = [way for way in open_ways[name] if way[0] == best["way"]]
                runs[name].append(best)
                figures.setdefault("ways_not_taken", []).extend({**r, "case": case, "system": name} for r in tried if r is not best)
        figures["cases"][case] = {"files": [row["id"] for row in rows], "seconds": round(seconds, 1), "at_once": at_once, "runs": runs}
        if any("different" in row for row in rows):
            figures["cases"][case]["different"] = [[row["different"], row["of"]] for row in rows]
    return figures, speed_tables(figures)


def speed_tables(figures):
    tables = []
    for case, measured in figures["cases"].items():
        runs, seconds, count = measured["runs"], measured["seconds"], len(measured["files"])
        lines = []
        for name in (name for name in SPEED_SYSTEMS if runs.get(name)):
            walls = [r["wall"] for r in runs[name]]
            bad = " (FAILED)" if any(r["exit"] or r["files_done"] != count for r in runs[name]) else ""
            without = [r["wall_without_start"] for r in runs[name] if r["wall_without_start"]]
            lines.append(
                [
                    name + bad,
                    runs[name][0]["way"],
                    ranged(walls, 1),
                    f"{statistics.median(without):.1f}" if without else "",
                    ranged([r["cpu"] for r in runs[name]], 1),
                    f"{seconds / statistics.median(walls):.1f}",
                    *(times_as_fast(runs[name], runs[peer]) for peer in FASTER),
                    f"{max(r['peak_mib'] for r in runs[name]):.0f}",
                    f"{runs[name][-1]['wer']:.2f}" if runs[name][-1]["wer"] is not None else "",
                    len(walls),
                ]
            )
        head = ["", "how", "wall s: median (least-most)", "without start", "CPU s", "s of sound a s"]
        head += [f"times as fast as {peer} / its start left out" for peer in FASTER]
        tables.append(f"{case[0].upper()}{case[1:]}: {count} files, {seconds:.0f} s of sound\n\n" + table([*head, "peak MiB", "WER %", "rounds"], lines))
    loads = [r["load_before"] for c in figures["cases"].values() for runs in c["runs"].values() for r in runs]
    first_alone = [name for name in SLOW if name not in figures["without"]]
    tables.append(
        f"Whole processes, from their start to their end, JSON with words and times written (whisper.cpp and whispertranscriber: text alone). One "
        f"run of each in turn, {figures['rounds']} rounds (one for more than {LONG // 60} minutes of sound), every other one in reverse; ratios "
        "are taken within a round: median (least-most). *Without start*: without Python's imports and loading the model, by the program's own "
        f"clock; scribe's figures have its start in them in any case. {', '.join(first_alone)} run in the first round alone, "
        f"{' and '.join(SLOWEST)} not on more than {LONG // 60} minutes. Where files are many, each of faster-whisper's two goes the faster way "
        "of one after the other and one model with several threads, found in the first round. Load of the machine before each run: median "
        f"{statistics.median(loads):.1f}, most {max(loads):.1f} (the runs before are in it; far above the number of cores means that others "
        "were at work, and then only ratios say anything). Two threads for each system. The long files are recordings of `wer/`, one after the "
        "other with 0.7 s between: the hour has all of them, and some again in another order."
    )
    return "\n\n".join(tables)


def times_as_fast(ours, theirs):
    """Within rounds, of those that both ran in."""
    theirs = {r["round"]: r for r in theirs}
    pairs = [(r, theirs[r["round"]]) for r in ours if r["round"] in theirs]
    if not pairs:
        return "-"
    whole = [b["wall"] / a["wall"] for a, b in pairs]
    # A peer's start is left out on both sides, where both are peers.
    bare = [b["wall_without_start"] / (a["wall_without_start"] or a["wall"]) for a, b in pairs if b["wall_without_start"]]
    return ranged(whole, 2) + (f" / {statistics.median(bare):.2f}" if bare else "")


def ranged(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


# --- words -----------------------------------------------------------------------------------------

WORD_SYSTEMS = (*SCRIBES, *FASTER)


def words():
    reference = DATA / "words" / "utterances.ctm"
    if not reference.is_file():
        say(f"SKIPPED words: no aligned reference in {DATA} (SCRIBE_DATA)")
        return None
    aligned = scoring.read_ctm(reference)
    short, long = recordings()
    rows = few([row for row in short + long if row["id"] in aligned])
    figures, lines = {"systems": {}}, []
    for name in asked_for(WORD_SYSTEMS):
        documents = outputs(name, rows, OPTIONS.fresh)
        pairs, count, files, backwards = [], 0, {}, 0
        for row in rows:
            heard = documents.get(row["id"], {}).get("words") or []
            heard = [(w["start"], w["end"], w["word"]) for w in heard]
            backwards += sum(1 for a, b in zip(heard, heard[1:]) if b[0] < a[1] - 1e-6) + sum(1 for w in heard if w[1] < w[0])
            errors, words_there = scoring.time_errors(aligned[row["id"]], heard)
            files[row["id"]] = {"words": words_there, "matched": len(errors)}
            if errors:
                files[row["id"]]["start_ms"] = [round(1000 * s) for s, _ in errors]
                files[row["id"]]["end_ms"] = [round(1000 * e) for _, e in errors]
            pairs += errors
            count += words_there
        if not pairs:
            continue
        start, end = scoring.spread([s for s, _ in pairs]), scoring.spread([e for _, e in pairs])
        figures["systems"][name] = {"words": count, "matched": len(pairs), "start": start, "end": end, "overlapping_or_backwards": backwards, "files": files}
        lines.append(
            [name, f"{len(pairs)} of {count}"]
            + [f"{x[k]:{'+' if k.startswith('signed') else ''}.0f}" for x in (start, end) for k in ("median", "p90", "signed_mean")]
            + [backwards]
        )
    head = ["", "words matched", "start: median", "p90", "signed mean", "end: median", "p90", "signed mean", "overlapping"]
    note = "Milliseconds between a word's time and the aligned reference's; differences under 20 ms are within the reference's own error."
    return figures, f"{note}\n\n{table(head, lines)}"


# --- nonspeech -------------------------------------------------------------------------------------

NONSPEECH_SYSTEMS = ("scribe onnx", "scribe whispercpp", "faster-whisper", "faster-whisper + VAD", "faster-whisper batched", "whisper.cpp")


def made_sounds():
    """Silence, noise and hum of 30 s each."""
    import numpy

    folder = WORK / "nonspeech"
    folder.mkdir(parents=True, exist_ok=True)
    rate, seconds = 16000, 30
    at = numpy.arange(rate * seconds) / rate
    random = numpy.random.default_rng(1)
    sounds = {
        "made_zeros": 0 * at,
        "made_white_-40dBFS": 0.01 * random.standard_normal(len(at)),
        "made_white_-20dBFS": 0.1 * random.standard_normal(len(at)),
        "made_hum50": 0.05 * numpy.sin(2 * numpy.pi * 50 * at) + 0.02 * numpy.sin(2 * numpy.pi * 150 * at),
        "made_clicks": numpy.where(numpy.arange(len(at)) % 12000 < 20, 0.5, 0.0),
    }
    rows = []
    for name, samples in sounds.items():
        file = folder / f"{name}.wav"
        with wave.open(str(file), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(rate)
            out.writeframes((samples * 32767).clip(-32768, 32767).astype("<i2").tobytes())
        rows.append({"id": name, "file": file, "seconds": float(seconds)})
    return rows


def nonspeech():
    rows = made_sounds()
    listed = DATA / "nonspeech" / "list.tsv"
    if listed.is_file():
        rows = [{"id": r["id"], "file": DATA / r["file"], "seconds": float(r["seconds"])} for r in read_tsv(listed)] + rows
    else:
        say("SKIPPED: no recordings without speech (SCRIBE_DATA): tests/data/silence_noise.flac and made sounds only")
        rows = [{"id": "silence_noise", "file": ROOT / "tests/data/silence_noise.flac", "seconds": 20.0}] + rows
    rows = few(rows)
    figures, texts = {"systems": {}}, {}
    for name in NONSPEECH_SYSTEMS:
        documents = outputs(name, rows, OPTIONS.fresh)
        texts[name] = {row["id"]: documents.get(row["id"], {}).get("text") for row in rows}
        figures["systems"][name] = {
            key: {"text": text, "words": None if text is None else len(scoring.normaliser()(text).split())} for key, text in texts[name].items()
        }

    def cell(name, row):
        found = figures["systems"][name][row["id"]]
        # whisper.cpp says "[Music]" and the like: the normaliser drops what is in brackets, and so does the count.
        if found["words"] is None:
            return "failed"
        return f"{found['words']} “{found['text'].strip()[:40]}”" if found["words"] else "0"

    lines = [[row["id"], f"{row['seconds']:.0f}", *(cell(name, row) for name in NONSPEECH_SYSTEMS)] for row in rows]
    lines.append(["**words in all**", "", *(f"**{sum(f['words'] or 0 for f in figures['systems'][n].values())}**" for n in NONSPEECH_SYSTEMS)])
    text = "Words out of sounds without speech (0 is right)\n\n" + table(["", "seconds", *NONSPEECH_SYSTEMS], lines)
    missed = []
    short, long = recordings()
    spoken = few(short + long)
    for name in (n for n in asked_for(NONSPEECH_SYSTEMS) if n in WER_SYSTEMS):
        documents = outputs(name, spoken)
        counts = [scoring.errors(row["text"], documents.get(row["id"], {}).get("text", "")) for row in spoken]
        sums = scoring.total(counts)
        # Files with nothing at all, or a fifth and more of their words gone: what a filter that is too keen does.
        gone = [row["id"] for row, c in zip(spoken, counts) if c["words"] and c["del"] >= max(2, c["words"] / 5)]
        figures["systems"][name]["missed speech"] = {**sums, "a_fifth_gone": gone}
        missed.append([name, sums["files"], sums["words"], sums["del"], f"{sums['deleted_share']:.2f}", len(gone)])
    head = ["", "files", "words spoken", "words deleted", "%", "files with a fifth or more deleted"]
    return figures, f"{text}\n\nMissed speech on the recordings of part wer, which a filter pays with\n\n{table(head, missed)}"


# --- memory ----------------------------------------------------------------------------------------


def looped(source, name, seconds):
    file = WORK / "memory" / f"{name}.flac"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part.flac")
        command = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-stream_loop", "-1", "-i", source, "-t", seconds, "-ac", "1", "-ar", "16000", part]
        subprocess.run(list(map(str, command)), check=True)
        part.rename(file)
    return file


def memory():
    short, long = recordings()
    source = max(long, key=lambda row: row["seconds"])
    scale = 0.01 if OPTIONS.few else 1
    lengths = (("10 minutes", 600 * scale), ("2 hours", 7200 * scale))
    figures, lines, notes = {"recording": source["id"], "runs": {}, "difference_mib": {}, "difference_without_text_mib": {}}, [], []
    for engine, model in MODELS.items():
        for title, seconds in lengths:
            file = looped(source["file"], f"{source['id']}-{seconds:.0f}s", seconds)
            out = WORK / "memory" / "out.vtt"
            command = ["gst-launch-1.0", "-q", "filesrc", f"location={file}", "!", "decodebin", "!", "audioconvert", "!", "scribetranscriber"]
            command += [f"model={model}", "!", "scribeenc", "format=vtt", "!", "filesink", f"location={out}"]
            result = measure(command, WORK / "logs" / f"memory-{engine}-{seconds:.0f}.log")
            result["text_mib"] = round(out.stat().st_size / 2**20, 2) if out.is_file() else 0
            result["seconds"] = seconds
            figures["runs"][f"{engine}, {title}"] = result
            lines.append([f"{engine}: one stream, {title}", f"{result['peak_mib']:.1f}", f"{result['text_mib']:.2f}", f"{result['wall']:.0f}", result["exit"]])
        first, second = (figures["runs"][f"{engine}, {title}"] for title, _ in lengths)
        grown = second["peak_mib"] - first["peak_mib"]
        bare = grown - (second["text_mib"] - first["text_mib"])
        figures["difference_mib"][engine], figures["difference_without_text_mib"][engine] = round(grown, 1), round(bare, 1)
        notes.append(f"{engine} {grown:+.1f} MiB, {bare:+.1f} MiB beside the text")
    file = WORK / "memory" / f"{source['id']}-{lengths[0][1]:.0f}s.flac"
    copies = []
    for n in range(4):
        copy = file.with_name(f"stream-{n}.flac")
        copy.unlink(missing_ok=True)
        copy.symlink_to(file)
        copies.append(copy)
    for engine in MODELS:
        for streams in (1, 4):
            command = COMMANDS[f"scribe {engine}"](WORK / "memory" / "streams", copies[:streams], streams)
            result = measure(command, WORK / "logs" / f"memory-{engine}-streams-{streams}.log")
            figures["runs"][f"{engine}, {streams} streams"] = result
            what = f"{engine}: {streams} stream{'s at once' if streams > 1 else ''} in one process, {lengths[0][0]} each (examples/batch)"
            lines.append([what, f"{result['peak_mib']:.1f}", "", f"{result['wall']:.0f}", result["exit"]])
    tables = table(["", "peak resident MiB", "text MiB", "wall s", "exit status"], lines)
    note = (
        f"2 hours against 10 minutes: {'; '.join(notes)} (goal: at most +16). gst-launch-1.0, WebVTT; the recording is {source['id']} in a loop; the kernel's VmHWM of the process."
    )
    if OPTIONS.few:
        note = "TRIAL: lengths are a hundredth of what the rows say.\n\n" + note
    return figures, f"{note}\n\n{tables}"


# ---------------------------------------------------------------------------------------------------

PARTS = {"wer": wer, "speed": speed, "where": engines.where, "scale": engines.scale, "sizes": engines.sizes}
PARTS |= {"words": words, "nonspeech": nonspeech, "isolation": engines.isolation, "memory": memory}


def asked_for(systems):
    """Without those that were left out."""
    return [name for name in systems if name not in OPTIONS.without]


def few(rows):
    """For trials: the first files of each category."""
    if not OPTIONS.few:
        return rows
    seen, kept = {}, []
    for row in rows:
        key = row.get("category")
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= OPTIONS.few and row["seconds"] < 300:
            kept.append(row)
    return kept


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench.sh", description="Figures for docs/benchmarks.md")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--fresh", action="store_true", help="also redo outputs that are there")
    parser.add_argument("--rounds", type=int, default=3, help="of parts speed, where and scale")
    parser.add_argument("--without", action="append", default=[], metavar="SYSTEM", help="not in parts wer, speed, words, nonspeech")
    parser.add_argument("--few", type=int, default=0, metavar="N", help="a trial: N files a category, nothing is kept in benches/runs")
    parser.parse_args(namespace=OPTIONS)
    engines.OPTIONS = OPTIONS
    two_cores()
    command = " ".join(["scripts/bench.sh", *sys.argv[1:]])
    for part in OPTIONS.parts or PARTS:
        start = time.monotonic()
        result = PARTS[part]()
        if result is None:
            continue
        figures, tables = result
        if OPTIONS.few:
            print(tables)
            say(f"{part}: a trial of {time.monotonic() - start:.0f} s, not kept")
        else:
            keep(part, command, figures, tables, time.monotonic() - start)


if __name__ == "__main__":
    main()
