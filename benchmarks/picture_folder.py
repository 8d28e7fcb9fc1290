"""A large folder of JPEG files, made fast: few pictures are encoded, and every file is still another one.

Generated pictures are a gradient under noise, seeded, 10 to 30 KB. A file's number stands in a JPEG comment, so no two
files are equal, which would let a mix-up go unnoticed. Real ones are crops of photographs (examples/pictures.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import simplejpeg

from benchmarks.progress import say
from examples.pictures import PHOTOGRAPHS, crops

DISTINCT = 256  # pictures that are really encoded
SIZE, QUALITY = 224, 85
NOISE = (6, 14)  # standard deviations of the noise, which decides over the size of a file


def encoded(count: int) -> list[bytes]:
    """Return `count` generated JPEG files."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
    files = []
    for number in range(count):
        rng = np.random.default_rng(number)
        slope = rng.uniform(-120, 120, (3, 2)).astype(np.float32)
        noise = rng.standard_normal((SIZE, SIZE, 3), np.float32) * np.float32(rng.uniform(*NOISE))
        picture = 128 + np.stack([slope[c, 0] * (x - 0.5) + slope[c, 1] * (y - 0.5) for c in range(3)], axis=2) + noise
        files.append(simplejpeg.encode_jpeg(np.clip(picture, 0, 255).astype(np.uint8), quality=QUALITY))
    return files


def with_comment(jpeg: bytes, text: bytes) -> bytes:
    """Return `jpeg` with a comment segment behind its start-of-image marker.

    >>> with_comment(b"\\xff\\xd8...", b"7").hex(" ")
    'ff d8 ff fe 00 03 37 2e 2e 2e'
    """
    return jpeg[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + jpeg[2:]


def _generated(count: int, classes: int) -> Iterator[tuple[str, bytes]]:
    pictures = encoded(min(count, DISTINCT))
    for number in range(count):
        name = f"generated_{number % classes:03}/{number:07}.jpg"
        yield name, with_comment(pictures[number % len(pictures)], b"%d" % number)


def _real(count: int) -> Iterator[tuple[str, bytes]]:
    for position, name in enumerate(sorted(PHOTOGRAPHS)):
        share = count // len(PHOTOGRAPHS) + (position < count % len(PHOTOGRAPHS))
        for number, data in enumerate(crops(name, "train", share)):
            yield f"real_{name}/{number:07}.jpg", data


def write_pictures(folder: Path, *, generated: int, real: int, classes: int) -> int:
    """Write the files, in a folder per class, and return their total size in bytes."""
    size = 0
    for number, (name, data) in enumerate(chain(_generated(generated, classes), _real(real))):
        path = folder / name
        if number % 1000 == 0:
            say(f"writing picture {number} of {generated + real}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        size += len(data)
    say("")
    return size
