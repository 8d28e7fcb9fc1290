"""What a fresh process takes to open a folder of shards and to read from all over it.

    python -m benchmarks.scale.opened FOLDER DESCRIPTORS

prints its figures as JSON. DESCRIPTORS is what ``ulimit -n`` is set to: a dataset keeps a quarter of it open.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec  # noqa: F401 (mmds imports it when it reads a manifest, and the stores when it opens: no part of opening)
import numpy as np

import mmds
import mmds.converters.stores
from benchmarks.sparse import write_sparse
from mmds.smaps import resident

BATCH, BATCHES = 256, 5
MOST = 5000  # shards that are opened one after the other


@dataclass(frozen=True)
class Opened:
    """Figures of one folder; memory is private (anonymous), in bytes."""

    manifest_bytes: int
    open_seconds: float  # with the first sample
    open_private: int
    open_peak: int  # at any time until then, resident
    shard_seconds: float  # to open one more shard and read a sample of it, mean
    shard_private: int  # of one that is open
    most_maps: int  # of shards, at any time
    most_descriptors: int
    scattered_seconds: float  # a batch from all over the dataset, most of whose shards are not open; median
    near_seconds: float  # a batch from 32 shards that are open and in the page cache, median
    index_per_sample: float  # bytes
    asked_share: float  # bytes that came into the page cache per byte of a batch, asked for as mmds does
    plain_share: float  # the same by touching the samples one by one


def main(folder: Path, descriptors: int) -> Opened:
    """Measure."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(descriptors, hard), hard))
    open_dataset: Any = mmds.open  # imports what it takes

    before, peak = _status("RssAnon"), _status("VmHWM")
    start = time.perf_counter()
    reader = open_dataset(folder)
    reader[0]
    open_seconds = time.perf_counter() - start
    open_private, open_peak = _status("RssAnon") - before, _status("VmHWM") - peak
    most = [_maps(), _descriptors()]

    manifest = reader.store.manifest
    items, count = manifest.shards[0].n, len(manifest.shards)
    chosen = np.linspace(1, count - 1, min(count - 1, MOST)).astype(int).tolist()
    before, at_once = _status("RssAnon"), min(200, len(chosen) // 2)
    seconds = 0.0
    for number, shard in enumerate(chosen):
        start = time.perf_counter()
        reader.store.items[1].get(shard * items)
        seconds += time.perf_counter() - start
        if number + 1 == at_once:
            shard_private = (_status("RssAnon") - before) // at_once
        if number % 100 == 0:
            most = [max(most[0], _maps()), max(most[1], _descriptors())]
    generator = np.random.default_rng(0)
    scattered = [_seconds(reader, generator.integers(0, len(reader), BATCH)) for _ in range(BATCHES)]
    rows = generator.integers(0, min(32, count) * items, BATCH)
    near = [_seconds(reader, rows) for _ in range(BATCHES + 1)]
    file = reader.store.find(0)[0]
    data = file.footer.sections[0].offset
    return Opened(
        manifest_bytes=(folder / "dataset.json").stat().st_size,
        open_seconds=open_seconds,
        open_private=open_private,
        open_peak=open_peak,
        shard_seconds=seconds / len(chosen),
        shard_private=shard_private,
        most_maps=max(most[0], _maps()),
        most_descriptors=max(most[1], _descriptors()),
        scattered_seconds=float(np.median(scattered)),
        near_seconds=float(np.median(near[1:])),
        index_per_sample=(manifest.shards[0].bytes - data) / items,
        asked_share=_brought(folder / "asked.sparse", reader.fields, items, asked=True),
        plain_share=_brought(folder / "plain.sparse", reader.fields, items, asked=False),
    )


def _seconds(reader: Any, rows: Any) -> float:
    start = time.perf_counter()
    reader[rows]
    return time.perf_counter() - start


def _brought(path: Path, schema: mmds.Schema, n: int, *, asked: bool) -> float:
    """Return how many bytes come into the page cache for each byte of a random batch of a shard that is not there yet."""
    write_sparse(path, n, schema)
    with path.open("rb") as file:
        before = resident(file.fileno()) or 0
        reader = mmds.open(path)
        rows = np.random.default_rng(1).choice(len(reader), BATCH // 4, replace=False)
        values = reader.gather(rows)["value"] if asked else np.stack([reader[row]["value"] for row in rows.tolist()])
        return ((resident(file.fileno()) or 0) - before) / int(values.nbytes)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def _maps() -> int:
    return sum(line.endswith(".mmds") for line in Path("/proc/self/maps").read_text().splitlines())


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (names alone)


if __name__ == "__main__":
    print(json.dumps(asdict(main(Path(sys.argv[1]), int(sys.argv[2])))))
