"""TFRecord files, against one that the package tfrecord 1.14.6 wrote and an encoder that shares nothing with the reader."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.converters import Source, sources
from mmds.converters.tfrecord import masked_crc
from mmds.errors import SchemaError, SourceError
from tests.source_contract import SourceContract

# Two records by tfrecord.writer.TFRecordWriter: `write` of image (byte), label (int), box (float), ids (int), name (byte).
REAL = bytes.fromhex(
    "6a00000000000000af81ed670a680a0e0a056c6162656c12051a030a01070a100a05696d61676512070a050a03ffd8000a0e0a046e616d6512"
    "060a040a02c3bc0a130a03626f78120c120a0a080000003f0000a0bf0a1f0a0369647312181a160a1401feffffffffffffffff018080808080"
    "8080804003607dcb5c00000000000000c9cdf98f0a5a0a170a056c6162656c120e1a0c0a0affffffffffffffffff010a0d0a05696d61676512"
    "040a020a000a0d0a046e616d6512050a030a01620a130a03626f78120c120a0a0800000000000040400a0c0a0369647312051a030a0105eabf"
    "f7b9"
)


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def tagged(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(features: dict[str, Any], *, packed: bool = True) -> bytes:
    """Return the wire format of a tf.train.Example: lists of int, of float and of bytes, or None for a feature without one."""
    entries = b""
    for name, values in features.items():
        if values is None:
            feature = b""
        elif isinstance(values, tuple):  # an empty list of a type
            feature = tagged(values[0], b"")
        elif isinstance(values[0], bytes):
            feature = tagged(1, b"".join(tagged(1, value) for value in values))
        elif isinstance(values[0], float):
            floats = [struct.pack("<f", value) for value in values]
            feature = tagged(2, tagged(1, b"".join(floats)) if packed else b"".join(b"\x0d" + each for each in floats))
        else:
            ints = list(map(varint, values))
            feature = tagged(3, tagged(1, b"".join(ints)) if packed else b"".join(b"\x08" + each for each in ints))
        entries += tagged(1, tagged(1, name.encode()) + tagged(2, feature))
    return tagged(1, entries)


def frame(*records: bytes) -> bytes:
    def masked(data: bytes) -> bytes:
        crc = 0xFFFFFFFF
        for byte in data:  # Castagnoli's polynomial, bit by bit
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        crc ^= 0xFFFFFFFF
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    heads = [struct.pack("<Q", len(record)) for record in records]
    return b"".join(head + masked(head) + record + masked(record) for head, record in zip(heads, records, strict=True))


def write(folder: Path, *records: bytes, name: str = "a.tfrecord") -> Path:
    (folder / name).write_bytes(frame(*records))
    return folder / name


def only(path: Path, **options: Any) -> Source:
    (source,) = sources(path, "tfrecord", **options)
    return source


def loaded(path: Path, **options: Any) -> list[Any]:
    source = only(path, **options)
    return [source.load(item) for item in source.items()]


def record(number: int) -> bytes:
    features = {
        "image": [b"\xff\xd8" + bytes(number)],
        "label": [number - 3],
        "box": [0.5, float(number), -1.0],
        "ids": list(range(-(number % 4), 0)) or (3,),
        "names": [b"a", "ü".encode()][: number % 3] or (1,),
        "rare": [number / 4] if number % 5 else None,
    }
    return example({name: value for name, value in features.items() if value is not None})


def sample(number: int) -> dict[str, Any]:
    return {
        "box": np.array([0.5, number, -1], np.float32),
        "ids": np.arange(-(number % 4), 0, dtype=np.int64),
        "image": b"\xff\xd8" + bytes(number),
        "label": number - 3,
        "names": ["a", "ü"][: number % 3],
        "rare": number / 4 if number % 5 else None,
    }


class TestFile(SourceContract):
    format = "tfrecord"

    def make(self, folder: Path) -> Path:
        return write(folder, *map(record, range(48)))

    def samples(self) -> list[Any]:
        return list(map(sample, range(48)))

    def spoil(self, path: Path) -> str | None:
        data = path.read_bytes()
        path.write_bytes(data.replace(b"\xff\xd8" + bytes(20), b"\xff\xd9" + bytes(20), 1))
        return "record 20"


class TestFolder(TestFile):
    def make(self, folder: Path) -> Path:
        (folder / "set").mkdir()
        for shard in (2, 0, 1):
            name = f"train.tfrecord-{shard:05}-of-00003"
            write(folder / "set", *map(record, range(16 * shard, 16 * (shard + 1))), name=name)
        return folder / "set"

    def spoil(self, path: Path) -> str | None:
        file = path / "train.tfrecord-00001-of-00003"
        file.write_bytes(file.read_bytes()[:-1])
        return "train.tfrecord-00001-of-00003"


class TestRaw(TestFile):
    options: dict[str, Any] = {"raw": True}  # noqa: RUF012 (the contract has it so)

    def samples(self) -> list[Any]:
        return [{"record": record(number)} for number in range(48)]


def test_what_another_writer_wrote(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    path.write_bytes(REAL)
    assert only(path).fields == {
        "box": mmds.Array("float32", (2,)),
        "ids": mmds.Array("int64", (None,)),
        "image": mmds.Bytes(),
        "label": mmds.Scalar("int64"),
        "name": mmds.Bytes(),
    }
    first, second = loaded(path, types={"name": "text", "image": "image"})
    assert (first["label"], first["name"], first["image"], first["ids"].tolist()) == (
        7,
        "ü",
        b"\xff\xd8\x00",
        [1, -2, 2**62],
    )
    assert (second["label"], second["name"], second["image"], second["box"].tolist()) == (-1, "b", b"", [0.0, 3.0])


def test_the_encoder_of_these_tests_writes_the_same() -> None:
    size = struct.unpack_from("<Q", REAL)[0]
    want = example(
        {"label": [7], "image": [b"\xff\xd8\x00"], "name": ["ü".encode()], "box": [0.5, -1.25], "ids": [1, -2, 2**62]}
    )
    assert REAL[12 : 12 + size] == want
    assert REAL[: 16 + size] == frame(want)


def test_checksum() -> None:
    assert frame(b"123456789")[-4:] == struct.pack("<I", masked_crc(b"123456789"))
    assert masked_crc(b"123456789") == (((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF)  # RFC 3720


@pytest.mark.parametrize(
    ("values", "kind", "want"),
    [
        ([[1], [2]], mmds.Scalar("int64"), [1, 2]),
        ([[1.5], [2.5]], mmds.Scalar("float32"), [1.5, 2.5]),
        ([[1], None], mmds.Scalar("int64", nullable=True), [1, None]),
        ([[1], (3,)], mmds.Scalar("int64", nullable=True), [1, None]),
        ([[1, 2], [3, 4]], mmds.Array("int64", (2,)), [[1, 2], [3, 4]]),
        ([[1, 2], [3]], mmds.Array("int64", (None,)), [[1, 2], [3]]),
        ([[1, 2], (3,)], mmds.Array("int64", (None,)), [[1, 2], []]),
        ([[1.5, 2.5], None], mmds.Array("float32", (2,), nullable=True), [[1.5, 2.5], None]),
        ([[b"\xff"], [b""]], mmds.Bytes(), [b"\xff", b""]),
        ([[b"\xff"], None], mmds.Bytes(nullable=True), [b"\xff", None]),
        ([[b"a", b"b"], [b"c"]], mmds.Json(), [["a", "b"], ["c"]]),
        ([(1,), (1,)], mmds.Bytes(nullable=True), [None, None]),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_fields_are_those_of_all_records(tmp_path: Path, values: Any, kind: Any, want: Any, packed: bool) -> None:
    records = [example({"a": value, "always": [0]}, packed=packed) for value in values]
    path = write(tmp_path, *records)
    assert only(path).fields["a"] == kind
    mmds.convert(path, tmp_path / "out.mmds", source_format="tfrecord")
    got = [each["a"] for each in mmds.open(tmp_path / "out.mmds")]
    assert [each.tolist() if isinstance(each, np.ndarray) else each for each in got] == want


def test_lists_of_bytes_are_refused_or_excluded(tmp_path: Path) -> None:
    path = write(tmp_path, example({"a": [b"\xff", b"x"], "b": [1]}))
    with pytest.raises(SchemaError, match=r"feature 'a' has lists of bytes.*exclude"):
        only(path)
    assert loaded(path, exclude=["a"]) == [{"b": 1}]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "without features"),
        (b"\x0a", "no tf.train.Example"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "no tf.train.Example"),
        (b"\xff" * 20, "no tf.train.Example"),
        (tagged(1, b""), "without features"),
        (tagged(1, tagged(1, tagged(1, b"\xff"))), "no tf.train.Example"),
        (example({"a": [1]}) + tagged(2, b""), "SequenceExample"),
        (b"\x0b" * 10**5, "no tf.train.Example"),
        (example({"a": [1.5]}), "'a' is a float_list; in other records, a int64_list"),
    ],
)
def test_a_record_that_is_no_example_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    path = write(tmp_path, example({"a": [1]}), data, example({"a": [3]}))
    result = mmds.convert(path, tmp_path / "out.mmds", source_format="tfrecord", on_error="skip")
    assert [name for name, _ in result.errors] == ["record 1"]
    assert reason in result.errors[0][1]
    assert [each["a"] for each in mmds.open(tmp_path / "out.mmds")] == [1, 3]
    assert loaded(path, raw=True)[1] == {"record": data}


@pytest.mark.fault(31)
def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    whole = frame(example({"a": [1]}), example({"a": [2]}))
    path = tmp_path / "a.tfrecord"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        source = only(path)
        assert len(source) == (length >= len(whole) // 2)
        if length not in (0, len(whole) // 2):
            ((name, reason),) = source.problems
            assert name == "a.tfrecord" and f"record {len(source)}, at byte" in reason


@pytest.mark.fault(31)
def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    whole = frame(example({"a": [1]}), example({"a": [2]}))
    path = tmp_path / "a.tfrecord"
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        source = only(path)
        good = []
        for item in source.items():
            try:
                good.append(source.load(item))
            except SourceError as error:
                assert "checksum" in str(error)
        assert len(good) < 2
        assert source.problems or len(good) == 1


@pytest.mark.parametrize("size", [2**31, 2**32, 2**63, 2**64 - 1])
@pytest.mark.fault(31)
def test_a_length_that_lies_is_refused(tmp_path: Path, size: int) -> None:
    head = struct.pack("<Q", size)
    path = tmp_path / "a.tfrecord"
    path.write_bytes(frame(example({"a": [1]})) + head + struct.pack("<I", masked_crc(head)) + bytes(100))
    source = only(path)
    assert len(source) == 1
    assert f"{size} bytes of data, but the file ends before" in source.problems[0][1]


@pytest.mark.fault(33)
def test_what_is_no_shard_is_counted_or_a_problem(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    write(root, example({"a": [1]}), name="b.tfrecords")
    write(root, example({"a": [2]}), name="a.TFREC")
    (root / "gzipped.tfrecord").write_bytes(b"\x1f\x8b\x08\x00")
    (root / "text.tfrecord").write_bytes(b"this is some text")
    (root / "info.json").write_bytes(b"{}")
    (root / "b.tfrecord.index").write_bytes(b"")
    write(tmp_path, example({"a": [3]}), name="out.tfrecord")
    (root / "link.tfrecord").symlink_to("../out.tfrecord")
    os.mkfifo(root / "fifo.tfrecord")
    source = only(root)
    assert [each["a"] for each in loaded(root)] == [2, 1]
    assert [item[0] for item in source.items()] == ["a.TFREC: record 0", "b.tfrecords: record 0"]
    assert [name for name, _ in source.problems] == [
        "fifo.tfrecord",
        "gzipped.tfrecord",
        "link.tfrecord",
        "text.tfrecord",
    ]
    assert ["gzip" in reason for _, reason in source.problems] == [False, True, False, False]
    assert source.ignored["file whose name is not that of a TFRecord file"].count == 2


def test_types_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path, example({"a": [1], "b": [b"x"], "c": [b"\xff"]}))
    assert only(path, types={"b": "image"}).fields["b"] == mmds.Image()
    with pytest.raises(SchemaError, match="no feature 'z'; there are: a, b, c"):
        only(path, types={"z": "text"})
    with pytest.raises(SchemaError, match="'a' is no single bytes value"):
        only(path, types={"a": "text"})
    source = only(path, types={"c": "text"})
    with pytest.raises(SourceError, match="feature 'c' is not UTF-8"):
        source.load(next(iter(source.items())))


def test_too_many_features(tmp_path: Path) -> None:
    path = write(tmp_path, example({f"f{number}": [1] for number in range(5000)}))
    with pytest.raises(SchemaError, match="more than 4096 different features"):
        only(path)


@pytest.mark.parametrize(
    "options",
    [{"raw": 1}, {"types": {"a": "int64"}}, {"types": "a"}, {"exclude": "a"}, {"raw": True, "exclude": ["a"]}],
)
def test_options_are_checked(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(options)):
        only(write(tmp_path, example({"a": [1]})), **options)
