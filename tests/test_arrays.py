"""How fields become named arrays: names, blocks, and the rules for arrays that nobody described."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.converters.arrays import Blocks, array_name, encoded_key, specifications
from mmds.converters.arraystore import ArrayStore, blaming, refuse_chunk, refuse_inflation, stored_bytes
from mmds.errors import FormatError, SchemaError
from mmds.fields import Kind
from mmds.reader import Reader
from mmds.schema import Field
from tests.store_cases import ODD_NAMES


def foreign(**arrays: Any) -> ArrayStore:
    return ArrayStore("a.h5", {name.replace("__", "/"): array for name, array in arrays.items()}, None, "id")


def test_every_key_has_a_name_of_its_own_that_no_library_trips_over() -> None:
    keys = [*ODD_NAMES, "ü" * 1000, "ü" * 999 + "u", *"._-~", "a.b", "_valid", ".zarray", "...", "%00"]
    names = [encoded_key(key) for key in dict.fromkeys(keys)]
    assert len(set(names)) == len(names)
    for name in names:
        assert 0 < len(name) <= 200 and name.isascii() and name.isprintable()
        assert "/" not in name and not name.startswith(("__", ".")) and name not in ("zarr.json", "mmds.json", "_valid")


def test_arrays_of_a_field() -> None:
    def arrays(kind: Kind) -> dict[str, Any]:
        return specifications(Field(("x", 0), kind))

    assert arrays(mmds.Array("float32", (3, 4))) == {"x/0": ("<f4", (3, 4))}
    assert arrays(mmds.Array("bfloat16", (4,), nullable=True)) == {"x/0": ("<u2", (4,)), "_valid/x/0": ("?", ())}
    assert arrays(mmds.Text()) == {"x/0/values": ("u1", ()), "x/0/offsets": ("<u8", ())}
    assert arrays(mmds.Array("int8", (None, 3, None))) == {
        "x/0/values": ("i1", ()),
        "x/0/offsets": ("<u8", ()),
        "x/0/shape": ("<u4", (2,)),
    }
    assert arrays(mmds.Array("int8", (0, 3))) == {}
    assert array_name(Field((), mmds.Text())) == "value"


def test_blocks_come_whole_and_keep_nothing_of_the_caller() -> None:
    written: list[np.ndarray[Any, Any]] = []
    blocks = Blocks(lambda rows: written.append(rows.copy()), np.dtype("<i4"), (2,), 5)
    rows = np.arange(2 * 40, dtype="<i4").reshape(40, 2)
    start = 0
    for size in (2, 0, 3, 1, 12, 4, 10, 8):
        part = rows[start : start + size].copy()
        blocks.append(part)
        part[:] = -1
        start += size
    assert all(len(block) % 5 == 0 for block in written)
    blocks.flush()
    blocks.flush()
    assert np.array_equal(np.concatenate(written), rows)


def test_blocks_of_whole_size_are_not_copied() -> None:
    written: list[np.ndarray[Any, Any]] = []
    rows = np.zeros((12, 2))
    Blocks(written.append, rows.dtype, (2,), 4).append(rows)
    assert len(written) == 1 and np.shares_memory(written[0], rows)


def test_a_foreign_group_is_the_arrays_of_the_commonest_length() -> None:
    store = foreign(
        image=np.zeros((4, 2, 2), "u1"),
        target__label=np.arange(4),
        target__name=np.array(["a", "bc", "", "d"]),
        raw=np.array([b"a", b"b", b"c", b"d"]),
        mean=np.zeros(3),
        version=np.array(1),
        when=np.zeros(4, "M8[s]"),
        table=np.zeros(4, [("a", "i4")]),
        words=np.array([["a"]] * 4),
    )
    assert store.n == 4 and store.schema.names == ("image", "target.label", "target.name", "raw")
    assert store.left_out["mean"] == "its first dimension is 3, not 4"
    assert store.left_out["version"] == "it has no sample axis"
    assert store.left_out["words"] == "an array of strings per sample"
    assert "datetime64[s]" in store.left_out["when"] and "'i4'" in store.left_out["table"].replace("<", "")
    reader = Reader(store, range(4))
    assert reader[1]["target"] == {"label": 1, "name": "bc"} and reader[[3, 0]]["raw"] == [b"d", b"a"]


def test_names_that_would_encode_to_each_other_stay_apart() -> None:
    store = ArrayStore("a.h5", {"a b": np.array([1]), "a%20b": np.array([2])}, None, "id")
    assert Reader(store, range(1))[0] == {"a b": 1, "a%20b": 2}


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({}, "no arrays that could be samples"),
        ({"x": np.array(1)}, r"no arrays that could be samples \(x: it has no sample axis\)"),
        ({"a.b": np.zeros(2), "a/b": np.zeros(2)}, "2 fields are named 'a.b'"),
        ({"/".join("abcdefghijklmnopqrstuvwxyz"): np.zeros(2)}, "a.b.c"),
    ],
)
def test_groups_that_are_no_dataset(arrays: dict[str, Any], reason: str) -> None:
    with pytest.raises(FormatError, match=rf"^a\.h5: .*{reason}"):
        ArrayStore("a.h5", arrays, None, "id")


DESCRIPTION = (
    '{"fields":[{"dtype":"int8","kind":"scalar","nullable":false,"path":["x"]},{"column":false,"kind":"text",'
    '"nullable":true,"path":["t"]}],"metadata":{},"n":2}'
)


def described(**changes: Any) -> dict[str, Any]:
    arrays: dict[str, Any] = {
        "x": np.zeros(2, "i1"),
        "t/values": np.frombuffer(b"ab", "u1"),
        "t/offsets": np.array([0, 1, 2], "<u8"),
        "_valid/t": np.array([True, False]),
        **changes,
    }
    return {name: array for name, array in arrays.items() if array is not None}


def test_a_described_group() -> None:
    reader = Reader(ArrayStore("a.h5", described(), DESCRIPTION, "id"), range(2))
    assert list(reader) == [{"x": 0, "t": "a"}, {"x": 0, "t": None}]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"x": None}, "the array x is missing"),
        ({"_valid/t": None}, "the array _valid/t is missing"),
        ({"x": np.zeros(2, "i2")}, r"the array x is int16 \(2,\), expected int8 \(2,\)"),
        ({"x": np.zeros((2, 1), "i1")}, r"the array x is int8 \(2, 1\), expected int8 \(2,\)"),
        ({"x": np.zeros(3, "i1")}, r"the array x is int8 \(3,\), expected int8 \(2,\)"),
        ({"t/offsets": np.zeros(2, "<u8")}, r"the array t/offsets is uint64 \(2,\), expected uint64 \(3,\)"),
        ({"t/values": np.zeros((1, 2), "u1")}, r"the array t/values is uint8 \(1, 2\), expected uint8 \('any',\)"),
    ],
)
def test_arrays_that_are_not_as_described(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(FormatError, match=rf"^a\.h5: {reason}$"):
        ArrayStore("a.h5", described(**changes), DESCRIPTION, "id")


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", DESCRIPTION.replace(":2}", ":-1}"), DESCRIPTION.replace(":2}", ":true}"), b"\xff", "1" * 99],
)
def test_malformed_descriptions(text: str | bytes) -> None:
    with pytest.raises(FormatError, match=r'^a\.h5: the attribute "mmds" is malformed'):
        ArrayStore("a.h5", described(), text, "id")


def test_values_that_end_before_their_offsets() -> None:
    store = ArrayStore("a.h5", described(**{"t/offsets": np.array([0, 1, 2**40], "<u8")}), DESCRIPTION, "id")
    with pytest.raises(FormatError, match="the array t/values has 2 rows, but 0 to 1099511627776 are asked for"):
        store.items[1].items.gather(np.array([0, 1]))  # type: ignore[attr-defined]


def test_what_libraries_raise_becomes_a_format_error_but_not_what_the_system_says() -> None:
    for error in (KeyError("x"), RuntimeError("x"), OSError("x"), OSError(21, "Is a directory"), MemoryError()):
        with pytest.raises(FormatError, match=r"^here: "), blaming("here"):
            raise error
    for other in (PermissionError(13, "x"), OSError(24, "x"), SchemaError("x")):
        with pytest.raises(type(other)), blaming("here"):
            raise other


def test_limits(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).write_bytes(bytes(100))
    assert stored_bytes(str(tmp_path), 10**6) == 500 and stored_bytes(str(tmp_path), 150) == 200
    refuse_inflation("a", 2**26, 0)
    refuse_inflation("a", 2**40, 2**30)
    with pytest.raises(FormatError, match=f"declare {2**40} bytes, but 1000 are stored"):
        refuse_inflation("a", 2**40, 1000)
    refuse_chunk("a", "x", 2**31)
    with pytest.raises(FormatError, match=f"a: x: chunks of {2**31 + 1} bytes refused"):
        refuse_chunk("a", "x", 2**31 + 1)


def test_a_mistake_in_the_code_is_not_blamed_on_the_data() -> None:
    with pytest.raises(NameError), blaming("x.h5"):
        raise NameError("name 'MAX_CHUNK_BYTES' is not defined")
    with pytest.raises(FormatError, match=r"x\.h5: bad chunk"), blaming("x.h5"):
        raise RuntimeError("bad chunk")
