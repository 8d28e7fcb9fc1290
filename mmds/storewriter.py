"""Base of the writers to other stores: samples in, batches of columns out, published whole."""

from __future__ import annotations

import abc
import contextlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmds import canonical
from mmds.columns import Column, Encoded, Encodings, as_column
from mmds.errors import SchemaError, StorageError, printable
from mmds.samplewriter import SampleWriter
from mmds.schema import Schema
from mmds.staging import Staging

BATCH_SAMPLES = 1024
BATCH_BYTES = 8 * 2**20  # samples are handed to the library in columns of about this size


class StoreWriter(SampleWriter):
    """Write samples to a store. A subclass implements `create`, `append`, `finish`, and `refuse` if it cannot hold all.

    It writes to `self.staging.content`, which appears at `path` when the with-block ends without an exception.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fields: Any = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        super().__init__(path, fields, metadata)
        self.staging = Staging(path, overwrite=overwrite)
        self._pending: list[list[Encoded]] = []
        self._pending_bytes = 0
        self._created = False
        self._opened()

    # What a store implements

    def refuse(self, schema: Schema) -> str:
        """Return which field this store cannot hold, and why, or an empty text."""
        return ""

    @abc.abstractmethod
    def create(self, schema: Schema) -> None:
        """Create an empty dataset at `self.staging.content`."""

    @abc.abstractmethod
    def append(self, columns: list[Column], size: int) -> None:
        """Append `size` samples, one column per field."""

    @abc.abstractmethod
    def finish(self, schema: Schema) -> None:
        """Write `self.description(schema)` and close the dataset."""

    def close_library(self) -> None:
        """Close what the library has open, after an error too. May be called more than once."""

    def description(self, schema: Schema) -> str:
        """Return what a store keeps under the key "mmds": fields, number of samples, metadata, as canonical JSON."""
        return canonical.dump({"fields": schema.to_json(), "n": self._n, "metadata": self.metadata}).decode()

    # Between SampleWriter and that

    def _begin(self, schema: Schema) -> None:
        reason = self.refuse(schema)
        if reason:
            raise SchemaError(f"{self._shown}: {reason}")
        self._pending = [[] for _ in schema.fields]
        self._kinds = [field.kind for field in schema.fields]
        self._in_library(self.create, schema)

    def _append(self, encoded: list[Encoded]) -> None:
        for pending, data in zip(self._pending, encoded, strict=True):
            pending.append(_kept(data))
            self._pending_bytes += 0 if data is None else data.nbytes if isinstance(data, np.ndarray) else len(data)
        if len(self._pending[0]) >= BATCH_SAMPLES or self._pending_bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        size = len(self._pending[0]) if self._pending else 0
        if size:
            columns = [as_column(kind, data) for kind, data in zip(self._kinds, self._pending, strict=True)]
            self._pending = [[] for _ in self._kinds]
            self._pending_bytes = 0
            self._in_library(self.append, columns, size)

    def _append_batch(self, batch: list[Encodings], size: int) -> None:
        self._flush()
        if size:
            columns = [as_column(kind, data) for kind, data in zip(self._kinds, batch, strict=True)]
            self._in_library(self.append, columns, size)

    def _publish(self, schema: Schema) -> None:
        self._flush()
        self._in_library(self.finish, schema)
        self._in_library(self.close_library)
        self.staging.publish()

    def _discard(self) -> None:
        self._pending = []
        try:
            with contextlib.suppress(OSError):  # what cannot be written now is thrown away
                self.close_library()
        finally:
            self.staging.discard()

    def _in_library(self, function: Any, *arguments: Any) -> None:
        """Call a function that writes; what the operating system refuses becomes a `StorageError`."""
        try:
            function(*arguments)
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(error.errno, f"cannot write {self._shown}: {printable(error)}") from error


def _kept(data: Encoded) -> Encoded:
    """Return `data` in memory of its own: the caller may well use the same array for the next sample."""
    if isinstance(data, np.ndarray):
        return data.copy()
    return data if data is None or isinstance(data, bytes) else bytes(data)
