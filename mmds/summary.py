"""What a dataset contains, as plain values: for `mmds info`, its JSON, and whoever else wants to show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmds.converters.stores import find_store
from mmds.fields import Array, Fixed, Kind, Label, Scalar
from mmds.format import DATA_START, MAJOR, MINOR
from mmds.items import NullableItems
from mmds.mapped import MappedFile
from mmds.reader import Reader
from mmds.store import MaskedItems

CHUNK = 2**22  # labels that are counted at once, so that a large column does not become private memory


def type_name(kind: Kind) -> str:
    """Return the type of a field's values in short: "uint8 (3, 96, 96)", "5 classes", "RGB".

    >>> type_name(Array("float32", (None, 4)))
    'float32 (?, 4)'
    """
    if isinstance(kind, Array):
        sizes = ", ".join("?" if size is None else str(size) for size in kind.shape)
        return f"{kind.dtype} ({sizes}{',' * (len(kind.shape) == 1)})"
    if isinstance(kind, Label):
        return f"{len(kind.names)} classes"
    if isinstance(kind, Scalar):
        return kind.dtype
    return str(getattr(kind, "mode", "") or "")


def class_counts(reader: Reader, position: int) -> list[int]:
    """Return the number of samples of each class of a label field; nulls do not count."""
    kind, items = reader.fields[position].kind, reader.items[position]
    column = reader.column(reader.fields[position].name)
    nullable = isinstance(items, (NullableItems, MaskedItems))
    valid = reader.valid(reader.fields[position].name) if nullable else None
    counts = np.zeros(len(kind.names), np.int64)
    for start in range(0, len(column), CHUNK):
        labels = column[start : start + CHUNK]
        if valid is not None:
            labels = labels[valid[start : start + CHUNK]]
        known = labels[(labels >= 0) & (labels < len(counts))]
        counts += np.bincount(known, minlength=len(counts))
    return [int(count) for count in counts]


def summarize(reader: Reader) -> dict[str, Any]:
    """Return what is in a dataset, as values that JSON can hold: samples, sizes in bytes, fields, class counts, metadata."""
    fields = []
    for position, field in enumerate(reader.fields):
        entry: dict[str, Any] = {
            "name": field.name,
            "kind": field.kind.name,
            "type": type_name(field.kind),
            "nullable": field.kind.nullable,
        }
        if isinstance(field.kind, Fixed):
            entry["bytes_per_sample"] = field.kind.nbytes
        if isinstance(field.kind, Label):
            entry["classes"] = dict(zip(field.kind.names, class_counts(reader, position), strict=True))
        fields.append(entry)
    summary: dict[str, Any] = {"path": reader.store.path, "content_id": reader.content_id, "samples": len(reader)}
    parts = list(reader.parts())
    files = [part.store for part in parts if isinstance(part.store, MappedFile)]
    if files:
        for entry, field in zip(fields, reader.fields, strict=True):
            entry["stored"] = "payload" if field.is_payload else "index"
        summary["format"] = f"mmds {MAJOR}.{MINOR}" + (f", {len(files)} files" if len(files) > 1 else "")
        summary["data_bytes"] = sum(file.footer.data_end - DATA_START for file in files)
        summary["index_bytes"] = sum(file.footer.file_length - file.footer.data_end for file in files)
    else:
        found = find_store(reader.path)
        summary["format"] = "other" if found is None else found.name
        summary["left_out"] = dict(getattr(reader.store, "left_out", {}))  # arrays that are no field, and why
    return {
        **summary,
        "file_bytes": sum(tree_size(part.path) for part in parts),
        "fields": fields,
        "metadata": dict(reader.metadata),
    }


def tree_size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
