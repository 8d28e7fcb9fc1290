"""A string of bytes as a source of choices, so that a seed, hypothesis and libFuzzer can all drive one mutator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Decisions:
    """Choices taken from `data`, front to back. Behind its end come zeros, which choose the plainest of what there is."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        part = self._data[self._at : self._at + size]
        self._at += size
        return part.ljust(size, b"\0")

    def below(self, count: int) -> int:
        """Return a number from 0 to ``count - 1``."""
        return int.from_bytes(self.take(1 if count <= 256 else 3), "little") % count

    def choose(self, options: Sequence[T]) -> T:
        """Return one of `options`, of which there is at least one."""
        return options[self.below(len(options))]

    def once_in(self, count: int) -> bool:
        """Return True once in `count` times."""
        return self.below(count) == count - 1
