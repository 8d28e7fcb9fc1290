"""Epochs over a dataset in object storage, of one host: real orders, the rule of the real cache, and a store with a fake clock.

Training itself takes no time here: an epoch is as long as its data takes to come.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.scale.plans import Plan
from benchmarks.scale.store import Store, Terms
from mmds.permutation import Order, Permutation
from mmds.remote import PIECE
from mmds.samplers import BlockShuffle

BATCH = 256
SEED = (0, 0)  # and epoch


class Cache:
    """Which shards `mmds.shardcache` has: without the files, for shards of one size, used by one process.

    What is open is not opened again. Who needs room lets go of all that is open, and removes what was opened longest ago.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._opened: dict[int, None] = {}  # by when
        self._open: set[int] = set()

    def use(self, shard: int) -> bool:
        """Open a shard, and return whether it had to be downloaded."""
        missing = shard not in self._opened
        if missing and len(self._opened) >= self.room:
            self._open.clear()
            del self._opened[next(iter(self._opened))]
        if shard not in self._open:
            self._opened.pop(shard, None)
            self._opened[shard] = None
            self._open.add(shard)
        return missing


@dataclass(frozen=True)
class Epoch:
    """What one host asks for in an epoch."""

    way: str
    requests: float
    bytes: float
    first_batch: float  # seconds
    hours: float
    cost: float


def cached(plan: Plan, order: Order, way: str, room: int, terms: Terms, *, ahead: int, skip: int, take: int) -> Epoch:
    """Simulate whole shards through a cache for so many of them; samples `skip` to `skip + take` stand for the epoch.

    Batches are read `ahead`: the shards of a batch are asked for once that many before it have been used.
    """
    store, cache = Store(terms), Cache(room)
    used: list[float] = []
    marks: list[tuple[float, int, int]] = []
    for number, shards in enumerate(_batches(plan, order, skip + take)):
        if number * BATCH in (0, skip):
            marks.append((used[-1] if used else 0.0, store.requests, store.bytes))
        at = used[number - ahead] if number >= ahead else 0.0
        ready = used[-1] if used else 0.0
        for shard in shards:
            if cache.use(shard):
                ready = max(ready, store.download(plan.shard_bytes, PIECE, at))
        used.append(ready)
    return _scaled(plan, way, store, used, marks[-1], take)


def ranged(plan: Plan, order: Order, way: str, terms: Terms, *, ahead: int, requests: int, take: int) -> Epoch:
    """Simulate reading each sample by `requests` requests one after the other, of which the last has its bytes."""
    store = Store(terms)
    used: list[float] = []
    for number in range(take // BATCH):
        at = used[number - ahead] if number >= ahead else 0.0
        known = [at] * BATCH
        for _ in range(requests - 1):
            known = [store.get(0, moment) for moment in known]
        arrived = max(store.get(plan.sample_bytes, moment) for moment in known)
        used.append(max(arrived, used[-1] if used else 0.0))
    assert len(order) == plan.n
    return _scaled(plan, way, store, used, (0.0, 0, 0), take)


def ways(plan: Plan, room: int, terms: Terms, *, index_requests: int = 1, take: int = 8 * BATCH) -> list[Epoch]:
    """Return the epochs that docs/scale.md compares, with a local cache of `room` shards, half of them the window."""
    window = min(max(room // 2, 1), plan.shards)
    blocks = BlockShuffle(plan.n, SEED, block_size=plan.shard_items, window=window)
    full = Permutation(plan.n, SEED)
    whole = window * plan.shard_items // BATCH * BATCH  # of a window
    return [
        cached(
            plan, blocks, f"cache, windows of {window} shards", room, terms,
            ahead=whole // BATCH, skip=whole, take=min(whole, plan.n - whole) // BATCH * BATCH,
        ),
        ranged(plan, full, "range reads, full shuffle", terms, ahead=8, requests=1 + index_requests, take=8 * take),
        cached(plan, full, "cache, full shuffle", room, terms, ahead=8, skip=take, take=take),
    ]  # fmt: skip


def mixed(plan: Plan, window: int, batches: int = 50) -> tuple[float, float]:
    """Return from how many shards a batch of `BATCH` comes, and how many labels it has if the dataset is sorted by label.

    Means over batches from all over an epoch in windows of so many shards. There are 1,000 labels.
    """
    order = BlockShuffle(plan.n, SEED, block_size=plan.shard_items, window=window)
    shards = labels = 0
    for start in np.linspace(0, plan.n - BATCH, batches).astype(np.int64).tolist():
        rows = order[start : start + BATCH]
        shards += len(np.unique(rows // plan.shard_items))
        labels += len(np.unique(rows * 1000 // plan.n))
    return shards / batches, labels / batches


def _batches(plan: Plan, order: Order, samples: int) -> Iterator[list[int]]:
    """Yield the shards of each batch, each once, in the order in which a reader opens them: ascending."""
    for start in range(0, samples, 64 * BATCH):
        rows = order[start : min(start + 64 * BATCH, samples)]
        for batch in rows.reshape(-1, BATCH) // plan.shard_items:
            yield np.unique(batch).tolist()


def _scaled(plan: Plan, way: str, store: Store, used: list[float], mark: tuple[float, int, int], take: int) -> Epoch:
    """Return the epoch of which `take` samples after the `mark` are a part."""
    seconds, requests, size = mark
    share = plan.n / take
    total, carried = (store.requests - requests) * share, (store.bytes - size) * share
    cost = total * store.terms.price + carried / 1e9 * store.terms.price_per_gb
    return Epoch(way, total, carried, used[0], (used[-1] - seconds) * share / 3600, cost)
