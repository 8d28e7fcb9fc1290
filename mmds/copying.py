"""Copying samples from ``.mmds`` files into a new one as they are stored: nothing is decoded, and nothing encoded again.

The result is, byte for byte, what a `Writer` makes of the same samples. Where they lie in the data differs, and so do the
gaps between them; values that keep their distances, such as whole runs of neighbours mostly do, are copied together.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmds.blocks import BlockStream
from mmds.fields import Fixed
from mmds.filebytes import FileBytes, reading
from mmds.publish import Draft
from mmds.stored import Spans, Stored, StoredDataset
from mmds.writer import Writer

NdArray = np.ndarray[Any, Any]

BATCH = 64  # samples that are decompressed at once
WINDOW = 2**20  # bytes of a file that are read at once for values that lie near each other:
GAP = 2**15  # with so much between them, it takes as long to read that as to call the kernel once more
AHEAD = (
    4 * 2**20
)  # bytes that are sent to the disk at once: of more, the first would be there, and out of memory, too soon


class EagerDraft(Draft):
    """A draft that is on its way to the disk while it is still being written, for the disk would have nothing to do.

    Linux begins to write what it is told that nobody needs any more; what is not yet written it keeps all the same. So all of
    the file stays in the page cache, and the sync at the end, which took as long as copying, is a third shorter.
    """

    _written = _begun = 0

    def write(self, data: memoryview) -> None:
        """Write all of `data`."""
        super().write(data)
        self._written += len(data)
        if self._written - self._begun >= AHEAD:
            with contextlib.suppress(OSError):  # it is advice; what cannot be written, fsync says
                os.posix_fadvise(self._fd, self._begun, self._written - self._begun, os.POSIX_FADV_DONTNEED)
            self._begun = self._written


class Copier(Writer):
    """A `Writer` that also takes samples as they are stored in other files with the same fields.

    Compressed values are copied as they are, too, if they were compressed with the dictionary of this file, which is that of
    the first file that anything is copied from. Others are decompressed and compressed again.
    """

    _dictionaries: Mapping[int, bytes] = {}

    def _new_draft(self, path: str | os.PathLike[str], overwrite: bool) -> Draft:
        return EagerDraft(path, overwrite=overwrite)

    def copy(self, dataset: StoredDataset, rows: NdArray) -> None:
        """Append samples `rows` of a dataset: int64, all in range, and at most ``dataset.rows_at_once``."""
        if not len(rows):
            return
        self._check_open()
        stored = dataset.at(rows)
        if self._has_dictionaries_of(stored):
            self._copy(stored)
        else:
            for batch in np.array_split(rows, -(-len(rows) // BATCH)):
                self.write_batch(dataset.reader[batch])
                dataset.reader.release(batch)

    def _has_dictionaries_of(self, stored: Stored) -> bool:
        """Return whether compressed values can be copied; before the first sample, take over the dictionaries."""
        schema = stored.schema
        if not schema.compressed:
            return True
        found = {position: stored.dictionaries(position) for position in schema.compressed}
        if not self._n and not self._dictionaries:  # once, also where the first samples turn out not to be whole
            first = {position: each[0] for position, each in found.items()}
            self._begin_samples(schema, first)
            self._dictionaries = first
        return all(each == [self._dictionaries[position]] for position, each in found.items())

    def _copy(self, stored: Stored) -> None:
        """Append samples. All of the index is read, and checked, before anything is written."""
        schema = stored.schema
        spans, numbers = stored.payload()
        rows: dict[tuple[str, int], NdArray] = {}
        strings: dict[int, Spans] = {}
        for position, field in enumerate(schema):
            kind = field.kind
            if isinstance(kind, Fixed) and kind.is_column:
                rows["column", position] = stored.rows("column", position)
            elif isinstance(kind, Fixed) and kind.unknown > 1:
                rows["shape", position] = stored.rows("shape", position)
            elif not field.is_payload:
                strings[position] = stored.strings(position)
            if kind.nullable and position not in strings:
                rows["valid", position] = stored.rows("valid", position)
        assert self._spool is not None
        with self._ending_on_error():
            if schema.payload:
                aligns = [schema.fields[position].align for position in schema.payload]
                starts = arrange(self._stream.position, spans.lengths, aligns)
                copy_payload(stored, spans, numbers, starts, self._stream)
                self._spool.append(self._numbers["ends", None], (starts + spans.lengths).astype("<u8"))
            for section, each in rows.items():
                self._spool.append(self._numbers[section], each)
            for position, where in strings.items():
                valid = stored.valid(position)
                present = itertools.repeat(True) if valid is None else iter(valid.tolist())
                for piece in stored.read(where):
                    values = [value if next(present) else None for value in piece]
                    self._append_values(self._spool, position, values)
        self._n += len(stored)


def arrange(position: int, lengths: NdArray, aligns: list[int]) -> NdArray:
    """Return where values of these `lengths`, of shape (samples, payload fields), begin if they are written from `position` on.

    >>> arrange(4096, np.array([[3, 5], [1, 0]]), [1, 8])
    array([[4096, 4104],
           [4109, 4112]])
    """
    starts = np.empty(lengths.shape, np.int64)
    if aligns[0] != max(aligns):  # the distances in a sample depend on where it begins
        flat: list[int] = []
        for length, align in zip(lengths.reshape(-1).tolist(), aligns * len(lengths), strict=True):
            position += -position % align
            flat.append(position)
            position += length
        starts[:] = np.array(flat, np.int64).reshape(lengths.shape)
        return starts
    ends = np.zeros(len(lengths), np.int64)
    for column, align in enumerate(aligns):
        starts[:, column] = _up(ends, align)
        ends = starts[:, column] + lengths[:, column]
    sizes = _up(ends, aligns[0])
    starts += (position + -position % aligns[0] + np.cumsum(sizes) - sizes)[:, None]
    return starts


def _up(offsets: NdArray, alignment: int) -> NdArray:
    aligned: NdArray = (offsets + (alignment - 1)) & -alignment
    return aligned


def copy_payload(stored: Stored, spans: Spans, numbers: NdArray, targets: NdArray, stream: BlockStream) -> None:
    """Append the items in `spans`, which have these `numbers` in their files, so that they begin at `targets`."""
    files, starts, stops = spans.files.reshape(-1), spans.starts.reshape(-1), spans.stops.reshape(-1)
    numbers, targets = numbers.reshape(-1), targets.reshape(-1)
    shifts, gaps = targets - starts, starts[1:] - stops[:-1]
    # Two that lie as far apart as they shall, with nothing but zeros between them, are one.
    together = (
        (shifts[1:] == shifts[:-1]) & (files[1:] == files[:-1]) & ((numbers[1:] == numbers[:-1] + 1) | (gaps == 0))
    )
    first = np.concatenate(([0], np.flatnonzero(~together) + 1))
    last = np.append(first[1:], len(starts)) - 1
    files, begins, ends, targets = files[first], starts[first], stops[last], targets[first]
    near = (files[1:] == files[:-1]) & (begins[1:] // WINDOW == begins[:-1] // WINDOW) & (begins[1:] >= ends[:-1])
    near &= (begins[1:] - ends[:-1] <= GAP) & (ends[1:] - begins[1:] <= WINDOW) & (ends[:-1] - begins[:-1] <= WINDOW)
    edges = [0, *(np.flatnonzero(~near) + 1).tolist(), len(first)]
    moves = list(zip(begins.tolist(), ends.tolist(), targets.tolist(), strict=True))
    numbers_of_files = files.tolist()
    for number, windows in itertools.groupby(itertools.pairwise(edges), lambda window: numbers_of_files[window[0]]):
        file = stored.open(number)
        with reading(file.path):
            for low, high in windows:
                if high - low == 1:
                    begin, end, target = moves[low]
                    if target != stream.position:
                        stream.write(bytes(target - stream.position))
                    stream.copy(file.fd, begin, end - begin)
                else:
                    stream.write(_joined(file, moves[low:high], stream.position))


def _joined(file: FileBytes, moves: list[tuple[int, int, int]], position: int) -> bytes:
    """Return what moves from a file that lie near each other put into a stream from `position` on: one read for all of them."""
    low, high = moves[0][0], moves[-1][1]
    data = memoryview(file.read(low, high - low))
    pieces: list[memoryview | bytes] = []
    for begin, end, target in moves:
        if target != position:
            pieces.append(bytes(target - position))
        pieces.append(data[begin - low : end - low])
        position = target + end - begin
    return b"".join(pieces)
