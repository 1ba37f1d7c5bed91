# SPDX-License-Identifier: MPL-2.0
"""The parts of `make bench`. Run by scripts/bench.sh, which makes what they need."""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
import wave

import scoring
from common import DATA, EVAL, ROOT, WORK, has_data, keep, measure, output_of, read_tsv, recordings, say, table
from systems import COMMANDS, folder_name, outputs

OPTIONS = argparse.Namespace()


# --- wer -------------------------------------------------------------------------------------------

WER_SYSTEMS = ("scribe", "scribe, beam-size=1", "faster-whisper", "faster-whisper batched", "whisper.cpp")


def wer():
    short, long = recordings()
    short, long = few(short), few(long)
    figures, tables = {"systems": {}, "bootstrap": {}, "score.py": {}}, []
    for name in WER_SYSTEMS:
        documents = outputs(name, short + long, OPTIONS.fresh)
        files = {}
        for row in short + long:
            counts = scoring.errors(row["text"], documents.get(row["id"], {}).get("text", ""))
            files[row["id"]] = {**counts, "category": row["category"], "seconds": row["seconds"]}
            if row["id"] not in documents:
                files[row["id"]]["failed"] = True
        figures["systems"][name] = {"files": files}
    groups = [(category, [r for r in short if r["category"] == category]) for category in sorted({r["category"] for r in short})]
    groups.append(("**short, all**", short))
    if has_data():
        groups.append(("*refs.tsv, all (short and the one over 60 s)*", short + [r for r in long if r["category"] != "composed"]))
    long_groups = [(r["id"], [r]) for r in long] + [("**long, all**", long)]
    for title, wanted in (("Short utterances", groups), ("Long recordings", long_groups)):
        rows = []
        for group, members in wanted:
            if not members:
                continue
            cells = [group, len(members), None]
            for name in WER_SYSTEMS:
                sums = scoring.total([figures["systems"][name]["files"][r["id"]] for r in members])
                figures["systems"][name].setdefault("groups", {})[group.strip("*")] = sums
                cells[2] = sums["words"]
                cells.append(f"{sums['wer']:.2f} ({sums['sub']}/{sums['del']}/{sums['ins']})")
            rows.append(cells)
        if rows:
            tables.append(f"{title}: WER % (substituted/deleted/inserted words)\n\n" + table(["", "files", "words", *WER_SYSTEMS], rows))
    rows = []
    for group, members in (("short, all", short), ("long, all", long)):
        if len(members) < 2:
            continue
        peers = [n for n in WER_SYSTEMS if not n.startswith("scribe") and not any(figures["systems"][n]["files"][r["id"]].get("failed") for r in members)]
        if not peers:
            continue
        best = min(peers, key=lambda name: figures["systems"][name]["groups"][group]["wer"])
        for ours in (name for name in WER_SYSTEMS if name.startswith("scribe")):
            both = [[figures["systems"][n]["files"][r["id"]] for r in members] for n in (ours, best)]
            result = scoring.bootstrap(*both)
            figures["bootstrap"][f"{ours} against {best}, {group}"] = result
            said = ("better" if result["difference"] < 0 else "worse") if result["counts"] else "no difference that counts"
            rows.append([f"{ours}, {group}", best, f"{result['difference']:+.2f}", f"{result['low']:+.2f} to {result['high']:+.2f}", said])
    if rows:
        tables.append(
            "Against the best peer, in points of WER (negative: scribe makes fewer errors); paired bootstrap over files, 10000 resamples\n\n"
            + table(["", "best peer", "difference", "95 % interval", ""], rows)
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
    for name in WER_SYSTEMS:
        command = [sys.executable, str(EVAL / "score.py"), "wer", "--ref", str(DATA / "wer/refs.tsv"), "--json"]
        said = output_of(*command, "--hyp", str(WORK / "out" / folder_name(name)))
        try:
            result[name] = json.loads(said)["groups"]["all"]
        except (json.JSONDecodeError, KeyError):
            result[name] = None
    return result


# --- speed -----------------------------------------------------------------------------------------

SPEED_SYSTEMS = (
    "scribe",
    "scribe, beam-size=1",
    "scribe, word-times=false",
    "faster-whisper",
    "faster-whisper, words",
    "faster-whisper batched",
    "whisper.cpp",
    "whispertranscriber",
)
# A round of them is longer than one of all others together: they run in the first round alone, and on single files.
SLOW = ("whisper.cpp", "whispertranscriber")


def speed_cases():
    short, long = recordings()
    by_id = {row["id"]: row for row in short + long}
    if not has_data():
        return [("many short files, one process", short * 1, 1), ("one long file", long, 1)]
    other = sorted((r for r in short if r["category"] == "librispeech_other"), key=lambda r: r["id"])
    four = [by_id[i] for i in ("bush_columbia_2003", "d13_lj_chapter", "d14_clean20", "d09_panel12") if i in by_id]
    anthology = by_id.get("d12_anthology") or by_id["bush_columbia_2003"]
    if OPTIONS.few:
        return [
            ("start-up: one file of 2 s", [min(short, key=lambda r: r["seconds"])], 1),
            ("many short files, one process", other[: OPTIONS.few], 1),
        ]
    return [
        ("start-up: one file of 2 s", [min(short, key=lambda r: r["seconds"])], 1),
        ("many short files, one process", other[:40], 1),
        ("one long file", [anthology], 1),
        ("four files at once", four, 4),
    ]


def speed():
    figures, tables = {"rounds": OPTIONS.rounds, "cases": {}}, []
    for case, rows, jobs in speed_cases():
        if not rows:
            continue
        seconds = sum(row["seconds"] for row in rows)
        runs = {name: [] for name in SPEED_SYSTEMS}
        for round_ in range(OPTIONS.rounds):
            for name in SPEED_SYSTEMS:
                if name in SLOW and (round_ > 0 or len(rows) > 1):
                    continue
                # Several files at once: what word times cost is seen in the other cases.
                if jobs > 1 and "word" in name:
                    continue
                out = WORK / "speed" / folder_name(name)
                shutil.rmtree(out, ignore_errors=True)
                # scribe is told nothing of cores: three pipelines for many files, as batch has by default on two cores.
                at_once = max(jobs, 3) if name.startswith("scribe") else jobs
                command = COMMANDS[name](out, [row["file"] for row in rows], at_once)
                result = measure(command, WORK / "logs" / f"speed-{folder_name(name)}.log")
                done = sum(1 for f in out.glob("*") if f.stat().st_size > 0) if out.is_dir() else 0
                result["files_done"] = done
                runs[name].append(result)
                say(f"speed, {case}, round {round_ + 1}: {name} {result['wall']:.1f} s, CPU {result['cpu']:.1f} s" + ("" if done == len(rows) else f", only {done} of {len(rows)} files"))
        # Ratios within a round: what else the machine did then slowed both.
        base = [r["wall"] for r in runs["faster-whisper"]]
        lines = []
        for name in (name for name in SPEED_SYSTEMS if runs[name]):
            walls = [r["wall"] for r in runs[name]]
            cpus = [r["cpu"] for r in runs[name]]
            ratios = [b / w for b, w in zip(base, walls)]
            bad = " (FAILED)" if any(r["exit"] or r["files_done"] != len(rows) for r in runs[name]) else ""
            lines.append(
                [
                    name + bad,
                    ranged(walls, 1),
                    ranged(cpus, 1),
                    f"{statistics.median(walls) / seconds:.3f}",
                    ranged(ratios, 2) + " x",
                    f"{max(r['peak_mib'] for r in runs[name]):.0f}",
                    len(walls),
                ]
            )
        figures["cases"][case] = {"files": [row["id"] for row in rows], "seconds": round(seconds, 1), "at_once": jobs, "runs": runs}
        tables.append(
            f"{case[0].upper()}{case[1:]}: {len(rows)} files, {seconds:.0f} s of sound\n\n"
            + table(["", "wall s: median (least-most)", "CPU s", "wall s per s of sound", "times as fast as faster-whisper", "peak MiB", "rounds"], lines)
        )
    loads = [r["load_before"] for c in figures["cases"].values() for runs in c["runs"].values() for r in runs]
    tables.append(
        f"Whole processes, model loading and start of the interpreter inside. One run of each in turn, {OPTIONS.rounds} rounds; ratios are "
        f"taken within a round. Load of the machine before each run: median {statistics.median(loads):.1f}, most {max(loads):.1f} "
        "(the runs before are in it; far above the number of cores means that others were at work, and then only ratios say anything). "
        "Two threads for each system: on four files at once two files of one thread each."
    )
    return figures, "\n\n".join(tables)


def ranged(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


# --- words -----------------------------------------------------------------------------------------

WORD_SYSTEMS = ("scribe", "scribe, beam-size=1", "faster-whisper, words", "faster-whisper batched, words")


def words():
    reference = DATA / "words" / "utterances.ctm"
    if not reference.is_file():
        say(f"SKIPPED words: no aligned reference in {DATA} (SCRIBE_DATA)")
        return None
    aligned = scoring.read_ctm(reference)
    short, long = recordings()
    rows = few([row for row in short + long if row["id"] in aligned])
    figures, lines = {"systems": {}}, []
    for name in WORD_SYSTEMS:
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

NONSPEECH_SYSTEMS = ("scribe", "faster-whisper", "faster-whisper + VAD", "faster-whisper batched", "whisper.cpp")


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
    for name in ("scribe", "faster-whisper", "faster-whisper batched", "whisper.cpp"):
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
    figures, lines = {"recording": source["id"], "runs": {}}, []
    for title, seconds in lengths:
        file = looped(source["file"], f"{source['id']}-{seconds:.0f}s", seconds)
        out = WORK / "memory" / "out.vtt"
        command = ["gst-launch-1.0", "-q", "filesrc", f"location={file}", "!", "decodebin", "!", "audioconvert", "!", "scribetranscriber", "!"]
        command += ["scribeenc", "format=vtt", "!", "filesink", f"location={out}"]
        result = measure(command, WORK / "logs" / f"memory-{seconds:.0f}.log")
        result["text_mib"] = round(out.stat().st_size / 2**20, 2) if out.is_file() else 0
        result["seconds"] = seconds
        figures["runs"][title] = result
        lines.append([f"one stream, {title}", f"{result['peak_mib']:.1f}", f"{result['text_mib']:.2f}", f"{result['wall']:.0f}", result["exit"]])
    first, second = (figures["runs"][title] for title, _ in lengths)
    grown = second["peak_mib"] - first["peak_mib"]
    figures["difference_mib"] = round(grown, 1)
    figures["difference_without_text_mib"] = round(grown - (second["text_mib"] - first["text_mib"]), 1)
    file = WORK / "memory" / f"{source['id']}-{lengths[0][1]:.0f}s.flac"
    copies = []
    for n in range(4):
        copy = file.with_name(f"stream-{n}.flac")
        copy.unlink(missing_ok=True)
        copy.symlink_to(file)
        copies.append(copy)
    for streams in (1, 4):
        result = measure(COMMANDS["scribe"](WORK / "memory" / "streams", copies[:streams], streams), WORK / "logs" / f"memory-streams-{streams}.log")
        figures["runs"][f"{streams} streams"] = result
        lines.append([f"{streams} stream{'s at once' if streams > 1 else ''} in one process, {lengths[0][0]} each (examples/batch)", f"{result['peak_mib']:.1f}", "", f"{result['wall']:.0f}", result["exit"]])
    tables = table(["", "peak resident MiB", "text MiB", "wall s", "exit status"], lines)
    note = (
        f"2 hours against 10 minutes: {figures['difference_mib']:+.1f} MiB, {figures['difference_without_text_mib']:+.1f} MiB beside the text "
        f"(goal: at most +16). gst-launch-1.0, WebVTT; the recording is {source['id']} in a loop; the kernel's VmHWM of the process."
    )
    if OPTIONS.few:
        note = "TRIAL: lengths are a hundredth of what the rows say.\n\n" + note
    return figures, f"{note}\n\n{tables}"


# ---------------------------------------------------------------------------------------------------

PARTS = {"wer": wer, "words": words, "nonspeech": nonspeech, "memory": memory, "speed": speed}


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
    parser.add_argument("--rounds", type=int, default=3, help="of part speed")
    parser.add_argument("--few", type=int, default=0, metavar="N", help="a trial: N files a category, nothing is kept in benches/runs")
    parser.parse_args(namespace=OPTIONS)
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
