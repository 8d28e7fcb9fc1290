"""MosaicML's MDS, against folders that its own writer wrote (tests/golden/mds says how)."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mmds
from mmds.converters import Source, sources
from mmds.converters.mdscolumns import MdsColumn
from mmds.converters.mdsshard import Kept, decompress
from mmds.errors import SourceError
from tests.likeness import assert_alike
from tests.source_contract import SourceContract

GOLDEN = Path(__file__).parent / "golden" / "mds"


def row(number: int) -> dict[str, Any]:
    shape = (number % 3 + 1, 2)
    return {
        "array": np.arange(number, number + shape[0] * shape[1], dtype=np.int16).reshape(shape),
        "data": bytes(range(number)),
        "fixed": np.full((2, 2), number / 4, np.float32),
        "id": number,
        "meta": {"n": [number, None, "x"], "half": number / 2},
        "text": f"text {number} ü" * (number % 4),
    }


def copy(folder: Path, name: str) -> Path:
    return shutil.copytree(GOLDEN / name, folder / name)


def only(path: Path, **options: Any) -> Source:
    (source,) = sources(path, "mds", **options)
    return source


def loaded(path: Path, **options: Any) -> list[Any]:
    source = only(path, **options)
    return [source.load(item) for item in source.items()]


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    index = json.loads((path / "index.json").read_text())
    change(index)
    (path / "index.json").write_text(json.dumps(index))


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


class TestPlain(SourceContract):
    format = "mds"

    def make(self, folder: Path) -> Path:
        return copy(folder, "plain")

    def samples(self) -> list[Any]:
        return list(map(row, range(48)))

    def spoil(self, path: Path) -> str | None:
        patch(path / "shard.00001.mds", 1000, b"\xff")
        return "shard.00001.mds"


class TestPlainUnchecked(TestPlain):
    options: dict[str, Any] = {"check": False}  # noqa: RUF012 (the contract has it so)

    def spoil(self, path: Path) -> str | None:
        patch(path / "shard.00001.mds", 4 * 6, b"\xff\xff\xff\xff")
        return "shard.00001.mds: sample 4"


class TestZstandard(TestPlain):
    def make(self, folder: Path) -> Path:
        return copy(folder, "zstd")

    def spoil(self, path: Path) -> str | None:
        patch(path / "shard.00001.mds.zstd", 100, b"\xff\xff\xff\xff")
        return "shard.00001.mds"


def test_every_encoding(tmp_path: Path) -> None:
    (source,) = sources(GOLDEN / "encodings", "mds")
    mmds.convert(GOLDEN / "encodings", tmp_path / "out.mmds", source_format="mds")
    samples = list(mmds.open(tmp_path / "out.mmds"))
    assert len(samples) == 3
    for n, sample in enumerate(samples):
        pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) + n
        pictures = {name: sample.pop(name) for name in ("jpeg", "pil", "png")}
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(pictures["png"]))), pixels)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(pictures["pil"]))), pixels)
        assert pictures["jpeg"].startswith(b"\xff\xd8") and pictures["jpeg"].endswith(b"\xff\xd9")
        assert_alike(
            sample,
            {
                "bytes": b"\x00\xff" * n,
                "float16": 1.5 * n,
                "float32": float(np.float32(0.1 * n)),
                "float64": 0.1 * n,
                "int": -(2**63) + n,
                **{f"int{bits}": -n for bits in (16, 32, 64, 8)},
                "json": [n, {"a": None}],
                "ndarray": np.full((n + 1, 1, 300), n, np.uint64),
                "ndarray:float16": np.full((2, n + 1), n, np.float16),
                "ndarray:uint8:2,3": np.full((2, 3), n, np.uint8),
                "str": "ü" * n,
                "str_decimal": f"{n}.1",
                "str_float": 0.1 * n,
                "str_int": -n,
                **{f"uint{bits}": n for bits in (16, 32)},
                "uint64": 2**64 - 1 - n,
                "uint8": n,
            },
        )
    assert source.fields["ndarray"] == mmds.Array("uint64", (None, None, None))
    assert source.fields["ndarray:float16"] == mmds.Array("float16", (None, None))
    assert source.fields["ndarray:uint8:2,3"] == mmds.Array("uint8", (2, 3))


@pytest.mark.parametrize("name", ["gz", "bz2"])
def test_other_compressions(name: str) -> None:
    for got, want in zip(loaded(GOLDEN / name), map(row, range(3)), strict=True):
        assert_alike(got, want)


def test_an_uncompressed_file_is_preferred(tmp_path: Path) -> None:
    path = copy(tmp_path, "zstd")
    for shard in sorted(GOLDEN.glob("plain/*.mds")):
        zipped = path / f"{shard.name}.zstd"
        (path / shard.name).write_bytes(decompress("zstd", zipped.read_bytes(), 10**6))
        zipped.unlink()
    assert_alike(loaded(path)[20], row(20))


def test_a_compression_that_is_not_known_is_named() -> None:
    assert only(GOLDEN / "br").problems == [
        ("shard.00000.mds", "compression 'br'; known are zstd, gz, bz2; 3 samples are left out")
    ]


@pytest.mark.parametrize(
    ("name", "reason"), [("pkl", "'a' of encoding 'pkl': a pickle can do anything"), ("pictures", r"'list\[png\]'")]
)
@pytest.mark.fault(31)
def test_encodings_that_are_refused(name: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        only(GOLDEN / name)


def test_splits(tmp_path: Path) -> None:
    for split in ("val", "train"):
        shutil.copytree(GOLDEN / "plain", tmp_path / "root" / split)
    (tmp_path / "root" / "other").mkdir()
    assert [source.split for source in sources(tmp_path / "root")] == ["train", "val"]
    result = mmds.convert(tmp_path / "root", tmp_path / "out.mmds")
    assert [Path(output.path).name for output in result.outputs] == ["out-train.mmds", "out-val.mmds"]
    assert result.samples == 96


def first(index: Any) -> Any:
    return index["shards"][0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda index: index.update(version=3), "version 3 of the index; 2 is known"),
        (lambda index: index.update(shards=[]), "no shards"),
        (lambda index: index.update(shards={}), "Expected `array`"),
        (lambda index: first(index).update(format="json"), "format 'json'"),
        (lambda index: first(index).update(samples="1"), "Expected `int`"),
        (lambda index: first(index).update(samples=-1), "-1 samples"),
        (lambda index: first(index)["column_names"].pop(), "other columns"),
        (lambda index: [each["column_names"].pop() for each in index["shards"]], "as many different names"),
        (lambda index: [each["column_names"].__setitem__(0, "data") for each in index["shards"]], "different names"),
        (
            lambda index: [each["column_sizes"].__setitem__(3, None) for each in index["shards"]],
            "None bytes; expected 8",
        ),
        (lambda index: [each["column_sizes"].__setitem__(0, 4) for each in index["shards"]], "4 bytes; expected None"),
        (
            lambda index: [each["column_encodings"].__setitem__(0, "ndarray:object") for each in index["shards"]],
            "'ndarray:object': nothing that a field holds",
        ),
        (
            lambda index: [each["column_encodings"].__setitem__(0, "ndarray:int8:-1") for each in index["shards"]],
            "'ndarray:int8:-1': nothing that a field holds",
        ),
        (
            lambda index: [each["column_encodings"].__setitem__(0, "str:utf8") for each in index["shards"]],
            "'str:utf8': nothing that a field holds",
        ),
    ],
)
@pytest.mark.fault(31)
def test_an_index_that_lies_is_refused(tmp_path: Path, change: Any, reason: str) -> None:
    path = copy(tmp_path, "plain")
    edit(path, change)
    with pytest.raises(SourceError, match=reason):
        only(path)


@pytest.mark.parametrize("text", [b"", b"\xff", b"[1]", b"{}", b'{"version": 2, "shards": ' + b"[" * 10**5])
@pytest.mark.fault(31)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "index.json").write_bytes(text)
    with pytest.raises(SourceError, match=r"index\.json: "):
        only(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda part: part.update(bytes=2103), "2102 bytes; the index says 2103"),
        (lambda part: part["hashes"].update(sha1="00"), "sha1 is "),
        (lambda part: part["hashes"].update(xxh3_64="00"), "xxh3_64 is "),
        (lambda part: part.update(basename="gone.mds"), "cannot be read"),
        (lambda part: part.update(basename="../x"), "leads out of the folder"),
        (lambda part: part.update(basename="/etc/passwd"), "leads out of the folder"),
        (lambda part: part.update(basename="a\0b"), "leads out of the folder"),
        (lambda part: part.update(basename=""), "leads out of the folder"),
        (lambda part: part.update(basename="link"), "symbolic link out of the tree"),
        (lambda part: part.update(basename="fifo"), "not a file but"),
        (lambda part: part.update(basename="sub"), "not a file but"),
    ],
)
@pytest.mark.fault(31)
def test_a_shard_that_is_not_what_the_index_says_is_a_problem(tmp_path: Path, change: Any, reason: str) -> None:
    path = copy(tmp_path, "plain")
    (tmp_path / "outside").write_bytes(b"x")
    (path / "link").symlink_to("../outside")
    (path / "sub").mkdir()
    os.mkfifo(path / "fifo")
    edit(path, lambda index: change(first(index)["raw_data"]))
    source = only(path)
    ((_, got),) = source.problems
    assert reason in got and got.endswith("; 16 samples are left out")
    assert len(source) == 32
    assert_alike(source.load(next(iter(source.items()))), row(16))


def test_a_number_of_samples_that_lies_is_a_problem(tmp_path: Path) -> None:
    path = copy(tmp_path, "plain")
    edit(path, lambda index: first(index).update(samples=17))
    assert only(path).problems[0][1].startswith("16 samples in 2102 bytes; the index says 17")
    patch(path / "shard.00000.mds", 0, struct.pack("<I", 2**32 - 1))
    edit(path, lambda index: first(index).update(samples=2**32 - 1))
    assert "4294967295 samples in 2102 bytes" in only(path, check=False).problems[0][1]


def test_hashes_of_a_kind_that_is_not_known_are_passed_over(tmp_path: Path) -> None:
    path = copy(tmp_path, "plain")
    edit(path, lambda index: first(index)["raw_data"].update(hashes={"shake_128": "00", "crc": ""}))
    assert not only(path).problems


@pytest.mark.parametrize(("low", "high"), [(0, 100), (2000, 3000), (1000, 900), (2**32 - 1, 2**32 - 1)])
@pytest.mark.fault(31)
def test_offsets_outside_of_the_shard_are_named(tmp_path: Path, low: int, high: int) -> None:
    path = copy(tmp_path, "plain")
    patch(path / "shard.00000.mds", 4 * 4, struct.pack("<II", low, high))
    source = only(path, check=False)
    with pytest.raises(SourceError, match=f"bytes {low} to {high} of a shard of 2102 bytes"):
        source.load(list(source.items())[3])


@pytest.mark.fault(31)
def test_sizes_that_lie_are_named(tmp_path: Path) -> None:
    path = copy(tmp_path, "plain")
    source = only(path, check=False)
    for item in list(source.items())[:3]:
        start = struct.unpack_from("<I", (path / "shard.00000.mds").read_bytes(), 4 * (1 + item[2]))[0]
        patch(path / "shard.00000.mds", start, struct.pack("<I", 2**32 - 1))
    source = only(path, check=False)
    with pytest.raises(SourceError, match="its values take 42949"):
        source.load(list(source.items())[2])


@pytest.mark.parametrize("position", range(0, 718, 31))
@pytest.mark.fault(31)
def test_a_damaged_compressed_shard_is_named_or_harmless(tmp_path: Path, position: int) -> None:
    path = copy(tmp_path, "zstd")
    name = "shard.00002.mds.zstd"
    data = bytearray((path / name).read_bytes())
    data[position] ^= 0x55
    (path / name).write_bytes(data)
    source = only(path, check=False)
    assert not source.problems
    for item in list(source.items())[32:44]:
        try:
            assert isinstance(source.load(item), dict)
        except SourceError as error:
            assert str(error)
    checked = only(path)
    assert "sha1" in checked.problems[0][1]


def test_content_that_is_not_what_the_index_says_fails_once_for_all(tmp_path: Path) -> None:
    path = copy(tmp_path, "zstd")
    edit(path, lambda index: first(index)["raw_data"]["hashes"].update(sha1="00"))
    source = only(path)
    result = mmds.convert(path, tmp_path / "out.mmds", source_format="mds", on_error="skip")
    assert len(result.errors) == 16 and result.samples == 32
    assert "sha1 is " in result.errors[0][1]
    assert not source.problems


@pytest.mark.parametrize("compression", ["zstd", "gz", "bz2"])
@pytest.mark.parametrize("size", [0, 100, 10**6])
@pytest.mark.fault(32)
def test_a_bomb_is_not_unfolded(compression: str, size: int) -> None:
    import bz2
    import gzip

    import zstandard

    compress: Any = {"zstd": zstandard.compress, "gz": gzip.compress, "bz2": bz2.compress}[compression]
    assert decompress(compression, compress(bytes(10**7)), size) == bytes(size + 1)
    with pytest.raises(SourceError, match="decompressed"):
        decompress(compression, b"nonsense", size)


@pytest.mark.fault(32)
def test_a_declared_size_that_no_compression_reaches_is_refused(tmp_path: Path) -> None:
    path = copy(tmp_path, "zstd")
    edit(path, lambda index: first(index)["raw_data"].update(bytes=2**40))
    assert "1099511627776 bytes, compressed to 726, which no compression does" in only(path).problems[0][1]


def test_what_was_decompressed_stays_in_its_process() -> None:
    source = only(GOLDEN / "zstd")
    item = next(iter(source.items()))
    source.load(item)
    assert len(pickle.dumps(source.load)) < 1000
    assert isinstance(pickle.loads(pickle.dumps(Kept())), Kept)


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("ndarray", b""),
        ("ndarray", b"\x08"),
        ("ndarray", b"\x07\x04\x01\x00"),
        ("ndarray", b"\x08\x04\x02\x00"),
        ("ndarray", b"\x08\x08\x02"),
        ("ndarray", b"\x08\x07" + b"\xff" * 8 + b"x"),
        ("ndarray", b"\x08\x0b" + b"\x00\x00\x00\x00\x01\x00\x00\x00" * 2),
        ("pil", b""),
        ("pil", struct.pack("<3I", 1, 1, 3) + b"RGB\x00\x00"),
        ("pil", struct.pack("<3I", 2**31, 2**31, 3) + b"RGB"),
        ("pil", struct.pack("<3I", 1, 1, 1) + b"P\x00"),
        ("pil", struct.pack("<3I", 0, 0, 1) + b"L"),
        ("pil", struct.pack("<3I", 1, 1, 2**32 - 1) + b"L\x00"),
        ("str", b"\xff"),
        ("str_int", b"x"),
        ("str_int", b"9" * 5000),
        ("str_float", b""),
        ("json", b"NaN"),
        ("json", b"[" * 10**5),
    ],
)
def test_values_that_are_none_are_named(encoding: str, data: bytes) -> None:
    with pytest.raises(SourceError, match=f"column 'a' is no {encoding}"):
        MdsColumn.checked("a", encoding, None).decode(data)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"expected a folder with index\.json"):
        only(tmp_path)
    with pytest.raises(ValueError, match="check="):
        only(GOLDEN / "plain", check="yes")
