"""Fields that break a rule in a file whose checksums are right: both readers refuse what decides how bytes are read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.resealing import Edit, assert_refused, golden, put, resealed


def field(**changes: Any) -> Edit:
    """Return the edit that changes the keys of field 0; None removes a key, `...` stands for null."""

    def edit(footer: Any) -> None:
        for key, value in changes.items():
            if value is None:
                del footer["fields"][0][key]
            else:
                footer["fields"][0][key] = None if value is ... else value

    return edit


def every_path(*paths: Any) -> Edit:
    """Return the edit that gives the fields these paths, with as many fields as there are paths."""

    def edit(footer: Any) -> None:
        footer["fields"] = [{**footer["fields"][0], "path": path} for path in paths]

    return edit


# name: (golden file, edit, message, whether the independent reader refuses it too)
FIELDS: dict[str, tuple[str, Edit, str, bool]] = {
    "no fields": ("single", put("fields", []), "expected a field kind", True),
    "fields are an object": ("single", put("fields", {}), "footer: ", True),
    "fields are text": ("single", put("fields", "text"), "footer: ", True),
    "a field is null": ("single", put("fields", [None]), "malformed fields", True),
    "4097 fields": ("single", every_path(*([f"{k}"] for k in range(4097))), "more than 4096 fields", True),
    "a field twice": ("single", every_path([], []), "malformed fields", True),
    "an unknown kind": ("single", field(kind="tensor"), "malformed fields (KeyError: 'tensor')", True),
    "a kind in capitals": ("single", field(kind="Text"), "malformed fields", True),
    "kind is null": ("single", field(kind=...), "kind is NoneType", True),
    "kind is missing": ("single", field(kind=None), "malformed fields", True),
    "nullable is missing": ("single", field(nullable=None), "not in their canonical form", True),
    "nullable is a number": ("single", field(nullable=0), "nullable is int 0", False),
    "an option is missing": ("single", field(column=None), "not in their canonical form", False),
    "an option of another kind": ("single", field(align=1), "malformed fields (TypeError", False),
    "an unknown option": ("single", field(color="red"), "malformed fields (KeyError: 'color')", False),
    "an option called name": ("single", field(name="text"), "malformed fields (KeyError: 'name')", False),
    "column is a number": ("single", field(column=0), "column is int 0", False),
    "a path of text": ("single", field(path="x"), "path is str", False),
    "a path with null": ("single", field(path=[None]), "keys of a sample must be strings", False),
    "a path with a float": ("single", field(path=[0.0]), "keys of a sample must be strings", False),
    "a path with a bool": ("single", field(path=[False]), "not in their canonical form", False),
    "a path with a list": ("single", field(path=[["x"]]), "malformed fields", True),
    "a path of 17": ("single", field(path=["x"] * 17), "path is list", False),
    "tuples that begin with 1": ("single", field(path=[1]), "malformed fields", False),
    "tuples with a hole": ("single", every_path([0], [2]), "malformed fields", True),
    "tuples from behind": ("single", every_path([1], [0]), "not in their canonical form", True),
    "a tuple and a dict at once": ("single", every_path([0], ["x"]), "malformed fields", True),
    "a leaf that is a dict": ("single", every_path(["x"], ["x", "y"]), "malformed fields", True),
    "a dict that is a leaf": ("single", every_path(["x", "y"], ["x"]), "malformed fields", True),
    "the same name": ("single", every_path(["x"], ["x"]), "malformed fields", True),
    "the same name by dots": ("single", every_path(["x.y"], ["x", "y"]), "2 fields are named 'x.y'", True),
    "a dict in two parts": ("single", every_path(["x", "a"], ["y"], ["x", "b"]), "not in their canonical form", True),
    "an unknown dtype": ("tokens", field(dtype="float80"), "unknown dtype 'float80'", True),
    "dtype as numpy spells it": ("tokens", field(dtype="<u2"), "unknown dtype '<u2'", True),
    "dtype object": ("tokens", field(dtype="object"), "unknown dtype", True),
    "dtype is null": ("tokens", field(dtype=...), "dtype is NoneType", True),
    "dtype of another size": ("tokens", field(dtype="uint8"), "sections differ", True),
    "bits for a scalar": ("metadata", field(dtype="bfloat16"), "has no Python number", True),
    "shape is missing": ("tokens", field(shape=None), "malformed fields", True),
    "shape is a number": ("tokens", field(shape=200), "shape is int", True),
    "shape with a float": ("tokens", field(shape=[200.0]), "malformed fields", True),
    "shape with a bool": ("tokens", field(shape=[200, True]), "not in their canonical form", True),
    "shape with text": ("tokens", field(shape=["200"]), "malformed fields", True),
    "a negative size": ("tokens", field(shape=[-200]), "up to 32 dimensions of 0 to 4294967295", True),
    "a size of 2**32": ("tokens", field(shape=[2**32]), "up to 32 dimensions of 0 to 4294967295", True),
    "33 dimensions": ("tokens", field(shape=[1] * 32 + [200]), "up to 32 dimensions", False),
    "0 beside null": ("tokens", field(shape=[0, None]), "leaves the unknown ones undetermined", True),
    "a product of 2**54": ("tokens", field(shape=[2**27, 2**26]), "is larger than", True),
    "a product of 2**64": ("tokens", field(shape=[2**31, 2**31, 4]), "is larger than", True),
    "a product of 2**1023": ("tokens", field(shape=[2**32 - 1] * 32), "is larger than", True),
    "align is missing": ("tokens", field(align=None), "not in their canonical form", False),
    "align of 0": ("tokens", field(align=0), "expected a power of two", True),
    "align of 3": ("tokens", field(align=3), "expected a power of two", True),
    "align below the item size": ("tokens", field(align=1), "expected a power of two from the item size (2)", False),
    "align above a page": ("tokens", field(align=8192), "expected a power of two", True),
    "a negative align": ("tokens", field(align=-2), "expected a power of two", False),
    "align is a bool": ("tokens", field(align=True), "align is bool", False),
    "align is a float": ("tokens", field(align=2.0), "align is float", True),
    "align of bytes": ("strings", field(align=3), "expected a power of two up to 4096", False),
    "key is a number": ("keys", field(key=1), "key is int 1", False),
    "key is false": ("keys", field(key=False), "not in their canonical form", True),
    "key of what is no column": ("keys", field(column=False), "not in their canonical form", True),
    "key that can be null": ("keys", field(nullable=True), "key=True with nullable=True", True),
    "key without its sections": ("strings", put("fields", 2, "key", True), "sections differ", True),
    "key that has sections": ("keys", field(key=None), "sections differ", True),
    "compression is null": ("compressed", field(compression=...), "compression is NoneType", True),
    "an unknown compression": (
        "compressed",
        field(compression="lz4"),
        "compression='lz4': expected 'zstd' or None",
        True,
    ),
    "compression of a number": ("metadata", field(compression="zstd"), "malformed fields (TypeError", True),
    "compression of a column": (
        "compressed",
        field(shape=[5]),
        "array of float32 (5,) is kept in the index, which is not compressed",
        True,
    ),
    "compression of a key": ("keys", field(compression="zstd"), "text is kept in the index", True),
    "compressed without a dictionary section": ("strings", field(compression="zstd"), "footer: ", True),
    "not compressed, with a dictionary section": ("compressed", field(compression=None), "sections differ", True),
    "names are text": ("label", field(names="cat"), "names is str", False),
    "names with a number": ("label", field(names=["cat", 1]), "must be different strings", False),
    "names with a list": ("label", field(names=["cat", []]), "must be different strings", False),
    "the same name for two labels": ("label", field(names=["cat", "cat"]), "must be different strings", False),
    "an unknown mode": ("media", field(mode="CMYK"), "expected 'RGB', 'L', 'RGBA' or None", False),
    "mode is a number": ("media", field(mode=3), "mode is int 3", False),
    "another kind of the same bytes": (
        "label",
        field(kind="scalar", names=None, dtype="int32"),
        "sections differ",
        True,
    ),
    "a column where payload is": ("single", field(column=True), "footer: ", True),
    "nullable without validity": ("single", field(nullable=True), "sections differ", True),
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name: str) -> None:
    file, edit, message, also = FIELDS[name]
    assert_refused(resealed(golden(file), edit), message, also)


def test_a_stride_that_does_not_end_where_the_data_ends() -> None:
    edit = put("fields", 1, "align", 64)  # of "y": it moves every sample but the first
    assert_refused(resealed(golden("constant_stride"), edit), "not where 4 samples of this size end")
