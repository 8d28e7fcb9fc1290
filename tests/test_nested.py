"""Any nested sample comes back equal and of the same types, and what cannot is refused by name."""

from __future__ import annotations

import collections
import datetime
import enum
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmds.errors import SampleError
from mmds.nested import ALIGN, decode, encode
from tests.likeness import assert_alike


class Color(enum.IntEnum):
    """An int that is more than an int."""

    RED = 1


KEPT: list[Any] = [
    None, True, 0, -1, 2**63 - 1, -(2**63), 2**63, 2**64, -(2**64), 10**40, 0.5, -0.0, math.inf, "", "ü\0\n", b"", b"\xff",
    [], {}, (), set(), frozenset(), 1j, (1,), [(1, [2, (3,)])], {1, (2, 3)}, frozenset({"a"}), {"a": {"b": [None, (True,)]}},
    {1: 2, None: 3, False: 4, 2.5: 5, b"k": 6, "k": 7}, {(1, (2,)): 3}, [[[[[]]]]], {"z": 1, "a": 2},
]  # fmt: skip

ARRAYS: list[Any] = [
    np.zeros((0, 3)), np.array(3.0), np.arange(6, dtype=">i2").reshape(2, 3), np.zeros((4, 4), "f2")[:, ::2],
    np.array([True, False]), np.array(["a", "bcd"]), np.array(b"x"), np.array([1 + 2j]), np.array(["2020-01-01"], "M8[D]"),
    np.float64(1.5), np.float32(-0.0), np.uint8(7), np.bool_(True), np.datetime64("2020-01-01", "s"),
    torch.zeros(0, 2), torch.tensor(5), torch.arange(6).reshape(2, 3).T, torch.ones(3, dtype=torch.bfloat16),
    torch.ones(2, dtype=torch.complex64).conj(), torch.tensor([True]), torch.zeros(2, dtype=torch.float8_e4m3fn),
    (np.arange(100), torch.arange(33), {"deep": [np.arange(7, dtype="u1"), "text"]}), (torch.zeros(3, 8, 8), 5),
]  # fmt: skip


@pytest.mark.parametrize("value", KEPT, ids=repr)
def test_python_values_come_back(value: Any) -> None:
    assert_alike(decode(encode(value)), value)
    assert_alike(decode(encode([value, {"key": (value,)}])), [value, {"key": (value,)}])


@pytest.mark.parametrize("value", ARRAYS, ids=lambda value: type(value).__name__)
def test_arrays_and_tensors_come_back(value: Any) -> None:
    found = decode(encode(value))
    if isinstance(value, torch.Tensor):
        assert type(found) is torch.Tensor
        assert found.dtype == value.dtype
        assert found.shape == value.shape
        assert found.tolist() == value.tolist()
    else:
        assert_alike(found, value)


def test_nan_comes_back() -> None:
    assert math.isnan(decode(encode(math.nan)))


def test_arrays_are_writable_copies_and_begin_at_multiples_of_64() -> None:
    data = encode({"a": np.arange(5), "b": np.arange(70, dtype="u1")})
    assert len(data) % ALIGN == 0
    first = decode(data)
    first["a"][:] = 9
    first["b"].fill(1)
    assert decode(data)["a"].tolist() == [0, 1, 2, 3, 4]


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"))
    | st.binary()
)
KEYS = st.text(st.characters(codec="utf-8")) | st.integers(-(2**63), 2**63 - 1)
NESTED = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner) | st.lists(inner).map(tuple),
    max_leaves=30,
)


@given(NESTED)
def test_generated_values_come_back(value: Any) -> None:
    assert_alike(decode(encode(value)), value)


class Own:
    """Something of somebody's own."""


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"a": [1, Own()]}, r"^sample\['a'\]\[1\]: a .*Own, which cannot be kept; make dicts"),
        (collections.OrderedDict(a=1), "sample: a collections.OrderedDict"),
        ([collections.Counter()], r"sample\[0\]: a collections.Counter"),
        (Color.RED, "Color, which cannot be kept"),
        (datetime.datetime(2020, 1, 1), "datetime.datetime"),
        ({"a": np.array([None])}, r"sample\['a'\]: an array of object"),
        (np.zeros(2, [("a", "i4")]), "an array of .*'a'"),
        ((1, {"t": torch.zeros(2, requires_grad=True)}), r"sample\[1\]\['t'\]: a torch.strided tensor on cpu"),
        (torch.zeros(2, 2).to_sparse(), "a torch.sparse_coo tensor"),
        (np.ma.masked_array([1]), "MaskedArray"),
        ("\ud800", "surrogates"),
        ({"\x1b[2J": Own()}, r"\\x1b\[2J"),
    ],
    ids=range(12),
)
def test_what_cannot_be_kept_is_refused_by_name(value: Any, what: str) -> None:
    with pytest.raises(SampleError, match=what):
        encode(value)


def test_a_list_that_contains_itself() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(SampleError, match=r"[Rr]ecursion"):
        encode(value)


@pytest.mark.parametrize("data", [b"", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x05\0\0\0\xc0"])
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="a record of"):
        decode(data)


def test_records_that_are_cut_or_changed_raise_or_decode_but_never_crash() -> None:
    data = encode({"a": np.arange(50), "t": (1, torch.zeros(3), {2, 3}), "n": 2**80, "s": "text" * 5})
    generator = np.random.default_rng(0)
    for _ in range(3000):
        broken = bytearray(data[: generator.integers(1, len(data) + 1)])
        for _ in range(generator.integers(0, 3)):
            broken[generator.integers(len(broken))] = generator.integers(256)
        try:
            decode(bytes(broken))
        except Exception as error:  # noqa: BLE001 (whichever it is, it is one of Python's)
            assert not isinstance(error, (SystemError, MemoryError))
