# SPDX-License-Identifier: MPL-2.0
"""Parts of `make bench` about scribe's own engines: where the time goes, how it scales, larger models, processes of their own."""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys

import made
from common import HERE, MODELS, ROOT, WORK, has_data, joined, last_json, measure, recordings, say, stats, table
from systems import CT2, folder_name, launch

OPTIONS = argparse.Namespace()
PROFILE = ROOT / "target" / "release" / "examples" / "engine_profile"
SCRIBE_MODELS = ROOT / "target" / "release" / "scribe-models"
# Goals, in percent.
ENCODER, DECODER, GLUE = 70, 60, 5


def profile(name, *arguments):
    """What examples/engine_profile.rs found, or None."""
    log = WORK / "logs" / f"profile-{name}.log"
    result = measure([PROFILE, *arguments], log)
    found = last_json(log)
    if result["exit"] or not found:
        say(f"engine_profile {name}: exit status {result['exit']}, see {log}")
        return None
    if not all(row.get("windows", 1) for row in found.get("runs", found.get("rows", []))):
        say(f"engine_profile {name}: the engine counts no times (Meter in src/inference/times.rs)")
        return None
    return {**found, "process": result}


def long_sound(seconds):
    """A recording at least so long, of one's own data or of the repository's."""
    if has_data():
        return joined("ten-minutes", seconds)["file"]
    return ROOT / "tests" / "data" / "demo.opus"


def peaks_line(peaks):
    each = "; ".join(
        f"{'x'.join(map(str, s['shape']))}: {s['f32_gops']:.0f} and {s['int8_gops']:.0f}" for s in peaks["each"][: len(peaks["each"]) // 2]
    )
    return (
        f"The machine's limit, one thread, measured before and after in the same process (the better counts): 32-bit products "
        f"{peaks['f32_gops']:.0f} Gop/s, 8-bit ones {peaks['int8_gops']:.0f} (`MatMul` and `DynamicQuantizeMatMul` of ONNX Runtime itself; "
        f"{each})."
    )


# --- where -----------------------------------------------------------------------------------------


def where():
    recording = long_sound(30 if OPTIONS.few else 600)
    found = profile("where", "pipeline", MODELS["onnx"], recording, f"rounds={1 if OPTIONS.few else OPTIONS.rounds}")
    if not found:
        return None
    runs = found["runs"]
    audio = runs[0]["audio"]
    scale = 30 / audio

    def middle(key):
        return statistics.median(r[key] for r in runs)

    cpu = middle("cpu")

    def share(key):
        return statistics.median(100 * r[key] / r["cpu"] for r in runs)

    def reached(key):
        values = [100 * r[f"{key}_limit"] / r[key] for r in runs if r[key]]
        return statistics.median(values) if values else None

    lines = []
    names = {
        "mel": "log-mel",
        "vad": "voice activity (Silero)",
        "encoder": "encoder",
        "decoder": "decoder",
        "alignment": "word times from the attention",
        "decoding": "GStreamer decoding and resampling, measured alone",
        "glue": "all the rest: glue",
    }
    goals = {"encoder": (reached("encoder"), ENCODER), "decoder": (reached("decoder"), DECODER)}
    for key, title in names.items():
        limit, percent, verdict = "", "", ""
        if key in goals and goals[key][0] is not None:
            percent, goal = goals[key]
            limit, verdict = f"{1000 * scale * middle(key + '_limit'):.0f}", f"at least {goal} %: {'met' if percent >= goal else 'not met'}"
            percent = f"{percent:.0f} %"
        if key == "glue":
            verdict = f"under {GLUE} %: {'met' if share(key) < GLUE else 'not met'}"
        lines.append([title, f"{1000 * scale * middle(key):.1f}", f"{share(key):.1f} %", limit, percent, verdict])
    lines.append(["**all**", f"**{1000 * scale * cpu:.1f}**", "", "", "", ""])
    found["reached"] = {key: reached(key) for key in goals}
    head = ["", "processor ms per 30 s of sound", "share", "limit, ms", "of the limit", "goal"]
    steps, windows = middle("steps"), middle("windows")
    notes = (
        f"{recording.name}, {audio:.0f} s, `examples/engine_profile.rs`: a whole pipeline with JSON written, {found['engine']}, computing on "
        f"{found['lanes']} thread; {len(runs)} rounds, medians; {audio / cpu:.0f} s of sound for a second of one core. {windows:.0f} windows, "
        f"{steps:.0f} runs of the decoder with {middle('step_windows') / max(steps, 1):.1f} windows each, {middle('tokens'):.0f} tokens.\n\n"
        f"{peaks_line(found['peaks'])} The encoder's limit: products at the rate of their numbers, with weights and in attention (where that has 16 bits, on AMX, at half the rate of 8). The "
        f"decoder's: reading its weights once a run, and the sound's keys and values once a window in it ({middle('read_gb_s'):.1f} GB/s, one thread "
        "reading as many bytes again and again), or computing where that is more."
    )
    return found, f"{notes}\n\n{table(head, lines)}"


# --- scale -----------------------------------------------------------------------------------------

STREAMS = (1, 2, 4, 8, 16)
BATCHES = "1,2,4,8,16"


def batch_rows(found):
    lines = []
    for row in found["rows"]:
        if "most" in row:
            lines.append([row["batch"], f"as {row['most']}, the most that a lane has room for", *[""] * 8])
            continue
        step = 1000 * row["decoder"] / max(row["steps"], 1)
        lines.append(
            [
                row["batch"],
                f"{1000 * row['encoder'] / max(row['windows'], 1):.0f}",
                f"{100 * row['encoder_limit'] / row['encoder']:.0f} %" if row["encoder"] else "",
                f"{step:.2f}",
                f"{1000 * row['decoder'] / max(row['tokens'], 1):.2f}",
                f"{100 * row['decoder_limit'] / row['decoder']:.0f} %" if row["decoder"] else "",
                f"{row['read_gb_s']:.1f}",
                f"{row['step_windows'] / max(row['steps'], 1):.1f}",
                f"{row['cpu'] / max(row['windows'], 1) * 1000:.0f}",
                f"{row['rss_mib']:.0f}",
            ]
        )
    return lines


BATCH_HEAD = ["batch", "encoder, ms a window", "of its limit", "decoder, ms a step", "ms a token", "of its limit", "reading, GB/s", "windows a step, mean", "all, ms a window", "resident MiB"]


def memory_line(found):
    return (
        f"predicted {found['predicted_weights_mib']:.0f} MiB for the model and {found['predicted_lane_mib']:.0f} for a lane, measured "
        f"{found['measured_weights_mib']:.0f} and {found['measured_lane_mib']:.0f} (growth of the anonymous pages)"
    )


def scale():
    figures, tables = {"streams": {}}, []
    recording = long_sound(60 if OPTIONS.few else 600)
    few = ["windows=2"] if OPTIONS.few else ["windows=32"]
    found = profile("batches", "batches", MODELS["onnx"], recording, f"batch={'1,2,16' if OPTIONS.few else BATCHES}", *few)
    if found:
        figures["batches"] = found
        tables.append(
            f"Windows side by side, one lane on one thread, {found['engine']}, greedy, windows of {found['seconds_a_window']} s; processor time. A lane "
            f"is made with all the room that it will ever have, for {found['most']} windows, whatever the batch: {memory_line(found)}. "
            f"The element has no property for it: a lane takes as many windows as there are. At most {found['peak_mib']:.0f} MiB resident, "
            f"{found['pss_mib']:.0f} proportional at the end.\n\n" + table(BATCH_HEAD, batch_rows(found)) + f"\n\n{peaks_line(found['peaks'])}"
        )
    streams = scaling_streams(figures["streams"])
    if streams:
        tables.append(streams)
    return figures, "\n\n".join(tables)


def scaling_streams(figures):
    if not has_data():
        say("SKIPPED streams: no recordings (SCRIBE_DATA)")
        return ""
    each = 10 if OPTIONS.few else 120
    counts = (1, 2) if OPTIONS.few else STREAMS
    files = [joined(f"stream-{n + 1}", each, n, max(STREAMS)) for n in range(max(counts))]
    runs = {(engine, count): [] for engine in MODELS for count in counts}
    out = WORK / "scale" / "out"
    for round_ in range(OPTIONS.rounds):
        order = list(runs)
        for engine, count in order[:: -1 if round_ % 2 else 1]:
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            chosen = files[:count]
            command = launch(engine)(out, [row["file"] for row in chosen])
            result = measure(command, WORK / "logs" / f"scale-{engine}-{count}.log", shares=True)
            result["files_done"] = sum(1 for file in out.glob("*.json") if file.stat().st_size)
            runs[engine, count].append(result)
            say(f"scale, round {round_ + 1}: {engine}, {count} streams: {result['wall']:.1f} s, peak {result['peak_mib']:.0f} MiB")
    lines = []
    for (engine, count), results in runs.items():
        seconds = sum(row["seconds"] for row in files[:count])
        # What the registry has reserved for the speech model: in a run of its own, which is not measured.
        said = stats(MODELS[engine], [row["file"] for row in files[:count]])
        reserved = said.get("memory-reserved", 0) / 2**20
        walls = [r["wall"] for r in results]
        bad = " (FAILED)" if any(r["exit"] or r["files_done"] != count for r in results) else ""
        figures.setdefault(engine, {})[str(count)] = {"runs": results, "seconds": seconds, "stats": said}
        lines.append(
            [
                f"{engine}{bad}",
                count,
                f"{statistics.median(walls):.1f} ({min(walls):.1f}-{max(walls):.1f})",
                f"{statistics.median(r['cpu'] for r in results):.1f}",
                f"{seconds / statistics.median(walls):.1f}",
                said.get("lanes", ""),
                f"{reserved:.0f}",
                f"{max(r['peak_mib'] for r in results):.0f}",
                f"{max(r['pss_mib'] for r in results):.0f}",
            ]
        )
    head = ["engine", "streams", "wall s: median (least-most)", "CPU s", "s of sound a s", "lanes", "reserved for the speech model, MiB", "peak resident MiB", "peak proportional MiB"]
    return (
        f"Streams at once in one gst-launch-1.0, {files[0]['seconds']:.0f} s of different recordings each, whole processes, {OPTIONS.rounds} rounds. "
        "Predicted is what the registry reserves for the speech model and its lanes; GStreamer, decoders and the voice activity model come on top.\n\n"
        + table(head, lines)
    )


# --- sizes -----------------------------------------------------------------------------------------

SIZES_BATCHES = (1, 2, 4, 8)


def imported(size):
    """That model as scribe's engine takes it."""
    folder = WORK / "made" / "models"
    encoder = folder / f"made-{size}-onnx-int8.encoder.onnx"
    if not encoder.is_file():
        say(f"making a model of the size of {size} with random weights")
        source = made.make(CT2, WORK / "made", size)
        command = [SCRIBE_MODELS, "import", source, "--type", "onnx-int8", "--dir", folder]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return encoder


def sizes():
    recording = long_sound(60 if OPTIONS.few else 600)
    figures, tables = {}, []
    batches = ",".join(map(str, (1, 2) if OPTIONS.few else SIZES_BATCHES))
    windows = 2 if OPTIONS.few else 16
    lines = []
    for size in ("tiny.en", *made.SIZES):
        model = MODELS["onnx"] if size == "tiny.en" else imported(size)
        ours = profile(size, "batches", model, recording, f"batch={batches}", f"windows={windows}")
        log = WORK / "logs" / f"sizes-ct2-{size}.log"
        source = CT2 if size == "tiny.en" else made.make(CT2, WORK / "made", size)
        os.environ["OMP_NUM_THREADS"] = "1"
        result = measure([sys.executable, HERE / "ct2_parts.py", source, recording, windows, *batches.split(",")], log)
        theirs = last_json(log)
        figures[size] = {"scribe onnx": ours, "ctranslate2": theirs, "ctranslate2_process": result}
        if not ours:
            continue
        by_batch = {row["batch"]: row for row in (theirs or {}).get("rows", [])}
        for row in ours["rows"]:
            other = by_batch.get(row["batch"])
            if "most" in row:
                lines.append([size, row["batch"], f"as {row['most']}", *[""] * 7])
                continue
            encoder, token = 1000 * row["encoder"] / row["windows"], 1000 * row["decoder"] / max(row["tokens"], 1)
            cells = [size, row["batch"], f"{encoder:.0f}", f"{100 * row['encoder_limit'] / row['encoder']:.0f} %", f"{token:.2f}"]
            cells.append(f"{100 * row['decoder_limit'] / row['decoder']:.0f} %")
            if other:
                theirs_encoder, theirs_token = 1000 * other["encoder"] / other["windows"], 1000 * other["decoder"] / other["tokens"]
                cells += [f"{theirs_encoder:.0f}", f"{theirs_token:.2f}", f"{theirs_encoder / encoder:.2f} x", f"{theirs_token / token:.2f} x"]
            lines.append(cells + [""] * (10 - len(cells)))
        peak = f"{theirs['peak_mib']:.0f}" if theirs else "not known"
        tables.append(
            f"- {size}: {memory_line(ours)}; whole process at most {ours['peak_mib']:.0f} MiB resident, "
            f"{ours['pss_mib']:.0f} proportional at the end; up to {ours['most']} windows a lane. ctranslate2 with its batches, in Python: {peak} MiB."
        )
    os.environ.pop("OMP_NUM_THREADS", None)
    head = ["size", "batch", "scribe: encoder, ms a window", "of its limit", "decoder, ms a token", "of its limit"]
    head += ["ctranslate2: encoder, ms a window", "decoder, ms a token", "encoder: times as fast", "decoder: times as fast"]
    note = (
        "base.en and small.en have random weights, which say nothing about words: the same ones for both, 8 bits, one thread, greedy; scribe's "
        "decoder goes on until its text is over or in a loop, ctranslate2's (faster-whisper's engine) has 64 tokens. scribe's encoder has the keys "
        "and values of the sound in it, ctranslate2's decoder has."
    )
    return figures, f"{note}\n\n{table(head, lines)}\n\nMemory:\n\n" + "\n".join(tables)


# --- isolation -------------------------------------------------------------------------------------


def isolation():
    """Whether both engines give the same with isolation=process."""
    short, long = recordings()
    rows = short[:2] if OPTIONS.few else short[:20] + [r for r in long if r["category"] != "joined"][:1]
    figures, lines = {}, []
    for engine in MODELS:
        texts = {}
        for where_ in ("in-process", "process"):
            out = WORK / "isolation" / folder_name(f"{engine}-{where_}")
            done, figure = {}, None
            for row in rows:
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir(parents=True)
                log = WORK / "logs" / f"isolation-{engine}-{where_}.log"
                figure = measure(launch(engine, f"isolation={where_}")(out, [row["file"]]), log)
                document = out / f"{row['file'].stem}.json"
                text = document.read_text(encoding="utf-8") if document.is_file() else ""
                done[row["id"]] = [(w["word"], w["start"], w["end"]) for w in json.loads(text)["words"]] if text.strip() else None
                if figure["exit"]:
                    figures[f"{engine}, {where_}"] = log.read_text(errors="replace")[-600:]
                    break
            texts[where_] = done
        whole = [done for done in texts["process"].values() if done is not None]
        same = sum(1 for key, words in texts["process"].items() if words is not None and words == texts["in-process"].get(key))
        figures[engine] = {"recordings": len(rows), "done": len(whole), "same": same}
        lines.append([engine, len(rows), len(whole), same])
    note = "Words and times with `isolation=process` beside those in the same process, a gst-launch-1.0 each."
    return figures, note + "\n\n" + table(["engine", "recordings", "done in a process of its own", "the same words and times"], lines)
