"""Megatron-LM's indexed datasets, against a file that megatron-core 0.16.1 wrote and a writer of the same layout."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.converters import Source, sources
from mmds.converters.megatron import DTYPES
from mmds.errors import SourceError
from tests.source_contract import SourceContract

# What megatron-core 0.16.1's IndexedDatasetBuilder(dtype=numpy.uint16, multimodal=True) wrote for
# add_document([1, 2, 3, 4], [3, 1], [7, 0]); add_item([5, 6], 1); end_document()
REAL_INDEX = bytes.fromhex(
    "4d4d49444944580000010000000000000008030000000000000003000000000000000300000001000000020000000000"
    "000000000000060000000000000008000000000000000000000000000000020000000000000003000000000000000700"
    "01"
)
REAL_TOKENS = bytes.fromhex("010002000300040005000600")


def index(
    lengths: Any, bounds: Any, *, modes: Any = None, code: int = 4, size: int = 4, offsets: Any = None, version: int = 1
) -> bytes:
    """Return an index as `_IndexWriter` writes it."""
    if offsets is None:
        offsets = np.cumsum([0, *lengths[:-1]], dtype=np.int64) * size
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", version, code, len(lengths), len(bounds))
    parts = [np.array(lengths, "<i4"), np.array(offsets, "<i8"), np.array(bounds, "<i8")]
    if modes is not None:
        parts.append(np.array(modes, "i1"))
    return head + b"".join(part.tobytes() for part in parts)


def write(folder: Path, idx: bytes, tokens: bytes) -> Path:
    (folder / "a.idx").write_bytes(idx)
    (folder / "a.bin").write_bytes(tokens)
    return folder / "a.idx"


def only(path: Path) -> Source:
    (source,) = sources(path, "megatron")
    return source


def loaded(path: Path) -> list[Any]:
    source = only(path)
    return [source.load(item) for item in source.items()]


class TestMegatron(SourceContract):
    format = "megatron"

    def make(self, folder: Path) -> Path:
        samples = self.samples()
        tokens = [sample["tokens"] for sample in samples]
        return write(
            folder, index([len(each) for each in tokens], [*range(0, 50, 2), 50]), b"".join(map(bytes, tokens))
        )

    def samples(self) -> list[Any]:
        return [
            {"tokens": np.arange(number, number * 2 + number % 3, dtype="<i4"), "document": number // 2}
            for number in range(50)
        ]

    def spoil(self, path: Path) -> str | None:
        data = bytearray(path.read_bytes())
        data[34 + 4 * 7 : 34 + 4 * 8] = struct.pack("<i", 2**31 - 1)
        path.write_bytes(data)
        return "sequence 7"

    # The contract moves one file to another place; this source has two.
    def test_bytes_depend_on_neither_workers_nor_place(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        for suffix in (".idx", ".bin"):
            (tmp_path / "elsewhere" / "b").with_suffix(suffix).write_bytes(source.with_suffix(suffix).read_bytes())
        self.convert(source, tmp_path / "one.mmds", num_workers=1)
        self.convert(tmp_path / "elsewhere" / "b.bin", tmp_path / "two.mmds", num_workers=2)
        assert (tmp_path / "one.mmds").read_bytes() == (tmp_path / "two.mmds").read_bytes()


def test_what_megatron_wrote(tmp_path: Path) -> None:
    path = write(tmp_path, REAL_INDEX, REAL_TOKENS)
    got = [(sample["tokens"].tolist(), sample["document"], sample["mode"]) for sample in loaded(path)]
    assert got == [([1, 2, 3], 0, 7), ([4], 0, 0), ([5, 6], 1, 1)]
    assert only(path).fields == {
        "tokens": mmds.Array("uint16", (None,), align=2),
        "document": mmds.Scalar("int64"),
        "mode": mmds.Scalar("int8"),
    }


def test_the_writer_of_these_tests_writes_the_same() -> None:
    assert index([3, 1, 2], [0, 2, 3], modes=[7, 0, 1], code=8, size=2) == REAL_INDEX


@pytest.mark.parametrize(("code", "name"), DTYPES.items())
def test_dtypes(tmp_path: Path, code: int, name: str) -> None:
    values = np.array([1, 0, 100], name)
    path = write(tmp_path, index([1, 2], [0, 1, 2], code=code, size=values.itemsize), values.tobytes())
    mmds.convert(path, tmp_path / "out.mmds", source_format="megatron")
    first, second = mmds.open(tmp_path / "out.mmds")
    assert first["tokens"].dtype == values.dtype
    assert [*first["tokens"], *second["tokens"]] == values.tolist()


def test_tokens_are_one_gap_free_stream(tmp_path: Path) -> None:
    path = write(tmp_path, REAL_INDEX, REAL_TOKENS)
    mmds.convert(path, tmp_path / "out.mmds", source_format="megatron")
    assert REAL_TOKENS in (tmp_path / "out.mmds").read_bytes()


def test_documents_may_be_empty_and_sequences_too(tmp_path: Path) -> None:
    path = write(tmp_path, index([0, 2], [0, 0, 1, 1, 2]), bytes(8))
    assert [(len(sample["tokens"]), sample["document"]) for sample in loaded(path)] == [(0, 1), (2, 3)]


def test_the_order_is_that_of_the_index(tmp_path: Path) -> None:
    path = write(tmp_path, index([1, 2], [0, 2], offsets=[8, 0]), np.arange(3, dtype="<i4").tobytes())
    assert [sample["tokens"].tolist() for sample in loaded(path)] == [[2], [0, 1]]


@pytest.mark.parametrize(
    ("idx", "reason"),
    [
        (b"", "0 bytes, fewer than the 34"),
        (b"MMIDIDX\x00\x01" + index([1], [0, 1])[9:], "does not begin with MMIDIDX"),
        (index([1], [0, 1], version=2), "version 2"),
        (index([1], [0, 1], code=9), "unknown dtype code 9"),
        (index([1], [0, 1])[:-1], "61 bytes; 1 sequences and 2 document bounds take 62, with modes 63"),
        (index([1], [0, 1]) + bytes(2), "64 bytes"),
        (index([1], [0, 1])[:18] + struct.pack("<QQ", 2**64 - 1, 2) + bytes(28), "62 bytes"),
        (index([1], [0, 1])[:18] + struct.pack("<QQ", 2, 2**63) + bytes(28), "62 bytes"),
        (index([1], []), "document bounds"),
        (index([1], [1, 1]), "document bounds"),
        (index([1, 1], [0, 1]), "document bounds"),
        (index([1, 1], [0, 2, 1, 2]), "document bounds"),
        (index([1, 1], [0, -1, 2]), "document bounds"),
    ],
)
@pytest.mark.fault(31)
def test_an_index_that_lies_is_refused(tmp_path: Path, idx: bytes, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        only(write(tmp_path, idx, bytes(8)))


@pytest.mark.parametrize(
    ("length", "offset"), [(3, 0), (1, 8), (1, 5), (-1, 4), (1, -4), (2**31 - 1, 0), (1, 2**63 - 1), (1, -(2**63))]
)
@pytest.mark.fault(31)
def test_a_sequence_outside_of_the_file_is_named(tmp_path: Path, length: int, offset: int) -> None:
    path = write(tmp_path, index([1, length], [0, 2], offsets=[0, offset]), bytes(8))
    result = mmds.convert(path, tmp_path / "out.mmds", source_format="megatron", on_error="skip")
    assert [name for name, _ in result.errors] == ["sequence 1"]
    assert f"at offset {offset} of a file of 8" in result.errors[0][1]
    assert result.samples == 1


def test_a_missing_half_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, index([1], [0, 1]), bytes(4))
    path.with_suffix(".bin").unlink()
    with pytest.raises(SourceError, match=r"a\.bin: cannot be read"):
        only(path)
    with pytest.raises(SourceError, match=r"ends in \.idx or \.bin"):
        only(tmp_path)
