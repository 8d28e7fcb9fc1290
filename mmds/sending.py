"""How a batch gets from a worker process of a `DataLoader` to the process that trains.

PyTorch sends every tensor in shared memory of its own: a file is made, the kernel clears its pages, its descriptor goes over a
socket, the other side maps it, and both unmap it. That takes longer than reading the batch. Here

- tensors below `SMALL` are sent as bytes, in the message about them;
- larger ones are gathered into a `_Segment`, which the other side maps once, and which is used again when the last tensor
  over it is gone there. It is no file in /dev/shm, which containers keep small.

Both arrive as plain tensors. A segment is opened through /proc, so other systems than Linux use PyTorch's way.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import multiprocessing
import os
import weakref
from collections import ChainMap
from collections.abc import Sequence
from functools import cache
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import reduce_tensor
from torch.utils.data import default_collate, get_worker_info
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from mmds.gather import PLACE, address, size_class

NdArray = np.ndarray[Any, Any]

SMALL = 2**16  # bytes below which a copy through a pipe takes less time than a segment: docs/decisions/0007-sending.md
KEPT = 16  # segments per worker; a batch more that somebody holds on to makes a new one


class SentTensor(torch.Tensor):
    """A tensor in a worker that is sent in one of the ways above. What is computed from it is a plain tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


def tensor_to_send(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return an uninitialised tensor in the memory that a worker should gather a batch into. Then call `to_send`."""
    size = math.prod(shape) * dtype.itemsize
    if size < SMALL:
        return torch.empty(shape, dtype=dtype)
    if _can_recycle():
        return torch.from_numpy(_take(size)).view(dtype).view(shape)
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(size, device="cpu")  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


@cache
def _can_recycle() -> bool:
    """Return whether the other process can open this one's segments, as far as this process can tell."""
    if not hasattr(os, "memfd_create"):
        return False
    fd = os.memfd_create("mmds-probe", os.MFD_CLOEXEC)
    try:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC))
        os.listdir(f"/proc/{os.getppid()}/fd")  # noqa: PTH208 (what the other one may look at, this one may, too)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def to_send(tensor: torch.Tensor) -> torch.Tensor:
    """Return a batch's tensor such that it is sent in one of the ways above; itself if this is no worker."""
    if get_worker_info() is None or not (tensor.nbytes < SMALL or tensor.data_ptr() in _leases):
        return tensor
    return tensor.as_subclass(SentTensor)


def collate_to_send(samples: Any) -> Any:
    """Return what `default_collate` makes of samples; in a worker, such that it is sent in one of the ways above."""
    return default_collate(samples) if get_worker_info() is None else collate(samples, collate_fn_map=_collate_fn_map)


def _collate_tensors(tensors: Sequence[torch.Tensor], *, collate_fn_map: Any = None) -> torch.Tensor:
    first = tensors[0]
    if type(first) is not torch.Tensor or first.layout != torch.strided or first.device.type != "cpu":
        stacked: torch.Tensor = default_collate_fn_map[torch.Tensor](tensors, collate_fn_map=collate_fn_map)
        return stacked
    batch = tensor_to_send((len(tensors), *first.shape), first.dtype)
    torch.stack(list(tensors), out=batch)
    return to_send(batch)


_collate_fn_map: Any = ChainMap({torch.Tensor: _collate_tensors}, default_collate_fn_map)


def _reduce(tensor: SentTensor) -> Any:
    plain = tensor.detach().as_subclass(torch.Tensor)
    lease = _leases.get(plain.data_ptr())
    if lease is not None and not lease.sent and plain.is_contiguous() and plain.nbytes <= len(lease.segment.place):
        lease.sent = True  # and once only: whoever gets it says when it may be used again
        return _received, (os.getpid(), lease.segment.fd, lease.segment.token, plain.dtype, tuple(plain.shape))
    if plain.nbytes < SMALL:
        data = plain.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return _rebuilt, (data, plain.dtype, tuple(plain.shape))
    return reduce_tensor(plain)  # type: ignore[no-untyped-call]


ForkingPickler.register(SentTensor, _reduce)


def _rebuilt(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).view(shape)


# In the worker


class _Segment:
    """Shared memory for one batch at a time. Its first byte is 1 until the process that has got the batch is done with it.

    A batch begins at `PLACE`; see `gather._Buffer`.
    """

    def __init__(self, size: int) -> None:
        self.token = os.urandom(8)
        self.fd = os.memfd_create("mmds-batch", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self.fd).atexit = False
        os.ftruncate(self.fd, PLACE + size)
        memory: NdArray = np.frombuffer(mmap.mmap(self.fd, PLACE + size), np.uint8)
        _populate(address(memory), len(memory))
        self.header, self.place = memory[:PLACE], memory[PLACE:]
        self.leased = False

    @property
    def is_free(self) -> bool:
        """Whether neither this process nor the other one has a tensor over it."""
        return not self.leased and not self.header[0]


class _Lease:
    """Owns a segment as long as there are tensors over it in the worker."""

    def __init__(self, segment: _Segment) -> None:
        self.segment, self.sent = segment, False
        segment.leased, segment.header[0] = True, 1
        self.__array_interface__ = segment.place.__array_interface__

    def __del__(self) -> None:
        self.segment.leased = False
        if not self.sent:
            self.segment.header[0] = 0


_segments: list[_Segment] = []  # the oldest first
_leases: weakref.WeakValueDictionary[int, _Lease] = weakref.WeakValueDictionary()  # by address
os.register_at_fork(after_in_child=_segments.clear)


def _take(size: int) -> NdArray:
    """Return uninitialised memory in a segment: uint8 of shape (size,)."""
    free = [segment for segment in _segments if segment.is_free]
    fitting = [segment for segment in free if size <= len(segment.place) <= 2 * size]
    if fitting:
        segment = min(fitting, key=lambda segment: len(segment.place))
    else:
        if len(_segments) >= KEPT:
            _segments.remove((free or _segments)[0])
        segment = _Segment(size_class(size))
        _segments.append(segment)
    lease = _Lease(segment)
    memory: NdArray = np.asarray(lease)
    _leases[address(memory)] = lease
    return memory[:size]


def _populate(start: int, size: int) -> None:
    """Have the kernel make all pages of new shared memory at once, which takes a quarter less time than one at a time.

    A hint: kernels before 5.14 do not know it, and make them one at a time.
    """
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), MADV_POPULATE_WRITE)


MADV_POPULATE_WRITE = 23  # <linux/mman.h>


# In the process that trains


class _Received:
    """Owns a worker's segment as long as there are tensors over it in this process."""

    def __init__(self, memory: NdArray) -> None:
        self._memory, self._forks = memory, _forks
        self.__array_interface__ = memory[PLACE:].__array_interface__

    def __del__(self) -> None:
        if self._forks == _forks:  # else a forked process may still read it, so it is not used again
            self._memory[0] = 0


_mapped: dict[int, dict[bytes, NdArray]] = {}  # of each worker by process id, the oldest first
_forks = 0


def _forking() -> None:
    global _forks
    _forks += 1


os.register_at_fork(before=_forking)


def _received(pid: int, fd: int, token: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    memory = _mapped.get(pid, {}).get(token)
    if memory is None:
        memory = _map(pid, fd)
        _keep(pid, token, memory)
    received: NdArray = np.asarray(_Received(memory))
    size = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(received[:size]).view(dtype).view(shape)


def _map(pid: int, fd: int) -> NdArray:
    try:
        with open(f"/proc/{pid}/fd/{fd}", "r+b") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8)
    except FileNotFoundError:
        raise RuntimeError(f"DataLoader worker (pid {pid}) ended before the batch that it sent was received") from None


def _keep(pid: int, token: bytes, memory: NdArray) -> None:
    """Keep what is mapped for the next batch in it, until the worker is gone."""
    if pid not in _mapped:
        for process in multiprocessing.active_children():
            if process.pid == pid:
                weakref.finalize(process, _mapped.pop, pid, None).atexit = False
                _mapped[pid] = {}
    if pid in _mapped:
        kept = _mapped[pid]
        kept[token] = memory
        if len(kept) > KEPT:
            del kept[next(iter(kept))]
