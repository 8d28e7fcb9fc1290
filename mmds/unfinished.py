"""What a writer left that was killed: a file without index, and beside it the log from which the index can be made.

All samples are saved whose data and index were in both files, which a `Writer` sees to every 64 MiB. Data is compared to the
hashes in the log, so that what a power cut took is not mistaken for samples.
"""

from __future__ import annotations

import fcntl
import os
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from mmds import canonical
from mmds.blocks import block_hash
from mmds.errors import FormatError, StorageError, printable
from mmds.filebytes import FileBytes, reading
from mmds.format import BLOCK, DATA_START, HEADER, KEY_ROLES, layout, schema_id
from mmds.publish import log_of
from mmds.schema import Schema
from mmds.spool import HEAD, PREAMBLE
from mmds.writer import Writer, spooled

PIECE = 2**20


class Log:
    """The strings in a log, as far as they are whole."""

    def __init__(self, path: Path) -> None:
        self._file = FileBytes(os.fspath(path))
        self._pieces: dict[int, list[tuple[int, int]]] = defaultdict(list)
        offset = 0
        while offset + HEAD.size <= len(self._file):
            number, length, digest = HEAD.unpack(self._file.read(offset, HEAD.size))
            offset += HEAD.size
            if offset + length > len(self._file) or self._hash(offset, length) != digest:
                break  # all that follows was written later
            self._pieces[number].append((offset, length))
            offset += length
        self._ends = {number: [*accumulate(length for _, length in pieces)] for number, pieces in self._pieces.items()}

    def _hash(self, offset: int, length: int) -> int:
        hashed = xxhash.xxh3_64()
        for start in range(offset, offset + length, PIECE):
            hashed.update(self._file.read(start, min(PIECE, offset + length - start)))
        return hashed.intdigest()

    def length(self, number: int) -> int:
        """Return how many bytes of string `number` there are."""
        return self._ends[number][-1] if number in self._ends else 0

    def read(self, number: int, start: int, stop: int) -> bytes:
        """Return bytes of string `number`, all of which are there."""
        return b"".join(self.pieces(number, start, stop))

    def whole(self, number: int, limit: int | None = None) -> bytes:
        """Return string `number`; `ValueError` if it is longer than `limit`."""
        length = self.length(number)
        if limit is not None and length > limit:
            raise ValueError(f"{length} bytes; at most {limit} are allowed")
        return self.read(number, 0, length)

    def pieces(self, number: int, start: int, stop: int) -> Iterator[bytes]:
        """Yield bytes of string `number` piece by piece."""
        while start < stop:
            at = bisect_right(self._ends[number], start)
            offset, length = self._pieces[number][at]
            skipped = start - (self._ends[number][at] - length)
            size = min(length - skipped, stop - start, PIECE)
            yield self._file.read(offset + skipped, size)
            start += size

    def number(self, string: int, index: int) -> int:
        """Return one number of a string of u64."""
        return int.from_bytes(self.read(string, 8 * index, 8 * index + 8), "little")


class Unfinished:
    """An unfinished file: `n` samples of it can be saved. Locked, so that no writer removes it meanwhile."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        shown, log = printable(path), log_of(self.path)
        if not log.exists():
            raise FormatError(
                f"{shown}: an unfinished file, and {printable(log.name)} is not beside it: nothing says what its samples "
                "are. It is written with the first 64 MiB"
            )
        self.data, self.log = FileBytes(os.fspath(path)), Log(log)
        try:
            fcntl.flock(self.data.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(error.errno, f"{shown} is still being written by another process") from None
        try:
            fields, self.metadata = (
                canonical.load(self.log.whole(PREAMBLE + k, canonical.MAX_BYTES)) for k in range(2)
            )
            self.schema = Schema.from_json(fields)
        except (ValueError, LookupError, TypeError) as error:
            raise FormatError(f"{printable(log)}: does not say which fields there are: {printable(error)}") from None
        header = np.frombuffer(self.data.read(0, HEADER.itemsize).ljust(HEADER.itemsize), HEADER)[0]
        if header["schema_id"].tobytes() != schema_id(self.schema):
            raise FormatError(f"{shown}: not the file that {printable(log.name)} belongs to")
        self.numbers = {role: number for number, role in enumerate(spooled(self.schema))}
        self.row_sizes = _row_sizes(self.schema)
        self.n = self._count()

    def _count(self) -> int:
        """Return how many samples have all of their data and all of their index."""
        log, per_sample = self.log, len(self.schema.payload)
        counts: list[int] = []
        for (role, position), size in self.row_sizes.items():
            number = self.numbers[role, position]
            length = log.length(number)
            if role == "value_ends":
                values = log.length(self.numbers["values", position])
                counts.append(self._last(number, 1, length // 8 - 1, values))
            elif size:
                counts.append((length - 8 * (role == "ends")) // size)
        n = max(0, min(counts, default=0))
        return self._last(self.numbers["ends", None], per_sample, n, self._whole_data()) if per_sample else n

    def _last(self, string: int, step: int, n: int, limit: int) -> int:
        """Return how many samples end within `limit`, of at most `n`, by a string of ends, `step` of them per sample."""
        ends = range(1, max(n, 0) + 1)
        return bisect_right(ends, limit, key=lambda k: self.log.number(string, k * step))

    def _whole_data(self) -> int:
        """Return how far the file is as it was written."""
        string = len(self.numbers)
        for block in range(min(self.log.length(string) // 8, len(self.data) // BLOCK)):
            if block_hash(self.data.read(block * BLOCK, BLOCK)) != self.log.number(string, block):
                return block * BLOCK
        return min(self.log.length(string) // 8, len(self.data) // BLOCK) * BLOCK

    @property
    def data_end(self) -> int:
        """Where the data of the last sample ends."""
        return self.log.number(self.numbers["ends", None], self.n * len(self.schema.payload))


def _row_sizes(schema: Schema) -> dict[tuple[str, int | None], int]:
    """Return how many bytes each sample adds to the strings that have a row for every sample, by role and field."""
    one = layout(schema, 1, DATA_START, dict.fromkeys(range(len(schema)), 0))
    return {
        (section.role, section.field): section.nbytes - 8 * (section.role in ("ends", "value_ends"))
        for section in one
        if section.role not in ("values", "dictionary", "blocks", *KEY_ROLES)
    }


class Finisher(Writer):
    """A writer that takes what another one has written."""

    def finish(self, found: Unfinished, progress: Callable[[int], None]) -> None:
        """Write all samples of an unfinished file with the same fields; `progress` gets bytes as they are done."""
        self._check_open()
        assert self._spool is not None and self._schema is not None
        with self._ending_on_error(), reading(found.data.path):
            dictionaries = {k: found.log.whole(found.numbers["dictionary", k]) for k in self._schema.compressed}
            if dictionaries:
                self._begin_samples(self._schema, dictionaries)
            for start in range(DATA_START, found.data_end, BLOCK):
                size = min(BLOCK, found.data_end - start)
                self._stream.copy(found.data.fd, start, size)
                progress(size)
            for (role, position), number in found.numbers.items():
                if role != "dictionary":
                    start, stop = (8, 8) if role in ("ends", "value_ends") else (0, 0)  # the first end is there already
                    stop += found.n * found.row_sizes.get((role, position), 0)
                    if role == "values":
                        assert position is not None
                        stop = self._totals[position] = found.log.number(found.numbers["value_ends", position], found.n)
                        if position in self._keys:
                            self._take_keys(found, position)
                    for piece in found.log.pieces(number, start, stop):
                        self._spool.append(number, piece)
            self._n = found.n

    def _take_keys(self, found: Unfinished, position: int) -> None:
        values, ends = (found.numbers[role, position] for role in ("values", "value_ends"))
        for first in range(0, found.n, 2**14):
            last = min(first + 2**14, found.n)
            marks: Any = np.frombuffer(found.log.read(ends, 8 * first, 8 * last + 8), "<u8").tolist()
            data = found.log.read(values, marks[0], marks[-1])
            for low, high in pairwise(marks):
                self._keys[position].append(data[low - marks[0] : high - marks[0]])
