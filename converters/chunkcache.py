"""Unpacked pieces of compressed files, kept while they fit into a budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BUDGET = 64 * 2**20  # bytes per open dataset and process


class ChunkCache:
    """The pieces unpacked last. Threads may use one cache: each operation on its dict is atomic."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._kept: dict[Any, Any] = {}

    def get(self, key: Any, read: Callable[[], Any]) -> Any:
        """Return what `read` returns (with `nbytes`), or returned when it was called with the same `key`."""
        found = self._kept.pop(key, None)
        if found is None:
            found = read()
        self._kept[key] = found  # at the end: the ones at the front are the oldest
        used = 0
        for each in reversed(list(self._kept)):
            piece = self._kept.get(each)
            used += 0 if piece is None else piece.nbytes
            if used > self._budget and each != key:
                self._kept.pop(each, None)
        return found
