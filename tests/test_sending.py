"""Batches from workers: what arrives is what was sent, however long it is held, and memory is used again only after that."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mmds import sending
from mmds.sending import KEPT, SMALL, SentTensor, tensor_to_send, to_send

BATCHES = 3 * KEPT
LARGE = (3, SMALL)


class Numbers(Dataset[Any]):
    """Sample i is i; the collate function makes the batch."""

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, index: int) -> int:
        return index


def filled(number: int, shape: tuple[int, ...] = LARGE) -> torch.Tensor:
    tensor = tensor_to_send(shape, torch.uint8)
    tensor.fill_(number % 100)
    return to_send(tensor)


def one(samples: list[int]) -> torch.Tensor:
    return filled(samples[0])


def loader(collate: Callable[[list[int]], Any], **options: Any) -> DataLoader[Any]:
    return DataLoader(Numbers(), 1, collate_fn=collate, **{"num_workers": 1, **options})


def assert_filled(tensor: torch.Tensor, number: int) -> None:
    assert type(tensor) is torch.Tensor
    assert bool((tensor == number % 100).all()), number


KINDS = [
    ((3,), torch.uint8),
    ((0, 5), torch.float32),
    ((), torch.int64),
    (LARGE, torch.uint8),
    ((5, SMALL), torch.bool),
    ((2, SMALL), torch.float64),
    ((7,), torch.bfloat16),
    (LARGE, torch.bfloat16),
]


def every_kind(samples: list[int]) -> list[torch.Tensor]:
    return [to_send(tensor_to_send(*kind).fill_(samples[0] % 2)) for kind in KINDS]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_what_arrives_is_what_was_sent(method: str) -> None:
    for number, batch in zip(range(4), loader(every_kind, multiprocessing_context=method), strict=False):
        for tensor, kind in zip(batch, KINDS, strict=True):
            assert_filled(tensor, number % 2)
            assert (tuple(tensor.shape), tensor.dtype) == kind
            tensor.fill_(0)  # it is ours to change


def test_memory_is_used_again_when_a_batch_is_dropped() -> None:
    places = []
    for number, batch in enumerate(loader(one)):
        assert_filled(batch, number)
        places.append(batch.data_ptr())
        del batch
    assert len(places) == BATCHES
    assert len(set(places)) <= 5  # two are read ahead, one is here, one on its way


def test_batches_that_are_held_stay_as_they_are() -> None:
    held = list(loader(one, num_workers=2))
    assert len({batch.data_ptr() for batch in held}) == BATCHES  # more than a worker keeps
    for number, batch in enumerate(held):
        assert_filled(batch, number)


def test_views_hold_a_batch_as_well() -> None:
    views = [batch[1:, ::2].numpy() if number % 3 else batch.view(-1)[5] for number, batch in enumerate(loader(one))]
    for number, view in enumerate(views):
        assert bool((torch.as_tensor(view) == number % 100).all())


def test_random_holding() -> None:
    generator = random.Random(0)
    many = loader(one, num_workers=2, persistent_workers=True)
    held: list[tuple[int, torch.Tensor]] = []
    for _ in range(4):
        for number, batch in enumerate(many):
            held.append((number, batch))
            del batch
            while len(held) > generator.randrange(1, 8):
                dropped = held.pop(generator.randrange(len(held)))
                assert_filled(dropped[1], dropped[0])


_cache: list[torch.Tensor] = []


def caching(samples: list[int]) -> Any:
    """A batch that the worker keeps, and the first one once more, with a part of itself."""
    _cache.append(filled(samples[0]))
    return _cache[-1], _cache[0], _cache[0][1:], samples[0], _cache[-1]


def test_a_worker_may_keep_its_tensors_and_send_them_again() -> None:
    for number, (batch, first, part, index, again) in enumerate(loader(caching)):
        assert index == number
        assert_filled(batch, number)
        assert_filled(again, number)
        assert_filled(first, 0)
        assert_filled(part, 0)


def unsent(samples: list[int]) -> Any:
    filled(1)
    return len(sending._segments), sum(segment.is_free for segment in sending._segments)


def test_a_tensor_that_is_never_sent_gives_its_memory_back() -> None:
    assert set(loader(unsent)) == {(1, 1)}


def test_a_forked_process_keeps_the_batch_that_it_had() -> None:
    batches = iter(loader(one))
    batch = next(batches)
    asks, tells = multiprocessing.Pipe()
    child = os.fork()
    if not child:
        tells.recv()
        os._exit(0 if not batch.numpy().any() else 1)  # torch has threads, which did not come along
    del batch
    for number, other in enumerate(batches, 1):
        assert_filled(other, number)
        del other
    asks.send("look")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_child_of_a_fork_frees_nothing_of_its_parent() -> None:
    batches = iter(loader(one))
    batch = next(batches)
    child = os.fork()
    if not child:
        del batch
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    for _ in range(8):
        next(batches)
    assert_filled(batch, 0)


def test_nothing_is_kept_of_workers_that_are_gone() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    list(loader(one))
    gc.collect()
    before, known = descriptors(), len(sending._mapped)
    for _ in range(3):
        for number, batch in enumerate(loader(one, num_workers=2)):
            assert sending._mapped
            assert_filled(batch, number)
        del batch
    gc.collect()
    assert len(sending._mapped) <= known
    assert descriptors() <= before


def test_nothing_is_written_to_dev_shm() -> None:
    def ours() -> list[str]:  # other tests write there meanwhile
        pids = {os.getpid(), *(child.pid for child in multiprocessing.active_children())}
        return [each.name for each in Path("/dev/shm").iterdir() if any(f"_{pid}_" in each.name for pid in pids)]

    before = set(ours())
    for number, batch in enumerate(loader(one)):
        assert not set(ours()) - before
        assert_filled(batch, number)


def test_a_worker_that_ended_is_named() -> None:
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    assert process.pid is not None
    with pytest.raises(RuntimeError, match=rf"worker \(pid {process.pid}\) ended before the batch"):
        sending._received(process.pid, 5, b"x", torch.uint8, (3,))


@pytest.fixture
def no_proc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sending, "_can_recycle", lambda: False)
    yield


def test_systems_without_proc_use_the_way_of_pytorch(no_proc: None) -> None:
    for number, batch in enumerate(loader(one)):
        assert_filled(batch, number)
        assert batch.is_shared()
    assert not sending._mapped


def as_pickle(samples: list[int]) -> bytes:
    return pickle.dumps([filled(samples[0]), filled(samples[0], (3,))])


def test_other_pickles_hold_the_values() -> None:
    for number, data in zip(range(3), loader(as_pickle), strict=False):
        large, small = pickle.loads(data)
        assert large.shape == LARGE
        assert bool((large == number).all())
        assert bool((small == number).all())


def test_in_the_main_process_tensors_are_plain() -> None:
    assert type(to_send(torch.zeros(3))) is torch.Tensor
    assert [type(batch) for batch in DataLoader(Numbers(), 24, collate_fn=one)] == [torch.Tensor, torch.Tensor]


def grown(samples: list[int]) -> tuple[torch.Tensor, int, int]:
    number = samples[0]
    sizes = [segment.place.nbytes for segment in sending._segments]
    return filled(number, (SMALL * (1 + number % 12),)), len(sizes), sum(sizes)


def test_batches_of_different_size_share_segments() -> None:
    for number, (batch, count, size) in enumerate(loader(grown)):
        assert_filled(batch, number)
        assert count <= KEPT
        assert size <= KEPT * 16 * SMALL
        del batch


def test_a_sent_tensor_computes_as_a_plain_one() -> None:
    tensor = torch.ones(3).as_subclass(SentTensor)
    assert type(tensor + 1) is torch.Tensor
    assert type(tensor[:2]) is torch.Tensor
