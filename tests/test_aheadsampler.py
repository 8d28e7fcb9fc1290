"""`mmds.ahead`: the same indices, and shards in the cache before the workers ask for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

import mmds
from tests.rangeserver import RangeServer, serving
from tests.shard_folders import write_folder

SHARDS, EACH = 8, 10


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which "ds" is a dataset."""
    root = tmp_path_factory.mktemp("store")
    write_folder(root / "ds", [EACH] * SHARDS)
    return root


@pytest.fixture
def server(root: Path) -> Iterator[RangeServer]:
    with serving(root) as server:
        yield server


@pytest.fixture
def dataset(server: RangeServer, tmp_path: Path) -> mmds.MemoryMappedDataset:
    return mmds.MemoryMappedDataset(f"{server.url}/ds", cache_dir=tmp_path / "cache")


def test_indices_and_length_are_those_of_the_sampler(dataset: mmds.MemoryMappedDataset) -> None:
    for sampler in (SequentialSampler(dataset), BatchSampler(SequentialSampler(dataset), 7, False)):
        ahead = mmds.ahead(dataset, sampler)
        assert len(ahead) == len(sampler)
        assert list(ahead) == list(sampler) == list(ahead)
    some: tuple[Any, ...] = (range(40), np.arange(40), torch.arange(40), [])
    for numbers in some:
        assert list(mmds.ahead(dataset, numbers)) == list(numbers)


def test_epoch_and_state_are_those_of_the_sampler(dataset: mmds.MemoryMappedDataset) -> None:
    def shuffled() -> Any:
        return mmds.BlockShuffleSampler(dataset, block_size=EACH, window=2, rank=0, world_size=1)

    plain, ahead = shuffled(), mmds.ahead(dataset, shuffled())
    for epoch in (3, 4):
        plain.set_epoch(epoch)
        ahead.set_epoch(epoch)
        assert list(ahead) == list(plain)
    drawn = iter(ahead)
    first = [next(drawn) for _ in range(33)]
    state = ahead.state_dict()
    assert (state["epoch"], state["position"]) == (5, 33) and ahead.state_dict(used=8)["position"] == 8
    again = mmds.ahead(dataset, shuffled())
    again.load_state_dict(state)
    plain.set_epoch(5)
    assert first + list(again) == list(plain)


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.stress)])
def test_workers_find_their_shards_in_the_cache(
    server: RangeServer, dataset: mmds.MemoryMappedDataset, tmp_path: Path, context: str
) -> None:
    sampler = mmds.ahead(dataset, RandomSampler(dataset))
    seen, there = [], []
    loader = DataLoader(dataset, 5, sampler=sampler, num_workers=2, multiprocessing_context=context)
    for batch in loader:
        seen += batch["number"].tolist()
        there.append(len(list((tmp_path / "cache").glob("*.mmds"))))
        time.sleep(0.002)
    assert sorted(seen) == list(range(SHARDS * EACH)) and there[-1] == SHARDS
    assert set(server.shards().values()) == {1}


def test_batches_by_a_batch_sampler(server: RangeServer, dataset: mmds.MemoryMappedDataset) -> None:
    batches = BatchSampler(SequentialSampler(dataset), 20, False)
    loader = DataLoader(dataset, batch_sampler=mmds.ahead(dataset, batches))
    assert [len(batch["number"]) for batch in loader] == [20] * 4
    assert set(server.shards().values()) == {1} and len(server.shards()) == SHARDS


def test_a_slice_has_its_own_numbers(server: RangeServer, dataset: mmds.MemoryMappedDataset) -> None:
    part = dataset[60:70]
    for index in mmds.ahead(part, SequentialSampler(part)):
        assert part[index]["number"] == 60 + index
    assert server.shards() == {"ds/00000.mmds": 1, "ds/00006.mmds": 1}


def test_without_a_cache_it_does_nothing_more(root: Path) -> None:
    dataset = mmds.MemoryMappedDataset(root / "ds")
    assert list(mmds.ahead(dataset, range(5))) == [0, 1, 2, 3, 4]


def test_arguments_that_do_not_fit(root: Path) -> None:
    with pytest.raises(TypeError, match="expected a MemoryMappedDataset, whose shards are known, got list"):
        mmds.ahead([1, 2], range(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="samples=0: expected an int of at least 1"):
        mmds.ahead(mmds.MemoryMappedDataset(root / "ds"), range(2), samples=0)
