"""Writing one ``.mmds`` file from front to back, in constant memory."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from mmds import canonical
from mmds.blocks import BlockStream
from mmds.dtypes import LOGICAL, as_array
from mmds.errors import ClosedError, SampleError, SchemaError, printable
from mmds.fields import Array, Buffer, Fixed, Label, Misfit, describe
from mmds.format import DATA_START, SECTION_ALIGN, constant_layout, layout, pack_end, pack_header
from mmds.publish import Draft
from mmds.schema import Field, Schema
from mmds.spool import Spool

BATCH_BYTES = 4 * 2**20  # rows of a batch are padded to their stride in pieces of about this size

Encoded = Buffer | None  # None is a null value
Column = (
    Sequence[Encoded] | np.ndarray[Any, Any]
)  # a field's values in a batch: encoded one by one, or (B, nbytes) uint8


class Writer:
    """Write samples to a new ``.mmds`` file, which appears at `path` when the with-block ends without an exception.

    `fields` is a structure like a sample with kinds for leaves (or another dataset's `fields`); without it, the fields
    are inferred from the first sample. `metadata` is anything that JSON can hold, and may be changed until the end.

    A sample that does not fit raises `SampleError` and leaves the writer as it was. Failures of the operating system
    raise `StorageError` and end it. In both cases nothing appears at `path` unless `close` is reached.

    >>> import mmds, numpy, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with mmds.Writer(f"{folder.name}/points.mmds") as writer:
    ...     writer.write({"x": numpy.zeros(3, "float32"), "name": "origin"})
    ...     writer.write_batch({"x": numpy.ones((2, 3), "float32"), "name": ["a", "b"]})
    >>> len(mmds.open(f"{folder.name}/points.mmds"))
    3
    >>> folder.cleanup()
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fields: Any = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        self._ended = "before it was opened"
        self.metadata = dict(metadata or {})
        self._check_metadata()
        schema = None if fields is None else Schema(fields)
        self._draft = Draft(path, overwrite=overwrite)
        self._ended = ""
        self._n = 0
        self._schema: Schema | None = None
        if schema is not None:
            self._start(schema)

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
            schema = self._schema or Schema.infer(sample)
            leaves = schema.leaves(sample)
        except Misfit as misfit:
            raise self._sample_error(misfit, misfit.field, self._n) from None
        encoded: list[Encoded] = []
        for field, value in zip(schema.fields, leaves, strict=True):
            try:
                encoded.append(None if value is None and field.kind.nullable else field.kind.encode(value))
            except Misfit as misfit:
                raise self._sample_error(misfit, field.name, self._n) from None
        if self._schema is None:
            self._start(schema)
        try:
            self._append(encoded)
        except BaseException:  # as _ending_on_error, which would cost a microsecond per sample
            self._finish("unusable after an error")
            raise

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
        batch = [self._encode_column(field, leaf) for field, leaf in zip(schema.fields, leaves, strict=True)]
        if self._schema is None:
            self._start(schema)
        with self._ending_on_error():
            self._append_batch(batch, len(leaves[0]))

    def close(self) -> None:
        """Write the index, make the file durable and publish it. Calling it again does nothing."""
        if self._ended == "closed":
            return
        self._check_open()
        with self._ending_on_error():
            if self._schema is None:
                raise SchemaError(f"{self._shown}: no samples and no fields; pass fields= to write an empty dataset")
            self._check_metadata()
            self._write_index(self._schema)
            self._draft.publish()
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
                self.close()
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
        return printable(self._draft.path)

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
        if self._schema is not None:
            self._spool.close()
        self._draft.discard()

    @contextlib.contextmanager
    def _ending_on_error(self) -> Iterator[None]:
        """End the writer on any exception: what is in the file no longer matches what it has counted."""
        try:
            yield
        except BaseException:
            self._finish("unusable after an error")
            raise

    def _sample_error(self, misfit: Misfit, name: str, sample: int) -> SampleError:
        field = f", field '{printable(name)}'" if name else ""
        return SampleError(f"{self._shown}: sample {sample}{field}: expected {misfit.expected}, got {misfit.got}")

    # Appending

    def _start(self, schema: Schema) -> None:
        sections = layout(schema, 0, DATA_START, dict.fromkeys(range(len(schema)), 0))[:-1]  # `blocks` is not spooled
        self._numbers = {(section.role, section.field): number for number, section in enumerate(sections)}
        self._spool = Spool(self._draft.path.parent, len(self._numbers))
        self._stream = BlockStream(self._draft)
        self._constant = constant_layout(schema)
        self._totals: dict[int, int] = {}
        self._schema = schema
        with self._ending_on_error():
            self._stream.write(pack_header(schema))
            self._spool.append(self._numbers["ends", None], DATA_START.to_bytes(8, "little"))
            for position, field in enumerate(schema.fields):
                if not isinstance(field.kind, Fixed) and not field.is_payload:
                    self._totals[position] = 0
                    self._spool.append(self._numbers["value_ends", position], bytes(8))
        self._sinks = [self._sink(position, field) for position, field in enumerate(schema.fields)]

    def _sink(self, position: int, field: Field) -> Callable[[Encoded], None]:
        """Return the function that appends one encoded value of `field` to its place in the file."""
        append, numbers = self._spool.append, self._numbers
        kind = field.kind
        if isinstance(kind, Fixed) and kind.is_column:
            zeros = bytes(kind.nbytes or 0)
            column = numbers["column", position]

            def sink(data: Encoded) -> None:
                append(column, zeros if data is None else data)

        elif not field.is_payload:

            def sink(data: Encoded) -> None:
                append(numbers["values", position], b"" if data is None else data)
                self._totals[position] += 0 if data is None else len(data)
                append(numbers["value_ends", position], self._totals[position].to_bytes(8, "little"))

        else:
            align, stream, ends = field.align, self._stream, numbers["ends", None]
            shape = numbers.get(("shape", position))

            def sink(data: Encoded) -> None:
                stream.pad(align)
                if data is not None:
                    stream.write(data)
                append(ends, stream.position.to_bytes(8, "little"))
                if shape is not None:
                    append(shape, _unknown_sizes(kind, data))

        if not kind.nullable:
            return sink
        valid = numbers["valid", position]

        def nullable_sink(data: Encoded) -> None:
            sink(data)
            append(valid, b"\0" if data is None else b"\1")

        return nullable_sink

    def _append(self, encoded: Iterable[Encoded]) -> None:
        for sink, data in zip(self._sinks, encoded, strict=True):
            sink(data)
        self._n += 1

    def _encode_column(self, field: Field, leaf: Any) -> Column:
        """Return a field's values in a batch as (B, nbytes) uint8 rows if they are fixed, else encoded one by one."""
        kind = field.kind
        if isinstance(kind, Fixed) and not kind.unknown and not kind.nullable and hasattr(leaf, "__array__"):
            shape = tuple(size for size in kind.dimensions if size is not None)
            try:
                array = Array(kind.dtype if isinstance(kind, Array) else kind.stored.name, shape).as_stored(leaf)
            except Misfit:
                array = None  # another dtype: let each value say whether it fits
            if array is not None and array.shape[1:] == shape and _labels_fit(kind, array):
                return np.ascontiguousarray(array).reshape(len(array), math.prod(shape)).view(np.uint8)
        encoded: list[Encoded] = []
        for number, value in enumerate(leaf):
            try:
                encoded.append(None if value is None and kind.nullable else kind.encode(value))
            except Misfit as misfit:
                raise self._sample_error(misfit, field.name, self._n + number) from None
        return encoded

    def _append_batch(self, batch: list[Column], size: int) -> None:
        assert self._schema is not None
        payload = [batch[position] for position in self._schema.payload]
        if not all(isinstance(column, np.ndarray) for column in payload) or (payload and self._constant is None):
            for encoded in zip(*batch, strict=True):
                self._append(encoded)
            return
        for position, column in enumerate(batch):
            if position in self._schema.payload:
                continue
            if isinstance(column, np.ndarray):
                self._spool.append(self._numbers["column", position], column)
            else:
                for data in column:
                    self._sinks[position](data)
        if payload and size:
            self._append_rows(payload, size)
        self._n += size

    def _append_rows(self, payload: list[Any], size: int) -> None:
        """Append payload items at constant positions: rows of `stride` bytes, the last one without its tail padding."""
        assert self._constant is not None and self._schema is not None
        (stride, offsets, length), alignment = self._constant, self._schema.alignment
        self._stream.pad(alignment)
        first = self._stream.position
        if len(payload) == 1 and payload[0].shape[1] == stride:
            self._stream.write(payload[0])
        else:
            step = max(1, BATCH_BYTES // max(stride, 1))
            for start in range(0, size, step):
                rows = np.zeros((min(step, size - start), stride), np.uint8)
                for offset, column in zip(offsets, payload, strict=True):
                    rows[:, offset : offset + column.shape[1]] = column[start : start + step]
                self._stream.write(rows.reshape(-1)[: rows.size - (stride - length if start + step >= size else 0)])
        starts = first + np.arange(size, dtype=np.uint64)[:, None] * np.uint64(stride)
        ends = starts + np.array([o + c.shape[1] for o, c in zip(offsets, payload, strict=True)], np.uint64)
        self._spool.append(self._numbers["ends", None], ends.astype("<u8"))

    def _write_index(self, schema: Schema) -> None:
        stream, data_end = self._stream, self._stream.position
        sections = layout(schema, self._n, data_end, self._totals)
        for section in sections[:-1]:
            stream.pad(SECTION_ALIGN)
            stream.write(section.npy_header())
            for piece in self._spool.read(self._numbers[section.role, section.field]):
                stream.write(piece)
        stream.pad(SECTION_ALIGN)
        hashes = stream.hashes()
        stream.write(sections[-1].npy_header())
        stream.write(hashes)
        stream.pad(SECTION_ALIGN)
        root = hashlib.sha256(hashes).hexdigest()
        try:
            end = pack_end(schema, self._n, data_end, sections, root, self.metadata)
        except ValueError as error:
            raise SchemaError(f"{self._shown}: fields and metadata do not fit into a footer: {error}") from None
        stream.write(end)
        stream.flush()


def _unknown_sizes(kind: Any, data: Any) -> bytes:
    if data is None:
        return bytes(4 * kind.unknown)
    sizes = [have for have, want in zip(data.shape, kind.dimensions, strict=True) if want is None]
    return np.array(sizes, "<u4").tobytes()


def _labels_fit(kind: Fixed, array: np.ndarray[Any, Any]) -> bool:
    return not isinstance(kind, Label) or not array.size or bool(array.min() >= 0 and array.max() < len(kind.names))


def _length(leaf: Any, name: str) -> int:
    try:
        return len(leaf)
    except TypeError:
        raise Misfit("an array or a list of values", describe(leaf), name) from None


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
