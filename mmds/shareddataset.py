"""`SharedDataset`: any slow dataset, each of whose samples is read once on this machine."""

from __future__ import annotations

import os
import shutil
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from mmds.errors import StorageError, printable
from mmds.fields import Array
from mmds.nested import decode, encode
from mmds.publish import storage_errors
from mmds.samplecache import NO_ROOM, Full, NoCache, SampleCache, reclaim
from mmds.schema import Schema
from mmds.writer import Writer

MEMORY = Path("/dev/shm")
MOST = 2**42  # bytes of the file by default; it is a hole as far as it is not filled, but file systems have limits
STRIPES = 64  # locks that the threads of a process share


class SharedDataset:
    """A map-style dataset whose samples are read from `dataset` once, and from memory that all processes share afterwards.

    Whichever process asks for a sample first reads it; another one that wants the same waits for it. Everybody who uses the
    same name takes part: DataLoader workers, ranks, and other programs. What comes back is equal to what `dataset` returned,
    and of the same types, also the first time; arrays and tensors are the caller's own. The memory is freed when the last
    process that has read from it ends; what processes leave that were killed, the next `SharedDataset` removes.

    Args:
        dataset: anything with ``__getitem__`` and ``__len__``. Its random transforms would be frozen; use `transform`.
        name: which memory; the same one for the same samples. A name that is in use for another class of dataset, another
            length or another `version` is refused (`ExistsError`).
        capacity: bytes that the samples may take; by default what is free. What does not fit is read from `dataset` each
            time, with one warning.
        directory: a folder to keep the samples in, for the next time. By default they are in memory (``/dev/shm``).
        transform: a function of a sample, called each time.
        version: a text to change when the samples change.

    Attributes that this class does not have are those of `dataset`. Linux only.
    """

    def __init__(
        self,
        dataset: Any,
        name: str,
        *,
        capacity: int | None = None,
        directory: str | os.PathLike[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        version: str = "",
    ) -> None:
        if not name:
            raise ValueError("name='': expected a name that says which samples these are")
        self.dataset, self.name, self.capacity = dataset, name, capacity
        self.transform, self.version = transform, version
        self.directory = None if directory is None else Path(directory).absolute()
        self._handle: _Handle | None = None

    def __len__(self) -> int:
        return self._open().n  # which a DataLoader asks for where it is made: that process outlives its workers

    def __getitem__(self, index: int) -> Any:
        handle = self._handle
        if handle is None or handle.pid != os.getpid():
            handle = self._open()
        number = index + handle.n if index < 0 else index
        if not 0 <= number < handle.n:
            raise IndexError(f"index {index} is out of range for {handle.n} samples")
        data = handle.cache.get(number)
        sample = handle.get(int(number)) if data is None else decode(data)
        return sample if self.transform is None else self.transform(sample)

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __repr__(self) -> str:
        return f"SharedDataset({printable(repr(self.dataset))}, '{printable(self.name)}')"

    @property
    def path(self) -> Path:
        """The file that the samples are in."""
        if self.directory is not None:
            return self.directory / f"{quote(self.name, safe='')}.mmds-cache"
        return MEMORY / f"{_prefix()}{quote(self.name, safe='')}"

    @property
    def filled(self) -> int:
        """How many samples have been read so far, by anybody."""
        return self._open().cache.filled

    def persist(self, path: str | os.PathLike[str], fields: Any = None, *, overwrite: bool = False) -> None:
        """Write all samples to an ``.mmds`` file; those that nobody has read yet are read now.

        `fields` as for `Writer`; by default what fits all samples: dimensions that differ are unknown, what is None
        somewhere is nullable.
        """
        handle = self._open()
        if fields is None:
            fields = _fields(map(handle.get, range(handle.n)))
        with Writer(path, fields, overwrite=overwrite) as writer:
            writer.extend(map(handle.get, range(handle.n)))

    def close(self) -> None:
        """Let go of the memory in this process. It comes back when a sample is asked for."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()

    def _open(self) -> _Handle:
        handle = (
            self._handle
        )  # no lock, which a fork might copy locked: two threads may both open it, and one is dropped
        if handle is None or handle.pid != os.getpid():
            handle = self._handle = _Handle(self)
        return handle

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}


class _Handle:
    """What one process holds of it."""

    def __init__(self, shared: SharedDataset) -> None:
        self.pid, self.n = os.getpid(), len(shared.dataset)
        self._dataset, self._shown = shared.dataset, printable(shared.name)
        # without the module, which is __main__ in a script, __mp_main__ in its workers, and its name where it is imported
        identity = f"{type(shared.dataset).__qualname__}\n{self.n}\n{shared.version}"
        self._warned = False
        self.cache = self._make(shared, identity)
        self._threads = [threading.Lock() for _ in range(STRIPES)]
        self.close = weakref.finalize(self, _close, self.cache, self.pid)

    def _make(self, shared: SharedDataset, identity: str) -> SampleCache | NoCache:
        folder, keep = shared.path.parent, shared.directory is not None
        try:
            with storage_errors(shared.path):
                if not keep:
                    reclaim(folder, _prefix())
                size = min(shutil.disk_usage(folder).free, MOST) if shared.capacity is None else shared.capacity
                return SampleCache(shared.path, self.n, identity, size, keep=keep)
        except StorageError as error:
            if error.errno not in NO_ROOM:
                raise
            self.cache = NoCache()
            self._warn()
            return self.cache

    def get(self, number: int) -> Any:
        """Return a sample."""
        data: Any = self.cache.get(number)
        if data is None:
            with self._threads[number % STRIPES], self.cache.lock(number):
                data = self.cache.get(number)  # somebody else has read it meanwhile
                if data is None:
                    data = encode(self._dataset[number], number)
                    try:
                        self.cache.put(number, data)
                    except Full:
                        self._warn()
        return decode(data)

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"shared dataset '{self._shown}' is full: {self.cache.filled:,} samples take {self.cache.nbytes:,} bytes; "
                "the others are read from the dataset each time. Raise capacity=, or give a directory= on a disk",
                RuntimeWarning,
                stacklevel=5,
            )


def _fields(samples: Iterator[Any]) -> Any:
    """Return fields that all samples fit, as far as they differ in the sizes of arrays, and in what is None."""
    first = next(samples, None)
    if first is None:
        return None
    schema = Schema.infer(first)
    kinds: list[Any] = [field.kind for field in schema]
    for sample in samples:
        for position, value in enumerate(schema.leaves(sample)):
            kind = kinds[position]
            if value is None:
                kinds[position] = replace(kind, nullable=True)
            elif isinstance(kind, Array) and len(shape := np.shape(value)) == len(kind.shape) and shape != kind.shape:
                sizes = tuple(size if size == found else None for size, found in zip(kind.shape, shape, strict=True))
                kinds[position] = replace(kind, shape=sizes)
    return schema.assembler([partial(_constant, kind) for kind in kinds])(None)


def _constant(value: Any, _: Any) -> Any:
    return value


def _close(cache: SampleCache | NoCache, pid: int) -> None:
    if os.getpid() == pid:
        cache.close()


def _prefix() -> str:
    return f"mmds-shared-{os.geteuid()}-"
