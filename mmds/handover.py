"""How samples get from a worker process to the one that writes: their arrays lie in memory that both share.

A worker has an `Arena` of a few slots. It pickles each sample as soon as it has it (a generator may fill the same array
again), arrays and long bytes beside the pickle, in the current slot. The slot goes over with a message; the other side
reads the samples where they are, and gives it back. A worker whose slots are all away waits: that bounds the memory.

What does not fit into an empty slot travels in the message.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import struct
import tempfile
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from typing import Any

SLOT = 8 * 2**20  # bytes
SLOTS = 3  # one that is filled, one on its way, one that is written
# Bytes in a slot that are sent: when they are read they are still in the processor's cache. Of 8 MiB, most are not
# (docs/decisions/0009-pipelines.md).
ENOUGH = 2**20
SMALL = 2**12  # bytes below which a buffer stays in the pickle
PAGE = mmap.PAGESIZE
NOTHING = -1

_number = struct.Struct("<q")

Packed = tuple[bytes, list[tuple[int, int]]]  # a pickle, and where in the slot its buffers lie


class Arena:
    """Memory that two processes share; it goes to a spawned process as its argument.

    Its first page holds the number of the item that the worker is at, which must be known when it has died.
    """

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            fd = _unnamed_file()
            os.ftruncate(fd, PAGE + SLOTS * SLOT)
        self._fd = fd
        self._map = mmap.mmap(fd, PAGE + SLOTS * SLOT)
        self._view = memoryview(self._map)
        self.current = NOTHING

    @property
    def current(self) -> int:
        """The number of the item that the worker is at, or `NOTHING`."""
        number: int = _number.unpack_from(self._view)[0]
        return number

    @current.setter
    def current(self, number: int) -> None:
        _number.pack_into(self._view, 0, number)

    def slot(self, number: int) -> memoryview:
        """Return the memory of a slot."""
        start = PAGE + number * SLOT
        return self._view[start : start + SLOT]

    def close(self) -> None:
        """Let go of the memory. Arrays over it must not be used any more; while there are any, it stays."""
        self._view.release()
        with contextlib.suppress(BufferError):  # somebody keeps a sample, against the rule: the map goes when that does
            self._map.close()
        os.close(self._fd)

    def __reduce__(self) -> Any:
        return _attach, (DupFd(self._fd),)


def _attach(fd: Any) -> Arena:
    return Arena(fd.detach())


def _unnamed_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("mmds-samples", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class _Bytes:
    """Bytes that are pickled like an array: beside the pickle, if the pickler likes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return bytes, (pickle.PickleBuffer(self.data),)


def _with_bytes(sample: Any) -> Any:
    """Return `sample` with its long bytes as `_Bytes`."""
    if type(sample) is dict:
        return {key: _with_bytes(value) for key, value in sample.items()}
    if type(sample) is tuple or type(sample) is list:
        return type(sample)(map(_with_bytes, sample))
    if type(sample) is memoryview:  # which does not pickle
        sample = bytes(sample)
    return _Bytes(sample) if type(sample) is bytes and len(sample) >= SMALL else sample


class Full(Exception):
    """The buffers of a sample do not fit behind those that are in the slot already."""


def pack(sample: Any, slot: memoryview, used: int) -> tuple[Packed, int]:
    """Return `sample` pickled, its large buffers in `slot` from byte `used` on, and how many bytes are used then.

    Raises `Full` if they do not fit there; what does not fit into an empty slot stays in the pickle.
    """
    spans: list[tuple[int, int]] = []
    end = used

    def keep_inside(buffer: pickle.PickleBuffer) -> bool:
        nonlocal end
        raw = buffer.raw()
        if raw.nbytes < SMALL:
            return True
        start = -(-end // 64) * 64
        if start + raw.nbytes > SLOT:
            if used:
                raise Full
            return True
        slot[start : start + raw.nbytes] = raw
        end = start + raw.nbytes
        spans.append((start, raw.nbytes))
        return False

    return (pickle.dumps(_with_bytes(sample), 5, buffer_callback=keep_inside), spans), end


def unpack(packed: Packed, slot: memoryview | None) -> Any:
    """Return the sample again. Its arrays are in `slot`, and to be read only until the slot is given back."""
    data, spans = packed
    buffers = [slot[start : start + length].toreadonly() for start, length in spans] if slot is not None else []
    return pickle.loads(data, buffers=buffers)  # noqa: S301 (from our own worker)


Send = Callable[[list[tuple[int, Packed]], int | None], None]


class Outbox:
    """Where a worker puts samples, until there are enough to send."""

    def __init__(self, arena: Arena, send: Send, take_slot: Callable[[], int]) -> None:
        self._arena, self._send, self._take_slot = arena, send, take_slot
        self._slot: int | None = None
        self._used = self._inside = 0
        self._packed: list[tuple[int, Packed]] = []

    def put(self, number: int, sample: Any) -> None:
        """Add a sample that item `number` gave."""
        if self._slot is None:
            self._slot = self._take_slot()
            self._view = self._arena.slot(self._slot)
        try:
            packed, self._used = pack(sample, self._view, self._used)
        except Full:
            self.flush()
            self.put(number, sample)
            return
        self._packed.append((number, packed))
        self._inside += len(packed[0])
        if self._used >= ENOUGH or self._inside >= ENOUGH:
            self.flush()

    def flush(self) -> None:
        """Send what there is. The slot goes along even if nothing is in it: whoever has none left has to wait."""
        if self._packed:
            self._send(self._packed, self._slot)
            self._slot = None
            self._packed, self._used, self._inside = [], 0, 0
