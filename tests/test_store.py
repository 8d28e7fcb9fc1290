"""Items made of runs of rows: every order of indices gives the right values, with no more calls than that takes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.errors import FormatError
from mmds.schema import Field
from mmds.store import GAP_BYTES, ListItems, MaskedItems, RaggedItems, Rows, RunItems, runs

INDICES: tuple[list[int], ...] = ([0], [9], [3, 4, 5], [5, 4, 3], [7, 1, 7, 7, 0], [9, 0, 9], list(range(10)), [])


class Calls:
    """A library's array that notes which rows are asked for."""

    def __init__(self, array: Any) -> None:
        self.array, self.asked = array, list[tuple[int, int]]()

    def __call__(self, start: int, stop: int) -> Any:
        assert 0 <= start <= stop <= len(self.array)
        self.asked.append((start, stop))
        return self.array[start:stop]


def ragged(values: list[list[int]], **options: Any) -> tuple[RaggedItems, Calls]:
    elements = Calls(np.array([*itertools.chain(*values)], "int32"))
    ends = np.cumsum([0, *map(len, values)]).astype("<u8")
    field = Field(("x",), mmds.Array("int32", (None,)))
    return RaggedItems(elements, options.get("ends", Calls(ends)), field, "a.h5"), elements


@pytest.mark.parametrize("gap", [0, 1, 100])
@pytest.mark.parametrize("seed", range(5))
def test_runs_cover_every_index_once_and_bridge_no_wider_gap(seed: int, gap: int) -> None:
    rng = np.random.default_rng(seed)
    indices = rng.integers(0, 300, rng.integers(0, 60))
    found = list(runs(indices, gap))
    assert sorted(position for _, _, at in found for position in at) == list(range(len(indices)))
    for start, stop, at in found:
        wanted = np.unique(indices[at])
        assert (start, stop) == (wanted[0], wanted[-1] + 1)
        assert np.diff(wanted).max(initial=0) <= gap + 1
    assert all(second[0] - first[1] > gap for first, second in itertools.pairwise(found))


@pytest.mark.parametrize("indices", INDICES)
@pytest.mark.parametrize("row", [(), (2, 3)])
@pytest.mark.parametrize("scattered", [False, True])
def test_fixed_rows(indices: list[int], row: tuple[int, ...], scattered: bool) -> None:
    array = np.arange(10 * int(np.prod(row, dtype=int)), dtype=">i2").reshape(
        10, *row
    )  # as a foreign file may have them
    kind = mmds.Array("int16", row) if row else mmds.Scalar("int16")
    items = RunItems(Calls(array), kind, (lambda rows: array[rows]) if scattered else None)
    wanted = np.array(indices, np.int64)
    batch = items.gather(wanted)
    assert batch.dtype == np.dtype("<i2") and np.array_equal(batch, array[wanted])
    out = np.zeros((len(indices), *row), "<i2")
    assert items.gather(wanted, out=out) is out or not indices
    assert np.array_equal(out, array[wanted])
    for index in indices:
        value = items.get(index)
        assert np.array_equal(value, array[index]) and (value.dtype == "<i2" if row else type(value) is int)


def test_consecutive_samples_are_one_call_and_no_copy() -> None:
    array = np.arange(80, dtype="<i8").reshape(20, 4)
    rows = Calls(array)
    assert np.shares_memory(RunItems(rows, mmds.Array("int64", (4,))).gather(np.arange(3, 15)), array)
    assert rows.asked == [(3, 15)]


def test_gaps_are_bridged_by_their_bytes_not_by_their_rows() -> None:
    small, large = Calls(np.zeros(5000, "u1")), Calls(np.zeros((5000, GAP_BYTES), "u1"))
    wanted = np.array([4000, 10, 2000])
    RunItems(small, mmds.Scalar("uint8")).gather(wanted)
    RunItems(large, mmds.Array("uint8", (GAP_BYTES,))).gather(wanted)
    assert small.asked == [(10, 4001)]
    assert large.asked == [(10, 11), (2000, 2001), (4000, 4001)]


@pytest.mark.parametrize("indices", INDICES)
def test_ragged_rows(indices: list[int]) -> None:
    values = [[7] * (k % 4) for k in range(10)]
    items, _ = ragged(values)
    assert [part.tolist() for part in items.gather(np.array(indices, np.int64))] == [values[k] for k in indices]
    assert all(items.get(index).tolist() == values[index] for index in indices)


def test_large_ragged_values_between_wanted_ones_are_not_read() -> None:
    values = [[1], [0] * GAP_BYTES, [2], [3]]
    items, elements = ragged(values)
    assert [part.tolist() for part in items.gather(np.array([3, 0, 2]))] == [[3], [1], [2]]
    assert elements.asked == [(0, 1), (GAP_BYTES + 1, GAP_BYTES + 3)]


@pytest.mark.parametrize("ends", [[0, 3, 2, 4], [0, 2**63, 3, 4]])
def test_offsets_that_decrease_are_refused(ends: list[int]) -> None:
    items, _ = ragged([[1], [2], [3]], ends=Calls(np.array(ends, "<u8")))
    with pytest.raises(FormatError, match=r"a\.h5: sample 0, field 'x': the offsets decrease"):
        items.gather(np.array([0, 2]))


def test_shapes_that_do_not_fit_their_elements_are_refused() -> None:
    field = Field((), mmds.Array("uint8", (None, None)))
    parts: list[Rows] = [Calls(np.zeros(6, "u1")), Calls(np.array([0, 6], "<u8")), Calls(np.array([[2, 4]], "<u4"))]
    with pytest.raises(FormatError, match=r"sample 0, field 'value': 6 elements for shape \(2, 4\)"):
        RaggedItems(parts[0], parts[1], field, "a.h5", parts[2]).get(0)


def test_values_that_are_not_of_their_kind_name_their_sample() -> None:
    field = Field(("t",), mmds.Text())
    items = RaggedItems(Calls(np.frombuffer(b"ok\xff", "u1")), Calls(np.array([0, 2, 3], "<u8")), field, "a.h5")
    assert items.get(0) == "ok"
    with pytest.raises(FormatError, match="sample 1, field 't': 'utf-8' codec"):
        items.get(1)


@pytest.mark.parametrize("kind", [mmds.Scalar("int16"), mmds.Array("int16", ()), mmds.Array("int16", (2,))])
def test_nulls(kind: Any) -> None:
    row = (2,) if kind == mmds.Array("int16", (2,)) else ()
    array = np.arange(10 * (2 if row else 1), dtype="<i2").reshape(10, *row)
    items = MaskedItems(RunItems(Calls(array), kind), Calls(np.arange(10) % 3 > 0))
    for indices in INDICES:
        batch = items.gather(np.array(indices, np.int64))
        for value, index in zip(batch, indices, strict=True):
            single = items.get(index)
            assert type(value) is type(single) and np.array_equal(value, single)
            assert (value is None) == (index % 3 == 0)


@pytest.mark.parametrize("indices", INDICES)
def test_lists(indices: list[int]) -> None:
    items = ListItems(Calls([str(k) for k in range(10)]))
    assert items.gather(np.array(indices, np.int64)) == [str(k) for k in indices] == [items.get(k) for k in indices]
