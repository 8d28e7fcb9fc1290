"""Gathering the rows of a batch: one copy from the mapped file into memory that is already warm.

Fresh memory is the hidden cost of a batch: the kernel has to find and clear every page of it, which takes longer than the
copy itself. So large batches live in buffers that are used again, as soon as nobody refers to them any more, never before.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np

NdArray = np.ndarray[Any, Any]
Allocate = Callable[[tuple[int, ...], np.dtype[Any]], NdArray]  # a function like `empty`

RECYCLED = 2**18  # bytes from which on a buffer is recycled; below, malloc does that itself
KEPT_BUFFERS = 8  # unused ones kept per process: two fields of a batch in a loader with two threads
PAGE, PLACE = mmap.PAGESIZE, 64


def address(array: NdArray) -> int:
    """Return where in memory an array begins."""
    return int(array.__array_interface__["data"][0])


class _Buffer:
    """Memory that is used again. `array` is uint8; pages of it that nobody has written to cost nothing.

    It begins `PLACE` bytes behind the beginning of a page. Rows of a file begin at multiples of 64, so copies whose source
    and target begin at the same place in a page are common, or would be 16 bytes apart, where numpy's own memory begins.
    Both make copying a fifth slower: the processor takes what it loads for what it has just stored (4 KiB aliasing).
    """

    def __init__(self, size: int) -> None:
        memory: NdArray = np.empty(size + PAGE + PLACE, np.uint8)
        start = -address(memory) % PAGE + PLACE
        self.array = memory[start : start + size]


class _Lease:
    """Owns a buffer while arrays refer to it, and puts it back when the last one is gone."""

    def __init__(self, buffer: _Buffer, free: list[_Buffer]) -> None:
        self._buffer, self._free = buffer, free
        self.__array_interface__ = buffer.array.__array_interface__

    def __del__(self, most: int = KEPT_BUFFERS) -> None:  # its own: at exit, names of the module may be gone
        self._free.append(self._buffer)
        if len(self._free) > most:  # the one unused for longest: other sizes are in use now
            try:
                self._free.pop(0)
            except IndexError:  # another thread has taken some meanwhile
                return


_free: list[_Buffer] = []  # without a lock: it may be held when the garbage collector calls __del__


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NdArray:
    """Return an uninitialised array like `np.empty`, in recycled memory if it is large."""
    size = math.prod(shape) * dtype.itemsize
    if size < RECYCLED:
        return np.empty(shape, dtype)
    return np.asarray(_Lease(_buffer(size_class(size)), _free))[:size].view(dtype).reshape(shape)


def _buffer(size: int) -> _Buffer:
    for buffer in _free[:]:
        if len(buffer.array) == size:
            try:
                _free.remove(buffer)
            except ValueError:  # another thread was faster
                continue
            return buffer
    return _Buffer(size)


def size_class(size: int) -> int:
    """Return `size` rounded up by less than a quarter, so that batches of about one size share their buffers.

    >>> [size_class(size) for size in (1000, 1024, 1025, 1280, 1281)]
    [1024, 1024, 1280, 1280, 1536]
    """
    step = 1 << max(0, (size - 1).bit_length() - 3)
    return -(-size // step) * step


def take_rows(array: NdArray, indices: NdArray, out: NdArray | None = None) -> NdArray:
    """Return ``array[indices]`` in one copy, into `out` or recycled memory. All indices must be in range."""
    if out is None:
        out = empty((len(indices), *array.shape[1:]), array.dtype)
    if array.flags.c_contiguous:
        # mode="raise" would gather into a temporary first.
        np.take(array, indices, axis=0, out=out, mode="clip")
    else:  # np.take would first copy all of a strided array
        for row, index in enumerate(indices.tolist()):
            out[row] = array[index]
    return out
