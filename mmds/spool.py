"""Index columns while their file is being written: many growing byte strings in constant memory.

The index comes after the data in a file, so it has to be kept until the data is complete. A spool keeps the ends of its
strings in memory and the rest in one unnamed temporary file beside the destination (not in /tmp, which may be memory).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from mmds.errors import StorageError, printable
from mmds.fields import Buffer

MEMORY = 16 * 2**20  # for all strings of a spool together
LEAST = 2**14  # per string: spilled pieces are remembered one by one


class Spool:
    """A set of byte strings, by number, that can be appended to and then read back."""

    def __init__(self, folder: Path, strings: int) -> None:
        self._folder = folder
        self._limit = max(MEMORY // max(strings, 1), LEAST)
        self._tails = [bytearray() for _ in range(strings)]
        self._extents: list[list[tuple[int, int]]] = [[] for _ in range(strings)]
        self._file: IO[bytes] | None = None
        self._spilled = 0

    @property
    def nbytes(self) -> int:
        """The length of all strings together."""
        return self._spilled + sum(map(len, self._tails))

    def append(self, number: int, data: Buffer) -> None:
        """Append `data` to string `number`; an ndarray must be C-contiguous."""
        if isinstance(data, np.ndarray):
            data = data.reshape(-1).view(np.uint8).data
        tail = self._tails[number]
        tail += data
        if len(tail) >= self._limit:
            self._spill(number)

    def _spill(self, number: int) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 (closed by close)
            start = self._file.seek(0, 2)
            view = memoryview(self._tails[number])
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise StorageError(error.errno, f"cannot write to {printable(self._folder)}: {error.strerror}") from error
        self._extents[number].append((start, len(self._tails[number])))
        self._spilled += len(self._tails[number])
        self._tails[number] = bytearray()

    def read(self, number: int) -> Iterator[bytes]:
        """Yield string `number` piece by piece."""
        for start, length in self._extents[number]:
            assert self._file is not None
            self._file.seek(start)
            while length:
                piece = self._file.read(min(length, 2**20))
                if not piece:
                    raise StorageError(f"the temporary file in {printable(self._folder)} has lost data")
                length -= len(piece)
                yield piece
        yield bytes(self._tails[number])

    def close(self) -> None:
        """Free the memory and the temporary file."""
        self._tails, self._extents = [], []
        if self._file is not None:
            self._file.close()
            self._file = None
