"""The golden files of format version 1 and the samples that each holds; run as a script, it adds those that are missing.

A golden file is only ever added: if a writer gives other bytes for the same samples, the writer is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmds import Array, Audio, Bytes, Image, Json, Label, Scalar, Text, Video, Writer

FOLDER = Path(__file__).parent / "golden"
NUMBERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
ZSTD_VERSION = (1, 5, 7)  # that compressed files were written with
REALS = ("float16", "float32", "float64")
FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
PNG = bytes.fromhex(  # one grey pixel
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c63680000008200815f6f7b480000000049454e44ae426082"
)
WAV = b"RIFF\x26\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0@\x1f\0\0\x80>\0\0\2\0\x10\0data\2\0\0\0\0\0"


class Golden(NamedTuple):
    """What a golden file is written from, and what reading it gives."""

    fields: Any
    samples: list[Any]
    metadata: Mapping[str, Any] = {}
    compression: str | None = None


def ramp(dtype: str, *shape: int, start: int = 0) -> np.ndarray[Any, Any]:
    """Return 0, 1, 2, ... modulo 100 as an array."""
    return ((np.arange(np.prod(shape, dtype=int)) + start) % 100).astype(dtype).reshape(shape)


def extremes(name: str) -> list[Any]:
    """Return the smallest, a middle and the largest value of a number type."""
    if name in REALS:
        return [float(np.finfo(name).min), -0.0, float(np.finfo(name).max)]
    return [int(np.iinfo(name).min), 7, int(np.iinfo(name).max)]


def _compressed() -> Golden:
    zstd: dict[str, Any] = {"compression": "zstd"}
    fields = {
        "fixed": Array("float32", (20, 5), **zstd),
        "maybe": Array("uint8", (300,), align=4096, nullable=True, **zstd),
        "last": Array("int16", (3, None), **zstd),
        "two": Array("bfloat16", (None, None), **zstd),
        "empty": Array("uint8", (2**20, 0), **zstd),
        "bytes": Bytes(align=64, **zstd),
        "text": Text(nullable=True, **zstd),
        "json": Json(**zstd),
        "image": Image(**zstd),
        "audio": Audio(**zstd),
        "video": Video(**zstd),
        "plain": Array("int64", (100,)),
        "label": Label(("a", "b")),
    }
    samples = [
        {
            "fixed": ramp("float32", 20, 5, start=k),
            "maybe": ramp("uint8", 300) if k % 2 else None,
            "last": ramp("int16", 3, 10 * k),
            "two": ramp("uint16", k, 50),
            "empty": np.zeros((2**20, 0), "uint8"),
            "bytes": bytes(100 * k),
            "text": (None, "", "ü" * 50)[k],
            "json": [k] * 20,
            "image": PNG if k else b"",
            "audio": WAV,
            "video": b"\0\0\0\x18ftyp",
            "plain": ramp("int64", 100, start=k),
            "label": k % 2,
        }
        for k in range(3)
    ]
    return Golden(fields, samples)


def _nullable() -> Golden:
    fields = {
        "scalar": Scalar("int16", nullable=True),
        "label": Label(("no", "yes"), nullable=True),
        "column": Array("float32", (2,), nullable=True),
        "payload": Array("uint8", (300,), nullable=True),
        "ragged": Array("int16", (None, 2), nullable=True),
        "free": Array("int16", (None, None), nullable=True),
        "bytes": Bytes(nullable=True),
        "key": Bytes(nullable=True, column=True),
        "text": Text(nullable=True),
        "caption": Text(nullable=True, column=True),
        "json": Json(nullable=True),
        "image": Image(nullable=True),
        "audio": Audio(nullable=True),
        "video": Video(nullable=True),
    }
    values = {
        "scalar": -3,
        "label": 1,
        "column": ramp("float32", 2),
        "payload": ramp("uint8", 300),
        "ragged": ramp("int16", 3, 2),
        "free": ramp("int16", 2, 3),
        "bytes": b"\0\xff",
        "key": b"key",
        "text": "ü",
        "caption": "",
        "json": [None, {"a": 1.5}],
        "image": PNG,
        "audio": WAV,
        "video": b"\0\0\0\x18ftyp",
    }
    nothing = dict.fromkeys(fields)
    alternate = {name: value if k % 2 else None for k, (name, value) in enumerate(values.items())}
    return Golden(fields, [values, nothing, alternate, values])


GOLDEN: dict[str, Golden] = {
    "scalars": Golden(
        {name: Scalar(name) for name in (*NUMBERS, *REALS, "bool", "complex64", "complex128")},
        [
            {name: extremes(name)[k] for name in (*NUMBERS, *REALS)}
            | {"bool": k == 1, "complex64": complex(k, -1.5), "complex128": complex(0.1, k)}
            for k in range(3)
        ],
    ),
    "label": Golden(Label(("cat", "dog", "größer")), [2, 0, 1, 1]),
    "columns": Golden(
        {name: Array(name, (2, 3)) for name in (*NUMBERS, *REALS, "bool", "complex64")},
        [{name: ramp(name, 2, 3, start=k) for name in (*NUMBERS, *REALS, "bool", "complex64")} for k in range(3)],
    ),
    "column_ranks": Golden(
        {"zero": Array("float32", ()), "eight": Array("uint8", (1, 2) * 4), "empty": Array("int32", (0, 5))},
        [
            {
                "zero": np.array(k, "float32"),
                "eight": ramp("uint8", *(1, 2) * 4, start=k),
                "empty": np.zeros((0, 5), "int32"),
            }
            for k in range(3)
        ],
    ),
    "constant_stride": Golden(
        {"x": Array("uint8", (257,)), "y": Array("float32", (10, 10), align=4), "label": Scalar("uint8")},
        [{"x": ramp("uint8", 257, start=k), "y": ramp("float32", 10, 10, start=k), "label": k} for k in range(4)],
    ),
    "tokens": Golden(Array("uint16", (200,), align=2), [ramp("uint16", 200, start=k) for k in range(5)]),
    "mixed_alignment": Golden(
        (Array("uint8", (300,), align=1), Array("float64", (40,), align=4096), Bytes(align=8)),
        [(ramp("uint8", 300, start=k), ramp("float64", 40, start=k), b"x" * k) for k in range(3)],
    ),
    "ragged": Golden(
        {
            "one": Array("float32", (None, 4)),
            "last": Array("int64", (2, None), align=8),
            "two": Array("uint8", (None, None, 3)),
            "three": Array("uint16", (None, 2, None, None)),
        },
        [
            {
                "one": ramp("float32", k, 4),
                "last": ramp("int64", 2, 3 - k),
                "two": ramp("uint8", k, 2 * k, 3),
                "three": ramp("uint16", 1, 2, k, 2),
            }
            for k in range(4)
        ],
    ),
    "ranks": Golden(
        {"nine": Array("uint8", (1,) * 8 + (2,)), "empty": Array("float32", (1,) * 31 + (0,))},
        [{"nine": ramp("uint8", *(1,) * 8, 2, start=k), "empty": np.zeros((1,) * 31 + (0,), "f4")} for k in range(3)],
    ),
    "strings": Golden(
        {"data": Bytes(), "text": Text(), "key": Bytes(column=True), "caption": Text(column=True)},
        [
            {"data": b"", "text": "", "key": b"", "caption": ""},
            {"data": bytes(range(256)), "text": "日本\0\n", "key": b"a/b", "caption": "🙂 é"},
            {"data": b"x", "text": "a" * 300, "key": b"\xff", "caption": "end"},
        ],
    ),
    "keys": Golden(
        {"name": Text(key=True), "x": Scalar("uint8"), "hash": Bytes(key=True)},
        [
            {"name": name, "x": k, "hash": bytes([k % 3]) * (k % 3)}
            for k, name in enumerate(("b/ü", "", "a", "b/ü", "日本", "a"))
        ],
    ),
    "json": Golden(
        Json(),
        [None, True, 2**53, -1.5, "ü", [], {}, [1, [2, {"b": None, "a": ["x"]}]], {"z": 1e-320, "a": -0.0}],
    ),
    "media": Golden(
        {"rgb": Image(), "any": Image(mode=None), "sound": Audio(), "film": Video()},
        [
            {"rgb": PNG, "any": b"", "sound": WAV, "film": b"\0\0\0\x18ftypmp42"},
            {"rgb": b"broken", "any": PNG, "sound": b"", "film": b"\1"},
        ],
    ),
    "nullable": _nullable(),
    "compressed": _compressed(),
    "dictionaries": Golden(
        {"x": Json(compression="zstd"), "y": Text(compression="zstd"), "z": Audio()},
        [
            {
                "x": {"name": f"sample {k}", "values": [k * k, k % 7], "kind": "abc"[k % 3]},
                "y": f"{k}" * (k % 3),
                "z": b"z",
            }
            for k in range(100)
        ],
        {},
        "zstd:3:dict",
    ),
    "bits": Golden(
        {name: Array(name, (3,)) for name in FLOAT8}
        | {"bfloat16": Array("bfloat16", (3,)), "tokens": Array("bfloat16", (None, 2))},
        [
            {name: ramp("uint8", 3, start=k) for name in FLOAT8}
            | {"bfloat16": np.array([0x3F80, 0xBF80, 0x7FC0], "uint16"), "tokens": ramp("uint16", k, 2)}
            for k in range(3)
        ],
    ),
    "nested": Golden(
        {"z": (Scalar("int8"), {"": Text(), "b": (Scalar("bool"),)}), "a": {"x.y": Bytes(), "ü": Array("int8", (1,))}},
        [
            {"z": (k, {"": str(k), "b": (k > 0,)}), "a": {"x.y": b"." * k, "ü": ramp("int8", 1, start=k)}}
            for k in range(3)
        ],
    ),
    "single": Golden(Text(), ["one", "", "three"]),
    "empty": Golden({"x": Array("float32", (100,)), "y": Text(column=True), "z": Json(nullable=True)}, []),
    "metadata": Golden(
        Scalar("uint8"),
        [1],
        {
            "ü": '日本 \u0000 "quoted" \\',
            "pi": 3.141592653589793,
            "tiny": 5e-324,
            "one": 1.0,
            "nest": {"b": [], "a": None},
        },
    ),
}


def write(golden: Golden, path: Path) -> None:
    """Write a golden file's samples to `path`."""
    with Writer(path, golden.fields, metadata=golden.metadata, compression=golden.compression) as writer:
        writer.extend(golden.samples)


def main() -> int:
    """Write the files that do not exist yet."""
    FOLDER.mkdir(exist_ok=True)
    for name, golden in GOLDEN.items():
        path = FOLDER / f"{name}.mmds"
        if not path.exists():
            write(golden, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
