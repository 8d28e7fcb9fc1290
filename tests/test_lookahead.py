"""Shards come before they are needed, in the order of the epoch, and never so many that others have to go."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.errors import StorageError
from mmds.lookahead import Prefetch, looking_ahead
from mmds.shards import Shards
from tests.rangeserver import RangeServer, serving
from tests.shard_folders import write_folder

SHARDS, EACH = 8, 10
fork = multiprocessing.get_context("fork")


def sample(i: int) -> dict[str, Any]:
    """Return sample `i`, of about 2 KB."""
    return {"x": np.full(2000, i % 256, np.uint8), "i": i}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which "ds" is a dataset."""
    root = tmp_path_factory.mktemp("store")
    write_folder(root / "ds", [EACH] * SHARDS, sample)
    return root


@pytest.fixture
def server(root: Path) -> Iterator[RangeServer]:
    with serving(root) as server:
        yield server


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what other threads do."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def order(server: RangeServer) -> list[int]:
    """Return the numbers of the shards that were asked for, in order."""
    return [int(path[-10:-5]) for path in server.asked if path.endswith(".mmds")]


def threads() -> int:
    """Return how many threads download."""
    return sum(thread.name.startswith("mmds-prefetch") for thread in threading.enumerate())


def test_shards_are_downloaded_in_the_order_of_the_epoch(server: RangeServer, tmp_path: Path) -> None:
    store = mmds.open(f"{server.url}/ds", cache_dir=tmp_path).store
    batches = [[45, 47], [3], [71, 12], [20]]
    iterator = looking_ahead(batches, np.array, store)
    assert next(iterator) == [45, 47]
    eventually(lambda: len(order(server)) == 5)  # none of which anybody has read
    assert order(server)[0] == 0 and set(order(server)[1:3]) <= {4, 7} and set(order(server)) == {0, 4, 7, 1, 2}
    assert list(iterator) == batches[1:]
    eventually(lambda: not threads())


def test_only_so_far_ahead_as_was_asked(server: RangeServer, tmp_path: Path) -> None:
    store = mmds.open(f"{server.url}/ds", cache_dir=tmp_path).store
    iterator = looking_ahead(([i] for i in range(SHARDS * EACH)), np.array, store, 2 * EACH)
    next(iterator)
    eventually(lambda: len(order(server)) == 2)
    time.sleep(0.05)
    assert sorted(order(server)) == [0, 1]
    for _ in range(EACH):
        next(iterator)
    eventually(lambda: sorted(order(server)) == [0, 1, 2])
    iterator.close()  # type: ignore[attr-defined]
    eventually(lambda: not threads())


def test_nothing_that_is_needed_sooner_makes_room(server: RangeServer, root: Path, tmp_path: Path) -> None:
    size = (root / "ds" / "00000.mmds").stat().st_size
    store = mmds.open(f"{server.url}/ds", cache_dir=tmp_path, cache_size=4 * size).store
    iterator = looking_ahead([[EACH * n] for n in (0, 1, 2, 3, 4, 5, 6, 7)], np.array, store)
    next(iterator)
    eventually(lambda: len(order(server)) == 4)
    time.sleep(0.1)
    assert sorted(order(server)) == [0, 1, 2, 3]
    iterator.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("shards_in_cache", [4, SHARDS])
def test_an_epoch_of_windows_downloads_each_shard_once(
    server: RangeServer, root: Path, tmp_path: Path, shards_in_cache: int
) -> None:
    """Also where the cache has room for half of the dataset: a window in use, and the next one."""
    size = max(path.stat().st_size for path in (root / "ds").glob("*.mmds"))
    dataset = mmds.MemoryMappedDataset(f"{server.url}/ds", cache_dir=tmp_path, cache_size=(shards_in_cache + 1) * size)
    sampler = mmds.BlockShuffleSampler(dataset, block_size=EACH, window=2)
    seen = []
    for batch in mmds.Loader(dataset, 4, sampler=sampler, num_threads=2):
        seen += batch["i"].tolist()
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= (shards_in_cache + 1) * size
        time.sleep(0.005)
    assert sorted(seen) == list(range(SHARDS * EACH))
    assert len(order(server)) == SHARDS
    eventually(lambda: not threads())


def test_a_full_shuffle_over_a_cache_that_is_too_small_downloads_again_and_again(
    server: RangeServer, root: Path, tmp_path: Path
) -> None:
    size = max(path.stat().st_size for path in (root / "ds").glob("*.mmds"))
    dataset = mmds.MemoryMappedDataset(f"{server.url}/ds", cache_dir=tmp_path, cache_size=5 * size)
    for _ in mmds.Loader(dataset, 4, shuffle=True, num_threads=0):
        pass
    assert len(order(server)) > 3 * SHARDS


def test_an_error_ahead_is_met_by_whoever_needs_the_shard(server: RangeServer, tmp_path: Path) -> None:
    dataset = mmds.MemoryMappedDataset(f"{server.url}/ds", cache_dir=tmp_path)
    len(dataset)
    server.cut = 0
    loader = mmds.Loader(dataset, EACH, num_threads=1)
    batches = iter(loader)
    assert next(batches)["i"].tolist() == list(range(EACH))  # its shard is open
    with pytest.raises(StorageError, match=rf"^{server.url}/ds/0000\d\.mmds: "):
        next(batches)
    server.cut = None
    eventually(lambda: not threads())
    assert [i for batch in loader for i in batch["i"].tolist()] == list(range(SHARDS * EACH))


def test_threads_are_made_anew_in_a_forked_process(server: RangeServer, tmp_path: Path) -> None:
    store = mmds.open(f"{server.url}/ds", cache_dir=tmp_path).store
    iterator = looking_ahead(([i] for i in range(SHARDS * EACH)), np.array, store, EACH)
    next(iterator)
    eventually(lambda: len(order(server)) == 1 or len(order(server)) == 2)

    def go_on() -> None:
        for _ in range(2 * EACH):
            next(iterator)
        eventually(lambda: len(list(tmp_path.glob("*.mmds"))) >= 3)

    process = fork.Process(target=go_on)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    iterator.close()  # type: ignore[attr-defined]


def test_what_is_on_its_way_is_given_up_when_nobody_wants_it(server: RangeServer, tmp_path: Path) -> None:
    reader = mmds.open(f"{server.url}/ds", cache_dir=tmp_path)
    assert isinstance(reader.store, Shards)
    server.gate.clear()
    prefetch = Prefetch(reader.store)
    prefetch.want([], [3, 4])
    eventually(lambda: len(order(server)) == 3)
    prefetch.close()
    server.gate.set()
    eventually(lambda: not threads())
    assert len(list(tmp_path.glob("*.mmds"))) == 1 and not list(tmp_path.glob(".*.tmp"))


def test_where_nothing_is_downloaded_nothing_is_done(root: Path) -> None:
    store = mmds.open(root / "ds").store
    assert list(looking_ahead([[1], [2]], np.array, store)) == [[1], [2]] and not threads()
