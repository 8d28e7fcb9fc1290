"""What a store is tried with: every kind of field with telling values, names that libraries stumble over, whole datasets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import mmds
from mmds import Array, Audio, Bytes, Image, Json, Label, Scalar, Text, Video
from mmds.fields import Kind
from tests.make_golden import FLOAT8, NUMBERS, PNG, REALS, WAV, extremes, ramp
from tests.samples import jpeg

COUNT = 23  # samples: no multiple of a batch, a chunk or a list of values
BATCHES = (1, 5, 2, 9, 0, 6)  # sizes in which they are written, of which the last ones repeat


class Values(NamedTuple):
    """A kind of field, and the values that samples take in turn."""

    kind: Kind
    values: list[Any]


def _arrays(dtype: str, *shapes: tuple[int, ...]) -> list[np.ndarray[Any, Any]]:
    return [ramp(dtype, *shape, start=7 * k) for k, shape in enumerate(shapes)]


def _ragged(dtype: str, shape: tuple[int | None, ...]) -> Values:
    sizes = (0, 3, 1, 4, 2)
    shapes = [tuple((size + k) % 5 if want is None else want for size, want in enumerate(shape, k)) for k in sizes]
    return Values(Array(dtype, shape), _arrays(dtype, *shapes))


def _fixed(dtype: str, shape: tuple[int, ...], count: int = 3) -> Values:
    return Values(Array(dtype, shape), _arrays(dtype, *[shape] * count))


_PLAIN: dict[str, Values] = {
    **{f"scalar {name}": Values(Scalar(name), extremes(name)) for name in (*NUMBERS, *REALS)},
    "scalar special": Values(Scalar("float32"), [float("nan"), float("inf"), -0.0, 1e-45]),
    "scalar bool": Values(Scalar("bool"), [True, False, False]),
    "scalar complex64": Values(Scalar("complex64"), [1.5j, complex(-0.0, float("inf"))]),
    "scalar complex128": Values(Scalar("complex128"), [0.1 + 0.2j, -1j]),
    "label": Values(Label(("cat", "dog", "größer\0\n")), [2, 0, 1, 1]),
    **{f"column {name}": _fixed(name, (2, 3)) for name in ("bool", *NUMBERS, *REALS, "complex64", "complex128")},
    **{f"bits {name}": _fixed("uint8", (3,))._replace(kind=Array(name, (3,))) for name in FLOAT8},
    "bits bfloat16": Values(Array("bfloat16", (3,)), [np.array([0x3F80, 0xBF80, 0x7FC0], "uint16"), ramp("uint16", 3)]),
    "rank 0": _fixed("float32", ()),
    "rank 9": _fixed("uint8", (1,) * 8 + (2,)),
    "no elements": _fixed("int32", (0, 5)),
    "no elements, bits": _fixed("uint16", (0,))._replace(kind=Array("bfloat16", (0,))),
    "payload": _fixed("uint8", (3, 10, 10), 5),
    "payload aligned": _fixed("float64", (40,))._replace(kind=Array("float64", (40,), align=4096)),
    "payload bool": _fixed("bool", (300,)),
    "payload complex": _fixed("complex64", (40,)),
    "ragged": _ragged("int64", (None,)),
    "ragged first": _ragged("float32", (None, 4)),
    "ragged last": _ragged("int16", (2, None)),
    "ragged picture": _ragged("uint8", (None, None, 3)),
    "ragged three": _ragged("uint16", (None, 2, None, None)),
    "ragged bool": _ragged("bool", (None,)),
    "ragged complex": _ragged("complex128", (None,)),
    "ragged bits": _ragged("uint16", (None, 2))._replace(kind=Array("bfloat16", (None, 2))),
    "bytes": Values(Bytes(), [b"", bytes(range(256)), b"\0", b"x" * 5000, b"end\0"]),
    "bytes column": Values(Bytes(column=True), [b"a/b", b"", b"\xff\0"]),
    "text": Values(Text(), ["日本\0\n", "", "🙂 é", "\ufeffa" * 300, "end\0"]),
    "text column": Values(Text(column=True), ["", "\0", "e\u0301", "é"]),
    "text key": Values(Text(key=True), ["b/2.jpg", "", "é", "a"]),
    "bytes zstd": Values(Bytes(compression="zstd"), [b"a" * 3000, b"", bytes(range(256))]),
    "ragged zstd": _ragged("int64", (None,))._replace(kind=Array("int64", (None,), compression="zstd")),
    "json": Values(Json(), [None, {"z": 1e-320, "a": -0.0}, [[], {}, "ü\0"], 2**53, True, "text"]),
    "image": Values(Image(), [jpeg(0), PNG, jpeg(5)]),
    "audio": Values(Audio(), [WAV, WAV + b"\0\1"]),
    "video": Values(Video(), [b"\0\0\0\x18ftypmp42", b"\1"]),
}
_NULLABLE = (
    *("scalar int64", "scalar bool", "scalar float32", "scalar complex64", "label", "column float32", "bits bfloat16"),
    *("rank 0", "no elements", "payload", "ragged", "ragged picture", "bytes", "bytes column", "text", "text column"),
    *("json", "image", "audio", "video"),
)

EVERY: dict[str, Values] = _PLAIN | {
    f"nullable {name}": Values(
        dataclasses.replace(_PLAIN[name].kind, nullable=True), [None, *_PLAIN[name].values[:3], None]
    )
    for name in _NULLABLE
}
EVERY["always null"] = Values(Text(nullable=True), [None])

# All together, without number types that make no difference to a store; alone and in golden files, those are tried too.
_MANY = {f"{what} {name}" for what in ("scalar", "column") for name in (*NUMBERS, *REALS)}
_FEW = {f"{what} {name}" for what in ("scalar", "column") for name in ("int8", "uint64", "float16", "float32")}
TOGETHER = tuple(name for name in EVERY if name not in _MANY or name in _FEW)

# Alone, one of each way in which a store might keep a field; the others are the same but for the dtype.
ALONE = (
    *("scalar int64", "label", "column float32", "bits bfloat16", "rank 0", "no elements", "payload", "ragged"),
    *("ragged picture", "bytes", "text", "json", "image", "nullable scalar int64", "nullable payload"),
    *("nullable ragged", "nullable text", "nullable json", "always null"),
)

ODD_NAMES = (
    *("", " ", ".", "..", "x.y", "a/b", "a%2Fb", "%", "%25", "ü", "日本", "a\0b", "new\nline", "\u202e", "'\"\\"),
    *("A", "a"),
    *("0", "values", "offsets", "shape", "index", "mmds", "metadata", "attrs", "c", "n", "__name__", "null"),
    *("zarr.json", "mmds.json", "data.mdb", "__schema", "x" * 200),
)
RESERVED_NAMES = ("__valid__", "__mmds__", "ü" * 1000)  # which a store may refuse


def dataset(names: Any = tuple(EVERY), count: int = COUNT) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return fields and samples with the kinds called `names`, each kind's values in turn."""
    fields = {name: EVERY[name].kind for name in names}
    return fields, [{name: EVERY[name].values[k % len(EVERY[name].values)] for name in names} for k in range(count)]


def write(path: Path, fields: Any, samples: list[Any], metadata: Any = None) -> Path:
    """Write an ``.mmds`` file."""
    with mmds.Writer(path, fields, metadata=metadata) as writer:
        writer.extend(samples)
    return path


def write_every(path: Path, refused: Any = (), count: int = COUNT, step: int = 1) -> Path:
    """Write an ``.mmds`` file of all kinds (or one in `step`) but `refused`, in the structure that people give samples."""
    fields, samples = dataset([name for name in TOGETHER[::step] if name not in refused], count)
    first = next(iter(fields))

    def nest(flat: dict[str, Any]) -> dict[str, Any]:
        return {"pair": (flat[first], {"": flat["text"]}) if "text" in flat else (flat[first],), "flat": flat}

    metadata = {"ü": "\0 é", "pi": 3.141592653589793, "nest": {"b": [], "a": None}}
    return write(path, nest(fields), [nest(sample) for sample in samples], metadata)


def slices(count: int) -> Iterator[slice]:
    """Yield slices that cover `count` samples in uneven parts."""
    start = number = 0
    while start < count:
        size = BATCHES[number % len(BATCHES)] * max(1, count // COUNT)
        yield slice(start, min(start + size, count))
        start, number = start + size, number + 1
