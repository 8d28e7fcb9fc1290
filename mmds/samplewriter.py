"""Taking samples from a user, whatever store they go to: schema, checks, errors, and how a writer ends."""

from __future__ import annotations

import abc
import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mmds import canonical
from mmds.columns import BadValue, Encoded, Encodings, encode, encode_all
from mmds.dtypes import LOGICAL, as_array
from mmds.errors import ClosedError, SampleError, SchemaError, printable
from mmds.fields import Misfit, describe
from mmds.schema import Schema


class SampleWriter(abc.ABC):
    """Base of all writers. A subclass implements `_begin`, `_append`, `_append_batch`, `_publish` and `_discard`."""

    def __init__(self, path: str | os.PathLike[str], fields: Any, metadata: Mapping[str, Any] | None) -> None:
        self._ended = "before it was opened"
        self.path = Path(path).absolute()
        self.metadata = dict(metadata or {})
        self._check_metadata()
        self._n = 0
        self.like: Schema | None = None  # fields whose kinds are kept where the fields are inferred
        self._schema: Schema | None = None
        self._given = None if fields is None else Schema(fields)

    def _opened(self) -> None:
        """Begin: the last thing that a subclass's constructor does."""
        self._ended = ""
        if self._given is not None:
            self._start(self._given)

    # What a store has to do

    @abc.abstractmethod
    def _begin(self, schema: Schema) -> None:
        """Prepare for samples of `schema`."""

    @abc.abstractmethod
    def _append(self, encoded: list[Encoded]) -> None:
        """Append one sample."""

    @abc.abstractmethod
    def _append_batch(self, batch: list[Encodings], size: int) -> None:
        """Append `size` samples."""

    @abc.abstractmethod
    def _publish(self, schema: Schema) -> None:
        """Complete the dataset and give it its name."""

    @abc.abstractmethod
    def _discard(self) -> None:
        """Free everything, and remove what was not published. Called exactly once."""

    # What users call

    @property
    def fields(self) -> Schema | None:
        """The fields, or None before the first sample if they are to be inferred."""
        return self._schema

    def __len__(self) -> int:
        return self._n

    def write(self, sample: Any) -> None:
        """Append one sample."""
        self._check_open()
        try:
            schema = self._schema or Schema.infer(sample, self.like)
            leaves = schema.leaves(sample)
        except Misfit as misfit:
            raise self._sample_error(misfit, misfit.field, self._n) from None
        encoded: list[Encoded] = []
        for field, value in zip(schema.fields, leaves, strict=True):
            try:
                encoded.append(encode(field.kind, value))
            except Misfit as misfit:
                raise self._sample_error(misfit, field.name, self._n) from None
        if self._schema is None:
            self._start(schema)
        try:
            self._append(encoded)
        except BaseException:  # as _ending_on_error, which would cost a microsecond per sample
            self._finish("unusable after an error")
            raise
        self._n += 1

    def extend(self, samples: Iterable[Any]) -> None:
        """Append samples one by one."""
        for sample in samples:
            self.write(sample)

    def write_batch(self, columns: Any) -> None:
        """Append many samples at once, given as one sample whose leaves have an extra first axis.

        A leaf is an array of shape (B, *shape), or a sequence of B values. All samples of a batch are written, or none.
        Arrays of fixed shape go to the file at the speed of memory.
        """
        self._check_open()
        try:
            schema = self._schema or _infer_batch(columns)
            leaves = schema.leaves(columns)
            sizes = {field.name: _length(leaf, field.name) for field, leaf in zip(schema.fields, leaves, strict=True)}
        except Misfit as misfit:
            raise self._sample_error(misfit, misfit.field, self._n) from None
        if len(set(sizes.values())) != 1:
            raise SampleError(f"{self._shown}: write_batch: fields of different lengths: {printable(sizes)}")
        batch: list[Encodings] = []
        for field, leaf in zip(schema.fields, leaves, strict=True):
            try:
                batch.append(encode_all(field.kind, leaf))
            except BadValue as misfit:
                raise self._sample_error(misfit, field.name, self._n + misfit.number) from None
        if self._schema is None:
            self._start(schema)
        with self._ending_on_error():
            self._append_batch(batch, len(leaves[0]))
        self._n += len(leaves[0])

    def close(self) -> None:
        """Write the index, make the dataset durable and publish it. Calling it again does nothing."""
        if self._ended == "closed":
            return
        self._check_open()
        if self._schema is None:
            self._finish("unusable after an error")
            raise SchemaError(f"{self._shown}: no samples and no fields; pass fields= to write an empty dataset")
        self._check_metadata()  # nothing is lost yet: it can be mended, and closed again
        with self._ending_on_error():
            self._publish(self._schema)
        self._finish("closed")

    def abort(self) -> None:
        """Give up: remove what was written. Calling it again, or after `close`, does nothing."""
        if not self._ended:
            self._finish("aborted")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            if self._ended != "aborted":
                try:
                    self.close()
                finally:
                    self.abort()  # does nothing if that went well
        else:
            self.abort()

    def __del__(self) -> None:
        if not self._ended:
            self.abort()
            warnings.warn(
                f"{self._shown}: the Writer was never closed; nothing was published", ResourceWarning, stacklevel=2
            )

    # State

    @property
    def _shown(self) -> str:
        return printable(self.path, 4096)

    def _start(self, schema: Schema) -> None:
        with self._ending_on_error():
            self._begin(schema)
        self._schema = schema

    def _check_open(self) -> None:
        if self._ended:
            raise ClosedError(f"{self._shown}: this Writer is {self._ended}")

    def _check_metadata(self) -> None:
        try:
            canonical.dump({"metadata": self.metadata})  # one level down, as in the footer
        except (TypeError, ValueError, RecursionError) as error:
            raise SchemaError(f"metadata cannot be written as JSON: {printable(error)}") from None

    def _finish(self, how: str) -> None:
        self._ended = how
        self._discard()

    @contextlib.contextmanager
    def _ending_on_error(self) -> Iterator[None]:
        """End the writer on any exception: what is in the file no longer matches what it has counted."""
        try:
            yield
        except BaseException:
            self._finish("unusable after an error")
            raise

    def _sample_error(self, misfit: Misfit, name: str, sample: int) -> SampleError:
        field = f"field '{printable(name)}': " if name else ""
        reason = f"expected {misfit.expected}, got {misfit.got}"
        where = f"{self._shown}: sample {sample}{', ' if field else ': '}"
        return SampleError(f"{where}{field}{reason}", f"{field}{reason}")


def _length(leaf: Any, name: str) -> int:
    if (
        isinstance(leaf, (str, bytes, Mapping, Set))
        or not hasattr(leaf, "__len__")
        or getattr(leaf, "shape", None) == ()
    ):
        raise Misfit("an array or a list of values", describe(leaf), name)
    return len(leaf)


def _infer_batch(columns: Any) -> Schema:
    """Return the schema of a batch's first sample."""

    def first(node: Any, path: tuple[str | int, ...] = ()) -> Any:
        if isinstance(node, dict) and node:
            return {key: first(child, (*path, key)) for key, child in node.items()}
        if isinstance(node, tuple) and node:
            return tuple(first(child, (*path, key)) for key, child in enumerate(node))
        if not hasattr(node, "__getitem__") or getattr(node, "shape", None) == () or not len(node):
            raise Misfit("a non-empty batch (arrays or lists) to infer the fields from", describe(node))
        if hasattr(node, "__array__"):
            array, name = as_array(node)
            if array.ndim == 1 and name not in LOGICAL:
                return array[0]  # a numpy scalar, also where a tensor would give a tensor of rank 0
        return node[0]

    return Schema.infer(first(columns))
