"""All that a computer that stops may leave of what a writer did.

`Disk` is a file system that promises as little as POSIX does:

* `fsync` of a file makes its bytes and its length durable; `fsync` of a folder, its names. Nothing else makes anything so.
* Until then, each operation may reach the disk or not, whatever the order: names, lengths, and bytes by pages of 4096, so
  that a write may be there in part, and a file may have its length but zeros for content.
* One `link`, `rename` or exchange is there or not as a whole, and is durable when the folder of its new name is.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from tests.faults.recorder import Name, Node, Page, Recording, Size, Sync

ALL_OF = 2**12  # subsets are enumerated up to so many; beyond, they are drawn

Key = tuple[object, ...]


class Disk:
    """All states that a `Recording` may leave."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.operations = [operation for step in recording.steps for operation in step]
        self.ends: list[int] = []  # how many operations there are after each number of steps
        for step in ([], *recording.steps):
            self.ends.append((self.ends[-1] if self.ends else 0) + len(step))

    def states(self, chosen: random.Random, most: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield after how many steps it stops, and which operations are on the disk then.

        After each number of steps: all subsets of what is not durable where they are few, else `most` that are drawn.
        """
        for steps, end in enumerate(self.ends):
            synced: set[Node] = set()
            loose: list[int] = []
            for number in reversed(range(end)):
                operation = self.operations[number]
                if isinstance(operation, Sync):
                    synced.add(operation.node)
                elif (operation.folder if isinstance(operation, Name) else operation.node) not in synced:
                    loose.append(number)
            loose.reverse()
            free = set(loose)
            fixed = [n for n in range(end) if n not in free and not isinstance(self.operations[n], Sync)]
            for kept in self._subsets(loose, chosen, most):
                yield steps, tuple(sorted((*fixed, *kept)))

    def _subsets(self, loose: list[int], chosen: random.Random, most: int) -> Iterator[list[int]]:
        if 2 ** len(loose) <= min(ALL_OF, most):
            for bits in product((False, True), repeat=len(loose)):
                yield [number for number, bit in zip(loose, bits, strict=True) if bit]
            return
        yield []
        yield loose
        for _ in range(most - 2):
            share = chosen.choice((0.05, 0.5, 0.5, 0.95))
            yield [number for number in loose if chosen.random() < share]

    def key(self, kept: tuple[int, ...]) -> Key:
        """Return what readers can see of a state: two with the same key are the same."""
        names, changes = self._replay(kept)
        found: list[object] = []
        for path, node in sorted(self._visible(names)):
            is_hidden = any(part.startswith(".") for part in path.split("/"))
            found.append((path, id(node), node.is_folder, () if is_hidden else tuple(changes.get(node, ()))))
        return tuple(found)

    def build(self, kept: tuple[int, ...], folder: Path) -> None:
        """Make an empty folder what it would be."""
        names, changes = self._replay(kept)
        for path, node in sorted(self._visible(names)):
            if node.is_folder:
                (folder / path).mkdir()
            else:
                (folder / path).write_bytes(self._content(node, changes.get(node, [])))

    def _replay(self, kept: tuple[int, ...]) -> tuple[dict[Node, dict[str, Node]], dict[Node, list[int]]]:
        names: dict[Node, dict[str, Node]] = {}
        changes: dict[Node, list[int]] = {}
        for number in kept:
            operation = self.operations[number]
            if isinstance(operation, Name):
                for parent, name, node in operation.changes:
                    inside = names.setdefault(parent, dict(parent.names))
                    if node is None:
                        inside.pop(name, None)
                    else:
                        inside[name] = node
            elif not isinstance(operation, Sync):
                changes.setdefault(operation.node, []).append(number)
        return names, changes

    def _visible(self, names: dict[Node, dict[str, Node]]) -> list[tuple[str, Node]]:
        found: list[tuple[str, Node]] = []

        def enter(node: Node, path: str, above: tuple[Node, ...]) -> None:
            for name, child in names.get(node, node.names).items():
                if child not in above:  # a rename of which one half is there
                    found.append((path + name, child))
                    enter(child, f"{path}{name}/", (*above, child))

        enter(self.recording.root, "", ())
        return found

    def _content(self, node: Node, changes: list[int]) -> bytes:
        size, data = len(node.content), bytearray(node.content)
        for number in changes:
            operation = self.operations[number]
            if isinstance(operation, Size):
                size = operation.size if operation.is_exact else max(size, operation.size)
                if operation.is_exact:
                    del data[size:]
            elif isinstance(operation, Page):
                end = operation.offset + len(operation.data)
                data.extend(bytes(max(0, end - len(data))))
                data[operation.offset : end] = operation.data
        return bytes(data[:size].ljust(size, b"\0"))
