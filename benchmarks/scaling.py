"""What grows with the number of samples: nothing, per batch; and how soon the first batch comes.

    python -m benchmarks.scaling [--rounds N] [--quick] [--json]

(a) One batch of 256 at 10**4, 10**6 and 10**8 samples of 4 KiB (sparse files), through ``reader[indices]`` and through
    `mmds.Loader` with ``shuffle=True`` and no threads. The reader's batches are made of 4,096 samples from the whole file,
    each in a page of its own, which have been read before, so that the processor's caches hold equally much of each file.
    The loader runs the first batches of an epoch again and again. `np.take` of the same rows shows what of the growth is the
    processor's: its page tables no longer fit its caches when 4,096 pages lie far apart.
(b) From the start of a Python process to the first batch of a `DataLoader` with two spawned workers: 10**6 samples of 64
    bytes (a real file: misses in a sparse one cost more than on a disk), against the same script with a dataset of as many
    constants that holds nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import mmds
from benchmarks.machine import describe
from benchmarks.progress import progress
from benchmarks.rounds import medians
from benchmarks.sparse import write_sparse

SIZES = (10**4, 10**6, 10**8)
FIELDS = {"row": mmds.Array("uint8", (4096,))}
BATCH, KNOWN, BATCHES = 256, 4096, 16
MILLION, SIZE = 10**6, 64  # samples and bytes of each, in (b)
WAYS = {"take": "`np.take` of the mapped rows", "reader": "`reader[indices]`", "loader": "`Loader`"}  # batches of 256

FIRST_BATCH = """
import sys, time
from torch.utils.data import DataLoader, Dataset
import torch

class Nothing(Dataset):
    def __len__(self):
        return {n}
    def __getitem__(self, index):
        return {{"row": torch.zeros({size}, dtype=torch.uint8)}}

if __name__ == "__main__":
    if len(sys.argv) > 1:
        from mmds import MemoryMappedDataset
        dataset = MemoryMappedDataset(sys.argv[1])
    else:
        dataset = Nothing()
    batch = next(iter(DataLoader(dataset, {batch}, shuffle=True, num_workers=2, multiprocessing_context="spawn")))
    assert batch["row"].shape == ({batch}, {size})
    print(time.time())
"""


def per_batch(files: dict[int, Path], rounds: int) -> dict[str, dict[int, float]]:
    """Measure (a): microseconds per batch, by number of samples."""
    contenders: dict[str, Callable[[int], object]] = {}
    for n, path in files.items():
        reader = mmds.open(path)
        generator = np.random.default_rng(n)
        known = np.unique(generator.integers(0, n, 2 * KNOWN))[:KNOWN]
        picks = [generator.choice(known, BATCH) for _ in range(BATCHES)]
        reader[known]
        contenders[f"take {n}"] = _taking(reader.column("row"), picks)
        contenders[f"reader {n}"] = _reading(reader, picks)
        contenders[f"loader {n}"] = _loading(
            mmds.Loader(mmds.MemoryMappedDataset(path), BATCH, shuffle=True, num_threads=0)
        )
    seconds = medians(contenders, rounds)
    return {what: {n: seconds[f"{what} {n}"] / BATCHES * 1e6 for n in files} for what in WAYS}


def _taking(rows: Any, picks: list[Any]) -> Callable[[int], object]:
    buffer = np.empty((BATCH, *rows.shape[1:]), rows.dtype)
    return lambda _: [np.take(rows, pick, axis=0, out=buffer, mode="clip") for pick in picks] and None


def _reading(reader: Any, picks: list[Any]) -> Callable[[int], object]:
    return lambda _: [reader[pick] for pick in picks] and None


def _loading(loader: mmds.Loader) -> Callable[[int], object]:
    def run(_: int) -> None:
        for number, _batch in enumerate(loader, 1):
            if number == BATCHES:
                return

    return run


def first_batch(folder: Path, rounds: int) -> dict[str, float]:
    """Measure (b): seconds to the first batch."""
    path = folder / "million.mmds"
    with mmds.Writer(path, {"row": mmds.Array("uint8", (SIZE,))}) as writer:
        writer.write_batch({"row": np.zeros((MILLION, SIZE), np.uint8)})
    script = folder / "first.py"
    script.write_text(FIRST_BATCH.format(n=MILLION, batch=BATCH, size=SIZE))
    seconds: dict[str, list[float]] = {"mmds": [], "nothing": []}
    for _ in progress(range(rounds), "processes"):
        for name, arguments in (("mmds", [str(path)]), ("nothing", [])):
            start = time.time()
            found = subprocess.run([sys.executable, script, *arguments], check=True, capture_output=True, text=True)
            seconds[name].append(float(found.stdout) - start)
    return {name: median(values) for name, values in seconds.items()}


def measure(rounds: int, processes: int) -> dict[str, Any]:
    """Return all figures."""
    with tempfile.TemporaryDirectory(prefix="mmds-scaling-") as name:
        folder = Path(name)
        files = {n: folder / f"{n}.mmds" for n in SIZES}
        for n, path in files.items():
            write_sparse(path, n, FIELDS)
        return {
            "per_batch_us": per_batch(files, rounds),
            "first_batch_s": first_batch(folder, processes),
        }


def report(figures: dict[str, Any], rounds: int) -> str:
    """Return the figures as a markdown table."""
    lines = ["| | " + " | ".join(f"{n:,} samples" for n in SIZES) + " |", "|---|" + "---:|" * len(SIZES)]
    for what, title in WAYS.items():
        found = figures["per_batch_us"][what]
        first = found[SIZES[0]]
        lines.append(f"| {title} | " + " | ".join(f"{found[n] / first:.2f} ({found[n]:.0f} µs)" for n in SIZES) + " |")
    found = figures["first_batch_s"]
    return "\n".join(
        [
            *lines,
            "",
            f"First batch of a DataLoader with 2 spawned workers: {found['mmds']:.2f} s with {MILLION:,} samples, "
            f"{found['nothing']:.2f} s with a dataset that holds nothing: {found['mmds'] - found['nothing']:+.2f} s.",
            f"Warm page cache; medians of {rounds} rounds in turns. " + describe("numpy", "torch"),
        ]
    )


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="What a batch costs at 10^4 to 10^8 samples; time to the first batch.")
    parser.add_argument("--rounds", type=int, default=60, help="measured rounds of (a); a sixth of them for (b)")
    parser.add_argument("--quick", action="store_true", help="one round: shows that it works, no more")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    figures = measure(rounds, max(1, rounds // 6))
    if arguments.json:
        print(json.dumps({**figures, "rounds": rounds, "machine": describe("numpy", "torch")}, indent=2))
    else:
        print(report(figures, rounds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
