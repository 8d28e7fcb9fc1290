"""HDF5: what plain h5py sees of our files, what we see of plain h5py's, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import mmds
from mmds.converters.hdf5 import Writer
from mmds.errors import FormatError, MmdsError
from tests.samples import EVERY_KIND, sample

Build = Callable[[Any], None]


def build(path: Path, function: Build, **options: Any) -> Path:
    with h5py.File(path, "w", **options) as file:
        function(file)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.h5"


@pytest.fixture
def every(path: Path) -> Path:
    with Writer(path, EVERY_KIND, metadata={"made": "by a test"}) as writer:
        writer.extend(map(sample, range(40)))
    return path


# What plain h5py sees


def test_plain_h5py_reads_what_we_write(every: Path) -> None:
    with h5py.File(every, "r") as file:
        assert file["array"].shape == (40, 3, 100) and file["array"].dtype == "<f4"
        assert file["label"][:].tolist() == [number % 3 for number in range(40)]
        values, offsets = file["nested/0/values"][:], file["nested/0/offsets"][:]
        assert bytes(values[offsets[7] : offsets[8]]) == b"text 7"
        assert file["_valid/maybe"][:3].tolist() == [False, True, True]


def test_h5py_and_a_reader_have_the_file_open_together(every: Path) -> None:
    reader = mmds.open(every)
    assert reader[1]["count"] == 1
    with h5py.File(every, "r") as file:
        assert file["count"][1] == 1 and reader[2]["count"] == 2
        assert mmds.open(every)[3]["count"] == 3


def test_chunks_hold_whole_samples_of_about_64_kib(path: Path) -> None:
    fields = {
        "small": mmds.Scalar("uint8"),
        "image": mmds.Array("uint8", (3, 96, 96)),
        "large": mmds.Array("f4", (10**5,)),
    }
    with Writer(path, fields):
        pass
    with h5py.File(path) as file:
        assert {name: file[name].chunks[0] for name in fields} == {"small": 65536, "image": 2, "large": 1}


def test_a_schema_larger_than_an_object_header(path: Path) -> None:
    names = tuple(f"class {number:060}" for number in range(3000))
    with Writer(path, mmds.Label(names)) as writer:
        writer.write(2999)
    assert mmds.open(path).fields[0].kind == mmds.Label(names)


# What we see of plain h5py's files


def test_images_and_labels(path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 256, 256), np.uint8)

    def fill(file: Any) -> None:
        file["images"], file["labels"] = images, np.arange(6)

    dataset = mmds.MemoryMappedDataset(build(path, fill), fields=("images", "labels"), format="numpy")
    image, label = dataset[4]
    assert np.array_equal(image, images[4]) and label == 4
    batch = mmds.open(path)[[5, 0, 5]]
    assert np.array_equal(batch["images"], images[[5, 0, 5]]) and batch["labels"].tolist() == [5, 0, 5]


@pytest.mark.parametrize(
    "options", [{"compression": "gzip"}, {"compression": "lzf", "shuffle": True}, {"fletcher32": True}]
)
def test_filtered_chunks(path: Path, options: dict[str, Any]) -> None:
    data = np.arange(1000 * 16, dtype="<i4").reshape(1000, 16)
    build(path, lambda file: file.create_dataset("x", data=data, chunks=(64, 16), **options))
    reader = mmds.open(path)
    wanted = np.array([999, 3, 64, 63, 500])
    assert np.array_equal(reader[wanted]["x"], data[wanted]) and np.array_equal(reader[321]["x"], data[321])


def test_other_types(path: Path) -> None:
    def fill(file: Any) -> None:
        file.create_dataset("text", data=["a", "ü\n", ""], dtype=h5py.string_dtype())
        file["fixed"] = np.array([b"a", "ü".encode(), b""])
        boxes = file.create_dataset("g/boxes", (3,), h5py.vlen_dtype("f4"))
        for number in (1, 2):
            boxes[number] = np.arange(number, dtype="f4")
        file["flag"] = np.array([True, False, True])
        file["big"] = np.arange(3, dtype=">f8")
        file["half"] = np.arange(3, dtype="f2")
        file["z"] = np.array([1j, 2, 3], "c8")
        file["empty"] = h5py.Empty("f4")

    reader = mmds.open(build(path, fill))
    assert {**reader[1], "g": None} == {
        "text": "ü\n",
        "fixed": "ü",
        "flag": False,
        "big": 1.0,
        "half": 1.0,
        "z": 2 + 0j,
        "g": None,
    }
    assert reader.fields[reader.fields.index("g.boxes")].kind == mmds.Array("float32", (None,))
    assert [boxes.tolist() for boxes in reader[[2, 0, 1]]["g"]["boxes"]] == [[0, 1], [], [0]]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (np.zeros(3, [("a", "i4"), ("b", "f4")]), r"x: dtype .* cannot be stored"),
        (np.zeros((3, 2), h5py.string_dtype(length=4)), "x: an array of strings per sample"),
        (np.zeros(3, h5py.opaque_dtype(np.dtype("M8[s]"))), r"x: dtype 'datetime64\[s\]' cannot be stored"),
    ],
)
def test_types_that_cannot_be_fields_are_named(path: Path, data: Any, reason: str) -> None:
    build(path, lambda file: file.create_dataset("x", data=data))
    with pytest.raises(FormatError, match=rf"a\.h5: no arrays that could be samples .*{reason}"):
        mmds.open(path)
    with h5py.File(path, "a") as file:
        file["y"] = np.arange(3)
    assert mmds.open(path)[2] == {"y": 2}


# What is refused


def _reference(file: Any) -> None:
    file.create_dataset("x", data=[file.ref] * 3, dtype=h5py.ref_dtype)


def _virtual(file: Any) -> None:
    file["source"] = np.arange(3)
    layout = h5py.VirtualLayout((3,), "i8")
    layout[:] = h5py.VirtualSource(file["source"])
    file.create_virtual_dataset("x", layout)


def _cycle(file: Any) -> None:
    group = file.create_group("g")
    group["again"] = group["too"] = group
    group["x"] = np.arange(3)


def _deep(file: Any) -> None:
    file["/".join("x" * 60)] = np.arange(3)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (
            lambda file: file.__setitem__("x", h5py.SoftLink("/y")),
            "x: SoftLink refused: data must be in the file itself",
        ),
        (lambda file: file.__setitem__("x", h5py.ExternalLink("b.h5", "/y")), "x: ExternalLink refused"),
        (_virtual, "x: virtual or external storage refused"),
        (
            lambda file: file.create_dataset("x", (8,), "u1", external=[("/etc/hostname", 0, 8)]),
            "x: virtual or external storage refused",
        ),
        (_reference, "x: dtype 'object' cannot be stored"),
        (_cycle, "g/(again|too): a group in two places"),
        (_deep, "deeper than 32: refused"),
        (
            lambda file: file.create_dataset("x", (2**40, 3), "u1", chunks=(2**10, 3), compression="gzip"),
            f"declare {3 * 2**40} bytes, but [0-9]+ are stored",
        ),
        (
            lambda file: file.create_dataset("x", (2, 2**31 + 1), "u1", chunks=(1, 2**31 + 1), compression="gzip"),
            f"x: chunks of {2**31 + 1} bytes refused",
        ),
        (lambda file: None, "no arrays that could be samples"),
        (lambda file: file.attrs.__setitem__("mmds", 1), "the dataset __mmds__ with the schema is missing"),
    ],
)
@pytest.mark.fault(31)
def test_what_is_refused(path: Path, function: Build, reason: str) -> None:
    build(path, function)
    with pytest.raises(FormatError, match=rf"a\.h5: .*{reason}"):
        mmds.open(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(5000), b"PK\3\4" + bytes(99)]
)
@pytest.mark.fault(31)
def test_files_that_are_none(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"a\.h5: not a readable HDF5 file"):
        mmds.open(path)
    with pytest.raises(FileNotFoundError):
        mmds.open(path.with_name("b.h5"))


@pytest.mark.fault(31)
def test_damaged_compressed_chunks_name_array_and_rows(path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 9, (100, 64), np.uint8)
    build(path, lambda file: file.create_dataset("x", data=data, chunks=(10, 64), compression="gzip"))
    with h5py.File(path) as file:
        chunk = file["x"].id.get_chunk_info(5)
    whole = bytearray(path.read_bytes())
    whole[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(whole)
    reader = mmds.open(path)
    assert np.array_equal(reader[49]["x"], data[49])
    with pytest.raises(FormatError, match=r"a\.h5: rows 50 to 51 of the array x: "):
        reader[50]


@pytest.mark.fault(31)
def test_truncated_and_flipped_files_raise_nothing_but_errors_of_mmds(path: Path) -> None:
    """In files of plain h5py, with its older structures; `test_stores.py` does the same to ours."""
    data = np.arange(400, dtype="<i4").reshape(100, 4)

    def fill(file: Any) -> None:
        file.create_dataset("g/x", data=data, chunks=(10, 4), compression="gzip")
        file["text"] = [f"text {number}" for number in range(100)]

    whole = build(path, fill).read_bytes()
    chance = random.Random(0)
    refused = 0
    for number in range(150):
        damaged = bytearray(whole)
        if number < 50:
            del damaged[chance.randrange(len(whole)) :]
        else:
            damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        copy = path.with_name(f"{number}.h5")
        copy.write_bytes(damaged)
        try:
            reader = mmds.open(copy)
            reader[np.arange(len(reader))[::-1]]
        except MmdsError:
            refused += 1
    assert refused > 50
