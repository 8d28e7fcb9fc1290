"""What a dataset contains, as plain values: for `mmds info`, its JSON, and whoever else wants to show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmds.converters.stores import find_store
from mmds.datafile import DataFile
from mmds.fields import Array, Fixed, Kind, Label, Scalar
from mmds.format import DATA_START, MAJOR, MINOR
from mmds.items import NullableItems
from mmds.manifest import Manifest
from mmds.reader import Reader
from mmds.remote import is_url
from mmds.shards import Shards
from mmds.sidecar import Joined
from mmds.store import MaskedItems, Store

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
        if isinstance(field.kind, Label):  # at a URL, all labels would have to be fetched to count them
            counts = [None] * len(field.kind.names) if is_url(reader.path) else class_counts(reader, position)
            entry["classes"] = dict(zip(field.kind.names, counts, strict=True))
        fields.append(entry)
    summary: dict[str, Any] = {"path": reader.store.path, "content_id": reader.content_id, "samples": len(reader)}
    sizes = _sizes(reader.store)
    if sizes is not None:
        added = reader.store.added if isinstance(reader.store, Joined) else ()
        for entry, field, name in zip(fields, reader.fields, reader.stored_names, strict=True):
            entry["stored"] = "sidecar" if name in added else "payload" if field.is_payload else "index"
        summary |= sizes
    else:
        found = find_store(reader.path)
        summary["format"] = "other" if found is None else found.name
        summary["left_out"] = dict(getattr(reader.store, "left_out", {}))  # arrays that are no field, and why
        summary["file_bytes"] = tree_size(Path(reader.path))
    return {**summary, "fields": fields, "metadata": dict(reader.metadata)}


def _sizes(store: Store) -> dict[str, Any] | None:
    """Return of which ``.mmds`` files a dataset consists, and their sizes; None if it is none of such files."""
    if not isinstance(store, (DataFile, Shards, Joined)):
        return None
    manifest: Manifest | None = getattr(store, "manifest", None)
    if manifest is not None and is_url(store.path):
        return _listed_sizes(manifest)
    count = data = index = total = 0
    for file in (store,) if isinstance(store, DataFile) else store.files():  # not all may be open together
        count += 1
        data += file.footer.data_end - DATA_START
        index += file.footer.file_length - file.footer.data_end
        total += file.footer.file_length
    sizes: dict[str, Any] = {"data_bytes": data, "index_bytes": index, "file_bytes": total}
    if manifest is not None:
        return {**_listed_sizes(manifest), **sizes}
    return {**sizes, "format": f"mmds {MAJOR}.{MINOR}" + (f", {count} files" if count > 1 else "")}


def _listed_sizes(manifest: Manifest) -> dict[str, Any]:
    """Return what a manifest says of sizes, so that none of the files has to be opened."""
    files = (*manifest.shards, *manifest.columns)
    bytes_each = [shard.bytes for shard in manifest.shards]
    return {
        "file_bytes": sum(file.bytes for file in files),
        "shards": {"count": len(bytes_each), "smallest": min(bytes_each), "largest": max(bytes_each)},
        "sidecars": len(manifest.columns),
        "format": f"mmds {MAJOR}.{MINOR}, {len(files)} files",
    }


def tree_size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
