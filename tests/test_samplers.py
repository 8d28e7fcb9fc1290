"""`BlockShuffle` and `BlockShuffleSampler`: each sample once, few blocks at a time, ranks, resuming, plain `DataLoader`s."""

from __future__ import annotations

import itertools
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from benchmarks import shuffle
from mmds import samplers
from mmds.dataset import MemoryMappedDataset
from mmds.permutation import Permutation
from mmds.samplers import BlockShuffle, BlockShuffleSampler
from tests.samples import write_fixed

# Length, block size, window: no short block, a short one, a block of everything, windows of one block, one window, windows of
# unequal length.
SHAPES = [
    (n, block_size, window)
    for n in (0, 1, 2, 10, 17, 100, 301)
    for block_size in (1, 3, 10, 64, 5000)
    for window in (1, 2, 7, 10**6)
]


@pytest.mark.parametrize(("n", "block_size", "window"), SHAPES)
def test_every_sample_comes_once(n: int, block_size: int, window: int) -> None:
    for seed in range(2):
        order = BlockShuffle(n, (n, seed), block_size=block_size, window=window)
        assert len(order) == n and sorted(order[:].tolist()) == list(range(n))


@pytest.mark.parametrize(("n", "block_size", "window"), [shape for shape in SHAPES if shape[0]])
def test_a_window_holds_whole_blocks_and_no_more_than_it_may(n: int, block_size: int, window: int) -> None:
    for seed in range(2):
        order = BlockShuffle(n, seed, block_size=block_size, window=window)
        position, sizes = 0, []
        while position < n:
            start, stop, blocks = order.window_at(position)
            assert start == position < stop
            assert all(np.array_equal(order.window_at(at).blocks, blocks) for at in (start, stop - 1, stop - 1 - n))
            assert (blocks[:, 0] % block_size == 0).all() and (
                blocks[:, 1] == np.minimum(blocks[:, 0] + block_size, n)
            ).all()
            assert sorted(order[start:stop].tolist()) == [i for a, b in blocks.tolist() for i in range(a, b)]
            sizes.append(len(blocks))
            position = stop
        assert max(sizes) <= window and max(sizes) - min(sizes) <= 1
        assert len(sizes) == -(-len(order._blocks) // window)


def test_the_short_block_may_come_anywhere() -> None:
    found = set()
    for seed in range(200):
        order = BlockShuffle(103, seed, block_size=10, window=3)
        found.add(next(at for at in range(0, 103, 5) if [100, 103] in order.window_at(at).blocks.tolist()))
    assert len(found) >= 4  # one or two positions per window


def test_indices() -> None:
    order = BlockShuffle(1003, 5, block_size=10, window=6)
    whole = order[:]
    assert whole.dtype == np.int64 and type(order[7]) is int
    assert [order[i] for i in range(-1003, 1003)] == whole.tolist() * 2
    for part in (slice(5, 9), slice(55, 200), slice(-5, None), slice(None, None, -1), slice(3, 1000, 7), slice(9, 5)):
        assert order[part].tolist() == whole[part].tolist()
    places = np.random.default_rng(0).integers(-1003, 1003, (20, 30))
    assert order[places].tolist() == whole[places].tolist()
    assert list(order) == whole.tolist() and 1002 in order and 1003 not in order and None not in order
    for wrong in (1003, -1004, np.array([0, 1003])):
        with pytest.raises(IndexError, match="out of range for 1003 elements"):
            order[wrong]
    with pytest.raises(IndexError):
        BlockShuffle(0, 0)[0]


def test_golden_order() -> None:
    """It must never change: whoever resumes a training would get another one."""
    assert BlockShuffle(23, (7, 1), block_size=4, window=3)[:].tolist() == [
        6,
        4,
        21,
        5,
        9,
        7,
        20,
        11,
        8,
        22,
        10,
        2,
        15,
        0,
        19,
        18,
        13,
        12,
        3,
        17,
        16,
        14,
        1,
    ]
    order = BlockShuffle(10**12, 3, block_size=16, window=1024)
    assert order[10**11 : 10**11 + 3].tolist() == [977949881057, 964472728697, 227352644289]


def test_a_slice_of_a_huge_order_touches_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[int] = []
    network = Permutation._network

    def counted(self: Permutation, x: Any, scratch: Any, inverse: bool) -> None:
        passed.append(len(x))
        network(self, x, scratch, inverse)

    monkeypatch.setattr(Permutation, "_network", counted)
    order = BlockShuffle(10**12 + 1, 0, block_size=16, window=1024)
    got = order[10**11 : 10**11 + 40_000]
    assert len(set(got.tolist())) == 40_000
    # One of each kind, the inverse for the short block, cycles that are walked, but no whole windows.
    assert 80_000 < sum(passed) < 85_000
    assert len(pickle.dumps(order)) < 2000


def test_seeds_and_windows_shuffle_differently() -> None:
    orders = [BlockShuffle(1000, seed, block_size=10, window=10)[:] for seed in (0, 1, -1, (0, 0), (0, 1), (1, 0))]
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).sum() < 12
    first = BlockShuffle(1000, 0, block_size=1000, window=1)
    assert first[:].tolist() != sorted(first[:].tolist())
    order = BlockShuffle(1000, 0, block_size=100, window=1)
    within = {tuple((order[start : start + 100] % 100).tolist()) for start in range(0, 1000, 100)}
    assert len(within) == 10


def test_samples_of_a_window_are_evenly_mixed() -> None:
    """Every block of a window is found in each part of it as often as chance has it."""
    order = BlockShuffle(2**16, 0, block_size=64, window=64)
    for number in range(16):
        start, stop, blocks = order.window_at(number * 4096)
        place = np.searchsorted(blocks[:, 0], order[start:stop], "right") - 1
        counts = np.stack([np.bincount(part, minlength=64) for part in np.split(place, 4)])
        # 64 samples, 16 expected in each of four parts; the statistic has 63 * 3 degrees of freedom.
        statistic = ((counts - 16) ** 2 / 16).sum()
        assert abs(statistic - 189) < 5 * np.sqrt(2 * 189)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": -1}, ValueError, "n=-1: expected an integer from 0 to"),
        ({"block_size": 0}, ValueError, "block_size=0: expected an integer from 1 to"),
        ({"window": 0}, ValueError, "window=0: expected an integer from 1 to"),
        ({"window": 2.5}, TypeError, r"window=2\.5: expected an integer, got float"),
        ({"seed": "a"}, TypeError, "seed='a': expected an integer, or a tuple"),
    ],
)
def test_bad_arguments(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BlockShuffle(**{"n": 10, "seed": 0, **arguments})


# The sampler

SETTINGS: dict[str, Any] = {"block_size": 4, "window": 5, "seed": 9}


def ranks(n: int, world_size: int, **options: Any) -> list[BlockShuffleSampler]:
    return [
        BlockShuffleSampler(n, **{**SETTINGS, "rank": rank, "world_size": world_size, **options})
        for rank in range(world_size)
    ]


def taking_turns(samplers: list[BlockShuffleSampler], steps: int | None = None) -> list[int]:
    """Return what all ranks draw together, in the order in which they draw it."""
    return [index for together in itertools.islice(zip(*samplers, strict=True), steps) for index in together]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [0, 1, 5, 24, 101])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_an_epoch_as_those_of_a_distributed_sampler(n: int, world_size: int, drop_last: bool) -> None:
    all_ranks = ranks(n, world_size, drop_last=drop_last)
    drawn = [list(sampler) for sampler in all_ranks]
    assert {len(one) for one in drawn} == {len(sampler) for sampler in all_ranks} == {len(drawn[0])}
    order = all_ranks[0].order(0)[:].tolist()
    together = [index for step in zip(*drawn, strict=True) for index in step]
    if drop_last:
        assert together == order[: n // world_size * world_size]
    else:
        assert together == (order * world_size)[: -(-n // world_size) * world_size]
    if n:
        theirs: DistributedSampler[Any] = DistributedSampler(range(n), world_size, 0, drop_last=drop_last)  # type: ignore[arg-type]
        if not (drop_last and n < world_size):  # theirs repeats samples even so
            assert len(theirs) == len(all_ranks[0])


def test_it_yields_ints_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "CHUNK", 7)
    for sampler in ranks(101, 3):
        drawn = list(sampler)
        assert all(type(index) is int for index in drawn)
        whole = sampler.order(0)[:].tolist()
        assert drawn == (whole + whole)[sampler._rank : 102 : 3]


def test_epochs() -> None:
    sampler = BlockShuffleSampler(100, **SETTINGS)
    epochs = [list(sampler) for _ in range(3)]
    assert sampler.epoch == 2 and all(Counter(epoch) == Counter(range(100)) for epoch in epochs)
    assert epochs == [sampler.order(epoch)[:].tolist() for epoch in range(3)] and len({tuple(e) for e in epochs}) == 3
    sampler.set_epoch(1)
    assert list(sampler) == epochs[1]
    sampler.set_epoch(1)
    assert list(sampler) == epochs[1] and list(sampler) == epochs[2]
    assert BlockShuffleSampler(100, **{**SETTINGS, "seed": 10}).order(0)[:].tolist() != epochs[0]
    assert sampler.order()[:].tolist() == epochs[2]


def test_set_epoch_does_not_disturb_an_iteration() -> None:
    sampler = BlockShuffleSampler(100, **SETTINGS)
    drawn = iter(sampler)
    sampler.set_epoch(5)
    assert list(drawn) == sampler.order(0)[:].tolist()
    assert sampler.state_dict()["position"] == 0 and list(sampler) == sampler.order(5)[:].tolist()


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 4), (4, 2), (3, 1), (1, 5), (6, 4)])
@pytest.mark.parametrize("n", [120, 121])
def test_resuming_on_another_number_of_ranks(before: int, after: int, n: int) -> None:
    old = ranks(n, before)
    for sampler in old:
        sampler.set_epoch(3)
    drawn = taking_turns(old, 60 // before)
    state = json.loads(json.dumps(old[0].state_dict()))
    assert (state["epoch"], state["position"]) == (3, 60)
    assert all(sampler.state_dict() == old[0].state_dict() for sampler in old)
    new = ranks(n, after)
    for sampler in new:
        sampler.load_state_dict(state)
        sampler.set_epoch(3)  # as a loop over epochs does
    drawn += taking_turns(new)
    assert drawn[:n] == old[0].order(3)[:].tolist() and len(drawn) == len(new[0]) * after
    assert taking_turns(new)[:n] == old[0].order(4)[:].tolist()


def test_resuming_at_every_place() -> None:
    whole = BlockShuffleSampler(30, **SETTINGS)
    expected = [index for _ in range(2) for index in whole]
    for drawn in range(61):
        sampler = BlockShuffleSampler(30, **SETTINGS)
        epochs = itertools.chain.from_iterable(iter(sampler) for _ in range(2))
        first = list(itertools.islice(epochs, drawn))
        resumed = BlockShuffleSampler(30, **SETTINGS)
        resumed.load_state_dict(sampler.state_dict())
        rest = [index for _ in range(3) for index in resumed][: 60 - drawn]
        assert first + rest == expected


def test_resuming_twice_in_an_epoch() -> None:
    expected = list(BlockShuffleSampler(50, **SETTINGS))
    found: list[int] = []
    state = None
    for steps in (7, 11, 0, 32):
        sampler = BlockShuffleSampler(50, **SETTINGS)
        if state is not None:
            sampler.load_state_dict(state)
        found += itertools.islice(sampler, steps)
        state = sampler.state_dict()
    assert found == expected


def test_the_end_of_an_epoch_is_the_end_on_any_number_of_ranks() -> None:
    old = ranks(10, 2)
    taking_turns(old)
    for sampler in ranks(10, 4):
        sampler.load_state_dict(old[0].state_dict())
        assert list(sampler) == [] and len(list(sampler)) == 3 and sampler.epoch == 1


def test_another_epoch_begins_at_its_beginning() -> None:
    sampler = BlockShuffleSampler(10, **SETTINGS)
    next(iter(sampler))
    resumed = BlockShuffleSampler(10, **SETTINGS)
    resumed.load_state_dict(sampler.state_dict())
    resumed.set_epoch(1)
    assert list(resumed) == resumed.order(1)[:].tolist()


def test_used_is_what_was_trained_with() -> None:
    sampler = BlockShuffleSampler(100, **SETTINGS, rank=1, world_size=2)
    expected = list(itertools.islice(sampler, 30))
    assert sampler.state_dict(used=8)["position"] == 16
    for _ in range(2):
        resumed = BlockShuffleSampler(100, **SETTINGS, rank=1, world_size=2)
        resumed.load_state_dict(sampler.state_dict(used=8))
        assert list(itertools.islice(resumed, 22)) == expected[8:]
        assert resumed.state_dict(used=2)["position"] == 20
    with pytest.raises(ValueError, match="used=31: expected an integer from 0 to 30"):
        sampler.state_dict(used=31)


def test_states_that_do_not_fit() -> None:
    state = BlockShuffleSampler(100, **SETTINGS).state_dict()
    for name, value in (("length", 99), ("seed", 1), ("block_size", 8), ("window", 9)):
        other = {**SETTINGS, **({} if name == "length" else {name: value})}
        sampler = BlockShuffleSampler(value if name == "length" else 100, **other)
        with pytest.raises(ValueError, match=f"the state has {name}=.*, and this sampler .*; the orders differ"):
            sampler.load_state_dict(state)
    sampler = BlockShuffleSampler(100, **SETTINGS, rank=1, world_size=3)
    with pytest.raises(ValueError, match=r"position 50 cannot be shared among world_size=3 ranks: expected a multiple"):
        sampler.load_state_dict({**state, "position": 50})
    with pytest.raises(ValueError, match="position=-3: expected an integer from 0"):
        sampler.load_state_dict({**state, "position": -3})
    with pytest.raises(ValueError, match="not a state of a BlockShuffleSampler: it has no epoch, position"):
        sampler.load_state_dict({"length": 100, "seed": (9,), "block_size": 4, "window": 5})
    assert sampler.state_dict() == state  # and nothing was changed


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"data_source": 1.5}, TypeError, r"data_source=1\.5: expected an integer, got float"),
        ({"data_source": -1}, ValueError, "data_source=-1: expected an integer from 0"),
        ({"block_size": 0}, ValueError, "block_size=0: expected"),
        ({"window": "a"}, TypeError, "window='a': expected"),
        ({"seed": None}, TypeError, "seed=None: expected"),
        ({"rank": 1}, ValueError, "rank=1 and world_size=None: expected both or neither"),
        ({"world_size": 2}, ValueError, "rank=None and world_size=2: expected both or neither"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank=2: expected an integer from 0 to 1"),
        ({"rank": 0, "world_size": 0}, ValueError, "world_size=0: expected an integer from 1"),
    ],
)
def test_bad_arguments_of_the_sampler(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BlockShuffleSampler(**{"data_source": 10, **arguments})
    with pytest.raises(ValueError, match="epoch=-1: expected an integer from 0"):
        BlockShuffleSampler(3).set_epoch(-1)


def test_torch_distributed_is_asked(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        assert len(BlockShuffleSampler(10)) == 10
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.distributed, "get_rank", lambda: 2)
            patch.setattr(torch.distributed, "get_world_size", lambda: 4)
            asked, given = BlockShuffleSampler(10, seed=1), BlockShuffleSampler(10, seed=1, rank=0, world_size=1)
        order = given.order(0)[:].tolist()
        assert list(given) == order and list(asked) == [order[2], order[6], order[0]]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_plain_dataloader(tmp_path: Path, workers: int) -> None:
    dataset = MemoryMappedDataset(write_fixed(tmp_path / "a.mmds"), fields=("image", "label"))
    sampler = BlockShuffleSampler(dataset, block_size=4, window=3, seed=2)
    loader = DataLoader(dataset, batch_size=10, sampler=sampler, num_workers=workers)
    assert len(loader) == 7
    for epoch in range(2):
        images = torch.cat([images for images, _ in loader])
        assert images[:, 0, 0, 0].tolist() == sampler.order(epoch)[:].tolist()
    batches = DataLoader(dataset, batch_sampler=BatchSampler(sampler, 10, drop_last=True), num_workers=workers)
    assert [len(labels) for _, labels in batches] == [10] * 6


def test_it_can_be_pickled() -> None:
    sampler = BlockShuffleSampler(10**9, seed=(1, 2))
    list(itertools.islice(sampler, 3))
    copy = pickle.loads(pickle.dumps(sampler))
    assert copy.state_dict() == sampler.state_dict() and len(pickle.dumps(sampler)) < 1000
    assert repr(sampler).startswith("BlockShuffleSampler(length=1000000000, seed=(1, 2), block_size=")


# What docs/shuffling.md says


def test_the_benchmark_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shuffle.main(["--quick", "--picture", str(tmp_path / "shuffle.png")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == len(shuffle.orders()) + 2 and len({line.count("|") for line in lines}) == 1
    assert 10_000 < (tmp_path / "shuffle.png").stat().st_size < 150_000
    with pytest.raises(SystemExit, match="2"):
        shuffle.main(["--samples", "1000"])
    assert "--samples 1000: expected at least 32768" in capsys.readouterr().err


def test_the_figures_of_the_benchmark() -> None:
    n = 100_000
    sorted_file = shuffle.quality(np.arange(n))
    assert (sorted_file.label_run, sorted_file.distance) == (100, 0) and 3 < sorted_file.labels < 4
    for order in shuffle.orders():
        assert sorted(order.make(5001).tolist()) == list(range(5001)), order.name
    full = shuffle.quality(Permutation(n, 0)[:])
    blocks = shuffle.quality(BlockShuffle(n, 0, block_size=16, window=1024)[:])
    buffer = shuffle.quality(shuffle.buffered(range(n), shuffle.IN_USE, 0))
    assert abs(full.distance - 1 / 3) < 0.01 and abs(full.labels - 1000 * (1 - 0.999**256)) < 1
    assert buffer.labels < blocks.labels < full.labels and blocks.labels > 190
