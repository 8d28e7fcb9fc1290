"""What ``verify="read"`` costs: against reading through a map, and against the other way to do it.

    python -m benchmarks.verified [--mb MB] [--rounds N] [--json]

Files are in the page cache; contenders take turns. "populate" is what a map would need to give errors instead of signals: every
value is first brought in with ``madvise(MADV_POPULATE_READ)``, then copied; it has no hashes checked here. "first epoch" reads
all batches once with a new reader, so that every block is checked; the others come after that.
"""

from __future__ import annotations

import argparse
import json
import mmap
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import mmds
from benchmarks.machine import describe
from benchmarks.rounds import medians
from mmds.mapped import MappedFile
from mmds.openfile import open_file
from mmds.reader import Reader

POPULATE_READ = 22
BATCH, SINGLE = 256, 500

FIELDS: dict[str, Any] = {
    "arrays of 27 KB": mmds.Array("uint8", (96, 96, 3)),
    "files of 5 to 15 KB": mmds.Image(),
    "labels": mmds.Scalar("int64"),
}
BYTES = {"arrays of 27 KB": 27_648, "files of 5 to 15 KB": 10_000, "labels": 8}


def write(path: Path, name: str, megabytes: int) -> int:
    """Write a file of one field, and return how many samples it has."""
    count = min(megabytes * 10**6 // BYTES[name], 10**6)
    chance = np.random.default_rng(0)
    with mmds.Writer(path, {"x": FIELDS[name]}) as writer:
        if name == "labels":
            writer.write_batch({"x": np.arange(count)})
        elif name.startswith("files"):
            content = chance.bytes(15_000)
            for length in chance.integers(5_000, 15_000, count).tolist():
                writer.write({"x": content[:length]})
        else:
            rows = chance.integers(0, 256, (64, 96, 96, 3), "uint8")
            for start in range(0, count, 64):
                writer.write_batch({"x": rows[: min(64, count - start)]})
    return count


class Populating:
    """A mapped reader that brings in every value before it copies it."""

    def __init__(self, path: Path) -> None:
        self._reader = mmds.open(path)
        self._items: Any = self._reader.items[0]
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
        assert isinstance(self._reader.store, MappedFile)
        self._base = np.frombuffer(self._reader.store.view, np.uint8).__array_interface__["data"][0]

    def __getitem__(self, index: Any) -> Any:
        many = isinstance(index, np.ndarray)
        self._items.locate(index if many else np.array([index]), self._populate)
        found = self._reader[index]["x"]
        return found if many or isinstance(found, (bytes, int)) else found.copy()

    def _populate(self, starts: Any, stops: Any) -> None:
        for start, stop in zip((starts - self._base).tolist(), (stops - self._base).tolist(), strict=True):
            page = start // 4096 * 4096
            self._map.madvise(POPULATE_READ, page, stop - page)


def measure(megabytes: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return seconds of every contender for every way to read every file."""
    found: dict[str, dict[str, float]] = {}
    chance = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(prefix="mmds-verified-") as folder:
        for name in FIELDS:
            path = Path(folder) / "data.mmds"
            count = write(path, name, megabytes)
            store = open_file(path, "positioned")
            readers: dict[str, Any] = {
                "mapped": mmds.open(path),
                "verify=read": mmds.open(path, verify="read"),
                "by position": Reader(store, range(store.n)),
                "populate": Populating(path),
            }
            single, batches = chance.integers(0, count, SINGLE).tolist(), chance.permutation(count)[: 40 * BATCH]
            epoch = [batches[start : start + BATCH] for start in range(0, len(batches), BATCH)]
            for reader in readers.values():
                reader[np.arange(count)[:: max(1, count // 50_000)]]

            def one_by_one(reader: Any, single: list[int] = single) -> Callable[[int], Any]:
                return lambda _: [reader[k] for k in single]

            def in_batches(reader: Any, epoch: list[Any] = epoch) -> Callable[[int], Any]:
                return lambda _: [reader[rows] for rows in epoch]

            found[f"{name}, one by one"] = per(medians({k: one_by_one(r) for k, r in readers.items()}, rounds), SINGLE)
            found[f"{name}, batches of {BATCH}"] = per(
                medians({k: in_batches(r) for k, r in readers.items()}, rounds), len(batches)
            )

            def first_epoch(verify: str, path: Path = path, epoch: list[Any] = epoch) -> Callable[[int], Any]:
                return lambda _: list(map(mmds.open(path, verify=verify).__getitem__, epoch))

            fresh = {"mapped": first_epoch("off"), "verify=read": first_epoch("read")}
            found[f"{name}, first epoch"] = per(medians(fresh, rounds), len(batches))
            path.unlink()
    return found


def per(seconds: dict[str, float], samples: int) -> dict[str, float]:
    """Return seconds per sample."""
    return {name: value / samples for name, value in seconds.items()}


def report(found: dict[str, dict[str, float]]) -> str:
    """Return the figures as a markdown table: microseconds per sample, and how many times as long as through the map."""
    names = ["mapped", "verify=read", "by position", "populate"]
    lines = [f"| µs per sample | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for what, seconds in found.items():
        cells = [
            f"{seconds[name] * 1e6:.2f} ({seconds[name] / seconds['mapped']:.2f})" if name in seconds else ""
            for name in names
        ]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", describe("numpy", "xxhash")])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description='What verify="read" costs.')
    parser.add_argument("--mb", type=int, default=400, help="megabytes of each file (default: 400)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count (default: 9)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    found = measure(given.mb, given.rounds)
    print(json.dumps(found, indent=2) if given.json else report(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
