"""Samples in memory that two processes share: the same values, in the slot where they fit, never mixed up."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmds.handover import NOTHING, SLOT, SMALL, Arena, Full, Outbox, Packed, pack, unpack
from tests.likeness import assert_alike

SAMPLES: list[Any] = [
    {"a": np.arange(5000, dtype="<f4").reshape(50, 100), "b": b"x" * 9000, "c": (1, 2.5, None, "ü")},
    (np.zeros((0, 3)), [b"y" * SMALL, {"deep": np.full(SMALL, 7, np.uint8)}], np.float32(2)),
    np.asfortranarray(np.arange(6000.0).reshape(60, 100)),
    b"",
    b"z" * (SMALL - 1),
    np.arange(40_000)[::3],
    np.array(3),
]


@pytest.mark.parametrize("number", range(len(SAMPLES)))
def test_a_sample_comes_back(number: int) -> None:
    slot = memoryview(bytearray(SLOT))
    packed, used = pack(SAMPLES[number], slot, 100)
    got = unpack(packed, slot)
    assert_alike(got, SAMPLES[number])
    assert len(packed[0]) < 200_000
    assert used >= 100


def test_large_buffers_lie_in_the_slot_and_nowhere_else() -> None:
    slot = memoryview(bytearray(SLOT))
    packed, used = pack({"a": np.ones(2**19), "b": b"x" * 2**16, "c": b"short"}, slot, 0)
    assert used == 2**22 + 2**16
    assert len(packed[0]) < 500 and packed[1] == [(0, 2**22), (2**22, 2**16)]


def test_what_does_not_fit_waits_or_travels_along() -> None:
    slot = memoryview(bytearray(SLOT))
    _, used = pack(np.zeros(5 * 2**20, np.uint8), slot, 0)
    assert used == 5 * 2**20
    with pytest.raises(Full):
        pack(np.zeros(5 * 2**20, np.uint8), slot, used)
    whole = np.arange(2 * SLOT, dtype=np.uint8)
    packed, used = pack(whole, slot, 0)
    assert used == 0 and packed[1] == []
    assert_alike(unpack(packed, None), whole)


def test_arrays_over_a_slot_are_read_only_and_not_copied() -> None:
    slot = memoryview(bytearray(SLOT))
    packed, _ = pack(np.zeros(SMALL, np.uint8), slot, 0)
    array = unpack(packed, slot)
    slot[packed[1][0][0]] = 9
    assert array[0] == 9
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_an_arena_of_another_process_is_the_same_memory() -> None:
    arena = Arena()
    other = Arena(arena_descriptor(arena))
    assert arena.current == NOTHING
    other.current = 2**40
    other.slot(2)[5] = 77
    assert arena.current == 2**40 and arena.slot(2)[5] == 77 and arena.slot(1)[5] == 0
    arena.close()
    other.close()


def arena_descriptor(arena: Arena) -> int:
    return os.dup(arena._fd)


def test_descriptors_and_maps_are_given_back() -> None:
    def state() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text().count("mmds-samples")
        return len(list(Path("/proc/self/fd").iterdir())), maps

    before = state()
    for _ in range(5):
        Arena().close()
    assert state() == before


def test_samples_are_sent_in_order_and_their_slot_with_them() -> None:
    arena = Arena()
    sent: list[tuple[list[tuple[int, Packed]], int | None]] = []
    free = [2, 1, 0]
    outbox = Outbox(arena, lambda packed, slot: sent.append((packed, slot)), free.pop)
    for number in range(3):
        outbox.put(number, {"n": number})
    outbox.flush()
    outbox.flush()
    assert [slot for _, slot in sent] == [0]  # nothing is in it, but who has none left has to wait
    free.append(0)
    array = np.empty(2**19, np.uint8)
    for number in range(3, 8):
        array[:] = number  # the same memory again: what was put is not changed by that
        outbox.put(number, array)
    outbox.flush()
    assert [slot for _, slot in sent] == [0, 0, 1, 2]
    values = {
        number: unpack(each, arena.slot(slot))
        for packed, slot in sent[1:]
        for number, each in packed
        if slot is not None
    }
    assert sorted(values) == [3, 4, 5, 6, 7]
    assert all((value == number).all() and len(value) == 2**19 for number, value in values.items())
    del values
    arena.close()


def test_nothing_but_plain_values_is_needed_to_unpack() -> None:
    data, _ = pack({"b": b"x" * 9000}, memoryview(bytearray(SLOT)), 0)[0]
    assert b"_Bytes" not in data and pickle.loads(data, buffers=[b"x" * 9000]) == {"b": b"x" * 9000}
