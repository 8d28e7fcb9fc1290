"""Index columns while their file is being written: many growing byte strings in constant memory.

The index comes after the data in a file, so it has to be kept until the data is complete. A spool keeps the ends of its
strings in memory and the rest in one temporary file beside the destination (not in /tmp, which may be memory).

That file can be understood without this process, so that what it has written is not lost with it (`unfinished.py`). It is a
sequence of pieces: 24 bytes (the number of the string u32, zero u32, the length u64, the XXH3-64 of the piece u64), the piece.
"""

from __future__ import annotations

import contextlib
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from mmds.errors import StorageError, printable
from mmds.fields import Buffer

MEMORY = 16 * 2**20  # for all strings of a spool together
LEAST = 2**14  # per string: spilled pieces are remembered one by one
HEAD = struct.Struct("<I4xQQ")
PREAMBLE = 2**31  # the number of its first piece


class Spool:
    """A set of byte strings, by number, that can be appended to and then read back."""

    def __init__(
        self,
        folder: Path,
        strings: int,
        open_file: Callable[[], IO[bytes]] | None = None,
        preamble: Sequence[bytes] = (),
    ) -> None:
        """Make empty strings; `open_file` makes the file when it is needed, by default one without a name in `folder`.

        `preamble` is what others need to understand it: its first pieces.
        """
        self._folder = folder
        self._open_file, self._preamble = open_file, preamble
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

    def flush(self) -> None:
        """Hand all that is in memory to the file."""
        for number, tail in enumerate(self._tails):
            if tail:
                self._spill(number)

    def note(self, number: int, data: bytes) -> None:
        """Write a piece to the file that is not part of a string here, but tells others what to make of it."""
        self._write(number, data)

    def _spill(self, number: int) -> None:
        start = self._write(number, self._tails[number])
        self._extents[number].append((start, len(self._tails[number])))
        self._spilled += len(self._tails[number])
        self._tails[number] = bytearray()

    def _write(self, number: int, data: bytes | bytearray) -> int:
        """Append a piece to the file, and return where its bytes begin."""
        import xxhash  # reading imports this module for `keys`, and has no use for it

        try:
            if self._file is None:
                if self._open_file is None:
                    self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 (closed by close)
                else:
                    self._file = self._open_file()
                for position, piece in enumerate(self._preamble):
                    self._write(PREAMBLE + position, piece)
            start = self._file.seek(0, 2) + HEAD.size
            for part in (HEAD.pack(number, len(data), xxhash.xxh3_64_intdigest(data)), data):
                view = memoryview(part)
                while view:
                    view = view[self._file.write(view) :]
        except OSError as error:
            raise StorageError(error.errno, f"cannot write to {printable(self._folder)}: {error.strerror}") from error
        return start

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
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # nobody reads it any more
                file.close()
