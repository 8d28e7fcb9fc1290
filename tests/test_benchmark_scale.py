"""The simulation behind docs/scale.md: a clock that is right, a cache that is the real one, orders that are."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import mmds
from benchmarks.scale import __main__ as scale
from benchmarks.scale.epochs import BATCH, Cache, cached, mixed, ranged
from benchmarks.scale.plans import PLANS, Plan
from benchmarks.scale.store import Store, Terms
from mmds.permutation import Permutation
from mmds.remote import PIECE
from mmds.samplers import BlockShuffle
from mmds.shardcache import ShardCache, let_go


def test_a_request_waits_for_a_connection_and_for_its_turn() -> None:
    store = Store(Terms(latency=0.5, connection=100, connections=2, network=1000, requests_per_second=4))
    assert store.get(50, 0.0) == 0.5 + 0.5  # at the rate of one connection
    assert store.get(0, 0.0) == 0.25 + 0.5  # a quarter of a second later: its turn
    assert store.get(100, 0.0) == 0.75 + 0.5 + 1  # when the second one is done
    assert store.get(100, 5.0) == 6.5
    assert (store.requests, store.bytes) == (4, 250)
    narrow = Store(Terms(latency=0, connection=100, connections=4, network=100, requests_per_second=1e9))
    assert [narrow.get(25, 0.0) for _ in range(4)] == pytest.approx([1.0] * 4)  # all together have what the host has
    paid = Store(Terms(price=2.0, price_per_gb=3.0))
    paid.download(10**9, 4 * 10**8, 0.0)
    assert paid.requests == 4 and paid.cost == pytest.approx(4 * 2 + 3)


class Keeper:
    """Shards that are open, as a process that reads them has them."""

    def __init__(self) -> None:
        self.open: dict[int, int] = {}

    def forget(self) -> None:
        """Let go of them."""
        for fd in self.open.values():
            let_go(fd)
        self.open.clear()


def test_the_simulated_cache_removes_what_the_real_one_does(tmp_path: Path) -> None:
    size, room = 4096, 4
    cache, keeper = ShardCache(tmp_path / "cache", room * size), Keeper()
    cache.add(keeper)
    simulated = Cache(room)
    uses = np.random.default_rng(5).integers(0, 8, 80).tolist()
    downloads: list[int] = []

    def fill(path: Path) -> None:
        path.write_bytes(bytes(size))

    try:
        for shard in uses:
            if shard not in keeper.open:
                time.sleep(0.005)  # file systems tell times apart by that much
                path = cache.path(f"{shard:032x}")
                if not path.exists():
                    downloads.append(shard)
                    assert simulated.use(shard), f"after {downloads}"
                else:
                    assert not simulated.use(shard), f"after {downloads}"
                keeper.open[shard] = cache.hold(f"{shard:032x}", size, fill)
            else:
                assert not simulated.use(shard)
    finally:
        keeper.forget()
    assert 20 < len(downloads) < 60


PLAN = Plan("small", mmds.Array("uint8", (1000,)), 1024, 1024, 64)
GETS = 1 + -(-PLAN.shard_bytes // PIECE)  # for one shard: its length, and its pieces


def test_windows_of_whole_shards_fetch_each_shard_once() -> None:
    order = BlockShuffle(PLAN.n, (0, 0), block_size=PLAN.shard_items, window=8)
    assert sorted(Counter((order[:] // PLAN.shard_items).tolist()).values()) == [1024] * 64
    found = cached(PLAN, order, "", 16, Terms(), ahead=32, skip=0, take=PLAN.n)
    assert (found.requests, found.bytes) == (64 * GETS, PLAN.n * PLAN.sample_bytes)
    part = cached(PLAN, order, "", 16, Terms(), ahead=32, skip=8 * 1024, take=8 * 1024)
    assert (part.requests, part.bytes) == (found.requests, found.bytes)
    assert part.hours == pytest.approx(found.hours, rel=0.2)


def test_small_blocks_and_full_shuffles_fetch_shards_again_and_again() -> None:
    small = BlockShuffle(PLAN.n, (0, 0), block_size=16, window=64)
    again = cached(PLAN, small, "", 16, Terms(), ahead=8, skip=0, take=PLAN.n)
    assert again.bytes > 30 * PLAN.n * PLAN.sample_bytes
    full = cached(PLAN, Permutation(PLAN.n, (0, 0)), "", 16, Terms(), ahead=8, skip=0, take=PLAN.n)
    assert full.bytes > 30 * PLAN.n * PLAN.sample_bytes
    whole = cached(PLAN, Permutation(PLAN.n, (0, 0)), "", 64, Terms(), ahead=8, skip=0, take=PLAN.n)
    assert whole.requests == 64 * GETS  # it all fits


def test_range_reads_fetch_each_sample_and_what_says_where_it_is() -> None:
    found = ranged(PLAN, Permutation(PLAN.n, 0), "", Terms(), ahead=4, requests=2, take=16 * BATCH)
    assert (found.requests, found.bytes) == (2 * PLAN.n, PLAN.n * PLAN.sample_bytes)
    assert found.hours * 3600 >= (2 * PLAN.n - 2 * BATCH) / Terms().requests_per_second


def test_wider_windows_mix_better() -> None:
    shards = [mixed(PLAN, window, 8)[0] for window in (1, 4, 16, 64)]
    assert shards[0] == 1 and shards[1] == 4 and 15 < shards[2] <= 16 and shards[3] > 50


def test_the_program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "PLANS", PLANS[1:2])  # all three show no more
    assert scale.main(["--quick", "--json", "--price", "1"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [*figures["measured"]] == [*figures["simulated"]] == ["100 TB"]
    for name, found in figures["measured"].items():
        assert found["most_maps"] <= 257 and found["most_descriptors"] <= 270, name
        assert 16 <= found["index_per_sample"] < 20
        assert 0 < found["open_private"] < 10e6
    for found in figures["simulated"].values():
        for epoch in found:
            assert epoch["cost"] == pytest.approx(epoch["requests"]) and epoch["hours"] > 0 and epoch["first_batch"] > 0
        assert found[0]["bytes"] < found[2]["bytes"]
    assert 10**4 <= figures["measured"]["100 TB"]["manifest_bytes"] < 10**6
