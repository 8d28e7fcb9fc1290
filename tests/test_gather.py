"""Batches in recycled memory: never while anybody refers to them, always afterwards."""

from __future__ import annotations

import concurrent.futures
import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mmds import gather
from mmds.gather import address

ROWS = np.arange(1000 * 512, dtype="int64").reshape(1000, 512)  # 4 KiB per row


@pytest.fixture(autouse=True)
def _no_buffers() -> Iterator[None]:
    gc.collect()
    gather._free.clear()
    yield
    gather._free.clear()


def test_a_batch_that_is_referred_to_is_never_overwritten() -> None:
    batches = []
    for start in range(20):
        batch = gather.take_rows(ROWS, np.arange(start, start + 100))
        batches.append(batch if start % 2 else batch[5:][:, ::2].T)  # a view alone keeps it, too
        del batch
    for start, batch in enumerate(batches):
        want = ROWS[start : start + 100]
        assert np.array_equal(batch, want if start % 2 else want[5:, ::2].T)
    assert len({address(batch) for batch in batches}) == 20


def test_memory_is_used_again_after_the_last_reference() -> None:
    first = gather.take_rows(ROWS, np.arange(100))
    place, view = address(first), first[3:, 4]
    del first
    assert address(gather.take_rows(ROWS, np.arange(100))) != place
    assert view.tolist() == ROWS[3:100, 4].tolist()
    gather._free.clear()
    del view
    smaller = gather.take_rows(ROWS, np.arange(98))
    assert address(smaller) == place
    assert np.array_equal(smaller, ROWS[:98])


def test_a_tensor_keeps_its_batch() -> None:
    import torch

    tensor = torch.from_numpy(gather.take_rows(ROWS, np.arange(100)))
    gc.collect()
    other = gather.take_rows(ROWS, np.arange(500, 600))
    assert tensor.data_ptr() != address(other)
    assert tensor[:, 0].tolist() == ROWS[:100, 0].tolist()


def test_two_sizes_in_turn_are_both_recycled() -> None:
    places = set()
    for _ in range(10):
        image, mask = gather.take_rows(ROWS, np.arange(100)), gather.take_rows(ROWS, np.arange(300))
        places |= {address(image), address(mask)}
        del image, mask
    assert len(places) == 2


def test_few_are_kept_and_those_unused_for_longest_are_let_go() -> None:
    batches = [gather.take_rows(ROWS, np.arange(100)) for _ in range(gather.KEPT_BUFFERS + 2)]
    del batches
    assert len(gather._free) == gather.KEPT_BUFFERS
    others = [gather.take_rows(ROWS, np.arange(300)) for _ in range(gather.KEPT_BUFFERS)]
    del others
    assert {len(buffer.array) for buffer in gather._free} == {gather.size_class(300 * 4096)}


def test_large_batches_begin_where_copies_are_fast() -> None:
    assert address(gather.take_rows(ROWS, np.arange(100))) % gather.PAGE == gather.PLACE


def test_small_batches_are_left_to_malloc() -> None:
    small = gather.take_rows(ROWS, np.arange(63))
    assert small.base is None
    del small
    assert gather._free == []


@pytest.mark.parametrize("count", [0, 1, 63, 64, 511, 512, 513, 1000])
@pytest.mark.parametrize("contiguous", [True, False])
def test_every_size_is_gathered_right(count: int, contiguous: bool) -> None:
    rows = ROWS if contiguous else np.ndarray((999, 500), "int64", ROWS, 24, ROWS.strides)
    indices = np.random.default_rng(count).integers(0, len(rows), count)
    assert np.array_equal(gather.take_rows(rows, indices), rows[indices])
    out = np.empty((count, *rows.shape[1:]), "int64")
    assert gather.take_rows(rows, indices, out) is out
    assert np.array_equal(out, rows[indices])


def test_memory_that_does_not_fit_is_refused() -> None:
    wrong = np.empty((1000, 511), "int64")
    with pytest.raises(ValueError, match=r"."):
        gather.take_rows(ROWS, np.arange(1000), wrong)


def test_threads_take_different_buffers() -> None:
    def check(seed: int) -> bool:
        generator, whole = np.random.default_rng(seed), True
        for _ in range(50):
            indices = generator.integers(0, 1000, int(generator.integers(64, 128)))
            whole &= np.array_equal(gather.take_rows(ROWS, indices), ROWS[indices])
        return whole

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(16)))


def test_a_buffer_taken_by_another_thread_at_the_last_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    class Taken(list[Any]):
        def remove(self, buffer: Any) -> None:
            raise ValueError("another thread has it")

    taken = gather._Buffer(gather.size_class(2**18))
    monkeypatch.setattr(gather, "_free", Taken([taken]))
    assert address(gather.empty((2**18,), np.dtype("uint8"))) != address(taken.array)
