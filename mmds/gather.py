"""Gathering the rows of a batch: one copy from the mapped file into memory that is already warm.

Fresh memory is the hidden cost of a batch: the kernel has to find and clear every page of it, which takes longer than the
copy itself. So large batches live in buffers that are used again, as soon as nobody refers to them any more, never before.
"""

from __future__ import annotations

import _thread
import contextlib
import math
import mmap
import multiprocessing
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

NdArray = np.ndarray[Any, Any]
Allocate = Callable[[tuple[int, ...], np.dtype[Any]], NdArray]  # a function like `empty`

RECYCLED = 2**18  # bytes from which on a buffer is recycled; below, malloc does that itself
KEPT_BUFFERS = 8  # unused ones kept per process: two fields of a batch in a loader with two threads
PIECES = 4  # of a batch: enough to share evenly; each costs two waits for the interpreter lock
PAGE, PLACE = mmap.PAGESIZE, 64
SPLIT = 2**21  # bytes from which on a second thread pays: starting it costs about as much as copying 256 KiB


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

    def __del__(self) -> None:
        self._free.append(self._buffer)
        if len(self._free) > KEPT_BUFFERS:  # the one unused for longest: other sizes are in use now
            with contextlib.suppress(IndexError):  # another thread may have taken some meanwhile
                self._free.pop(0)


_free: list[_Buffer] = []  # without a lock: it may be held when the garbage collector calls __del__


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NdArray:
    """Return an uninitialised array like `np.empty`, in recycled memory if it is large."""
    size = math.prod(shape) * dtype.itemsize
    if size < RECYCLED:
        return np.empty(shape, dtype)
    return np.asarray(_Lease(_buffer(_size_class(size)), _free))[:size].view(dtype).reshape(shape)


def _buffer(size: int) -> _Buffer:
    for buffer in _free[:]:
        if len(buffer.array) == size:
            try:
                _free.remove(buffer)
            except ValueError:  # another thread was faster
                continue
            return buffer
    return _Buffer(size)


def _size_class(size: int) -> int:
    """Return `size` rounded up by less than a quarter, so that batches of about one size share their buffers.

    >>> [_size_class(size) for size in (1000, 1024, 1025, 1280, 1281)]
    [1024, 1024, 1280, 1280, 1536]
    """
    step = 1 << max(0, (size - 1).bit_length() - 3)
    return -(-size // step) * step


_alone = threading.local()


def work_alone() -> None:
    """Let this thread copy its batches without help, because there are others that copy theirs."""
    _alone.on = True


def take_rows(array: NdArray, indices: NdArray, out: NdArray | None = None) -> NdArray:
    """Return ``array[indices]`` in one copy, into `out` or recycled memory. All indices must be in range.

    A single core cannot fetch scattered rows as fast as memory delivers them, so a second one helps with large batches,
    except in worker processes and threads, of which there are as many as there are cores already.
    """
    if out is None:
        out = empty((len(indices), *array.shape[1:]), array.dtype)
    if out.nbytes < SPLIT or not _has_help():
        _take(array, indices, out)
    else:
        _take_with_help(array, indices, out)
    return out


def _has_help() -> bool:
    in_worker = multiprocessing.parent_process() is not None or hasattr(_alone, "on")
    return not in_worker and len(os.sched_getaffinity(0)) > 1


def _take_with_help(array: NdArray, indices: NdArray, out: NdArray) -> None:
    """Gather with a second thread that lives as long as the call, so that a fork between two batches never meets one.

    Both take pieces from one iterator, so that a second core that is busy elsewhere costs nothing.
    """
    size = max(1, len(indices) // PIECES)
    pieces = iter(range(0, len(indices), size))
    errors: list[BaseException] = []
    helped = _thread.allocate_lock()  # held until the helper is done
    helped.acquire()

    def take_pieces() -> int:
        taken = 0
        for start in pieces:
            piece = slice(start, start + size)
            _take(array, indices[piece], out[piece])
            taken += 1
        return taken

    def help_out() -> None:
        try:
            take_pieces()
        except BaseException as error:  # noqa: BLE001 (raised again below, in the caller's thread)
            errors.append(error)
        finally:
            helped.release()

    # threading.Thread would wait for the thread to have started, which costs as much as the second core gains.
    _thread.start_new_thread(help_out, ())
    own = 0
    try:
        own = take_pieces()
    finally:
        if own < -(-len(indices) // size):  # the helper has a piece, or had
            helped.acquire()
    if errors:
        raise errors[0]


def _take(array: NdArray, indices: NdArray, out: NdArray) -> None:
    if array.flags.c_contiguous:
        # mode="raise" would gather into a temporary first.
        np.take(array, indices, axis=0, out=out, mode="clip")
    else:  # np.take would first copy all of a strided array
        for row, index in enumerate(indices.tolist()):
            out[row] = array[index]
