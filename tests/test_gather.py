"""Batches in recycled memory: never while anybody refers to them, always afterwards."""

from __future__ import annotations

import concurrent.futures
import gc
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mmds import gather

ROWS = np.arange(1000 * 512, dtype="int64").reshape(1000, 512)  # 4 KiB per row


@pytest.fixture(autouse=True)
def _no_buffers() -> Iterator[None]:
    gc.collect()
    gather._free.clear()
    yield
    gather._free.clear()


def address(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


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
    smaller = gather.take_rows(ROWS, np.arange(90))
    assert address(smaller) == place
    assert np.array_equal(smaller, ROWS[:90])


def test_a_tensor_keeps_its_batch() -> None:
    import torch

    tensor = torch.from_numpy(gather.take_rows(ROWS, np.arange(100)))
    gc.collect()
    other = gather.take_rows(ROWS, np.arange(500, 600))
    assert tensor.data_ptr() != address(other)
    assert tensor[:, 0].tolist() == ROWS[:100, 0].tolist()


def test_other_sizes_are_let_go_and_few_are_kept() -> None:
    batches = [gather.take_rows(ROWS, np.arange(100)) for _ in range(10)]
    del batches
    assert len(gather._free) == gather.KEPT_BUFFERS
    large = gather.take_rows(ROWS, np.arange(900))
    assert gather._free == []
    del large
    limit = time.monotonic() + 10
    while not gather._free and time.monotonic() < limit:  # the second thread lets go of it when it ends
        time.sleep(0.001)
    assert [buffer.nbytes for buffer in gather._free] == [900 * 4096]
    small = gather.take_rows(ROWS, np.arange(64))
    assert small.base is not None
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


def test_an_error_in_either_half_is_raised() -> None:
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
        def __bool__(self) -> bool:
            return True  # what one thread saw before another one popped

    monkeypatch.setattr(gather, "_free", Taken())
    assert gather.empty((2**18,), np.dtype("uint8")).shape == (2**18,)
