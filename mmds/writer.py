"""Writing one ``.mmds`` file from front to back, in constant memory."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from mmds import canonical
from mmds.blocks import BlockStream
from mmds.columns import Encoded, Encodings
from mmds.compression import Compression, HeldSamples, compressed, compressor
from mmds.errors import SchemaError
from mmds.fields import Buffer, Fixed
from mmds.format import DATA_START, KEY_ROLES, SECTION_ALIGN, Section, constant_layout, layout, pack_end, pack_header
from mmds.keys import KeySpool
from mmds.publish import Draft
from mmds.samplewriter import SampleWriter
from mmds.schema import Field, Schema
from mmds.spool import Spool

CHECKPOINT = 64  # blocks after which the index goes to the log, so that they can be salvaged;
CHECKPOINT_STRINGS = 64  # more, if the index has more parts than this
BATCH_BYTES = 4 * 2**20  # rows of a batch are padded to their stride in pieces of about this size


class Writer(SampleWriter):
    """Write samples to a new ``.mmds`` file, which appears at `path` when the with-block ends without an exception.

    `fields` is a structure like a sample with kinds for leaves (or another dataset's `fields`); without it, the fields
    are inferred from the first sample. `metadata` is anything that JSON can hold, and may be changed until the end.

    `compression` compresses all payload but images, audio and video, value by value: "zstd", "zstd:LEVEL" (1 to 22, by default
    3), or "zstd:LEVEL:dict", which trains a dictionary for each field on the first samples (up to 1000, or 8 MiB, which are
    held back for that). Fields with ``compression="zstd"`` are compressed without it, too.

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
        compression: str | None = None,
    ) -> None:
        super().__init__(path, fields, metadata)
        self._first_metadata = canonical.dump(self.metadata)  # may be changed, but then an unfinished file has that
        self._compresses = compression is not None
        self._compression = Compression() if compression is None else Compression.parse(compression)
        self._draft = self._new_draft(path, overwrite)
        self._spool: Spool | None = None
        self._keys: dict[int, KeySpool] = {}
        self._held: HeldSamples | None = None  # while they are too few to train dictionaries
        self._opened()

    @property
    def nbytes(self) -> int:
        """About how many bytes the file would have if it ended here."""
        return 0 if self._spool is None else self._stream.position + self._spool.nbytes

    def _new_draft(self, path: str | os.PathLike[str], overwrite: bool) -> Draft:
        return Draft(path, overwrite=overwrite)

    def _start(self, schema: Schema) -> None:
        super()._start(compressed(schema) if self._compresses else schema)

    def _begin(self, schema: Schema) -> None:
        roles = spooled(schema)
        self._numbers = {role: number for number, role in enumerate(roles)}
        described = canonical.dump(schema.to_json()), self._first_metadata
        self._spool = Spool(self.path.parent, len(roles), self._draft.open_log, described)
        every = CHECKPOINT * -(-len(roles) // CHECKPOINT_STRINGS)  # each piece is remembered
        self._stream = BlockStream(self._draft, every, self._note_blocks)
        self._constant = constant_layout(schema)
        self._payload = schema.payload
        self._alignment = schema.alignment
        self._totals: dict[int, int] = {}
        self._stream.write(pack_header(schema))
        self._spool.append(self._numbers["ends", None], DATA_START.to_bytes(8, "little"))
        for position, field in enumerate(schema.fields):
            if not isinstance(field.kind, Fixed) and not field.is_payload:
                self._totals[position] = 0
                self._spool.append(self._numbers["value_ends", position], bytes(8))
                if getattr(field.kind, "key", False):
                    self._keys[position] = KeySpool(self.path.parent)
        if schema.compressed and self._compression.dictionary:
            self._held = HeldSamples()
        else:
            self._begin_samples(schema, {})

    def _note_blocks(self, hashes: bytes) -> None:
        """Make the file one that can be salvaged: all of the index goes to the log, and the hashes of the blocks, too."""
        assert self._spool is not None
        self._spool.flush()
        self._spool.note(len(self._numbers), hashes)

    def _begin_samples(self, schema: Schema, dictionaries: Mapping[int, bytes]) -> None:
        """Make ready for writing samples, with a dictionary for each compressed field that has one."""
        assert self._spool is not None
        # All of them before anything is written: a dictionary may be none.
        self._compressors: dict[int, Callable[[Encoded], bytes]] = {
            position: compressor(self._compression.level, dictionaries.get(position, b""))
            for position in schema.compressed
        }
        for position in schema.compressed:
            dictionary = dictionaries.get(position, b"")
            self._spool.append(self._numbers["dictionary", position], dictionary)
            self._totals[position] = len(dictionary)
        self._sinks = [self._sink(self._spool, position, field) for position, field in enumerate(schema.fields)]

    def _write_held(self) -> None:
        """Train dictionaries on the samples that were held back, and write those."""
        if self._held is not None:
            assert self._schema is not None
            held, self._held = self._held, None
            self._begin_samples(self._schema, {k: held.dictionary(k) for k in self._schema.compressed})
            for encoded in held.samples:
                self._append(encoded)

    def _sink(self, spool: Spool, position: int, field: Field) -> Callable[[Encoded], None]:
        """Return the function that appends one encoded value of `field` to its place in the file."""
        append, numbers = spool.append, self._numbers
        kind = field.kind
        if isinstance(kind, Fixed) and kind.is_column:
            zeros = bytes(kind.nbytes or 0)
            column = numbers["column", position]

            def sink(data: Encoded) -> None:
                append(column, zeros if data is None else data)

        elif not field.is_payload:
            totals, keys = self._totals, self._keys.get(position)

            def sink(data: Encoded) -> None:
                append(numbers["values", position], b"" if data is None else data)
                totals[position] += 0 if data is None else len(data)
                append(numbers["value_ends", position], totals[position].to_bytes(8, "little"))
                if keys is not None:
                    keys.append(b"" if data is None else data)

        else:
            align, stream, ends = field.align, self._stream, numbers["ends", None]
            shape, compress = numbers.get(("shape", position)), self._compressors.get(position)

            def sink(data: Encoded) -> None:
                stream.pad(align)
                if compress is not None:
                    stream.write(compress(data))
                elif data is not None:
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

    def _append(self, encoded: list[Encoded]) -> None:
        if self._held is not None:
            if self._held.append(encoded):
                self._write_held()
            return
        for sink, data in zip(self._sinks, encoded, strict=True):
            sink(data)

    def _append_batch(self, batch: list[Encodings], size: int) -> None:
        assert self._spool is not None
        first = 0
        while self._held is not None and first < size:
            self._append([c[first, ...] if isinstance(c, np.ndarray) else c[first] for c in batch])
            first += 1
        if first == size:
            return
        batch, size = [column[first:] for column in batch] if first else batch, size - first
        rows = [_as_rows(column) if isinstance(column, np.ndarray) else column for column in batch]
        payload = [rows[position] for position in self._payload]
        for position, column in enumerate(rows):
            if position in self._payload:
                continue
            if isinstance(column, np.ndarray):
                self._spool.append(self._numbers["column", position], column)
            elif ("values", position) in self._numbers:
                self._append_values(self._spool, position, column)
            else:
                for data in column:
                    self._sinks[position](data)
        if not payload:
            return
        if self._constant is not None and all(isinstance(column, np.ndarray) for column in payload):
            self._append_rows(self._spool, payload, size)
        else:
            self._append_items(self._spool, payload)

    def _append_values(self, spool: Spool, position: int, column: list[Any]) -> None:
        """Append values of a bytes or text column."""
        values = [b"" if data is None else data for data in column]
        ends = self._totals[position] + np.cumsum([len(data) for data in values], dtype="<u8")
        spool.append(self._numbers["values", position], b"".join(values))
        spool.append(self._numbers["value_ends", position], ends)
        self._totals[position] = int(ends[-1])
        if position in self._keys:
            for data in values:
                self._keys[position].append(data)
        if ("valid", position) in self._numbers:
            spool.append(self._numbers["valid", position], bytes(data is not None for data in column))

    def _append_items(self, spool: Spool, payload: list[Encodings]) -> None:
        """Append payload items of any size, one sample after the other: joined, as long as they are small."""
        compressors = [self._compressors.get(position) for position in self._payload]
        stored = [map(f, items) if f is not None else items for f, items in zip(compressors, payload, strict=True)]
        start = position = self._stream.position
        pieces: list[Any] = []
        ends: list[int] = []
        kinds = [self._schema.fields[k].kind for k in self._payload]  # type: ignore[union-attr]
        aligns = [self._schema.fields[k].align for k in self._payload]  # type: ignore[union-attr]
        for items in zip(*stored, strict=True):
            for data, align in zip(items, aligns, strict=True):
                if gap := -position % align:
                    pieces.append(bytes(gap))
                    position += gap
                if data is not None:
                    pieces.append(data)
                    position += data.nbytes if isinstance(data, np.ndarray) else len(data)
                ends.append(position)
            if position - start >= BATCH_BYTES:
                self._write_pieces(pieces, position - start)
                pieces, start = [], position
        self._write_pieces(pieces, position - start)
        spool.append(self._numbers["ends", None], np.array(ends, "<u8"))
        for k, kind, column in zip(self._payload, kinds, payload, strict=True):
            if kind.nullable:
                spool.append(self._numbers["valid", k], bytes(data is not None for data in column))
            if ("shape", k) in self._numbers:
                spool.append(self._numbers["shape", k], b"".join(_unknown_sizes(kind, data) for data in column))

    def _write_pieces(self, pieces: list[Any], size: int) -> None:
        if size < 2 * BATCH_BYTES:
            pieces = [b"".join(pieces)]
        for piece in pieces:  # one of them is large: not copied once more
            self._stream.write(piece)

    def _append_rows(self, spool: Spool, payload: list[Any], size: int) -> None:
        """Append payload items at constant positions: rows of `stride` bytes, the last one without its tail padding."""
        assert self._constant is not None
        (stride, offsets, length), alignment = self._constant, self._alignment
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
        spool.append(self._numbers["ends", None], ends.astype("<u8"))

    def _publish(self, schema: Schema) -> None:
        assert self._spool is not None
        self._write_held()
        stream, data_end = self._stream, self._stream.position
        sections = layout(schema, self._n, data_end, self._totals)
        for section in sections[:-1]:
            stream.pad(SECTION_ALIGN)
            stream.write(section.npy_header())
            for piece in self._pieces(section):
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
        self._draft.publish()

    def _pieces(self, section: Section) -> Iterable[Buffer]:
        """Return the array of a section piece by piece."""
        assert self._spool is not None
        if section.role in KEY_ROLES:
            assert section.field is not None
            keys = self._keys[section.field]
            return keys.hashes() if section.role == "key_hashes" else keys.rows()
        return self._spool.read(self._numbers[section.role, section.field])

    def _discard(self) -> None:
        self._held = None
        for keys in self._keys.values():
            keys.close()
        if self._spool is not None:
            self._spool.close()
        self._draft.discard()


def spooled(schema: Schema) -> list[tuple[str, int | None]]:
    """Return role and field of the sections that grow while a file is written, in the order of their numbers."""
    sections = layout(schema, 0, DATA_START, dict.fromkeys(range(len(schema)), 0))[:-1]  # without `blocks`
    return [(section.role, section.field) for section in sections if section.role not in KEY_ROLES]


def _as_rows(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return values of shape (B, *shape) as their bytes, (B, nbytes) uint8."""
    return array.reshape(len(array), math.prod(array.shape[1:])).view(np.uint8)


def _unknown_sizes(kind: Any, data: Any) -> bytes:
    if data is None:
        return bytes(4 * kind.unknown)
    sizes = [have for have, want in zip(data.shape, kind.dimensions, strict=True) if want is None]
    return np.array(sizes, "<u4").tobytes()
