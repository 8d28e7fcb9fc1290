"""LMDB: what other programs find in our databases, what we find in theirs, and damaged ones. The rest is in the contract."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import numpy as np
import pytest

import mmds
from mmds import canonical
from mmds.converters import lmdb as store
from mmds.converters import lmdbwriter
from mmds.converters.lmdbrecords import Records
from mmds.errors import FormatError
from mmds.fields import Kind
from tests.likeness import assert_alike
from tests.samples import EVERY_KIND, sample

READ: dict[str, Any] = {"readonly": True, "lock": False}


def written(path: Path, count: int = 5) -> Path:
    with store.Writer(path, EVERY_KIND, metadata={"made": "here"}) as writer:
        writer.extend(map(sample, range(count)))
    return path


def foreign(path: Path, entries: dict[bytes, bytes], **options: Any) -> Path:
    with lmdb.open(str(path), **options) as environment, environment.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key, value)
    return path


def test_a_user_of_lmdb_and_messagepack_reads_our_records(tmp_path: Path) -> None:
    path = written(tmp_path / "a.lmdb")
    assert list(path.iterdir()) == [path / "data.mdb"]
    with lmdb.open(str(path), **READ) as environment, environment.begin() as transaction:
        keys = [key for key, _ in transaction.cursor()]
        said = canonical.load(transaction.get(b"mmds", b""))
        record = msgspec.msgpack.decode(transaction.get(struct.pack(">Q", 3), b""))
    assert keys == [struct.pack(">Q", number) for number in range(5)] + [b"mmds"]
    assert (said["n"], said["metadata"]) == (5, {"made": "here"})
    values = dict(zip((".".join(map(str, field["path"])) for field in said["fields"]), record, strict=True))
    wanted = sample(3)
    assert values["image"] == wanted["image"] and values["array"] == wanted["array"].tobytes()
    assert values["count"] == 3 and values["score"] == 1.5 and values["flag"] is False and values["maybe"] is None
    assert values["nested.0"] == "text 3" and values["json"] == '{"list":[3,null,"é"],"x":0.5}'


def test_the_map_grows_with_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdbwriter, "FIRST_MAP", 2**16)
    path = tmp_path / "a.lmdb"
    values = np.arange(2_000_000, dtype="int64").reshape(2000, 1000)
    with store.Writer(path, mmds.Array("int64", (1000,))) as writer:
        writer.write_batch(values[:1500])
        writer.extend(values[1500:])
    np.testing.assert_array_equal(mmds.open(path)[np.arange(2000)], values)


def test_a_sample_is_decoded_once_for_all_its_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = mmds.open(written(tmp_path / "a.lmdb"))
    calls: list[int] = []
    record = Records._record

    def counted(records: Records, transaction: Any, index: int) -> Any:
        calls.append(index)
        return record(records, transaction, index)

    monkeypatch.setattr(Records, "_record", counted)
    assert_alike(reader[3], sample(3))
    assert calls == [3]
    reader[[4, 1, 4]]
    assert calls == [3, 1, 4]


def test_an_index_array_that_is_changed_in_place_is_read_again(tmp_path: Path) -> None:
    reader = mmds.open(written(tmp_path / "a.lmdb"))
    indices = np.array([0, 1])
    assert reader[indices]["count"].tolist() == [0, 1]
    indices[:] = 2, 3
    assert reader[indices]["count"].tolist() == [2, 3]


def test_two_readers_of_one_database(tmp_path: Path) -> None:
    path = written(tmp_path / "a.lmdb")
    one, two = mmds.open(path), mmds.open(path)  # which the lmdb package refuses
    assert_alike(one[1], two[1])


def test_a_reader_keeps_what_was_replaced(tmp_path: Path) -> None:
    path = written(tmp_path / "a.lmdb")
    old = mmds.open(path)
    with store.Writer(path, mmds.Text(), overwrite=True) as writer:
        writer.write("new")
    assert list(mmds.open(path)) == ["new"]
    assert_alike(old[4], sample(4))
    assert old.content_id != mmds.open(path).content_id


@pytest.mark.parametrize("subdir", [True, False])
def test_a_database_that_another_program_wrote(tmp_path: Path, subdir: bool) -> None:
    entries = {f"image-{number:04}é".encode(): bytes([number]) * number for number in range(50)}
    path = foreign(tmp_path / "lsun.lmdb", entries, subdir=subdir)
    reader = mmds.open(path)
    assert reader.fields == mmds.Schema({"key": mmds.Text(key=True), "value": mmds.Bytes()})
    wanted = [{"key": key.decode(), "value": value} for key, value in sorted(entries.items())]
    assert list(reader) == wanted and len(reader) == 50
    batch = reader[[-1, 0, 0]]
    assert batch == {"key": [wanted[k]["key"] for k in (-1, 0, 0)], "value": [wanted[k]["value"] for k in (-1, 0, 0)]}
    dataset = mmds.MemoryMappedDataset(path, fields="value")
    assert [dataset[49], dataset[0]] == [wanted[49]["value"], b""]


def test_keys_that_are_no_text_are_bytes(tmp_path: Path) -> None:
    path = foreign(tmp_path / "a", {struct.pack("<I", 2**31 + number): b"v" for number in range(3)})
    reader = mmds.open(path)  # known by its data.mdb
    assert reader.fields[0].kind == mmds.Bytes(key=True)
    assert reader[2]["key"] == struct.pack("<I", 2**31 + 2)
    mixed = foreign(tmp_path / "b.lmdb", {b"a": b"", b"\xff": b""})
    with pytest.raises(FormatError, match="entry 1: its key is no text"):
        list(mmds.open(mixed))


def test_an_empty_database_has_no_samples(tmp_path: Path) -> None:
    assert list(mmds.open(foreign(tmp_path / "a.lmdb", {}))) == []


def test_keys_with_several_values_are_refused(tmp_path: Path) -> None:
    path = foreign(tmp_path / "a.lmdb", {b"a": b"1"})
    data = bytearray((path / "data.mdb").read_bytes())
    for page in (0, os.sysconf("SC_PAGESIZE")):  # the lmdb package makes no such main database; C programs do
        flags = page + 16 + 24 + 48 + 4  # page header, meta, free list, md_flags of the main database
        data[flags] |= 0x04  # MDB_DUPSORT
    (path / "data.mdb").write_bytes(data)
    with pytest.raises(FormatError, match="dupsort"):
        mmds.open(path)


@pytest.mark.parametrize("left", [0, 1, 4096, 8192, 0.5, -1])
@pytest.mark.fault(31)
def test_a_truncated_database_is_an_error_and_not_a_bus_error(tmp_path: Path, left: float) -> None:
    path = written(tmp_path / "a.lmdb", 100)
    data = (path / "data.mdb").read_bytes()
    size = int(left * len(data)) if left == 0.5 else int(left) % len(data)
    (path / "data.mdb").write_bytes(data[:size])
    with pytest.raises(FormatError, match=r"truncated|not an LMDB database"):
        mmds.open(path)


@pytest.mark.parametrize(
    "said",
    [b"", b"{}", b"[]", b"\xff", b'{"fields":[],"metadata":{},"n":0}', b'{"fields":5,"metadata":{},"n":1}',
     canonical.dump({"fields": mmds.Schema(mmds.Text()).to_json(), "n": 2, "metadata": {}}),
     canonical.dump({"fields": mmds.Schema(mmds.Text()).to_json(), "n": True, "metadata": {}}),
     canonical.dump({"fields": mmds.Schema(mmds.Text()).to_json(), "n": 1, "metadata": []})],
)  # fmt: skip
@pytest.mark.fault(31)
def test_descriptions_that_are_none(tmp_path: Path, said: bytes) -> None:
    path = foreign(tmp_path / "a.lmdb", {b"mmds": said, bytes(8): b"\xa1a"})
    with pytest.raises(FormatError, match=r"a\.lmdb: its 'mmds' key"):
        mmds.open(path)


@pytest.mark.parametrize(
    ("kind", "record"),
    [(mmds.Text(), b"\x91\x05"), (mmds.Text(), b"\x90"), (mmds.Text(), b""), (mmds.Text(), b"\xc1"),
     (mmds.Scalar("int8"), b"\x91\xa1a"), (mmds.Array("int16", (2,)), b"\x91\xc4\x03abc"),
     (mmds.Array("int16", (None, None)), b"\x91\x92\x91\x05\xc4\x02ab"), (mmds.Json(), b"\x91\xa1{"),
     (mmds.Label(("a",)), b"\x91\xc0"), (mmds.Array("uint8", (None,), nullable=True), b"\x91\xa1a")],
)  # fmt: skip
@pytest.mark.fault(31)
def test_records_that_do_not_fit_their_field(tmp_path: Path, kind: Kind, record: bytes) -> None:
    said = canonical.dump({"fields": mmds.Schema(kind).to_json(), "n": 1, "metadata": {}})
    reader = mmds.open(foreign(tmp_path / "a.lmdb", {b"mmds": said, bytes(8): record}))
    with pytest.raises(FormatError, match=r"a\.lmdb: sample 0"):
        reader[0]
    with pytest.raises(FormatError, match=r"a\.lmdb: sample 0"):
        reader[[0]]


@pytest.mark.fault(31)
def test_a_record_that_is_missing(tmp_path: Path) -> None:
    said = canonical.dump({"fields": mmds.Schema(mmds.Text()).to_json(), "n": 2, "metadata": {}})
    reader = mmds.open(foreign(tmp_path / "a.lmdb", {b"mmds": said, bytes(8): b"\x91\xa1a", b"other": b""}))
    assert reader[0] == "a"
    with pytest.raises(FormatError, match="sample 1: there is no such key"):
        reader[1]
