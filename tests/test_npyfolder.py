"""Folders of arrays: one dtype and rank, whatever order and byte order the files have."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.converters import Source, sources
from mmds.converters.npyfolder import read_array
from mmds.errors import SourceError
from tests.source_contract import SourceContract


def save(path: Path, array: Any, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.asarray(array), **options)


def only(root: Path) -> Source:
    (source,) = sources(root, "npyfolder")
    return source


def array(number: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(number).normal(size=(3 + number % 4, 5)).astype(np.float32)


class TestNpyFolder(SourceContract):
    format = "npyfolder"

    def make(self, folder: Path) -> Path:
        for number in range(40):
            value = array(number)
            path = folder / "ab"[number // 20] / f"{number:02}.npy"
            save(path, np.asfortranarray(value) if number % 3 else value.astype(">f4"))
        return folder

    def samples(self) -> list[Any]:
        return [
            {"array": array(number), "label": number // 20, "path": f"{'ab'[number // 20]}/{number:02}.npy"}
            for number in range(40)
        ]

    def spoil(self, path: Path) -> str | None:
        file = path / "b" / "33.npy"
        file.write_bytes(file.read_bytes()[:-1])
        return "b/33.npy"


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(2, 3)], (2, 3)),
        ([()], ()),
        ([(2, 3), (2, 3), (2, 4)], (2, None)),
        ([(2, 3), (4, 3), (2, 3), (2, 4)], (None, None)),
        ([(0, 3), (5, 3)], (None, 3)),
        ([(1, 0), (2, 0)], (None, None)),  # the first says nothing beside a 0
        ([(0, 2)], (0, 2)),
    ],
)
def test_dimensions_that_differ_are_unknown(tmp_path: Path, shapes: list[Any], expected: Any) -> None:
    for number, shape in enumerate(shapes):
        save(tmp_path / "c" / f"{number}.npy", np.full(shape, number, "int16"))
    source = only(tmp_path)
    assert source.fields["array"] == mmds.Array("int16", expected)
    with mmds.Writer(tmp_path / "o.mmds", source.fields) as writer:
        writer.extend(map(source.load, source.items()))
    assert [each["array"].tolist() for each in mmds.open(tmp_path / "o.mmds")] == [
        np.full(shape, number).tolist() for number, shape in enumerate(shapes)
    ]


def test_all_splits_have_one_kind(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a" / "1.npy", np.zeros((2, 3)))
    save(tmp_path / "val" / "a" / "2.npy", np.zeros((2, 4)))
    train, val = sources(tmp_path)
    assert train.fields == val.fields and train.fields["array"] == mmds.Array("float64", (2, None))


def test_arrays_of_another_dtype_or_rank_are_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.npy", np.zeros((2, 3), "float32"))
    save(tmp_path / "a" / "2.npy", np.zeros((2, 3), ">f4"))  # the same type
    save(tmp_path / "b" / "3.npy", np.zeros((2, 3), "float64"))
    message = r"got float32 \(2, 3\) in a/1.npy and float64 \(2, 3\) in b/3.npy"
    with pytest.raises(SourceError, match=message):
        only(tmp_path)
    save(tmp_path / "b" / "3.npy", np.zeros(2, "float32"))
    with pytest.raises(SourceError, match=r"and float32 \(2,\) in b/3.npy"):
        only(tmp_path)


def test_where_the_arrays_lie_decides_who_reads_them(tmp_path: Path) -> None:
    save(tmp_path / "deep" / "a" / "1.npy", np.zeros(3))
    assert sources(tmp_path / "deep")[0].metadata == {"source": "npyfolder"}
    save(tmp_path / "flat" / "1.npy", np.zeros(3))
    assert mmds.open(tmp_path / "flat").fields.names == ("1",)
    assert list(only(tmp_path / "flat").fields) == ["array", "path"]
    assert sources(tmp_path / "flat")[0].metadata == {"source": "imagefolder"}


def block(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


def npy(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, value, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "an empty file"),
        (b"\x93NUMPY", "not an .npy file"),
        (b"PK\3\4" + bytes(100), "not an .npy file"),
        (npy(np.array([{}], object), allow_pickle=True), "an object array refused"),
        (npy(np.array(["a"])), "dtype '<U1' cannot be stored"),
        (npy(np.zeros(2, "i4,f4")), "cannot be stored"),
        (npy(np.zeros(2, "datetime64[s]")), "cannot be stored"),
        (npy(np.zeros(4))[:-1], "32 bytes, but has 31"),
        (npy(np.zeros(4)) + b"\0", "32 bytes, but has 33"),
        (npy(np.zeros(4))[:40], "not an .npy file"),
        (
            block("{'descr': '<f8', 'fortran_order': False, 'shape': (4294967295, 4294967295)}", bytes(8)),
            "is larger than",
        ),
        (
            block("{'descr': '<f8', 'fortran_order': False, 'shape': (2147483648,)}", bytes(8)),
            "17179869184 bytes, but has 8",
        ),
        (block("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}", bytes(8)), "declares the shape (-1,)"),
        (block("{'descr': '<f8', 'fortran_order': False}"), "not an .npy file ("),
        (block("__import__('os').abort()"), "not an .npy file ("),
        (block("(" * 9000), "not an .npy file ("),
        (block("x" * 65000), "not an .npy file"),
        (block("{}", version=9), "not an .npy file"),
        (b"\x93NUMPY\x02\0\xff\xff\xff\xff", "not an .npy file"),
    ],
)
@pytest.mark.fault(31)
def test_hostile_files_are_refused_one_by_one(tmp_path: Path, data: bytes, expected: str) -> None:
    save(tmp_path / "c" / "good.npy", np.arange(1.0))
    (tmp_path / "c" / "bad.npy").write_bytes(data)
    os.mkfifo(tmp_path / "c" / "fifo.npy")
    if "bytes" in expected:  # a header that can be used says what arrays have
        with pytest.raises(SourceError) as caught:
            read_array(data)
        assert expected in str(caught.value)
        return
    source = only(tmp_path)
    assert source.fields["array"] == mmds.Array("float64", (1,)) and len(source) == 3
    with pytest.raises(SourceError) as caught:
        source.load(("c/bad.npy", 0))
    assert expected in str(caught.value)
    with pytest.raises(SourceError, match="not a file but a FIFO"):
        source.load(("c/fifo.npy", 0))
    (tmp_path / "c" / "good.npy").unlink()
    with pytest.raises(SourceError, match=r"no array can be used; c/fifo.npy: not a file but a FIFO"):
        only(tmp_path)


def test_a_version_2_header_and_scalars() -> None:
    data = block("{'descr': '<i2', 'fortran_order': True, 'shape': (2, 2)}", b"\1\0\2\0\3\0\4\0", version=2)
    assert read_array(data).tolist() == [[1, 3], [2, 4]]
    assert read_array(npy(np.float32(3))).shape == ()
    assert read_array(npy(np.zeros((0, 4)))).shape == (0, 4)
