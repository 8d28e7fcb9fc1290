"""The stream into a file: it knows its position and hashes every 1 MiB block on the way."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import xxhash

from mmds.fields import Buffer
from mmds.format import BLOCK, align_up
from mmds.publish import Draft

# One system call makes Linux look for memory as large as what it writes. Up to 32 KiB, it has that at hand for each processor;
# finding more at once took five times as long as writing, where memory was free but had not been used for a while.
WRITE = 2**15


def block_hash(block: bytes | bytearray | memoryview) -> int:
    """Return the XXH3-64 of one block, as the `blocks` section holds it."""
    return xxhash.xxh3_64_intdigest(block)


class BlockStream:
    """Appends to a `Draft` in whole blocks. After an error it must not be used again: a part may have been written."""

    def __init__(self, draft: Draft, every: int = 0, checkpoint: Callable[[bytes], None] | None = None) -> None:
        """Begin a file. After every so many blocks, `checkpoint` gets their hashes, which are in the file by then."""
        self._draft = draft
        self._every, self._checkpoint, self._noted = 8 * every, checkpoint, 0
        self._buffer = bytearray(BLOCK)
        self._filled = 0
        self._hashes = bytearray()
        self.position = 0

    def write(self, data: Buffer) -> None:
        """Append `data`; an ndarray must be C-contiguous."""
        if isinstance(data, np.ndarray):
            data = data.reshape(-1).view(np.uint8)
            data = data.data
        view = memoryview(data)
        self.position += len(view)
        end = self._filled + len(view)
        if end < BLOCK:
            self._buffer[self._filled : end] = view
            self._filled = end
            return
        while view:
            if not self._filled and len(view) >= BLOCK:  # whole blocks go straight from the caller's memory
                self._emit(view[:BLOCK])
                view = view[BLOCK:]
                continue
            part = view[: BLOCK - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == BLOCK:
                self._emit(memoryview(self._buffer))
                self._filled = 0

    def copy(self, fd: int, offset: int, length: int) -> None:
        """Append `length` bytes of an open file, from `offset` on. EOFError if it ends before that.

        They are read into the unfinished block, which has to be hashed anyway: `copy_file_range`, after which the bytes
        would have to be read once more for that, took a third longer.
        """
        while length:
            free = memoryview(self._buffer)[self._filled : self._filled + length]
            got = os.preadv(fd, (free,), offset)
            if not got:
                raise EOFError
            offset += got
            length -= got
            self.position += got
            self._filled += got
            if self._filled == BLOCK:
                self._emit(memoryview(self._buffer))
                self._filled = 0

    def pad(self, alignment: int) -> None:
        """Append zeros up to the next multiple of `alignment`."""
        gap = align_up(self.position, alignment) - self.position
        if gap:
            self.write(bytes(gap))

    def hashes(self) -> bytes:
        """Return the hashes of all that was written so far, the last block as far as it goes, as <u8."""
        partial = block_hash(memoryview(self._buffer)[: self._filled]).to_bytes(8, "little") if self._filled else b""
        return bytes(self._hashes) + partial

    def flush(self) -> None:
        """Hand the unfinished block to the file. The last call on a stream."""
        self._draft.write(memoryview(self._buffer)[: self._filled])
        self._filled = 0

    def _emit(self, block: memoryview) -> None:
        self._hashes += block_hash(block).to_bytes(8, "little")
        for start in range(0, BLOCK, WRITE):
            self._draft.write(block[start : start + WRITE])
        if self._checkpoint is not None and len(self._hashes) - self._noted >= self._every:
            self._checkpoint(bytes(self._hashes[self._noted :]))
            self._noted = len(self._hashes)
