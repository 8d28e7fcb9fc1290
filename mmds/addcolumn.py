"""Columns for a folder of shards: `add_column` gives every sample one more field, without a look at what is there already.

The values go to an ``.mmds`` file of their own, a sidecar, and then ``dataset.json`` is replaced by one that lists it. Readers
see the dataset with the column or without it. Sidecars lie in ``columns/``; what is there and not listed any more is removed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np

from mmds.datafile import DataFile
from mmds.dtypes import LOGICAL, as_array
from mmds.errors import FormatError, SampleError, SchemaError, SourceError, printable
from mmds.fields import Array, Bytes, Kind, Label, Misfit, Scalar, Text, describe
from mmds.infer import infer
from mmds.manifest import Manifest, Shard, describe_shard, locked, open_listed, publish_manifest, read_manifest
from mmds.publish import storage_errors, sync_folder
from mmds.schema import Schema
from mmds.shards import Shards
from mmds.sidecar import Joined, join, open_folder
from mmds.writer import Writer

FOLDER = "columns"
BATCH_BYTES = 8 * 2**20  # of an array that are written at once
BATCH = 1024  # values, of anything else


def add_column(
    path: str | os.PathLike[str], name: str, values: Iterable[Any], *, kind: Kind | None = None, replace: bool = False
) -> None:
    """Give each sample of the dataset in folder `path` the key `name`, with the next one of `values`.

    `values` is an array with samples as its first axis (a memmap is copied in pieces), or any iterable of as many values
    as there are samples. `kind` says what they are (``mmds.Label(names)``, ``mmds.Array(...)``); without it, the first
    value does, as in a `Writer`; text and bytes become columns of the index, and a list with None in it is nullable.

    Samples must be dicts. The new key is their last one; with ``replace=True`` it may be one that they have, whose
    values are then read from the new column. Readers keep what they have opened; `MemoryMappedDataset` says in a process
    that opens it again that it has changed.

    Raises `SampleError` if there are more or fewer values than samples, or one does not fit, `SchemaError`, `SourceError`
    if `path` is no folder, `StorageError`. The dataset is as it was then.
    """
    where = f"{printable(path)}: column '{printable(name)}'"
    if isinstance(values, (str, bytes, Mapping)) or getattr(values, "shape", None) == ():
        raise SampleError(f"{where}: expected one value for each sample, got {describe(values)}")
    with _changing(path) as (folder, shards, sidecars):
        fields = join([shards.schema, *(sidecar.schema for sidecar in sidecars)], where).structure
        if not replace and name in fields:
            raise SchemaError(
                f"{printable(path)}: there is a key '{printable(name)}' already; replace=True replaces it"
            )
        if isinstance(values, Sized) and len(values) != shards.n:
            raise SampleError(f"{where}: {len(values)} values for {shards.n} samples")
        if kind is None:
            kind, values = _inferred(values, where)
        Schema({**fields, name: kind})  # SchemaError if there is none
        manifest, place = _manifest(shards), _place(sidecars, name, where)
        relative = _free_name(manifest, name)
        before, after = manifest.columns[: place.start], manifest.columns[place.stop :]
        with _removed_on_error(folder, relative):
            _write(folder / relative, name, kind, values, manifest.n, where)
            with storage_errors(folder / relative):
                entry = describe_shard(folder / relative, relative)
                open_listed(folder, entry)
            _publish(folder, manifest, (*before, entry, *after))


def drop_column(path: str | os.PathLike[str], name: str) -> None:
    """Take the column `name`, which `add_column` has added, away again; a key that it replaced is back.

    Raises `SchemaError` if there is no such column.
    """
    with _changing(path) as (folder, shards, sidecars):
        manifest, place = _manifest(shards), _place(sidecars, name, printable(path))
        if not place:
            raise SchemaError(f"{printable(path)}: no column '{printable(name)}' was added to it")
        _publish(folder, manifest, manifest.columns[: place.start] + manifest.columns[place.stop :])


def read_values(path: Path, classes: Sequence[str] | None = None) -> tuple[Any, Kind | None]:
    """Return the values in a file, and their kind where that is known, for `add_column`.

    An array (.npy), or one text (.txt) or JSON value (.jsonl) for each line. With `classes`, they are class names or numbers.
    """
    if path.suffix == ".npy":
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False), None if classes is None else Label(tuple(classes))
        except ValueError as error:
            raise SourceError(f"{printable(path)}: {printable(error)}") from None
    if path.suffix not in (".txt", ".jsonl"):
        raise SourceError(f"{printable(path)}: values are read from .npy, .txt and .jsonl files")
    values: list[Any] = []
    numbers = {name: number for number, name in enumerate(classes or ())}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            value = line.decode() if path.suffix == ".txt" else json.loads(line)
        except ValueError as error:
            raise SourceError(f"{printable(path)}: line {number}: {printable(error)}") from None
        if classes is not None and isinstance(value, str):
            if value not in numbers:
                raise SourceError(f"{printable(path)}: line {number}: {describe(value)} is none of the classes")
            value = numbers[value]
        values.append(value)
    return values, None if classes is None else Label(tuple(classes), nullable=None in values)


@contextmanager
def _changing(path: str | os.PathLike[str]) -> Iterator[tuple[Path, Shards, Sequence[DataFile]]]:
    folder = Path(path)
    if not folder.is_dir():
        folder.stat()  # FileNotFoundError
        shown = printable(path)
        raise SourceError(
            f"{shown}: only a folder of shards can get a column, and this is one file. Make a folder of it: "
            f"mmds convert {shown} FOLDER.mmds --shard-size 1GB"
        )
    with ExitStack() as stack:
        with storage_errors(folder):
            stack.enter_context(locked(folder))
        store = open_folder(folder)
        yield (folder, store.shards, store.sidecars) if isinstance(store, Joined) else (folder, store, ())


@contextmanager
def _removed_on_error(folder: Path, relative: str) -> Iterator[None]:
    """Remove a sidecar, and a folder for none, after an error; one that the manifest lists has been added all the same."""
    try:
        yield
    except BaseException:
        with suppress(OSError, FormatError):
            if relative not in {shard.path for shard in read_manifest(folder).columns}:
                (folder / relative).unlink(missing_ok=True)
                (folder / FOLDER).rmdir()
        raise


def _manifest(shards: Shards) -> Manifest:
    assert shards.manifest is not None
    return shards.manifest


def _place(sidecars: Sequence[DataFile], name: str, where: str) -> range:
    """Return which sidecar holds the column `name`: one number, or none at the end."""
    for number, sidecar in enumerate(sidecars):
        if name in sidecar.schema.structure:
            if len(sidecar.schema.structure) > 1:
                raise SchemaError(f"{where}: is in one file with other columns: {printable(sidecar.path)}")
            return range(number, number + 1)
    return range(len(sidecars), len(sidecars))


def _free_name(manifest: Manifest, name: str) -> str:
    """Return a path for the column that the manifest does not list: always the same one for the same manifest."""
    taken = {column.path for column in (*manifest.shards, *manifest.columns)}
    plain = re.sub(r"[^A-Za-z0-9_]+", "_", name)[:40]
    return next(path for number in count() if (path := f"{FOLDER}/{plain}-{number}.mmds") not in taken)


def _publish(folder: Path, manifest: Manifest, columns: tuple[Shard, ...]) -> None:
    """Replace the manifest, and remove the sidecars that it does not list any more, or that an earlier run has left."""
    publish_manifest(folder, dataclasses.replace(manifest, columns=columns), overwrite=True)
    listed = {shard.path for shard in (*manifest.shards, *columns)}
    for path in folder.glob(f"{FOLDER}/*.mmds"):
        if path.relative_to(folder).as_posix() not in listed:
            with storage_errors(path):
                path.unlink()


def _inferred(values: Any, where: str) -> tuple[Kind, Iterable[Any]]:
    """Return the kind of values, and the values: an iterator has been read as far as its first value."""
    try:
        array, dtype = as_array(values[:1]) if _is_array(values) else (None, "")
    except SchemaError:  # an array of strings or objects: its values say more
        array = None
    if array is not None:
        return (Scalar(dtype) if array.ndim == 1 and dtype not in LOGICAL else Array(dtype, array.shape[1:])), values
    nullable = isinstance(values, Sequence) and any(value is None for value in values)
    rest = iter(values)
    head: list[Any] = []
    for value in rest:
        head.append(value)
        if value is not None:
            break
    if not head or head[-1] is None:
        raise SampleError(f"{where}: no value that is not None; say what the values are with kind=")
    try:
        kind = infer(head[-1])
    except (Misfit, SchemaError) as error:
        raise SampleError(f"{where}: {error}; kind= says what other values are") from None
    if isinstance(kind, (Text, Bytes)):
        kind = dataclasses.replace(kind, column=True)
    return dataclasses.replace(kind, nullable=nullable or len(head) > 1), chain(head, rest)


def _is_array(values: Any) -> bool:
    return hasattr(values, "__array__") and hasattr(values, "__getitem__")


def _write(path: Path, name: str, kind: Kind, values: Iterable[Any], n: int, where: str) -> None:
    with storage_errors(path):
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            sync_folder(path.parent.parent)
    with Writer(path, {name: kind}, overwrite=True) as writer:  # what is there is not listed
        for batch in _batches(values):
            writer.write_batch({name: batch})
            if len(writer) > n:
                break
        if len(writer) != n:
            raise SampleError(f"{where}: {len(writer)}{' or more' * (len(writer) > n)} values for {n} samples")


def _batches(values: Any) -> Iterator[Any]:
    if _is_array(values):
        size = max(1, len(values) * BATCH_BYTES // max(1, getattr(values, "nbytes", BATCH_BYTES)))
        yield from (values[start : start + size] for start in range(0, len(values), size))
    else:
        rest = iter(values)
        while batch := list(islice(rest, BATCH)):
            yield batch
