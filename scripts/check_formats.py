#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""Reads the files of a folder with parsers that are not ours, and says what they do not like.

    target/venv/bin/python scripts/check_formats.py FOLDER

Files are NAME.vtt, NAME.srt, NAME.json and so on. The caption files of one NAME must hold the same
cues. Packages: scripts/requirements-test.txt; programs: ffprobe, gst-launch-1.0.
"""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import meeteval
import srt
import webvtt
from lxml import etree
from openai.types.audio import TranscriptionVerbose

SCHEMA = Path(__file__).resolve().parent.parent / "docs" / "transcript.schema.json"
TT = "{http://www.w3.org/ns/ttml}"
TTM = "{http://www.w3.org/ns/ttml#metadata}"
XML = "{http://www.w3.org/XML/1998/namespace}"
PROBLEMS = []

# meeteval advises against CTM whenever it reads one.
logging.disable(logging.WARNING)


def main(folder):
    files = sorted(p for p in Path(folder).iterdir() if p.suffix[1:] in CHECKS)
    if not files:
        sys.exit(f"no files of known formats in {folder}")
    cues = {}
    for path in files:
        try:
            found = CHECKS[path.suffix[1:]](path)
        except Exception as err:  # whatever another parser throws is a finding
            problem(path, f"{type(err).__name__}: {err}")
            continue
        if found is not None:
            cues.setdefault(path.stem, {})[path.suffix] = found
    for name, formats in cues.items():
        (first, expected), *others = formats.items()
        for suffix, found in others:
            if found != expected:
                PROBLEMS.append(f"{name}{suffix} and {name}{first} hold other cues:\n  {found}\n  {expected}")
    for line in PROBLEMS:
        print(line)
    print(f"{len(files)} files, {len(PROBLEMS)} problems")
    sys.exit(1 if PROBLEMS else 0)


def problem(path, text):
    PROBLEMS.append(f"{path.name}: {text}")


def in_order(path, spans):
    """Starts and ends in milliseconds: nothing overlaps, nothing lasts no time."""
    earliest = 0
    for start, end in spans:
        if start < earliest or end <= start:
            problem(path, f"cue {start}-{end} ms after {earliest} ms")
        earliest = end
    return spans


def check_vtt(path):
    captions = webvtt.read(str(path))
    spans = in_order(path, [(clock(c.start), clock(c.end)) for c in captions])
    for caption in captions:
        if not caption.text.strip():
            problem(path, f"no text at {caption.start}")
    packets(path, "webvtt", len(spans))
    subparse(path, len(spans))
    return spans


def check_srt(path):
    text = path.read_text(encoding="utf-8")
    captions = list(srt.parse(text, ignore_errors=False))
    spans = in_order(
        path, [(round(c.start.total_seconds() * 1000), round(c.end.total_seconds() * 1000)) for c in captions]
    )
    if [c.index for c in captions] != list(range(1, len(captions) + 1)):
        problem(path, "numbers do not count up from 1")
    for caption in captions:
        if not caption.content.strip() or "\n\n" in caption.content:
            problem(path, f"cue {caption.index} is {caption.content!r}")
    if srt.compose(captions, reindex=False) != text:
        problem(path, "srt.compose gives other bytes")
    packets(path, "srt", len(spans))
    # GStreamer knows SubRip by two-digit hours in its first cue.
    if spans and spans[0][0] < 100 * 3_600_000:
        subparse(path, len(spans))
    return spans


def check_ttml(path):
    root = etree.parse(str(path), etree.XMLParser(resolve_entities=False)).getroot()
    if root.tag != TT + "tt":
        problem(path, f"root is {root.tag}")
    ids = root.xpath("//@xml:id", namespaces={"xml": XML[1:-1]})
    if len(ids) != len(set(ids)):
        problem(path, "an xml:id is there twice")
    for agent in (p.get(TTM + "agent") for p in root.iter(TT + "p")):
        if agent is not None and agent not in ids:
            problem(path, f"no agent {agent}")
    spans = in_order(path, [(clock(p.get("begin")), clock(p.get("end"))) for p in root.iter(TT + "p")])
    if any(not "".join(p.itertext()).strip() for p in root.iter(TT + "p")):
        problem(path, "a cue without text")
    if spans:
        shown = gst(path, f"filesrc location={path} ! ttmlparse ! identity name=text silent=false ! fakesink")
        texts = len(re.findall(r"text: last-message = chain", shown))
        if texts < len(spans):
            problem(path, f"ttmlparse gives {texts} buffers for {len(spans)} cues")
    return spans


def check_json(path):
    text = path.read_text(encoding="utf-8")
    document = json.loads(text, parse_constant=refuse_constant)
    schema().validate(document)
    # strict: no number out of a string, no integer out of a float.
    verbose = TranscriptionVerbose.model_validate_json(text, strict=True)
    if len(verbose.segments) != len(document["segments"]):
        problem(path, "openai reads another number of segments")
    ends = [w.end for w in verbose.words] + [s.end for s in verbose.segments]
    if ends and verbose.duration < max(ends):
        problem(path, f"duration {verbose.duration} s, last word ends at {max(ends)} s")


def check_jsonl(path):
    lines = [json.loads(line, parse_constant=refuse_constant) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        schema("line").validate(line)
    if lines[0]["type"] != "start" or lines[-1]["type"] != "end":
        problem(path, "first line is not start, or last not end")


def check_txt(path):
    text = path.read_text(encoding="utf-8")
    if text and (not text.endswith("\n") or "\n\n" in text):
        problem(path, "an empty line, or no line feed at the end")


def check_nist(path):
    text = path.read_text(encoding="utf-8")
    if not text:
        return
    loaded = meeteval.io.load(str(path))
    count = sum(len(v) for v in loaded.values()) if isinstance(loaded, dict) else len(loaded)
    if hasattr(loaded, "lines"):
        count = len(loaded.lines)
    if count != len(text.splitlines()):
        problem(path, f"meeteval reads {count} of {len(text.splitlines())} lines")


def packets(path, form, expected):
    """What ffmpeg's demuxer finds."""
    if expected == 0:
        return
    command = ["ffprobe", "-v", "error", "-f", form, "-show_packets", "-of", "json", str(path)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found = json.loads(out.stdout or "{}").get("packets", [])
    if out.returncode != 0 or len(found) != expected:
        problem(path, f"ffprobe reads {len(found)} of {expected} cues: {out.stderr}")
    if any(float(p.get("duration_time", 0)) <= 0 for p in found):
        problem(path, "ffprobe finds a cue that lasts no time")


def subparse(path, expected):
    """What GStreamer's own parser finds."""
    if expected == 0:
        return
    shown = gst(path, f"filesrc location={path} ! subparse ! identity name=text silent=false ! fakesink")
    found = len(re.findall(r"text: last-message = chain", shown))
    if found != expected:
        problem(path, f"subparse reads {found} of {expected} cues")


def gst(path, line):
    command = ["gst-launch-1.0", "-v", *line.split()]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if out.returncode != 0:
        problem(path, f"gst-launch-1.0: {out.stderr}")
    return out.stdout


def schema(part=None):
    whole = json.loads(SCHEMA.read_text(encoding="utf-8"))
    if part is not None:
        whole = {"$schema": whole["$schema"], "$ref": f"#/$defs/{part}", "$defs": whole["$defs"]}
    jsonschema.Draft202012Validator.check_schema(whole)
    return jsonschema.Draft202012Validator(whole)


def clock(text):
    parts = re.fullmatch(r"(\d{2,}):([0-5]\d):([0-5]\d)[.,](\d{3})", text)
    if parts is None:
        raise ValueError(f"{text!r} is no time")
    h, m, s, ms = map(int, parts.groups())
    return ((h * 60 + m) * 60 + s) * 1000 + ms


def refuse_constant(name):
    raise ValueError(f"{name} is no JSON")


CHECKS = {
    "vtt": check_vtt,
    "srt": check_srt,
    "ttml": check_ttml,
    "json": check_json,
    "jsonl": check_jsonl,
    "txt": check_txt,
    "rttm": check_nist,
    "stm": check_nist,
    "ctm": check_nist,
}

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
