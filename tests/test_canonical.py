"""One text for one value."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmds import canonical

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda children: st.lists(children) | st.dictionaries(st.text(st.characters(codec="utf-8")), children),
    max_leaves=20,
)  # fmt: skip


def nest(levels: int, inner: Any = None) -> Any:
    value = [] if inner is None else [inner]
    for _ in range(levels - 1):
        value = [value]
    return value


@given(VALUES)
def test_what_is_dumped_is_loaded_again(value: Any) -> None:
    text = canonical.dump(value)
    assert canonical.load(text) == value
    assert canonical.dump(canonical.load(text)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [True, None, -0.0]}, b'{"a":[true,null,-0.0],"b":1}'),
        (("x", 1e22, 1e-7), b'["x",1e+22,1e-07]'),
        ({"é\n\x7f": '"\\'}, '{"é\\n\x7f":"\\"\\\\"}'.encode()),
        (2**53 - 1, b"9007199254740991"),
        (1 - 2**53, b"-9007199254740991"),
        ({"\uffff": 1, "\U00010000": 2}, b'{"\xef\xbf\xbf":1,"\xf0\x90\x80\x80":2}'),
    ],
)
def test_dump(value: Any, text: bytes) -> None:
    assert canonical.dump(value) == text


@pytest.mark.parametrize(
    "value",
    [
        2**53,
        -(2**53),
        float("nan"),
        float("inf"),
        "\ud800",
        {1: 2},
        {None: 1},
        {1, 2},
        b"x",
        nest(33),
        nest(32, nest(1)),
    ],
)
def test_what_has_no_canonical_form(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        canonical.dump(value)


@pytest.mark.parametrize(
    "text",
    [b"", b" 1", b"1 ", b"[1, 2]", b'{"a":1,"a":1}', b'{"b":1,"a":1}', b"NaN", b"-Infinity", b"1e999", b"1.0e0", b"-0",
     b"01", b'"\\u0041"', b'"\\ud800"', b'"\xff"', b"\xef\xbb\xbf1", b"9007199254740992", b"[" * 10**6, b"'a'"],
)  # fmt: skip
def test_what_is_not_canonical(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        canonical.load(text)


def test_32_levels_are_the_most() -> None:
    for value in (nest(32), nest(32, 1), {"a": nest(31, 1)}):
        assert canonical.load(canonical.dump(value)) == value
    with pytest.raises(ValueError, match="nested deeper than 32"):
        canonical.dump(nest(33))
    with pytest.raises(ValueError, match="nested deeper than 32"):
        canonical.load(b"[" * 33 + b"]" * 33)


def test_16_mib_are_the_most() -> None:
    largest = "x" * (canonical.MAX_BYTES - 2)
    assert canonical.load(canonical.dump(largest)) == largest
    with pytest.raises(ValueError, match="16777217 bytes of JSON; at most 16777216"):
        canonical.dump(largest + "x")
    with pytest.raises(ValueError, match="16777217 bytes of JSON"):
        canonical.load(canonical.dump(largest) + b" ")
