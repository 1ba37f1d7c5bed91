# SPDX-License-Identifier: MPL-2.0
"""Who is known again: trials by seconds, conversations by name, look-up among 10,000. Run by scripts/bench-voices.sh."""

import argparse
import collections
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import DATA, EVAL, ROOT, WORK, die, digest, keep, output_of, read_tsv, say, table

PROGRAM = ROOT / "target" / "release" / "examples" / "recognise"
FOLDER = WORK / "voices"
SOUND = FOLDER / "sound"
TAKEN = (8, 15, 30, 60)
ENROLLED, TRIED = (3, 10, 30), (1, 2, 3, 5, 10)
# Speakers are parted in halves so many times: thresholds from one half are judged on the other.
PARTINGS = 20
# False accepts that a threshold chosen on one half of the speakers allows there.
ALLOWED = 0.002


def sound(name, path):
    """16 kHz mono floats of a recording, made once."""
    out = SOUND / f"{name}.f32"
    if not out.is_file():
        part = out.with_suffix(".part")
        command = ["ffmpeg", "-v", "error", "-y", "-i", path, "-ac", "1", "-ar", "16000", "-f", "f32le", part]
        subprocess.run(command, check=True)
        part.rename(out)
    return out


def write_list(name, rows):
    path = FOLDER / f"{name}.tsv"
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


def ask(what, *arguments, of="all"):
    """The program's answers, one object a line."""
    out = FOLDER / f"{what}-{of}.jsonl"
    say(f"recognise {what}: {of}")
    with open(out, "w", encoding="utf-8") as lines:
        code = subprocess.run([PROGRAM, what, *arguments], stdout=lines, cwd=ROOT, env=dict(os.environ), check=False).returncode
    if code:
        die(f"recognise {what} failed", "the lines above say why")
    return [json.loads(line) for line in out.read_text().splitlines()]


# --- Trials ----------------------------------------------------------------------------------------


def utterances():
    return read_tsv(DATA / "wer" / "refs.tsv")


def trials():
    rows = [(row["speaker"], row["id"], sound(row["id"], DATA / row["file"])) for row in utterances()]
    return ask("trials", write_list("voices", rows))


def equal_error(own, others):
    """Percent, where as many of each are judged wrongly."""
    own, others = sorted(own), sorted(others)
    best = 1.0, 1.0
    for threshold in own:
        missed = sum(s < threshold for s in own) / len(own)
        let_in = sum(s >= threshold for s in others) / len(others)
        best = min(best, (abs(missed - let_in), (missed + let_in) / 2))
    return 100 * best[1]


def rates(found):
    """Of those who are enrolled: the nearest is the right one, nobody named, somebody else named. Of strangers: named."""
    known = [t for t in found if t["is_enrolled"]]
    strangers = [t for t in found if not t["is_enrolled"]]
    share = lambda part, whole: 100 * part / whole if whole else float("nan")
    return {
        "known": len(known),
        "strangers": len(strangers),
        "nearest": share(sum(t["scores"][0][0] == t["speaker"] for t in known), len(known)),
        "missed": share(sum(t["named"] is None for t in known), len(known)),
        "wrong": share(sum(t["named"] not in (None, t["speaker"]) for t in known), len(known)),
        "let_in": share(sum(t["named"] is not None for t in strangers), len(strangers)),
    }


def by_seconds(found):
    figures = {}
    for store in ("small", "large"):
        for enrolled in ENROLLED:
            for tried in TRIED:
                of = [t for t in found if (t["store"], t["enrolled_s"], t["tried_s"]) == (store, enrolled, tried)]
                if not of:
                    continue
                row = rates(of)
                row["people"] = max(t["people"] for t in of)
                if store == "small":
                    own = [s for t in of if t["is_enrolled"] for who, s in t["scores"] if who == t["speaker"]]
                    others = [s for t in of for who, s in t["scores"] if who != t["speaker"]]
                    row["eer"] = equal_error(own, random.Random(1).sample(others, min(len(others), 4000)))
                figures[f"{store} {enrolled} {tried}"] = row
    return figures


def evidence(trial):
    """What the bound is put on: likeness, less half of what the runner-up is above a stranger (voice_stranger)."""
    scores = [score for _, score in trial["scores"]]
    return scores[0] - max(0.0, (scores[1] if len(scores) > 1 else 0.0) - STRANGER) / 2


STRANGER = 0.65


def crossed(found):
    """`voice_accept` chosen on half of the speakers, as the least that lets in no more than ALLOWED, and judged on the others."""
    speakers = sorted({t["speaker"] for t in found})
    chosen, out = [], collections.Counter()
    usable = [t for t in found if t["store"] == "large" and t["tried_s"] >= 2]
    for n in range(PARTINGS):
        half = set(random.Random(n).sample(speakers, len(speakers) // 2))
        strangers = sorted((evidence(t) for t in usable if t["speaker"] in half and not t["is_enrolled"]), reverse=True)
        accept = strangers[int(ALLOWED * len(strangers))]
        chosen.append(accept)
        for t in usable:
            if t["speaker"] in half:
                continue
            is_named = evidence(t) > accept
            out["known" if t["is_enrolled"] else "strangers"] += 1
            if t["is_enrolled"]:
                out["missed"] += not is_named
                out["wrong"] += is_named and t["scores"][0][0] != t["speaker"]
            else:
                out["let in"] += is_named
    return {
        "accept": [round(min(chosen), 3), round(sum(chosen) / len(chosen), 3), round(max(chosen), 3)],
        "missed": round(100 * out["missed"] / out["known"], 2),
        "wrong": round(100 * out["wrong"] / out["known"], 2),
        "let_in": round(100 * out["let in"] / out["strangers"], 2),
    }


def two_voices():
    """Of takes of one person and of two: how many are refused."""
    sex = {row["speaker"]: row["sex"] for row in read_tsv(DATA / "spk" / "speakers.tsv")}
    count = collections.defaultdict(lambda: [0, 0])
    for found in ask("two", FOLDER / "voices.tsv"):
        one, other = found["speakers"]
        kind = "one" if not other else "same sex" if sex.get(one) == sex.get(other) else "both sexes"
        seconds = found["seconds"] if found["seconds"] in TAKEN else "all"
        own = count[f"{seconds} {kind} {found['part']}"]
        own[0] += 1
        own[1] += found["two"] is not None
    return dict(count)


# --- Conversations ---------------------------------------------------------------------------------


def composed(enrolled):
    """The conversations of make_derived.py without the recordings that speakers are enrolled from."""
    maker = EVAL / "make_derived.py"
    folder, source = FOLDER / "composed", FOLDER / "data"
    made_from = digest(maker, DATA / "wer" / "refs.tsv", DATA / "spk" / "enroll.tsv")
    stamp = folder / "made-from"
    if stamp.is_file() and stamp.read_text() == made_from:
        return folder
    say("composing conversations without what is enrolled")
    for old in (folder, source):
        shutil.rmtree(old, ignore_errors=True)
    (source / "wer").mkdir(parents=True)
    for path in DATA.iterdir():
        if path.name != "wer":
            (source / path.name).symlink_to(path)
    for path in (DATA / "wer").iterdir():
        if path.name != "refs.tsv":
            (source / "wer" / path.name).symlink_to(path)
    lines = (DATA / "wer" / "refs.tsv").read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.split("\t")[0] not in enrolled]
    (source / "wer" / "refs.tsv").write_text("".join(kept))
    subprocess.run([sys.executable, maker, "--data", source, "--out", folder], check=True, stdout=subprocess.DEVNULL)
    for old in SOUND.glob("d[0-9][0-9]_*.f32"):
        old.unlink()
    stamp.write_text(made_from)
    return folder


def spoken(path):
    """SPEAKER to stretches, of an RTTM."""
    out = collections.defaultdict(list)
    for line in path.read_text().splitlines():
        field = line.split()
        out[field[7]].append((float(field[3]), float(field[3]) + float(field[4])))
    return out


def words(folder, name):
    """(moment, speaker) of each word: those of a turn are spread over its speech by their letters."""
    regions = spoken(folder / f"{name}.rttm")
    out = []
    for line in (folder / f"{name}.stm").read_text().splitlines():
        _, _, speaker, start, end, _, text = line.split(" ", 6)
        start, end = float(start) - 0.01, float(end) + 0.01
        inside = [(max(a, start), min(b, end)) for a, b in regions[speaker] if a < end and b > start]
        total, letters = sum(b - a for a, b in inside), len(text.replace(" ", ""))
        done = 0
        for word in text.split():
            left = total * (done + len(word) / 2) / letters
            done += len(word)
            for a, b in inside:
                if left <= b - a:
                    out.append((a + left, speaker))
                    break
                left -= b - a
    return out


def at(turns, moment):
    """Who talks then by turns of which one is at a time: None in a pause."""
    return next((who for start, end, who in turns if start <= moment < end), None)


def judged(found, spoken_words, enrolled):
    """For all enrolled and for each left out: words with the right name, a wrong one, none."""
    out = []
    own = [(at(found["exclusive"], moment), speaker) for moment, speaker in spoken_words]
    # The person of a cluster: who says most of its words.
    people = {}
    for cluster in range(len(found["alone_s"])):
        said = collections.Counter(speaker for who, speaker in own if who == cluster)
        people[cluster] = said.most_common(1)[0][0] if said else None
    present = {speaker for _, speaker in spoken_words}
    for variant in found["variants"]:
        if variant["left_out"] and variant["left_out"] not in present:
            continue
        names = [voice["named"] for voice in variant["voices"]]
        count = collections.Counter()
        for who, speaker in own:
            name = names[who] if who is not None else None
            is_enrolled = speaker in enrolled and speaker != variant["left_out"]
            count["words"] += 1
            count["of enrolled"] += is_enrolled
            if name is None:
                count["unnamed"] += is_enrolled
            elif name == speaker:
                count["right"] += 1
            else:
                # A voice that is named rightly got a word of another: the diarizer's part.
                count["wrong, turn" if people[who] == name else "wrong, name"] += 1
        clusters = collections.Counter()
        for cluster, name in enumerate(names):
            person = people[cluster]
            is_enrolled = person in enrolled and person != variant["left_out"]
            kind = "of enrolled" if is_enrolled else "of strangers"
            clusters[kind] += 1
            clusters[f"{kind}, {'unnamed' if name is None else 'right' if name == person else 'WRONG'}"] += 1
        out.append({"left_out": variant["left_out"], "words": count, "voices": clusters, "why": [v["why"] for v in variant["voices"]]})
    return out


def conversations():
    first = read_tsv(DATA / "spk" / "enroll.tsv")
    recordings = [(row["speaker"], row["id"], sound(row["id"], DATA / row["file"])) for row in first]
    folder = composed({row["id"] for row in first})
    files = {path.stem: sound(path.stem, path) for path in sorted(folder.glob("d*.[fw]*[cv]"))}
    enrolled = {row["speaker"] for row in first}
    out = {}
    for found in ask("files", write_list("enrolled", together(recordings)), *files.values(), of="conversations"):
        out[found["file"]] = judged(found, words(folder, found["file"]), enrolled)
    return out


def together(recordings):
    """One take of each speaker: recordings end to end."""
    by_speaker = collections.defaultdict(list)
    for speaker, _, path in recordings:
        by_speaker[speaker].append(path)
    rows = []
    for speaker, paths in by_speaker.items():
        out = SOUND / f"take-{speaker}.f32"
        out.write_bytes(b"".join(path.read_bytes() for path in paths))
        rows.append((speaker, "enrolled", out))
    return rows


def meetings():
    """Everybody who talks alone for 3 s in an excerpt is enrolled from it; names are looked for in the other excerpts."""
    import array

    rows, files = [], []
    for flac in sorted((DATA / "conv" / "ami").glob("*.flac")):
        path = sound(flac.stem, flac)
        samples = array.array("f")
        samples.frombytes(path.read_bytes())
        files.append(path)
        talks = [(a, b, who) for who, stretches in spoken(flac.with_suffix(".rttm")).items() for a, b in stretches]
        edges = sorted({t for a, b, _ in talks for t in (a, b)})
        alone = collections.defaultdict(lambda: array.array("f"))
        for a, b in zip(edges, edges[1:]):
            who = {w for start, end, w in talks if start <= a and b <= end}
            if len(who) == 1:
                alone[who.pop()].extend(samples[int(a * 16000) : int(b * 16000)])
        for who, own in alone.items():
            if len(own) >= 3 * 16000:
                out = SOUND / f"take-{flac.stem}-{who}.f32"
                out.write_bytes(own.tobytes())
                rows.append((who, flac.stem, out))
    shown = []
    for found in ask("files", write_list("meetings", rows), *files, of="meetings"):
        path = DATA / "conv" / "ami" / f"{found['file']}.rttm"
        truth = spoken(path)
        elsewhere = {who for who, recording, _ in rows if recording != found["file"]}
        for cluster, seconds in enumerate(found["alone_s"]):
            own = [(a, b) for a, b, who in found["exclusive"] if who == cluster]
            shared = lambda who: sum(max(0.0, min(b, d) - max(a, c)) for a, b in own for c, d in truth[who])
            person = max(truth, key=shared) if truth else None
            voice = found["variants"][0]["voices"][cluster]
            shown.append(
                {
                    "file": found["file"],
                    "seconds": round(seconds, 1),
                    "person": person,
                    "part": round(shared(person) / max(1e-9, sum(b - a for a, b in own)), 2) if person else 0,
                    "is_enrolled": person in elsewhere,
                    "named": voice["named"],
                    "why": voice["why"],
                }
            )
    return shown


# --- Tables ----------------------------------------------------------------------------------------


def seconds_table(figures):
    head = ["enrolled, s", "tried, s", "known / strangers", "nearest is right", "named wrongly", "not named", "strangers named", "EER", "strangers named, all enrolled", "not named, all enrolled"]
    rows = []
    for enrolled in ENROLLED:
        for tried in TRIED:
            small, large = (figures.get(f"{store} {enrolled} {tried}") for store in ("small", "large"))
            if small:
                row = [enrolled, tried, f"{small['known']} / {small['strangers']}"]
                row += [f"{small[key]:.1f}" for key in ("nearest", "wrong", "missed", "let_in", "eer")]
                rows.append(row + [f"{large[key]:.1f}" for key in ("let_in", "missed")])
    return table(head, rows)


def words_table(figures, left_out):
    head = ["", "words", "of enrolled", "right name", "wrong name: voice", "wrong name: turn", "without name", "voices: right / unnamed / WRONG", "of strangers: unnamed / WRONG"]
    rows, sums = [], [collections.Counter(), collections.Counter()]

    def row(name, count, voices):
        part = lambda key, of: f"{100 * count[key] / max(1, count[of]):.1f} %"
        known = " / ".join(str(voices[f"of enrolled, {kind}"]) for kind in ("right", "unnamed", "WRONG"))
        strange = " / ".join(str(voices[f"of strangers, {kind}"]) for kind in ("unnamed", "WRONG"))
        wrong = [part("wrong, name", "words"), part("wrong, turn", "words")]
        return [name, count["words"], count["of enrolled"], part("right", "of enrolled"), *wrong, part("unnamed", "of enrolled"), known, strange]

    for name, variants in figures.items():
        of = [v for v in variants if bool(v["left_out"]) == left_out]
        count, voices = collections.Counter(), collections.Counter()
        for variant in of:
            count.update(variant["words"])
            voices.update(variant["voices"])
        if of:
            rows.append(row(name, count, voices))
            sums[0].update(count)
            sums[1].update(voices)
    return table(head, rows + [row("**all**", *sums)])


def meetings_table(figures):
    head = ["", "who", "alone, s", "enrolled elsewhere", "named", "why"]
    return table(head, [[f["file"], f"{f['person']} ({100 * f['part']:.0f} %)", f["seconds"], "yes" if f["is_enrolled"] else "no", f["named"] or "–", f["why"]] for f in figures])


def two_table(figures):
    head = ["seconds of speech", "one person", "two, same sex: 20 %", "35 %", "50 %", "two, both sexes: 20 %", "35 %", "50 %"]
    cell = lambda key: "{1} of {0}".format(*figures[key]) if key in figures else "–"
    kinds = ["one 0.0", *(f"{kind} {part}" for kind in ("same sex", "both sexes") for part in ("0.2", "0.35", "0.5"))]
    return table(head, [[seconds, *(cell(f"{seconds} {kind}") for kind in kinds)] for seconds in (*TAKEN, "all")])


def speed_table(figures):
    head = ["vectors a person", "voices at once", "least ms", "median ms", "most ms", "store ready in ms"]
    return table(head, [[f["takes"] + (f["takes"] > 1), f["voices"], *(f"{f[k]:.1f}" for k in ("least_ms", "median_ms", "most_ms", "built_ms"))] for f in figures])


def tables(figures):
    cross = figures["crossed"]
    text = [
        EXPLAINED,
        "Trials: percent of known voices, percent of strangers.\n\n" + seconds_table(figures["trials"]),
        f"Cross-validated, all enrolled, tried with 2 s and more: `voice_accept` is chosen on half of the speakers as the least that names "
        f"{100 * ALLOWED:.1f} % of strangers, {PARTINGS} halves drawn at random: {cross['accept'][0]} to {cross['accept'][2]}, mean {cross['accept'][1]}. "
        f"On the other halves: strangers named {cross['let_in']} %, named wrongly {cross['wrong']} %, not named {cross['missed']} %.",
        "Conversations, all speakers of `spk/enroll.tsv` enrolled. *Voice*: the voice was given a wrong name. *Turn*: the voice has the right "
        "name, and the diarizer gave it a word of somebody else.\n\n" + words_table(figures["conversations"], False),
        "The same, each speaker left out of the store in turn, so that each is a stranger among the others once.\n\n" + words_table(figures["conversations"], True),
        "Meeting rooms: AMI's excerpts of 30 s, enrolled from the other excerpts.\n\n" + meetings_table(figures["meetings"]),
        "Two people in one enrolment, by the vectors alone (`enroll::judge`; that several speak within ten seconds is heard by segmentation besides): takes that are refused, by the other's share.\n\n" + two_table(figures["two"]),
        "10,000 people, 256 values, one thread.\n\n" + speed_table(figures["speed"]),
    ]
    return "\n\n".join(text)


EXPLAINED = """Voices known again by `voices::matching` with GE2E, thresholds of `models/manifest.toml`; `examples/recognise` does with
scribe's own parts what the elements do. Speakers
with four recordings and more are enrolled from three (from more where 30 s are asked for), four choices each; a test of 1 to 10 s is
embedded as the diarizer embeds a speaker. *Small* store: those speakers. *All enrolled*: all readers with one recording too. A person's
recordings are mostly of one session, which flatters what is not named, not the strangers; readers with one recording are
strangers in the small store, and everybody is one in a store without himself. The parameters were chosen on these speakers."""


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench-voices.sh", description="Who is known again")
    parser.add_argument("--trial", action="store_true", help="nothing is kept in benches/runs")
    options = parser.parse_args()
    start = time.monotonic()
    SOUND.mkdir(parents=True, exist_ok=True)
    global STRANGER
    entry = re.search(r'id = "ge2e-resemblyzer".*?voice_stranger = ([\d.]+)', (ROOT / "models" / "manifest.toml").read_text(), re.S)
    STRANGER = float(entry.group(1))
    found = trials()
    figures = {"trials": by_seconds(found), "crossed": crossed(found), "conversations": conversations(), "meetings": meetings(), "two": two_voices(), "speed": ask("speed")}
    text = tables(figures)
    if options.trial:
        print(text)
        say(f"a trial of {time.monotonic() - start:.0f} s, not kept")
        return
    peers = {"numpy": output_of(sys.executable, "-c", "import numpy; print(numpy.__version__)")}
    keep("voices", "scripts/bench-voices.sh", figures, text, time.monotonic() - start, peers=peers, runs_on="ONNX Runtime, GE2E")
    subprocess.run([sys.executable, "-B", Path(__file__).with_name("report.py")], check=True)


if __name__ == "__main__":
    main()
