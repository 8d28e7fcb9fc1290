"""Arrow IPC files (``.arrow``, ``.feather``) and the folders of Hugging Face `datasets` (`save_to_disk`).

A file is mapped, and record batches are views of it. Ours are not compressed. Opening reads the header of every batch, for
the number of its rows, 8 MiB apart. Of a compressed file every batch has to be unpacked once at open, and again for each
read that the cache does not answer. Columns and types: see `arrowtypes`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmds.converters.arrowitems import ArrowStore, open_chunks
from mmds.converters.arrowtypes import KEY
from mmds.converters.arrowwriter import ArrowWriter
from mmds.converters.batches import Batches
from mmds.converters.chunkcache import ChunkCache
from mmds.converters.inside import plain_file
from mmds.errors import FormatError, printable
from mmds.schema import Schema
from mmds.store import file_identity

MAX_STATE_BYTES = 2**24
READ = pa.ipc.IpcReadOptions(use_threads=False)  # a pool of threads does not survive a fork


def open_store(path: str) -> ArrowStore:
    """Open an Arrow IPC file, of the file or the stream format, or a folder that `save_to_disk` has written."""
    files = _saved(Path(path)) if Path(path).is_dir() else [path]
    try:
        batches = MappedBatches(files)
    except FormatError:
        raise
    except (pa.ArrowException, ValueError, OSError, MemoryError) as error:
        if getattr(error, "errno", None):  # the operating system's, not Arrow's
            raise
        raise FormatError(f"{printable(path)}: not a whole Arrow file: {printable(error)}") from None
    identity = "+".join(file_identity(file) for file in files)
    return open_chunks(batches, path, identity)


def _saved(folder: Path) -> list[str]:
    """Return the files of a folder written by `datasets.Dataset.save_to_disk`."""
    state = folder / "state.json"
    if not state.exists():
        splits = folder / "dataset_dict.json"
        hint = ""
        if splits.exists():
            with open(plain_file(splits, folder), encoding="utf-8", errors="replace") as file:
                hint = f"; open one of its splits: {printable(file.read(1000), 300)}"
        raise FormatError(f"{printable(folder)}: a folder without state.json, so no saved dataset{hint}")
    try:
        plain_file(state, folder)
        with state.open("rb") as file:
            said = json.loads(file.read(MAX_STATE_BYTES))
        names = [entry["filename"] for entry in said["_data_files"]]
        if said.get("_indices_data_files"):
            raise ValueError("it is a selection by indices; save it again with a newer datasets")
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError("its data files are not names")
        return [plain_file(folder / name, folder) for name in names]
    except OSError as error:
        raise FormatError(f"{printable(folder)}: a file of it cannot be read: {printable(error)}") from None
    except FormatError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{printable(state)}: cannot be read: {printable(error)}") from None


class MappedBatches(Batches):
    """The record batches of some files, one after the other."""

    def __init__(self, files: list[str]) -> None:
        self._schema: pa.Schema | None = None
        self._packed: dict[int, tuple[str, int]] = {}  # the file of a compressed batch, and its number there
        self._cache = ChunkCache()
        found: list[Any] = []
        sizes: list[int] = []
        for file in files:
            for number, batch, mapped in self._read(file):
                if not mapped:
                    self._packed[len(sizes)] = file, number
                found.append(batch if mapped else None)
                sizes.append(len(batch))
        super().__init__(self._schema, found, sizes)
        if self._packed:
            self.kept = 1

    def _read(self, file: str) -> Iterator[tuple[int, pa.RecordBatch, bool]]:
        """Yield the batches of a file: (number, batch, whether to keep it)."""
        if not Path(file).stat().st_size:
            raise FormatError(f"{printable(file)}: an empty file, so not an Arrow file")
        whole = pa.memory_map(file).read_buffer()
        is_file = whole.slice(0, 6).to_pybytes() == b"ARROW1"
        reader = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(pa.BufferReader(whole), options=READ)
        if self._schema is None:
            self._schema = reader.schema
        elif not reader.schema.equals(self._schema):
            raise FormatError(f"{printable(file)}: its columns differ from those of the first file")
        for number, batch in enumerate(map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader):
            batch.validate()
            yield number, batch, not is_file or _lies_in(batch, whole)  # a stream has no way back to a batch

    def batch(self, chunk: int) -> pa.RecordBatch:
        """Return one record batch."""
        if chunk in self._packed:
            return self._cache.get(chunk, lambda: _read_batch(*self._packed[chunk]))
        return super().batch(chunk)


def _read_batch(file: str, number: int) -> pa.RecordBatch:
    try:
        with pa.ipc.open_file(pa.memory_map(file), options=READ) as reader:
            batch = reader.get_batch(number)
        batch.validate()
    except (pa.ArrowException, MemoryError) as error:
        raise FormatError(f"{printable(file)}: batch {number}: {printable(error)}") from None
    return batch


def _lies_in(batch: pa.RecordBatch, whole: pa.Buffer) -> bool:
    """Return whether all data of a batch are views of the mapped file."""
    buffers = [buffer for column in batch.columns for buffer in column.buffers() if buffer is not None and buffer.size]
    return all(whole.address <= buffer.address < whole.address + whole.size for buffer in buffers)


class Writer(ArrowWriter):
    """Write samples to an Arrow IPC file of the file format, not compressed, so that it can be mapped."""

    TARGET = 8 * 2**20
    _file: Any = None

    def open_file(self, schema: Schema) -> None:
        """Open the file. Its schema comes first, so `metadata` is what it is now."""
        self._said = self.early_description(schema)
        self._open(self._said)

    def _open(self, said: bytes) -> None:
        columns = self._columns.with_metadata({KEY: said})
        self._file = pa.ipc.new_file(str(self.staging.content), columns)

    def write_table(self, table: pa.Table, rows: int) -> None:
        """Write record batches."""
        for batch in table.to_batches(max_chunksize=rows):
            self._file.write_batch(batch)

    def close_file(self, schema: Schema) -> None:
        """Write the footer, and all of it again if the metadata has changed since the file was begun."""
        self.close_library()
        said = self.early_description(schema)
        if said == self._said:
            return
        begun = self.staging.content.with_name("begun")
        self.staging.content.rename(begun)
        with pa.ipc.open_file(pa.memory_map(str(begun)), options=READ) as reader:
            self._open(said)
            for number in range(reader.num_record_batches):
                self._file.write_batch(reader.get_batch(number))
        self.close_library()
        begun.unlink()

    def close_library(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
