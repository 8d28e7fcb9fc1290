"""A folder of shards as one dataset, with the columns that were added later as sidecars. `manifest.py` specifies it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from mmds.datafile import DataFile
from mmds.errors import FormatError, printable
from mmds.manifest import NAME, Manifest, open_listed, read_manifest
from mmds.openfile import Reading
from mmds.schema import Schema
from mmds.shards import Listed, Shards
from mmds.store import Items

NdArray = np.ndarray[Any, Any]


def open_folder(
    folder: str | os.PathLike[str], reading: Reading = "mapped", listed: Listed | None = None
) -> Shards | Joined:
    """Open the dataset in a folder: its manifest, its first shard and its sidecars. `FormatError` if it is none.

    `listed` opens what the manifest lists, if that is somewhere else.
    """
    manifest = folder_manifest(folder)
    while True:
        try:
            return _open(folder, manifest, reading, listed)
        except FormatError:  # somebody has replaced a sidecar, and the manifest, since it was read?
            before, manifest = manifest, folder_manifest(folder)
            if manifest == before:
                raise


def folder_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Return the manifest of a folder; `FormatError` where it is none, or there is none."""
    try:
        return read_manifest(folder)
    except FileNotFoundError:
        if not os.path.isdir(folder):  # noqa: PTH112 (takes both kinds of path)
            raise
        shown = printable(folder)
        if not any(name.endswith(".mmds") for name in os.listdir(folder)):  # noqa: PTH208
            raise FormatError(f"{shown}: a folder without {NAME}, so not a dataset") from None
        raise FormatError(
            f"{shown}: a folder without {NAME}, so an unfinished dataset: continue the conversion with --resume. "
            f"To read the files that are there as they are, give the pattern {shown}/*.mmds"
        ) from None


def _open(
    folder: str | os.PathLike[str], manifest: Manifest, reading: Reading, listed: Listed | None
) -> Shards | Joined:
    shards = Shards([folder], manifest, reading, listed)
    if not manifest.columns:
        return shards
    listed = listed or partial(open_listed, folder, reading=reading)
    return Joined(shards, [listed(column) for column in manifest.columns])


class Joined:
    """The samples of shards, with further or other fields from sidecars. A `MappedStore`."""

    def __init__(self, shards: Shards, sidecars: Sequence[DataFile]) -> None:
        self.shards, self.sidecars = shards, sidecars
        self.path, self.source, self.n, self.manifest = shards.path, shards.source, shards.n, shards.manifest
        self.metadata, self.content_id = shards.metadata, shards.content_id
        self.schema = join([shards.schema, *(sidecar.schema for sidecar in sidecars)], shards.path)
        self.stores: list[Shards | DataFile] = [shards, *sidecars]
        owners = {key: store for store in self.stores for key in store.schema.structure}  # the last one counts
        homes = [(owners[str(field.path[0])], field.name) for field in self.schema]
        self.homes = [(store, store.schema.index(name)) for store, name in homes]
        self.items: list[Items] = [store.items[position] for store, position in self.homes]
        self.wanted = shards.wanted

    def files(self) -> Iterator[DataFile]:
        """Yield each shard and each sidecar."""
        yield from self.shards.files()
        yield from self.sidecars

    @property
    def added(self) -> set[str]:
        """The names of the fields that are in sidecars."""
        return {field.name for sidecar in self.sidecars for field in sidecar.schema}

    def find_key(self, position: int, data: bytes) -> Iterator[int]:
        """Yield the samples whose value of the key field at `position` has the bytes `data`, in order."""
        store, inside = self.homes[position]
        return store.find_key(inside, data)

    def ask(self, positions: Sequence[int], rows: NdArray) -> None:
        """Ask the kernel to read `rows` of the fields at `positions`. Does not wait for it."""
        for store, inside in self._by_store(positions):
            store.ask(inside, rows)

    def release(self, positions: Sequence[int], rows: NdArray) -> None:
        """Take `rows` of the fields at `positions` out of this process; they stay in the page cache."""
        for store, inside in self._by_store(positions):
            store.release(inside, rows)

    def _by_store(self, positions: Sequence[int]) -> Iterator[tuple[Shards | DataFile, list[int]]]:
        for store in self.stores:
            inside = [self.homes[position][1] for position in positions if self.homes[position][0] is store]
            if inside:
                yield store, inside


def join(schemas: Sequence[Schema], where: str) -> Schema:
    """Return the schema of samples of the first schema with the keys of the others; `FormatError` where there is none."""
    first, *others = [schema.structure for schema in schemas]
    joined: dict[str, Any] = {}
    for structure in (first, *others):
        if not isinstance(structure, dict):
            raise FormatError(f"{printable(where)}: samples that are no dicts have no place for more columns")
    for structure in others:
        for key in structure:
            if key in joined:
                raise FormatError(f"{printable(where)}: two sidecars have the key '{printable(key)}'")
            joined[key] = structure[key]
    return Schema({**first, **joined})
