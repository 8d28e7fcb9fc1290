"""Samples as they are stored: rows of the index, and where in which file the payload lies, of any number of ``.mmds`` files.

Files are read by position (`pread`) instead of through their maps. So nothing of them stays in this process, however large they
are, and a file that is cut short or a disk that fails is an error instead of a signal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from mmds.datafile import DataFile
from mmds.errors import ChangedError, FormatError, SourceError, printable
from mmds.fields import Fixed, Variable
from mmds.filebytes import WINDOW, FileBytes, near, reading
from mmds.format import DATA_START, TRAILER, Section
from mmds.parse import Footer
from mmds.reader import Reader
from mmds.remote import is_url
from mmds.schema import Field
from mmds.shards import Shards
from mmds.sidecar import Joined

NdArray = np.ndarray[Any, Any]

PIECE = 2**20  # bytes of strings that are in memory at once
INDEX_BYTES = 2**20  # of one section that are in memory at once
MAX_ROWS = 2**16
OPEN_FILES = 64


@dataclass(frozen=True)
class FileId:
    """Which file: the one at `path` as long as it has this length and content id."""

    path: str
    length: int
    content_id: str


class RawFile(FileBytes):
    """An open file that is read by position."""

    def __init__(self, file: FileId) -> None:
        with reading(file.path):
            super().__init__(file.path)
        trailer = self.read(file.length - TRAILER.itemsize, TRAILER.itemsize) if len(self) == file.length else b""
        if not trailer or np.frombuffer(trailer, TRAILER)[0]["content_id"].tobytes().hex() != file.content_id:
            raise ChangedError(f"{printable(self.path)} was replaced since this dataset was opened. Open it again")


@dataclass(frozen=True)
class _Part:
    """Some of the samples in question: `rows` of one file, which stand at the positions `at`."""

    file: int  # its number in `Stored.files`
    footer: Footer
    at: Any
    rows: NdArray


@dataclass(frozen=True)
class Spans:
    """Where values lie: `starts` and `stops` in the files with numbers `files`. One shape for all of them."""

    files: NdArray
    starts: NdArray
    stops: NdArray

    @property
    def lengths(self) -> NdArray:
        return self.stops - self.starts


class StoredDataset:
    """An ``.mmds`` dataset by where its values are stored: all samples of a reader; `SourceError` if it is in another store."""

    def __init__(self, reader: Reader, opened: Callable[[FileId], FileBytes] | None = None) -> None:
        """Take all samples of `reader`, from files that `opened` opens, if that is not by their paths."""
        store, schema = reader.store, reader.fields
        self.reader = reader
        positions = [store.schema.index(name) for name in reader.stored_names]
        homes: list[tuple[Any, int]] = (
            [store.homes[k] for k in positions] if isinstance(store, Joined) else [(store, k) for k in positions]
        )
        for home, _ in homes:
            if not isinstance(home, (DataFile, Shards)):
                raise SourceError(
                    f"{printable(store.path)}: not an .mmds dataset, so its samples cannot be copied as they are stored; "
                    "mmds convert makes one of it"
                )
        if is_url(reader.path):
            raise SourceError(
                f"{printable(store.path)}: samples are copied from files, and this is a URL; download it first, or make a "
                "file of it by mmds convert, which reads URLs"
            )
        self.n, self.schema, self.homes = store.n, schema, homes
        self.open: Callable[[FileId], FileBytes] = opened or lru_cache(OPEN_FILES)(RawFile)
        self.dictionary = lru_cache(OPEN_FILES)(self._dictionary)
        per_row = max(8 * len(schema.payload), *(_row_size(field) for field in schema))
        self.rows_at_once = max(1, min(MAX_ROWS, INDEX_BYTES // per_row))

    def _dictionary(self, file: FileId, offset: int, size: int) -> bytes:
        return self.open(file).read(offset, size)

    def at(self, rows: NdArray) -> Stored:
        """Return samples `rows` (int64, all in range), of which there should be at most `rows_at_once`."""
        return Stored(self, rows)


def _row_size(field: Field) -> int:
    kind = field.kind
    return (kind.nbytes or 0) if isinstance(kind, Fixed) and kind.is_column else 16


class Stored:
    """Some samples as they are stored."""

    def __init__(self, dataset: StoredDataset, rows: NdArray) -> None:
        self._dataset, self._n, self.schema = dataset, len(rows), dataset.schema
        self.files: list[FileId] = []
        self._parts: list[tuple[Any, list[_Part]]] = []
        for store in {id(home): home for home, _ in dataset.homes}.values():
            found = [(store, slice(None), rows)] if isinstance(store, DataFile) else store.split(rows)
            parts: list[_Part] = []
            self._parts.append((store, parts))
            for file, at, inside in found:  # of `file` itself only the footer is kept: a map takes a file descriptor
                parts.append(_Part(len(self.files), file.footer, at, inside))
                self.files.append(FileId(file.path, file.footer.file_length, file.content_id))

    def __len__(self) -> int:
        return self._n

    def open(self, number: int) -> FileBytes:
        """Return one of `files`, open."""
        return self._dataset.open(self.files[number])

    def rows(self, role: str, position: int) -> NdArray:
        """Return the rows of a section with one row per sample: uint8 of shape (samples, bytes of a row)."""
        found: NdArray | None = None
        for part, section in self._sections(role, position):
            size = section.nbytes // section.shape[0]
            rows = self.open(part.file).rows(section.data, size, size, part.rows)
            if found is None:
                found = np.empty((self._n, size), np.uint8)
            found[part.at] = rows
        return np.empty((0, 0), np.uint8) if found is None else found

    def strings(self, position: int) -> Spans:
        """Return where the values of a bytes or text column lie; `FormatError` where that is outside of them."""
        spans = _empty((self._n,))
        ends = {part.file: section for part, section in self._sections("value_ends", position)}
        for part, values in self._sections("values", position):
            pairs = self.open(part.file).rows(ends[part.file].data, 8, 16, part.rows).view("<u8")
            low, high = pairs[:, 0], pairs[:, 1]
            self._check((low > high) | (high > values.nbytes), part, position, low, high, values.nbytes)
            _put(spans, part, np.uint64(values.data) + low, np.uint64(values.data) + high)
        return spans

    def column(self, position: int) -> NdArray:
        """Return the values of a column: an array (samples, *shape), or str or bytes as objects. Nulls are zero or empty."""
        field = self.schema.fields[position]
        if isinstance(field.kind, Fixed):
            shape = [size for size in field.kind.dimensions if size is not None]
            return self.rows("column", position).reshape(-1).view(field.kind.stored).reshape(self._n, *shape)
        assert isinstance(field.kind, Variable)
        try:
            values = [field.kind.decode(value) for piece in self.read(self.strings(position)) for value in piece]
        except ValueError as error:
            raise FormatError(
                f"{printable(self.files[0].path)}: field '{printable(field.name)}': {printable(error)}; run mmds verify"
            ) from None
        found = np.empty(self._n, object)
        found[:] = values
        return found

    def valid(self, position: int) -> NdArray | None:
        """Return which samples have a value of a field, as bools; None where it cannot be null."""
        if not self.schema.fields[position].kind.nullable:
            return None
        valid: NdArray = self.rows("valid", position)[:, 0] != 0
        return valid

    def dictionaries(self, position: int) -> list[bytes]:
        """Return the different dictionaries that a compressed field has in the files in question."""
        sections = self._sections("dictionary", position)
        found = [self._dataset.dictionary(self.files[part.file], each.data, each.nbytes) for part, each in sections]
        return list(dict.fromkeys(found))

    def sizes(self) -> NdArray:
        """Return about how many bytes each sample takes, in the data and in the index."""
        total = np.zeros(self._n, np.int64)
        for position, field in enumerate(self.schema):
            kind = field.kind
            if field.is_payload:
                total += 8 + 4 * (kind.unknown if isinstance(kind, Fixed) and kind.unknown > 1 else 0)
            elif isinstance(kind, Fixed):
                total += kind.nbytes or 0
            else:
                total += 8 + self.strings(position).lengths
            total += kind.nullable
        if self.schema.payload:
            alignment = self.schema.alignment
            total += (self.payload()[0].lengths + (alignment - 1) & -alignment).sum(axis=1)
        return total

    def payload(self) -> tuple[Spans, NdArray]:
        """Return where payload items lie, and their numbers in their files: all of shape (samples, payload fields).

        `FormatError` where one is outside of the data, or has a length that values of its field cannot have.
        """
        schema, homes = self.schema, self._dataset.homes
        spans, numbers = _empty((self._n, len(schema.payload))), np.zeros((self._n, len(schema.payload)), np.int64)
        for home, part in ((home, part) for home, parts in self._parts for part in parts if home.schema.payload):
            step = len(home.schema.payload)
            section, data_end = part.footer.section("ends"), part.footer.data_end
            ends = self.open(part.file).rows(section.data, 8 * step, 8 * (step + 1), part.rows).view("<u8")
            for column, position in enumerate(schema.payload):
                if homes[position][0] is not home:
                    continue
                number = home.schema.payload_numbers[homes[position][1]]
                low, stop = ends[:, number], ends[:, number + 1]
                start = align_up_all(low, schema.fields[position].align)
                bad = (low < DATA_START) | (low > stop) | (stop > data_end) | (start > stop)
                bad |= _misplaced(part, schema.fields[position], number, start, stop)
                self._check(bad, part, position, start, stop, data_end)
                _put(spans, part, start, stop, column)
                numbers[part.at, column] = part.rows * step + number
        return spans, numbers

    def read(self, spans: Spans) -> Iterator[list[memoryview]]:
        """Yield the bytes in `spans` in their order, in lists of about `PIECE` bytes or fewer."""
        if not len(spans.starts):
            return
        pieces = np.cumsum(spans.lengths) // PIECE
        for at in np.split(np.arange(len(pieces)), np.flatnonzero(np.diff(pieces)) + 1):
            files, starts, stops = spans.files[at], spans.starts[at], spans.stops[at]
            values: list[Any] = [None] * len(at)
            for number in np.unique(files).tolist():
                of_file = np.flatnonzero(files == number)
                for neighbours in near(starts[of_file], WINDOW):
                    group = of_file[neighbours]
                    low, high = int(starts[group].min()), int(stops[group].max())
                    data = memoryview(self.open(number).read(low, high - low))
                    begins, ends = (starts[group] - low).tolist(), (stops[group] - low).tolist()
                    for k, begin, end in zip(group.tolist(), begins, ends, strict=True):
                        values[k] = data[begin:end]
            yield values

    def _sections(self, role: str, position: int) -> Iterator[tuple[_Part, Section]]:
        home, inside = self._dataset.homes[position]
        for part in next(parts for store, parts in self._parts if store is home):
            yield part, part.footer.section(role, inside)

    def _check(self, bad: NdArray, part: _Part, position: int, starts: NdArray, stops: NdArray, size: int) -> None:
        if bad.any():
            first = int(np.argmax(bad))
            raise FormatError(
                f"{printable(self.files[part.file].path)}: sample {part.rows[first]}, "
                f"field '{printable(self.schema.fields[position].name)}': bytes {starts[first]} to {stops[first]} "
                f"of {size}, which cannot be its value; run mmds verify"
            )


def _misplaced(part: _Part, field: Field, number: int, starts: NdArray, stops: NdArray) -> NdArray:
    """Return which items do not have the length, or the place, that all values of their field have."""
    kind = field.kind
    size = kind.nbytes if isinstance(kind, Fixed) and not kind.nullable and not field.is_compressed else None
    wrong: NdArray = np.zeros(len(starts), bool) if size is None else stops - starts != size
    if part.footer.constant is not None:
        stride, offsets, _ = part.footer.constant
        wrong |= starts != (part.rows * stride + (DATA_START + offsets[number])).astype(np.uint64)
    return wrong


def align_up_all(offsets: NdArray, alignment: int) -> NdArray:
    """Return `align_up` of each offset, an array of uint64."""
    mask = np.uint64(alignment - 1)
    aligned: NdArray = (offsets + mask) & ~mask
    return aligned


def _empty(shape: tuple[int, ...]) -> Spans:
    return Spans(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64))


def _put(spans: Spans, part: _Part, starts: NdArray, stops: NdArray, column: int | None = None) -> None:
    at = part.at if column is None else (part.at, column)
    spans.files[at], spans.starts[at], spans.stops[at] = part.file, starts, stops
