"""Shards come before they are needed, in the order of the epoch, and never so many that others have to go."""

from __future__ import annotations

import contextlib
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.errors import StorageError
from mmds.lookahead import Fetches, Prefetch, looking_ahead
from mmds.readahead import DiskReads
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


@pytest.fixture
def threads() -> Callable[[], int]:
    """Return what counts the threads that download, of this test."""
    before = set(threading.enumerate())
    return lambda: sum(thread.name == "mmds-prefetch" for thread in set(threading.enumerate()) - before)


def used(cache: Path) -> int:
    """Return how many bytes a cache has that others change meanwhile."""
    sizes = []
    for path in cache.iterdir():
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sum(sizes)


def test_shards_are_downloaded_in_the_order_of_the_epoch(
    server: RangeServer, tmp_path: Path, threads: Callable[[], int]
) -> None:
    store = mmds.open(f"{server.url}/ds", cache_dir=tmp_path).store
    batches = [[45, 47], [3], [71, 12], [20]]
    iterator = looking_ahead(batches, np.array, store)
    server.gate.clear()
    assert next(iterator) == [45, 47]
    eventually(lambda: len(order(server)) == 3)  # two at once, none of which anybody has read
    time.sleep(0.05)
    assert order(server)[0] == 0 and sorted(order(server)[1:]) == [4, 7]
    server.gate.set()
    eventually(lambda: len(order(server)) == 5)
    assert sorted(order(server)[3:]) == [1, 2]
    assert list(iterator) == batches[1:]
    eventually(lambda: not threads())


def test_only_so_far_ahead_as_was_asked(server: RangeServer, tmp_path: Path, threads: Callable[[], int]) -> None:
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
    server: RangeServer, root: Path, tmp_path: Path, threads: Callable[[], int], shards_in_cache: int
) -> None:
    """Also where the cache has room for half of the dataset: a window in use, and the next one."""
    size = max(path.stat().st_size for path in (root / "ds").glob("*.mmds"))
    dataset = mmds.MemoryMappedDataset(f"{server.url}/ds", cache_dir=tmp_path, cache_size=(shards_in_cache + 1) * size)
    sampler = mmds.BlockShuffleSampler(dataset, block_size=EACH, window=2)
    seen = []
    for batch in mmds.Loader(dataset, 4, sampler=sampler, num_threads=2):
        seen += batch["i"].tolist()
        assert used(tmp_path) <= (shards_in_cache + 1) * size
        time.sleep(0.005)
    assert sorted(seen) == list(range(SHARDS * EACH))
    assert len(order(server)) == SHARDS
    eventually(lambda: not threads())


def test_a_full_shuffle_over_a_cache_that_is_too_small_downloads_again_and_again(
    server: RangeServer, root: Path, tmp_path: Path
) -> None:
    size = max(path.stat().st_size for path in (root / "ds").glob("*.mmds"))
    dataset = mmds.MemoryMappedDataset(f"{server.url}/ds", cache_dir=tmp_path, cache_size=5 * size)
    loader = mmds.Loader(dataset, 4, shuffle=True, num_threads=0)
    advice = (
        rf"^{server.url}/ds: 8 shards .* BlockShuffleSampler\(dataset, block_size=10, window=2\), or a larger cache$"
    )
    with pytest.warns(RuntimeWarning, match=advice) as told:
        for _ in loader:
            pass
    assert len(told) == 1 and len(order(server)) > 2 * SHARDS
    for _ in loader:  # it is told once
        pass


@pytest.mark.parametrize("rank", [None, 0, 3])
def test_windows_that_fit_are_not_warned_of(root: Path, rank: int | None) -> None:
    """Also where the cache holds no more than one, and a rank sees a quarter of it."""
    shards = mmds.open(root / "ds").store
    assert isinstance(shards, Shards) and shards.manifest is not None
    shards.downloads = Room(sum(entry.bytes for entry in shards.manifest.shards[:3]))
    ranks: Any = {"rank": 0, "world_size": 1} if rank is None else {"rank": rank, "world_size": 4}
    sampler = mmds.BlockShuffleSampler(SHARDS * EACH, block_size=EACH, window=2, **ranks)
    for _ in range(5):
        fetches, epoch = Fetches(shards), np.array(list(sampler))
        for start in range(0, len(epoch), 4):
            fetches.count(shards.numbers(epoch[start : start + 4]))


class Room:
    """Downloads into a cache of a size, of which nothing is needed but that."""

    def __init__(self, room: int) -> None:
        self.room = room

    def has(self, entry: object) -> bool:
        """Return that a file is there."""
        return True


@pytest.mark.parametrize("epochs", [2, pytest.param(10, marks=pytest.mark.stress)])
def test_batches_on_their_way_keep_no_more_than_their_shards(tmp_path: Path, epochs: int) -> None:
    """In small shards, where a few batches cross several windows, no shard is fetched twice in an epoch."""
    root = tmp_path / "root"
    root.mkdir()
    write_folder(root / "ds", [EACH] * 60, sample)
    size = max(path.stat().st_size for path in (root / "ds").glob("*.mmds"))
    with serving(root) as server:
        dataset = mmds.MemoryMappedDataset(f"{server.url}/ds", cache_dir=tmp_path / "cache", cache_size=20 * size)
        sampler = mmds.BlockShuffleSampler(dataset, block_size=EACH, window=4)
        loader = mmds.Loader(dataset, 16, sampler=sampler, num_threads=2)
        len(dataset)  # the first shard is there
        for _ in range(epochs):
            server.bodies.clear()
            for _ in loader:
                pass
            fetched = server.shards().values()
            assert set(fetched) == {1} and len(fetched) < 60


def test_where_nobody_knows_what_is_in_use_half_of_the_cache_is_for_what_comes(root: Path) -> None:
    shards = mmds.open(root / "ds").store
    assert isinstance(shards, Shards) and shards.manifest is not None
    shards.downloads = Room(4 * max(entry.bytes for entry in shards.manifest.shards))
    for in_flight, free in ((None, 2), (4, 0), (3, 1)):
        prefetch = Prefetch(shards, in_flight)
        for number in range(4):
            prefetch.add([number])
        for number in range(4):
            prefetch.take([number])
        for number in range(4, 4 + free):
            assert not prefetch.is_full
            prefetch.add([number])
        prefetch.add([7])
        assert prefetch.is_full


def test_a_dataset_that_is_all_there_is_not_looked_at(server: RangeServer, tmp_path: Path) -> None:
    dataset = mmds.MemoryMappedDataset(f"{server.url}/ds", cache_dir=tmp_path)
    list(mmds.Loader(dataset, EACH, num_threads=0))
    looked: list[list[int]] = []
    assert list(looking_ahead([[1], [2]], looked.append, dataset.reader.store)) == [[1], [2]] and not looked


SCRIPT = """
import sys
import mmds

dataset = mmds.MemoryMappedDataset(sys.argv[1], cache_dir=sys.argv[2])
if sys.argv[3] == "Loader":
    batches = iter(mmds.Loader(dataset, 4, num_threads=1))
else:
    from torch.utils.data import DataLoader, SequentialSampler
    sampler = mmds.ahead(dataset, SequentialSampler(dataset))
    batches = iter(DataLoader(dataset, 4, sampler=sampler, num_workers=1, persistent_workers=True))
next(batches)
print("one")
"""


@pytest.mark.parametrize("loader", ["Loader", pytest.param("DataLoader", marks=pytest.mark.stress)])
def test_a_process_does_not_wait_at_its_end_for_what_was_wanted_ahead(
    server: RangeServer, tmp_path: Path, loader: str
) -> None:
    """Though its iterator is alive, and the server slow: what is under way is ended, and nothing is begun."""
    server.delay = 0.5
    command = [sys.executable, "-c", SCRIPT, f"{server.url}/ds", str(tmp_path), loader]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(mmds.__file__).parent.parent)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "one\n", "")
    assert len(list(tmp_path.glob("*.mmds"))) <= 4 < SHARDS


def test_an_error_ahead_is_met_by_whoever_needs_the_shard(
    server: RangeServer, tmp_path: Path, threads: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the batch before, though the kernel is asked for what comes next, as while a disk is being read from."""
    monkeypatch.setattr(DiskReads, "wanted", lambda self, samples: True)
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


def test_what_is_on_its_way_is_given_up_when_nobody_wants_it(
    server: RangeServer, tmp_path: Path, threads: Callable[[], int]
) -> None:
    reader = mmds.open(f"{server.url}/ds", cache_dir=tmp_path)
    assert isinstance(reader.store, Shards)
    server.gate.clear()
    prefetch = Prefetch(reader.store)
    prefetch.add([3, 4])
    prefetch.take([3, 4])
    eventually(lambda: len(order(server)) == 3)
    prefetch.close()
    server.gate.set()
    eventually(lambda: not threads())
    assert len(list(tmp_path.glob("*.mmds"))) == 1 and not list(tmp_path.glob(".*.tmp"))


def test_where_nothing_is_downloaded_nothing_is_done(root: Path, threads: Callable[[], int]) -> None:
    store = mmds.open(root / "ds").store
    assert list(looking_ahead([[1], [2]], np.array, store)) == [[1], [2]] and not threads()
