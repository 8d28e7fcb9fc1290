"""One ``.mmds`` file read by position instead of through a map, and, if wanted, checked while it is read.

Nothing here can end in a signal, whatever happens to the file or its disk, and the file takes no address space. Values are
copies: in batches, one copy from the page cache as from a map, at the price of a system call per value.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmds.damage import affected
from mmds.datafile import DataFile
from mmds.errors import FormatError, MmdsError, StorageError, printable
from mmds.fields import Array, Fixed
from mmds.filebytes import FileBytes
from mmds.format import BLOCK, DATA_START, Section
from mmds.gather import empty
from mmds.items import Access, ScatteredItems, Tell, VariableItems
from mmds.parse import Footer
from mmds.store import ArrayItems

NdArray = np.ndarray[Any, Any]

SMALL = 2**10  # bytes of a row below which neighbours are read together, with what is between them
MANY = 64  # values that are read before they are copied
PIECE = 2**20  # bytes of such rows that are read before they are copied
_two_ends = struct.Struct("<QQ").unpack


class PositionedFile(DataFile):
    """With `checked`, every block of 1 MiB is compared to its hash before anything of it is used for the first time."""

    def __init__(self, path: str | os.PathLike[str], *, checked: bool = False) -> None:
        self.view = CheckedBytes(os.fspath(path)) if checked else FileBytes(os.fspath(path))
        super().__init__(self.view.path, self.view, POSITIONED)
        if isinstance(self.view, CheckedBytes):
            self.view.check_from_now_on(self.footer)
        self._open_items()

    def ask(self, positions: Sequence[int], rows: NdArray) -> None:
        """Ask the kernel to read `rows` of the fields at `positions`. Does not wait for it."""
        for position in positions:
            self.items[position].locate(rows, self._ask)

    def _ask(self, starts: NdArray, stops: NdArray) -> None:
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            self.view.expect(start, stop - start)


class CheckedBytes(FileBytes):
    """The bytes of a file whose blocks are compared to their hashes when they are first read."""

    _unseen = bytearray()  # a byte for each block: 1 until it has been checked
    discard: Callable[[], object] | None = None  # of a copy that can be fetched again: removes it

    def check_from_now_on(self, footer: Footer) -> None:
        """Read the hashes, 8 bytes for each MiB of the file, and check all that is read from now on."""
        from mmds.blocks import block_hash  # xxhash, which other readers have no use for

        section = footer.sections[-1]
        hashes = self.read(section.data, section.nbytes)
        if hashlib.sha256(hashes).hexdigest() != footer.root:
            raise FormatError(f"{printable(self.path)}: the block hashes differ from their sha256 in the footer")
        self._hashes, self._hash = np.frombuffer(hashes, "<u8"), block_hash
        self._content_id, self._covers = footer.content_id, section.offset
        self._unseen = bytearray(b"\1") * len(self._hashes)

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; `FormatError` or `StorageError` if they are damaged."""
        self._check(offset, length)
        return super().read(offset, length)

    def read_spans(self, starts: NdArray, lengths: NdArray) -> list[bytes]:
        """Return the bytes from each of `starts` on; errors as of `read`."""
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True) if self._unseen.find(1) >= 0 else ():
            self._check(start, length)
        return super().read_spans(starts, lengths)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `offset` on; errors as of `read`."""
        self._check(offset, len(target))
        super().read_into(offset, target)

    def _check(self, offset: int, length: int) -> None:
        last = (offset + length - 1) // BLOCK
        block = self._unseen.find(1, offset // BLOCK, last + 1)
        while block >= 0:
            self._check_block(block)
            block = self._unseen.find(1, block + 1, last + 1)

    def _check_block(self, block: int) -> None:
        start = block * BLOCK
        try:
            content = super().read(start, min(BLOCK, self._covers - start))
        except StorageError as error:
            if error.errno is None:  # no disk's: a request failed, which says nothing of the block
                raise
            reason = f"cannot be read ({os.strerror(error.errno or 0)})"
            raise StorageError(error.errno, self._describe(block, reason) + self._given_up()) from None
        if self._hash(content) != self._hashes[block]:
            raise FormatError(self._describe(block, "differs from its hash") + self._given_up())
        self._unseen[block] = 0

    def _open_again(self) -> DataFile:
        """Return the same file, unchecked."""
        return PositionedFile(self.path)

    def _describe(self, block: int, reason: str) -> str:
        """Return what is wrong, with the samples and fields that it hits."""
        damages = f"block {block} (bytes {block * BLOCK} to {(block + 1) * BLOCK}) {reason}"
        with contextlib.suppress(MmdsError, OSError):  # the index, which tells them, may be damaged as well
            file = self._open_again()
            if file.content_id == self._content_id:
                damages = "; ".join(map(str, affected(file, block, reason, (block,))))
        return f"{printable(self.path)}: {damages}. "

    def _given_up(self) -> str:
        """Remove a damaged file if it can be fetched again, and return what to do."""
        if self.discard is None:
            return "mmds verify says what else is damaged, and --repair saves the rest"
        self.discard()
        return "It was removed from the cache: open the dataset again, and it is fetched anew"


class _Part:
    """Some of the bytes of a file."""

    def __init__(self, view: FileBytes, start: int, stop: int) -> None:
        self._view, self._start, self._length = view, start, stop - start

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._length)
        return self._view.read(self._start + start, stop - start) if stop > start else b""

    def read_spans(self, starts: NdArray, stops: NdArray) -> list[bytes]:
        """Return the bytes from each of `starts` to each of `stops`."""
        return self._view.read_spans(starts + self._start, stops - starts)

    @property
    def start(self) -> int:
        """Where in the file it begins."""
        return self._start


class PositionedArray:
    """An array in a file, with as much of an ndarray's interface as reading takes. What it gives are copies."""

    def __init__(
        self, view: FileBytes, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int, stride: int | None = None
    ) -> None:
        self.view, self.dtype, self.shape, self.offset = view, dtype, shape, offset
        self.size = math.prod(shape[1:]) * dtype.itemsize
        self.stride = self.size if stride is None else stride

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self))))
        if isinstance(index, np.ndarray):
            return self.take(index.astype(np.int64, copy=False))
        data = self.view.read(self.offset + index * self.stride, self.size) if self.size else b""
        return np.frombuffer(data, self.dtype).reshape(self.shape[1:])

    def item(self, index: int) -> Any:
        """Return one number as a Python number."""
        return self[index].item()

    def take(self, rows: NdArray, out: NdArray | None = None) -> NdArray:
        """Return the rows with these numbers, in `out` if given."""
        if out is None:
            out = empty((len(rows), *self.shape[1:]), self.dtype)
        if not out.nbytes:
            return out
        if not out.flags.c_contiguous:
            out[:] = self.take(rows)
            return out
        target = out.reshape(-1).view(np.uint8).reshape(len(rows), self.size)
        if self.size == self.stride and (len(rows) == 1 or (np.diff(rows) == 1).all()):
            self.view.read_into(self.offset + rows.item(0) * self.stride, target.reshape(-1).data)
        elif self.size < SMALL:
            for start in range(0, len(rows), PIECE // SMALL):
                part = slice(start, start + PIECE // SMALL)
                target[part] = self.view.rows(self.offset, self.stride, self.size, rows[part])
        else:
            self.view.read_each_into(self.offset + rows * self.stride, target)
        return out

    def searchsorted(self, value: Any, side: str = "left") -> int:
        """Return where `value` belongs in an ascending array."""
        return (bisect_left if side == "left" else bisect_right)(_Numbers(self), int(value))


class _Numbers(Sequence[int]):
    def __init__(self, array: PositionedArray) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: Any) -> Any:
        return self._array.item(index)


class PositionedRows(ArrayItems):
    """Values of one dtype and shape."""

    def __init__(self, array: PositionedArray, kind: Fixed) -> None:
        self._array = array
        self.shape, self.dtype, self.is_array = array.shape[1:], array.dtype, isinstance(kind, Array)
        self.get: Callable[[int], Any] = (
            array.__getitem__ if self.is_array else array.item
        )  # of `self`, it would be a cycle

    def gather(self, indices: NdArray, out: NdArray | None = None) -> NdArray:
        """Return rows `indices`, in `out` if given: one copy from the page cache."""
        return self._array.take(indices, out)

    def locate(self, indices: NdArray, tell: Tell) -> None:
        """Tell where in the file rows `indices` are."""
        starts = self._array.offset + indices * self._array.stride
        tell(starts, starts + self._array.size)


class PositionedValues(VariableItems):
    """Values whose lengths differ."""

    _view: Any
    _ends: Any

    def contiguous(self, size: int) -> None:
        """Return None: there is nothing to make a view of."""

    def span(self, index: int) -> tuple[int, int]:
        """Return where the value of a sample begins and ends in the view; `FormatError` if that is outside."""
        ends = self._ends
        start, stop = _two_ends(ends.view.read(ends.offset + 8 * (index * self._step + self._first), 16))
        return self._checked(index, (start + self._pad) & self._mask, stop)

    def get(self, index: int) -> Any:
        """Return the value of sample `index`."""
        start, stop = self.span(index)
        return self._value(index, self._view[start:stop])

    def _value(self, index: int, data: bytes) -> Any:
        try:
            return self._decode(data, 0, len(data), index)
        except (ValueError, struct.error) as error:
            raise self._undecodable(index, error) from None

    def spans(self, indices: NdArray, size: int = 1) -> tuple[NdArray, NdArray] | None:
        """Return where samples `indices` begin and end in the view, as they are stored; None as `VariableItems` does."""
        ends = self._ends
        offset, stride = ends.offset + 8 * self._first, 8 * self._step
        pairs = ends.view.rows(offset, stride, 16, indices).reshape(-1).view("<u8").reshape(-1, 2)
        return self._checked_spans(pairs[:, 0], pairs[:, 1], size)

    def gather(self, indices: NdArray) -> list[Any]:
        """Return the values of samples `indices` as a list."""
        spans = self.spans(indices)
        if spans is None:  # one of them says why
            return [self.get(index) for index in indices.tolist()]
        return list(map(self._value, indices.tolist(), self._view.read_spans(*spans)))

    def parts(self, spans: tuple[NdArray, NdArray]) -> list[Any]:
        """Return the bytes from where values begin to where they end."""
        found: list[Any] = self._view.read_spans(*spans)
        return found

    def locate(self, indices: NdArray, tell: Tell) -> None:
        """Tell where in the file the values are."""
        spans = self.spans(indices)
        if spans is not None:
            tell(self._view.start + spans[0], self._view.start + spans[1])


class PositionedScattered(PositionedValues, ScatteredItems):
    """Arrays of one dtype and shape at varying distances."""

    def gather(self, indices: NdArray, out: NdArray | None = None) -> Any:
        """Return the arrays of samples `indices` as one, in `out` if given."""
        if out is None:
            out = empty((len(indices), *self.shape), self.dtype)
        for start in range(0, len(indices), MANY):
            for row, value in enumerate(PositionedValues.gather(self, indices[start : start + MANY]), start):
                out[row] = value
        return out


def _section(view: FileBytes, section: Section) -> PositionedArray:
    return PositionedArray(view, np.dtype(section.dtype), section.shape, section.data)


def _strided(view: FileBytes, footer: Footer, kind: Array, offset: int, stride: int) -> PositionedArray:
    shape = tuple(size for size in kind.shape if size is not None)
    return PositionedArray(view, kind.stored, (footer.n, *shape), DATA_START + offset, stride)


POSITIONED = Access(_Part, _section, _strided, PositionedRows, PositionedValues, PositionedScattered)
