"""What a cache of shards costs: later epochs against local files, and downloads with and without their sync.

    python -m benchmarks.remote [--mb MB] [--rounds N] [--downloads] [--json]

Both datasets are in the page cache, and contenders take turns. The store is a folder (``file://``), so a download is no slower
than this disk: what remains is what the cache itself adds. ``--downloads`` fetches all shards anew in each round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

import mmds
from benchmarks.machine import describe
from benchmarks.progress import progress
from benchmarks.rounds import medians
from mmds.dataset import MemoryMappedDataset
from mmds.format import schema_id
from mmds.manifest import Manifest, describe_shard, publish_manifest

SHARDS, BATCH = 8, 256
FIELDS = {"x": mmds.Array("uint8", (96, 96, 3)), "label": mmds.Scalar("int64")}
SAMPLE = 96 * 96 * 3 + 8


def write(folder: Path, megabytes: int) -> int:
    """Write a folder of shards, and return how many samples it has."""
    folder.mkdir()
    each = megabytes * 10**6 // SAMPLE // SHARDS
    rows = np.random.default_rng(0).integers(0, 256, (64, 96, 96, 3), "uint8")
    entries = []
    for number in range(SHARDS):
        path = folder / f"{number:05}.mmds"
        with mmds.Writer(path, FIELDS) as writer:
            for start in range(0, each, 64):
                count = min(64, each - start)
                first = number * each + start
                writer.write_batch({"x": rows[:count], "label": np.arange(first, first + count)})
        entries.append(describe_shard(path, path.name))
    publish_manifest(folder, Manifest(schema_id(mmds.Schema(FIELDS)).hex(), tuple(entries)), overwrite=False)
    return each * SHARDS


def epoch(loader: Any, n: int) -> Callable[[int], None]:
    """Return what goes through an epoch and looks at what it gets."""

    def run(_: int) -> None:
        labels = [int(batch["label"].sum()) for batch in loader]
        assert sum(labels) == n * (n - 1) // 2

    return run


def measure_epochs(megabytes: int, rounds: int) -> dict[str, float]:
    """Return the seconds of the quickest epoch of every contender; the first one of each downloads, or warms up."""
    with tempfile.TemporaryDirectory(prefix="mmds-remote-") as folder:
        root = Path(folder)
        n = write(root / "data", megabytes)
        datasets = {
            "local files": MemoryMappedDataset(root / "data"),
            "cache": MemoryMappedDataset((root / "data").as_uri(), cache_dir=root / "cache"),
        }
        contenders: dict[str, Callable[[int], None]] = {}
        for name, dataset in datasets.items():
            each = n // SHARDS
            sampler = mmds.BlockShuffleSampler(dataset, block_size=each, window=3, rank=0, world_size=1)
            workers: Any = {"num_workers": 2, "persistent_workers": True}
            contenders |= {
                f"{name}, Loader, full shuffle": epoch(mmds.Loader(dataset, BATCH, shuffle=True), n),
                f"{name}, Loader, shards in windows": epoch(mmds.Loader(dataset, BATCH, sampler=sampler), n),
                f"{name}, DataLoader, 2 workers": epoch(DataLoader(dataset, BATCH, shuffle=True, **workers), n),
                f"{name}, DataLoader, ahead()": epoch(
                    DataLoader(dataset, BATCH, sampler=mmds.ahead(dataset, sampler), **workers), n
                ),
            }
        return quickest(contenders, rounds)


def quickest(contenders: dict[str, Callable[[int], None]], rounds: int) -> dict[str, float]:
    """Return the least seconds of each contender: what others do on the machine only ever adds to them."""
    least = dict.fromkeys(contenders, float("inf"))
    order, chance = list(contenders), random.Random(0)
    for number in progress(range(rounds), "rounds"):
        chance.shuffle(order)
        for name in order:
            start = time.perf_counter()
            contenders[name](number)
            least[name] = min(least[name], time.perf_counter() - start)
    return least


def measure_downloads(megabytes: int, rounds: int) -> dict[str, float]:
    """Return the seconds that it takes to download all shards and to open them."""
    with tempfile.TemporaryDirectory(prefix="mmds-remote-") as folder:
        root = Path(folder)
        n = write(root / "data", megabytes)
        synced: Any = os.fdatasync

        def download(sync: Any) -> Callable[[int], None]:
            def run(number: int) -> None:
                os.fdatasync = sync
                try:
                    cache = root / f"cache{number}"
                    reader = mmds.open((root / "data").as_uri(), cache_dir=cache)
                    for start in range(0, n, n // SHARDS):
                        assert reader[start]["label"] == start
                finally:
                    os.fdatasync = synced
                shutil.rmtree(cache)

            return run

        return medians({"synced": download(synced), "not synced": download(lambda _: None)}, rounds)


def report(found: dict[str, float], megabytes: int) -> str:
    """Return the figures as a markdown table."""
    lines = ["| | seconds | MB/s | of local files |", "|---|---:|---:|---:|"]
    for name, seconds in found.items():
        peer = found.get(name.replace("cache,", "local files,"), seconds)
        lines.append(f"| {name} | {seconds:.3f} | {megabytes / seconds:.0f} | {seconds / peer:.3f} |")
    return "\n".join([*lines, "", describe("numpy", "torch", "obstore")])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="What a cache of shards costs.")
    parser.add_argument("--mb", type=int, default=400, help="megabytes of the dataset (default: 400)")
    parser.add_argument("--rounds", type=int, default=20, help="rounds (default: 20)")
    parser.add_argument("--downloads", action="store_true", help="measure downloads instead of later epochs")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    found = (measure_downloads if given.downloads else measure_epochs)(given.mb, given.rounds)
    print(json.dumps(found, indent=2) if given.json else report(found, given.mb))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
