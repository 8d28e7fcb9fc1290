"""Conditions on columns mean what they would mean in Python, and nothing else can be said in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmds
from mmds.expressions import MAX_DEPTH, MAX_LENGTH, Column, Condition, ExpressionError

SCHEMA = mmds.Schema(
    {
        "label": mmds.Label(("cat", "dog", "cow")),
        "width": mmds.Scalar("uint8"),
        "big": mmds.Scalar("uint64"),
        "score": mmds.Scalar("float32"),
        "flag": mmds.Scalar("bool"),
        "path": mmds.Text(column=True),
        "key": mmds.Bytes(column=True),
        "maybe": mmds.Scalar("int32", nullable=True),
        "note": mmds.Text(column=True, nullable=True),
        "zero": mmds.Array("int16", ()),
        "box": {"a-b": mmds.Scalar("int8"), "x": (mmds.Scalar("int64"),)},
        "caption": mmds.Text(),
        "small": mmds.Array("int16", (2,)),
        "wave": mmds.Scalar("complex64"),
    }
)
SAMPLES: list[dict[str, Any]] = [
    {"label": 0, "width": 1, "big": 0, "score": 0.1, "flag": True},
    {"label": 1, "width": 200, "big": 2**64 - 1, "score": 0.5, "flag": False},
    {"label": 2, "width": 255, "big": 2**53 + 1, "score": -2, "flag": True},
]
SAMPLES[0].update({"path": "train/a", "key": b"a", "maybe": 1, "note": "x"})
SAMPLES[1].update({"path": "val/b", "key": b"", "maybe": None, "note": None})
SAMPLES[2].update({"path": "train/cat", "key": b"c", "maybe": -5, "note": ""})
for number, one in enumerate(SAMPLES):
    one.update({"zero": number, "box.a-b": -number, "box.x.0": 2**62 * (number - 1)})


def column(name: str) -> Column:
    kind = SCHEMA[SCHEMA.index(name)].kind
    values = [one[name] for one in SAMPLES]
    valid = np.array([value is not None for value in values])
    if isinstance(kind, (mmds.Text, mmds.Bytes)):
        array = np.array([value or type(SAMPLES[0][name])() for value in values], object)
    else:
        array = np.array([value or 0 for value in values], kind.stored)
    return Column(array, valid if kind.nullable else None)


def evaluate(text: str) -> list[bool]:
    condition = Condition(text, SCHEMA)
    found = condition({name: column(name) for name in condition.columns}, len(SAMPLES))
    assert found.dtype == bool and found.shape == (len(SAMPLES),)
    return found.tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("label == 'cat'", [1, 0, 0]),
        ("label != 'cat' and width > 100", [0, 1, 1]),
        ("'dog' == label", [0, 1, 0]),
        ("label in ['cat', 2]", [1, 0, 1]),
        ("label not in ('cat', 'dog')", [0, 0, 1]),
        ("label.startswith('c')", [1, 0, 1]),
        ("label > 0", [0, 1, 1]),
        ("label == width - 1", [1, 0, 0]),
        ("100 < width <= 200", [0, 1, 0]),
        ("width + width == 510", [0, 0, 1]),
        ("-width < -150", [0, 1, 1]),
        ("width % 2 == 1", [1, 0, 1]),
        ("width // 2 == 100 or width / 2 == .5", [1, 1, 0]),
        ("2 * 3 == 6", [1, 1, 1]),
        ("score >= 0.1", [1, 1, 0]),
        ("flag", [1, 0, 1]),
        ("not flag", [0, 1, 0]),
        ("flag == False", [0, 1, 0]),
        ("flag + flag == 2", [1, 0, 1]),
        ("path.startswith('train/')", [1, 0, 1]),
        ("path.endswith('b') or path.contains('n/c')", [0, 1, 1]),
        ("'a/' in path", [0, 0, 0]),
        ("'l/' in path", [0, 1, 0]),
        ("path in ['val/b', 'nothing']", [0, 1, 0]),
        ("path in []", [0, 0, 0]),
        ("path > 'train/b'", [0, 1, 1]),
        ("label in path", [0, 0, 0]),
        ("label in 'cat and cow'", [1, 0, 1]),
        ("key == b'' or key in {b'c'}", [0, 1, 1]),
        ("maybe is None", [0, 1, 0]),
        ("maybe is not None and maybe < 0", [0, 0, 1]),
        ("maybe == 0", [0, 0, 0]),
        ("maybe != 1", [0, 1, 1]),
        ("not maybe == 1", [0, 1, 1]),
        ("maybe + 1 < 100", [1, 0, 1]),
        ("note == ''", [0, 0, 1]),
        ("note.startswith('')", [1, 0, 1]),
        ("note in ['', 'x']", [1, 0, 1]),
        ("path is None", [0, 0, 0]),
        ("width / zero > 0", [0, 1, 1]),
        ("width % 0 == 0", [0, 0, 0]),
        ("zero == 1", [0, 1, 0]),
        ("big == 18446744073709551615", [0, 1, 0]),
        ("big == 9007199254740993", [0, 0, 1]),
        ("big * big == 340282366920938463426481119284349108225", [0, 1, 0]),
        ("big - 1 == -1", [1, 0, 0]),
        ("box.x.`0` + box.x.`0` == 9223372036854775808", [0, 0, 1]),
        ("`box.x.0` == 0", [0, 1, 0]),
        ("box.`a-b` < -1", [0, 0, 1]),
        ("`box.a-b` < -1", [0, 0, 1]),
        ("path == 'a`b`c' or path == \"it's `x`\"", [0, 0, 0]),
        ("'\\d' in path", [0, 0, 0]),
        ("1e999 > big", [1, 1, 1]),
        ("width < 99999999999999999999999", [1, 1, 1]),
        (" True ", [1, 1, 1]),
        ("False", [0, 0, 0]),
    ],
)
def test_what_conditions_mean(text: str, expected: list[int]) -> None:
    assert evaluate(text) == list(map(bool, expected))


@pytest.mark.parametrize(
    "text, message",
    [
        ("colour == 1", "no column 'colour' of numbers, labels or text; there are: label, width, big,"),
        ("box.y == 1", "no column 'box.y'"),
        ("`a\x1bb` == 1", "no column 'a\\x1bb'"),
        ("caption == 'x'", "no column 'caption'"),
        ("small == 1", "no column 'small'"),
        ("wave == 1", "no column 'wave'"),
        ("label == 'bird'", "no class 'bird'; there are: cat, dog, cow"),
        ("label in ['cat', 'brid']", "no class 'brid'"),
        ("width", "'width' is a number, expected a condition"),
        ("path and flag", "'path' is a text, expected a condition"),
        ("not width", "'width' is a number, expected a condition"),
        ("width == 'a'", "a number and a text cannot be compared"),
        ("path < b'a'", "a text and a bytes cannot be compared"),
        ("path in ['a', 1]", "a text and a number cannot be compared"),
        ("width == None", "a number and a None cannot be compared; nulls are found by 'is None'"),
        ("width is 1", "'is' stands before None only"),
        ("1 in path", "contains of a text with a number"),
        ("'a' in width", "contains of a number with a text"),
        ("path + 'a' == 'b'", "arithmetic with a text and a text"),
        ("path * 1000000000 == 'b'", "arithmetic with a text and a number"),
        ("'a' * 10 == 'b'", "arithmetic with a text and a number"),
        ("9 ** 9 ** 9 > width", "is not understood"),
        ("width == 1j", "1j is no number"),
        ("width == ...", "Ellipsis is no number"),
        ("open('/etc/passwd')", "not understood; there are names of columns"),
        ("path.format(1) == 'a'", "not understood"),
        ("path.startswith('a', 1)", "not understood"),
        ("path.startswith(x='a')", "not understood"),
        ("path.__class__ == 1", "no column 'path.__class__'"),
        ("'a'.__class__ == 1", "no column '().__class__'"),
        ("__import__('os').system('ls')", "not understood"),
        ("(lambda: 1)() == 1", "not understood"),
        ("[x for x in path] == 1", "not understood"),
        ("path[0] == 'a'", "not understood"),
        ("f'{path}' == 'a'", "not understood"),
        ("(x := 1) == 1", "not understood"),
        ("flag if flag else flag", "not understood"),
        ("~flag", "not understood"),
        ("", "not an expression"),
        ("width = 1", "not an expression"),
        ("import os", "not an expression"),
        ("width == 1\nimport os", "not an expression"),
        ("a\0b", "not an expression"),
        ("`a == 1", "not an expression"),
        ("not " * MAX_DEPTH + "flag", f"nested more than {MAX_DEPTH} levels"),
        ("-" * 60_000 + "1 == width", "where="),
        ("(" * 1000 + "flag" + ")" * 1000, "where="),
        ("flag" + " " * MAX_LENGTH, "characters; at most"),
    ],
)  # fmt: skip
def test_what_cannot_be_said(text: str, message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        Condition(text, SCHEMA)
    assert message in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_long_conditions_need_no_depth() -> None:
    assert evaluate(" and ".join(["flag"] * 1000)) == [True, False, True]
    assert evaluate(f"width in {list(range(1000))}") == [True, True, True]
    with pytest.raises(ExpressionError):
        Condition(" + ".join(["width"] * 1000) + " > 1", SCHEMA)


def test_a_field_that_is_called_like_a_placeholder() -> None:
    schema = mmds.Schema({"field_0": mmds.Scalar("int8"), "a b": mmds.Scalar("int8")})
    condition = Condition("field_0 == 1 and `a b` == 2", schema)
    assert condition.columns == {"a b": 1, "field_0": 0}
    columns = {"field_0": Column(np.array([1, 1], "i1")), "a b": Column(np.array([2, 1], "i1"))}
    assert condition(columns, 2).tolist() == [True, False]


def test_a_class_that_is_none() -> None:
    condition = Condition("label == 'cat' or label.startswith('')", SCHEMA)
    assert condition({"label": Column(np.array([0, -1, 3, 2**62]))}, 4).tolist() == [True, False, False, False]


NUMBERS = st.recursive(
    st.sampled_from(["width", "zero", "big", "score", "(-3)", "2", "0.5", "7"]),
    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-*"), inner),
    max_leaves=6,
)
CONDITIONS = st.recursive(
    st.one_of(
        st.builds("{} {} {}".format, NUMBERS, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), NUMBERS),
        st.sampled_from(["flag", "path.startswith('t')", "'/' in path", "path < 'u'", "width in [1, 255]"]),
    ),
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner),
        st.builds("(not {})".format, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(CONDITIONS)
def test_conditions_mean_what_they_mean_in_python(text: str) -> None:
    stored = [{**one, "score": float(np.float32(one["score"]))} for one in SAMPLES]
    assert evaluate(text) == [bool(eval(text, {}, one)) for one in stored]  # the test's own text
