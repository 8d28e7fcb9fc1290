"""Parquet files. Columns and types: see `arrowtypes`.

Parquet is made for scans: to read one row is to unpack its row group. Ours are about 1 MiB, and the ones read last are
kept. Numbers in lists cost several bytes each in memory while they are unpacked. To train from it, convert it.
Nulls are known from the statistics of the row groups; a column without statistics is taken to have some.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmds.converters.arrowitems import ArrowStore, open_chunks
from mmds.converters.arrowtypes import KEY, Leaf, is_list
from mmds.converters.arrowwriter import ArrowWriter
from mmds.converters.batches import follow
from mmds.converters.chunkcache import ChunkCache
from mmds.errors import FormatError, printable
from mmds.schema import Schema
from mmds.store import file_identity


def open_store(path: str) -> ArrowStore:
    """Open a Parquet file."""
    identity = file_identity(path)
    try:
        groups = RowGroups(path)
    except (pa.ArrowException, ValueError, OSError, MemoryError) as error:
        if getattr(error, "errno", None):  # the operating system's, not Arrow's
            raise
        raise FormatError(f"{printable(path)}: not a whole Parquet file: {printable(error)}") from None
    return open_chunks(groups, path, identity)


class RowGroups:
    """The row groups of a file."""

    kept = 1

    def __init__(self, path: str) -> None:
        self._path = path
        self._metadata = pq.read_metadata(path, memory_map=True)
        self._local = threading.local()  # a pyarrow file is not for several threads
        self._cache = ChunkCache()
        self.columns: pa.Schema = self._file.schema_arrow
        keys = {**(self.columns.metadata or {}), **(self._metadata.metadata or {})}
        self.columns = self.columns.with_metadata(keys)
        sizes = [self._metadata.row_group(k).num_rows for k in range(self._metadata.num_row_groups)]
        self.bounds = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)

    @property
    def _file(self) -> Any:
        file = getattr(self._local, "file", None)
        if file is None:
            file = pq.ParquetFile(self._path, metadata=self._metadata, memory_map=True, pre_buffer=False)
            self._local.file = file
        return file

    def column(self, chunk: int, name: str) -> pa.Array:
        """Return a column of one row group."""
        return self._cache.get((chunk, name), lambda: self._read(chunk, name))

    def _read(self, chunk: int, name: str) -> pa.Array:
        try:
            table = self._file.read_row_group(chunk, columns=[name], use_threads=False)
            column = table.column(name).combine_chunks()
            column.validate()
            rows = self._metadata.row_group(chunk).num_rows
            if len(column) != rows:
                raise ValueError(f"{len(column)} values for {rows} rows")
        except (pa.ArrowException, ValueError, OSError, KeyError, MemoryError) as error:
            where = f"{printable(self._path)}: row group {chunk}, column '{printable(name)}'"
            raise FormatError(f"{where}: {printable(error)}") from None
        if isinstance(column, pa.ChunkedArray):  # what pyarrow returns for no chunks at all, and for some types
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        return column

    def has_nulls(self, leaf: Leaf) -> bool:
        """Return whether any value of a field is null, as far as that is known without unpacking it."""
        type = self.columns.field(leaf.column).type
        path = [leaf.column]
        for step in leaf.steps:
            type = type.field(step)
            path.append(type.name)
            type = type.type
        nested = is_list(type) or pa.types.is_fixed_size_list(type)
        prefix = ".".join(path)
        for chunk in range(self._metadata.num_row_groups):
            group = self._metadata.row_group(chunk)
            for number in range(group.num_columns):
                column = group.column(number)
                if column.physical_type != self._metadata.schema.column(number).physical_type:
                    raise FormatError(f"{printable(self._path)}: row group {chunk}, column {number}: of another type")
                if column.path_in_schema == prefix or (nested and column.path_in_schema.startswith(prefix + ".")):
                    nulls = column.statistics.null_count if column.statistics else None
                    if nulls is None or (nulls and not nested):
                        return True
                    if nulls and follow(self.column(chunk, leaf.column), leaf.steps).null_count:
                        return True  # an empty list counts as null in the statistics
        return False

    def names(self, leaf: Leaf) -> tuple[str, ...] | None:
        """Return None: each row group has its own dictionary."""
        return None


class Writer(ArrowWriter):
    """Write samples to a Parquet file with small row groups."""

    TARGET = 2**20
    _file: Any = None

    def open_file(self, schema: Schema) -> None:
        """Open the file."""
        coded = [column.name for column in self._columns if pa.types.is_dictionary(column.type)]
        columns = self._columns.with_metadata(
            {KEY: self.early_description(schema)}
        )  # what a table keeps when it is read
        self._file = pq.ParquetWriter(str(self.staging.content), columns, use_dictionary=coded, compression="zstd")

    def write_table(self, table: pa.Table, rows: int) -> None:
        """Write row groups."""
        self._file.write_table(table, row_group_size=rows)

    def close_file(self, schema: Schema) -> None:
        """Write the description into the footer."""
        self._file.add_key_value_metadata({KEY.decode(): self.description(schema)})
        self.close_library()

    def close_library(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
