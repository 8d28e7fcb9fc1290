"""Samples are found by a key: every key, the first of equal ones, nothing that is not there, without loading the index."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mmds
from mmds import keys
from mmds.errors import FormatError, SchemaError
from mmds.keys import KeySpool, key_hash
from mmds.schema import Schema

FIELDS = {"id": mmds.Text(key=True), "x": mmds.Scalar("int64"), "data": mmds.Bytes()}
NAMES = ["b/ü", "", "a", "b/ü", "日本", "a", "e" * 300]
SAMPLES = [{"id": name, "x": k, "data": bytes([k])} for k, name in enumerate(NAMES)]

# The constants that XXH3-64 mixes into the first and the last eight of 16 bytes. What cancels one of them makes the hash
# depend on the other half alone, which gives two inputs with one hash.
FIRST = int.from_bytes(bytes.fromhex("7240a4a4b7b3671f"), "little") ^ int.from_bytes(
    bytes.fromhex("cb79e64eccc0e578"), "little"
)
LAST = int.from_bytes(bytes.fromhex("825ad07dccff7221"), "little") ^ int.from_bytes(
    bytes.fromhex("b8084674f743248e"), "little"
)


def colliding(number: int) -> tuple[bytes, bytes]:
    """Return two different keys with the same hash."""
    swapped = int.from_bytes(number.to_bytes(8, "little"), "big")
    one = FIRST.to_bytes(8, "little") + (LAST ^ number).to_bytes(8, "little")
    return one, (FIRST ^ swapped).to_bytes(8, "little") + LAST.to_bytes(8, "little")


def written(path: Path, fields: Any = FIELDS, samples: Any = SAMPLES) -> Path:
    with mmds.Writer(path, fields) as writer:
        writer.extend(samples)
    return path


def test_every_key_is_found_and_the_first_of_equal_ones(tmp_path: Path) -> None:
    reader = mmds.open(written(tmp_path / "a.mmds"))
    for name in NAMES:
        assert reader.row_of(name) == NAMES.index(name)
        assert reader.get(name) == SAMPLES[NAMES.index(name)] == reader[reader.row_of(name)]


@pytest.mark.parametrize("key", ["c", "b", "b/ü\0", "\ud800", b"a", 3, None, ["a"]])
def test_what_is_not_there_is_a_key_error_that_names_it(tmp_path: Path, key: Any) -> None:
    reader = mmds.open(written(tmp_path / "a.mmds"))
    with pytest.raises(KeyError, match=r"a\.mmds: field 'id': "):
        reader.get(key)


def test_the_key_in_an_error_is_escaped(tmp_path: Path) -> None:
    with pytest.raises(KeyError) as caught:
        mmds.open(written(tmp_path / "a.mmds")).get("\x1b[2J\u202e")
    assert "\x1b" not in caught.value.args[0] and "\u202e" not in caught.value.args[0]


def test_no_key_in_an_empty_dataset(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        mmds.open(written(tmp_path / "a.mmds", samples=[])).get("a")


def test_a_slice_has_only_its_own_keys(tmp_path: Path) -> None:
    reader = mmds.open(written(tmp_path / "a.mmds"))
    assert reader[3:].row_of("b/ü") == 0 and reader[3:].get("b/ü")["x"] == 3
    assert reader[::-1].row_of("a") == 4 and reader[4:1:-2].get("a")["x"] == 2
    with pytest.raises(KeyError):
        reader[3:5].get("a")
    part = next(iter(reader[4:].parts()))
    assert part.get("a")["x"] == 5


@pytest.mark.parametrize("fields", [["x"], "x", ("data", "x"), {"renamed": "id"}])
def test_a_selection_of_fields_is_looked_up_all_the_same(tmp_path: Path, fields: Any) -> None:
    reader = mmds.open(written(tmp_path / "a.mmds"), fields=fields)
    assert reader.get("日本") == reader[4]


def test_bytes_are_keys_too(tmp_path: Path) -> None:
    samples = [{"id": bytes([k]) * k} for k in range(5)]
    reader = mmds.open(written(tmp_path / "a.mmds", {"id": mmds.Bytes(key=True)}, samples))
    assert [reader.row_of(sample["id"]) for sample in samples] == list(range(5))
    assert reader.row_of(bytearray(b"\1")) == 1  # type: ignore[arg-type]


def test_keys_of_the_same_hash_are_told_apart(tmp_path: Path) -> None:
    one, other = colliding(123456789)
    assert one != other and key_hash(one) == key_hash(other)
    for pair in ([one, other, one], [other, one]):
        path = written(tmp_path / f"{len(pair)}.mmds", mmds.Bytes(key=True), pair)
        assert mmds.verify(path)
        assert [mmds.open(path).row_of(key) for key in (one, other)] == [pair.index(one), pair.index(other)]
    with pytest.raises(KeyError):
        mmds.open(written(tmp_path / "one.mmds", mmds.Bytes(key=True), [one])).get(other)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"a": mmds.Text(column=True)}, "no key field, expected one"),
        ({"a": mmds.Text(key=True), "b": mmds.Bytes(key=True)}, "2 key fields (a, b), expected one"),
    ],
)
def test_exactly_one_field_is_the_key(tmp_path: Path, fields: Any, found: str) -> None:
    with pytest.raises(SchemaError) as caught:
        mmds.open(written(tmp_path / "a.mmds", fields, [])).get("x")
    assert found in str(caught.value)


def test_another_store_says_to_convert_it(tmp_path: Path) -> None:
    mmds.convert(written(tmp_path / "a.mmds"), tmp_path / "a.lmdb")
    reader = mmds.open(tmp_path / "a.lmdb")
    assert reader.fields == Schema(FIELDS)
    with pytest.raises(SchemaError, match=r"only \.mmds files have an index of keys"):
        reader.get("a")
    mmds.convert(tmp_path / "a.lmdb", tmp_path / "b.mmds")
    assert mmds.open(tmp_path / "b.mmds").get("a")["x"] == 2


def test_a_key_is_a_column_and_never_null() -> None:
    assert mmds.Text(key=True) == mmds.Text(column=True, key=True) and mmds.Bytes(key=True).column
    assert Schema.from_json(Schema(FIELDS).to_json()) == Schema(FIELDS)
    with pytest.raises(SchemaError, match="could never be found"):
        mmds.Text(key=True, nullable=True)


def test_several_files(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{k}.mmds", samples=SAMPLES[k::3]) for k in range(3)]
    joined = [sample for k in range(3) for sample in SAMPLES[k::3]]
    names = [str(sample["id"]) for sample in joined]
    reader = mmds.open(paths)
    for name in names:
        assert reader.row_of(name) == names.index(name) and reader.get(name) == joined[names.index(name)]
    with pytest.raises(KeyError):
        reader.get("c")
    with pytest.raises(KeyError):
        reader[1:].get(names[0] if names.count(names[0]) == 1 else "c")


def test_a_dataset_gets_what_it_would_return(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mmds")
    dataset = mmds.MemoryMappedDataset(path, transform=lambda sample: sample["x"] + 100)
    assert dataset.get("日本") == 104 and dataset[3:].get("a") == 105
    with pytest.raises(KeyError):
        dataset[3:].get("")
    plain = pickle.loads(pickle.dumps(mmds.MemoryMappedDataset(path, fields=("data", "x"))))
    assert plain.get("日本") == (b"\4", 4)


def test_write_and_write_batch_make_the_same_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [{"id": f"{k % 900}", "x": k, "data": b""} for k in range(1000)]
    one = written(tmp_path / "a.mmds", samples=samples).read_bytes()
    monkeypatch.setattr(keys, "PENDING", 7)
    with mmds.Writer(tmp_path / "b.mmds", FIELDS) as writer:
        for start, stop in ((0, 1), (1, 600), (600, 600), (600, 1000)):
            part = samples[start:stop]
            writer.write_batch({name: [sample[name] for sample in part] for name in FIELDS})
    assert (tmp_path / "b.mmds").read_bytes() == one
    assert mmds.verify(tmp_path / "a.mmds")


@given(st.lists(st.binary(max_size=3)), st.integers(1, 20))
def test_the_index_is_in_order_however_it_is_spooled(data: list[bytes], pending: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "PENDING", pending)
        patch.setattr("mmds.spool.MEMORY", 0)
        patch.setattr("mmds.spool.LEAST", 32)  # two pairs: most go to the temporary file
        spool = KeySpool(Path("/tmp"))
        for value in data:
            spool.append(value)
        pairs = sorted((key_hash(value), row) for row, value in enumerate(data))
        assert [int(hashed) for piece in spool.hashes() for hashed in piece] == [hashed for hashed, _ in pairs]
        assert [int(row) for piece in spool.rows() for row in piece] == [row for _, row in pairs]
        spool.close()


def test_a_look_up_loads_nothing(tmp_path: Path) -> None:
    with mmds.Writer(tmp_path / "a.mmds", {"id": mmds.Text(key=True)}) as writer:
        writer.write_batch({"id": [f"{k}" for k in range(100_000)]})
    reader = mmds.open(tmp_path / "a.mmds")
    reader.get("5")
    tracemalloc.start()
    try:
        for k in range(0, 100_000, 997):
            reader.get(f"{k}")
        assert tracemalloc.get_traced_memory()[1] < 5000  # the index has 1.6 MB
    finally:
        tracemalloc.stop()


def test_an_index_that_lies_is_an_error_of_the_format(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mmds", samples=SAMPLES[:3])
    section = mmds.open(path).footer.section("key_rows", 0)
    data = bytearray(path.read_bytes())
    rows = np.frombuffer(data, "<u8", 3, section.data)
    rows[1] = 10**9
    path.write_bytes(data)
    middle = next(
        name for name in NAMES[:3] if sorted(key_hash(n.encode()) for n in NAMES[:3])[1] == key_hash(name.encode())
    )
    with pytest.raises(FormatError, match="leads to sample 1000000000"):
        mmds.open(path).get(middle)
    rows[1] = rows[0]
    path.write_bytes(data)
    with pytest.raises(FormatError, match="has another hash; run mmds verify"):
        mmds.open(path).get(middle)
