"""A computer that stops while a cache on a disk is filled: nothing of it was ever synced, so that each page has any age.

The samples are written through a file and a table through a memory map, which is no system call. So the file is kept as it is
after each sample, and a state is any mixture: for each page of 4096 bytes, how it was after some of the samples.
``python -m tests.faults.cachepages STATES SEED``.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from mmds.errors import FormatError
from mmds.shareddataset import SharedDataset

PAGE = 4096
COUNT = 1100  # so that the table is more than two pages
FILLED = 60
CAPACITY = 2**16


class Texts:
    """Samples that differ in size and content."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> bytes:
        return f"sample {index} ".encode() * (1 + index % 60)


def fill(folder: Path, order: list[int]) -> list[list[bytes]]:
    """Fill a cache, and return its pages before the first sample and after each."""
    shared = SharedDataset(Texts(), "pages", directory=folder, capacity=CAPACITY)
    assert not shared.filled
    found = [_pages(shared.path)]
    for index in order:
        assert shared[index] == Texts()[index]
        found.append(_pages(shared.path))
    shared.close()
    return found


def _pages(path: Path) -> list[bytes]:
    data = path.read_bytes()
    return [data[start : start + PAGE] for start in range(0, len(data), PAGE)]


def mixture(states: list[list[bytes]], chosen: random.Random) -> bytes:
    """Return a file of which each page is of any age; the oldest is that it was never written."""
    last = chosen.randrange(1, len(states))
    never, newest = chosen.choice((0, 0, 0.05, 0.3)), chosen.choice((0, 0.5, 0.9))
    pages = []
    for number, page in enumerate(states[0]):
        if chosen.random() < never:
            pages.append(bytes(len(page)))
        else:
            pages.append(states[last if chosen.random() < newest else chosen.randint(0, last)][number])
    return b"".join(pages)


def look(folder: Path, chosen: random.Random) -> Counter[str]:
    """Read and fill what is there: a sample is right, or there is an error that says that the file is damaged."""
    told: Counter[str] = Counter()
    order = [chosen.randrange(COUNT) for _ in range(40)] + list(range(0, COUNT, 13))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that it is full
        shared = SharedDataset(Texts(), "pages", directory=folder, capacity=CAPACITY)
        for index in (*order, *order):
            try:
                assert shared[index] == Texts()[index], f"sample {index} is wrong"
                told["right"] += 1
            except FormatError as error:
                assert "delete" in str(error), error
                told["damaged"] += 1
        shared.close()
    return told


def main(count: str, seed: str) -> None:
    """Look into so many states."""
    chosen = random.Random(int(seed))
    told: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        for number in range(int(count)):
            if number % 500 == 0:
                begun = Path(name) / "begun"
                begun.mkdir()
                states = fill(begun, chosen.sample(range(COUNT), FILLED))
                shutil.rmtree(begun)
            folder = Path(name) / "state"
            folder.mkdir()
            (folder / "pages.mmds-cache").write_bytes(mixture(states, chosen))
            found = look(folder, chosen)
            told += found
            told["states that are whole"] += not found["damaged"]
            shutil.rmtree(folder)
    print(json.dumps({"cases": int(count), "told": told}))


if __name__ == "__main__":
    main(*sys.argv[1:])
