# SPDX-License-Identifier: MPL-2.0
"""Whisper models of other sizes in CTranslate2's form, with weights out of the air: for speed and memory alone.

Names, constants and vocabulary are those of a real model (tiny.en), which both systems read; what depends on the size is
made anew, always the same.
"""

import json
import shutil
import struct

# Width, layers a side. Heads that follow the sound as OpenAI's models of that size have them: they cost time.
SIZES = {
    "base.en": (512, 6, [[3, 3], [4, 7], [5, 1], [5, 5], [5, 7]]),
    "small.en": (
        768,
        12,
        [[6, 6], [7, 0], [7, 3], [7, 8], [8, 2], [8, 5], [8, 7], [9, 0], [9, 4], [9, 8], [9, 10], [10, 0], [10, 1], [10, 2], [10, 3]]
        + [[10, 6], [10, 11], [11, 2], [11, 4]],
    ),
}
TINY_WIDTH = 384
HEAD = 64
HALF = 4


def read(blob):
    """(head, {name: (shape, kind, bytes)}, [(alias, name)])"""
    at = 0

    def take(form):
        nonlocal at
        value = struct.unpack_from("<" + form, blob, at)[0]
        at += struct.calcsize(form)
        return value

    def text():
        nonlocal at
        size = take("H")
        at += size
        return blob[at - size : at].rstrip(b"\0").decode()

    head = (take("I"), text(), take("I"))
    tensors = {}
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        kind, size = take("B"), take("I")
        tensors[name] = (shape, kind, blob[at : at + size])
        at += size
    return head, tensors, [(text(), text()) for _ in range(take("I"))]


def write(head, tensors, aliases):
    def text(value):
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", head[0]), text(head[1]), struct.pack("<II", head[2], len(tensors))]
    for name, (shape, kind, data) in tensors.items():
        parts += [text(name), struct.pack("<B", len(shape)), *(struct.pack("<I", n) for n in shape)]
        parts += [struct.pack("<BI", kind, len(data)), data]
    parts.append(struct.pack("<I", len(aliases)))
    parts += [text(part) for alias in aliases for part in alias]
    return b"".join(parts)


def make(source, folder, size):
    """The folder of a model of that size."""
    import numpy

    # Not the real one's name.
    folder = folder / f"made-{size}"
    if (folder / "model.bin").is_file():
        return folder
    width, layers, heads = SIZES[size]
    head, tensors, aliases = read((source / "model.bin").read_bytes())
    random = numpy.random.default_rng(1)
    made = {}

    def tensor(name, like):
        shape, kind, data = like
        if kind == HALF or (kind == 0 and shape):
            # All that has the width, three or four times it, has it in multiples.
            shape = [n * width // TINY_WIDTH if n % TINY_WIDTH == 0 else n for n in shape]
            if "norm" in name and name.endswith("gamma"):
                values = numpy.ones(shape)
            elif len(shape) == 1:
                values = numpy.zeros(shape)
            else:
                values = random.standard_normal(shape, dtype=numpy.float32) * 0.02
            data = values.astype("<f2" if kind == HALF else "<f4").tobytes()
        elif name.endswith("num_heads"):
            data = (width // HEAD).to_bytes(len(data), "little")
        return shape, kind, data

    for name, like in tensors.items():
        if "/layer_" not in name or "layer_norm" in name.split("/")[1]:
            made[name] = tensor(name, like)
        elif "/layer_0/" in name:
            for layer in range(layers):
                own = name.replace("/layer_0/", f"/layer_{layer}/")
                made[own] = tensor(own, like)
    kept = [(alias, name) for alias, name in aliases if "/layer_" not in alias]
    kept += [
        tuple(part.replace("/layer_0/", f"/layer_{layer}/") for part in pair)
        for pair in aliases
        for layer in range(layers)
        if "/layer_0/" in pair[0]
    ]
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    (part / "model.bin").write_bytes(write(head, made, kept))
    config = json.loads((source / "config.json").read_text())
    config["alignment_heads"] = heads
    (part / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "vocabulary.txt"):
        shutil.copy(source / file, part / file)
    part.rename(folder)
    return folder
