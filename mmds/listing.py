"""Samples for people: rows of `mmds ls`, one whole sample of `mmds show`, a field's value as a file."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmds import decode
from mmds.dtypes import LOGICAL
from mmds.errors import SchemaError, printable
from mmds.fields import Array, Audio, Image, Kind, Label, Video
from mmds.reader import Reader
from mmds.schema import Field

SMALL = 64  # elements of an array that JSON output spells out
SUFFIXES = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}


def rows_of(reader: Reader, rows: Iterable[int], names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield, for each sample of `rows`, its number and the values of the fields `names`, labels by name."""
    chosen = [
        (name, position, reader.fields[position].kind) for name in names for position in [reader.fields.index(name)]
    ]
    for row in rows:
        yield {"sample": row, **{name: plain(reader.items[position].get(row), kind) for name, position, kind in chosen}}


def plain(value: Any, kind: Kind) -> Any:
    """Return a value as JSON can hold it; large arrays and bytes are described."""
    if isinstance(kind, Label) and value is not None:
        return kind.names[value] if 0 <= value < len(kind.names) else value
    value = _numbers(value, kind)
    if isinstance(value, np.ndarray):
        spelled_out = value.size <= SMALL and value.dtype.kind != "c" and bool(np.isfinite(value).all())
        return value.tolist() if spelled_out else f"{value.dtype} {value.shape}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)  # JSON has no such numbers
    return value


def show_sample(reader: Reader, wanted: str, name: str | None, output: Path | None, as_json: bool) -> None:
    """Print the sample with a number or, where `wanted` is none, with a key; or write one of its fields to a file."""
    if re.fullmatch(r"[+-]?\d{1,18}", wanted):
        row = int(reader.resolve([int(wanted)], range(len(reader)))[0])
    else:
        try:
            row = reader.find_row(wanted, range(len(reader)))
        except KeyError as error:
            raise IndexError(error.args[0]) from None
    positions = range(len(reader.fields)) if name is None else [reader.fields.index(name)]
    if output is not None:
        position = next((p for p in positions if _is_file(reader.fields[p].kind)), positions[0])
        _write(output, reader.fields[position], reader.items[position].get(row))
        return
    leaves = [(reader.fields[p], reader.items[p].get(row)) for p in positions]
    if as_json:
        shown = {field.name: plain(value, field.kind) for field, value in leaves}
        print(json.dumps({"sample": row, **shown}, indent=2))
        return
    from mmds.terminal import print_picture, print_table

    rows = [[printable(field.name), field.kind.name, _described(value, field.kind)] for field, value in leaves]
    print_table(["field", "kind", "value"], rows)
    if sys.stdout.isatty():
        for field, value in leaves:
            pixels = _pixels(value, field.kind)
            if pixels is not None:
                print_picture(pixels)


def _is_file(kind: Kind) -> bool:
    """Return whether a value is something that people keep in a file of its own."""
    return isinstance(kind, (Image, Audio, Video)) or (isinstance(kind, Array) and len(kind.shape) > 1)


def _described(value: Any, kind: Kind) -> str:
    from mmds.terminal import value_text

    if isinstance(kind, Label) and value is not None:
        return f"{value} ({printable(plain(value, kind))})"
    if isinstance(kind, Image) and value is not None:
        try:
            picture = decode.pil(value, None)
        except (OSError, ValueError) as error:
            return f"{len(value):,} bytes that cannot be decoded: {printable(error)}"
        return f"{picture.format} {picture.width} x {picture.height} {picture.mode}, {len(value):,} bytes"
    return value_text(_numbers(value, kind), 1000)


def _numbers(value: Any, kind: Kind) -> Any:
    """Return arrays of logical types as float32 or in words, because numpy would show their bits as integers."""
    if value is None or not isinstance(kind, Array) or kind.dtype not in LOGICAL:
        return value
    if kind.dtype == "bfloat16":  # the upper half of a float32
        return (value.astype(np.uint32) << 16).view(np.float32)
    return f"{kind.dtype} {value.shape}"


def _pixels(value: Any, kind: Kind) -> np.ndarray[Any, Any] | None:
    """Return a value that is a picture as uint8 of shape (height, width, channels), else None."""
    if value is None:
        return None
    if isinstance(kind, Image):
        try:
            return decode.picture(value, "RGB")
        except (OSError, ValueError):  # the table has said so
            return None
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim not in (2, 3) or not value.size:
        return None
    if value.ndim == 2:
        return value[:, :, None]
    if value.shape[2] in (1, 3, 4):
        return value
    return np.moveaxis(value, 0, -1) if value.shape[0] in (1, 3, 4) else None


def _write(output: Path, field: Field, value: Any) -> None:
    """Write a field's value to a file: encoded files and bytes as they are, pictures in the format of the suffix."""
    if value is None:
        raise SchemaError(f"field '{printable(field.name)}' of this sample is null; there is nothing to write")
    wanted = SUFFIXES.get(output.suffix.lower())
    pixels = _pixels(value, field.kind) if wanted else None
    if isinstance(field.kind, Image) and wanted in (None, decode.pil(value, None).format):
        output.write_bytes(value)
    elif pixels is not None:
        from PIL import Image as PilImage

        PilImage.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(output, wanted)
    elif isinstance(value, bytes):
        output.write_bytes(value)
    elif isinstance(value, np.ndarray):
        file = io.BytesIO()
        np.save(file, value, allow_pickle=False)
        output.write_bytes(file.getvalue())
    else:
        output.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
