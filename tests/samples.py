"""Datasets that several tests read: one sample with every kind of field, and pictures that compress to known pixels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import mmds

EVERY_KIND = {
    "image": mmds.Image(),
    "array": mmds.Array("float32", (3, 100)),
    "small": mmds.Array("int16", (2, 2)),
    "ragged": mmds.Array("int64", (None,)),
    "bf16": mmds.Array("bfloat16", (4,)),
    "count": mmds.Scalar("uint8"),
    "score": mmds.Scalar("float32"),
    "flag": mmds.Scalar("bool"),
    "label": mmds.Label(("cat", "dog", "owl")),
    "nested": (mmds.Text(), {"key": mmds.Text(column=True), "raw": mmds.Bytes()}),
    "maybe": mmds.Scalar("int32", nullable=True),
    "json": mmds.Json(),
}


def jpeg(number: int, size: tuple[int, int] = (40, 32)) -> bytes:
    """Return a JPEG file of `size` (width, height) whose pixels depend on `number`."""
    width, height = size
    ramp = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None] // 2
    pixels = np.broadcast_to(ramp + np.uint8(number * 7 % 100), (height, width, 3))
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=90)
    return file.getvalue()


def sample(number: int) -> dict[str, Any]:
    """Return sample `number` of the dataset of every kind."""
    return {
        "image": jpeg(number),
        "array": np.full((3, 100), number, "float32"),
        "small": np.full((2, 2), -number, "int16"),
        "ragged": np.arange(number % 4, dtype="int64"),
        "bf16": np.full(4, number * 129, "uint16"),
        "count": number % 256,
        "score": number / 2,
        "flag": number % 2 == 0,
        "label": number % 3,
        "nested": (f"text {number}", {"key": f"key/{number}", "raw": bytes([number % 256]) * (number % 5)}),
        "maybe": None if number % 3 == 0 else number,
        "json": {"list": [number, None, "é"], "x": 0.5},
    }


def write_every_kind(path: Path, count: int = 40) -> Path:
    """Write the dataset of every kind."""
    with mmds.Writer(path, EVERY_KIND, metadata={"made": "by a test"}) as writer:
        writer.extend(map(sample, range(count)))
    return path


def write_fixed(path: Path, count: int = 64, shape: tuple[int, ...] = (3, 16, 16)) -> Path:
    """Write images of `shape` whose elements are the sample's number, and that number modulo 3 as the label."""
    numbers = np.arange(count)
    images = np.broadcast_to(numbers.reshape(-1, *[1] * len(shape)), (count, *shape)).astype("uint8")
    fields = {"image": mmds.Array("uint8", shape), "label": mmds.Label(("a", "b", "c"))}
    with mmds.Writer(path, fields) as writer:
        writer.write_batch({"image": images, "label": numbers % 3})
    return path
