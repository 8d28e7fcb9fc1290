"""Folders of ``.npy`` files and ``.npz`` archives: mapped where they can be, and nothing unpickled."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

import mmds
from mmds.converters import npz
from mmds.converters.npy import Writer
from mmds.converters.stores import find_store
from mmds.errors import ExistsError, FormatError, SchemaError
from mmds.items import FixedItems
from tests.samples import EVERY_KIND, sample, write_every_kind


class Bomb:
    """Shows whether it was unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("unpickled",))


def write(path: Path, count: int = 40) -> Path:
    with Writer(path, EVERY_KIND, metadata={"made": "by a test"}) as writer:
        writer.extend(map(sample, range(count)))
    return path


def test_numpy_reads_what_we_write(tmp_path: Path) -> None:
    folder, archive = write(tmp_path / "a.npyd"), write(tmp_path / "a.npz")
    with np.load(archive) as members:
        for name in ("array", "label", "nested/0/values", "_valid/maybe"):
            array = np.load(folder / f"{name}.npy")
            assert array.dtype == members[name].dtype and np.array_equal(array, members[name])
    assert np.load(folder / "array.npy").shape == (40, 3, 100)


@pytest.mark.parametrize("count", [0, 1, 40])
def test_an_archive_comes_back_byte_for_byte_and_is_always_the_same(tmp_path: Path, count: int) -> None:
    source = write_every_kind(tmp_path / "a.mmds", count)
    for name in ("b.npz", "c.npz"):
        write(tmp_path / name, count)
    assert (tmp_path / "b.npz").read_bytes() == (tmp_path / "c.npz").read_bytes()
    reader = mmds.open(tmp_path / "b.npz")
    with mmds.Writer(tmp_path / "d.mmds", reader.fields, metadata=dict(reader.metadata)) as writer:
        writer.write_batch(reader[np.arange(count)])
    assert (tmp_path / "d.mmds").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("name", ["a.npyd", "a.npz"])
def test_values_are_views_of_the_file(tmp_path: Path, name: str) -> None:
    reader = mmds.open(write(tmp_path / name))
    items = reader.items[reader.fields.index("array")]
    assert isinstance(items, FixedItems) and np.shares_memory(items.array, reader[5]["array"])
    assert items.array.flags.aligned and not items.array.flags.writeable
    assert items.array.ctypes.data % 64 == 0
    assert np.array_equal(reader.column("label"), np.arange(40) % 3)


def test_foreign_folders_are_recognised(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "target").mkdir(parents=True)
    np.save(folder / "x.npy", np.arange(12, dtype=">f4").reshape(4, 3))
    np.save(folder / "f.npy", np.asfortranarray(np.arange(8).reshape(4, 2)))
    np.save(folder / "target" / "name.npy", np.array(["a", "b", "ü", ""]))
    np.save(folder / "mean.npy", np.zeros(3))
    (folder / "notes.txt").write_text("")
    found = find_store(folder)
    assert found is not None and found.name == "npy"
    reader = mmds.open(folder)
    assert reader.fields.names == ("f", "target.name", "x")
    assert reader[2]["target"] == {"name": "ü"} and reader[[3, 0]]["x"].tolist() == [[9, 10, 11], [0, 1, 2]]
    assert reader[[3, 0]]["f"].tolist() == [[6, 7], [0, 1]]


def test_a_single_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6).reshape(3, 2))
    assert mmds.open(tmp_path / "a.npy")[2].tolist() == [4, 5]
    dataset = mmds.MemoryMappedDataset(tmp_path / "a.npy")
    assert [batch.tolist() for batch in DataLoader(dataset, 2)] == [[[0, 1], [2, 3]], [[4, 5]]]


@pytest.mark.parametrize("dtype", ["<i8", ">f4", "?", "<c8"])
@pytest.mark.parametrize("shape", [(3,), (3, 2), (0, 2)])
def test_a_single_file_comes_back(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    mmds.convert(tmp_path / "a.npy", tmp_path / "b.mmds")
    mmds.convert(tmp_path / "b.mmds", tmp_path / "c.npy")
    np.save(tmp_path / "little.npy", array.astype(array.dtype.newbyteorder("<")))
    assert (tmp_path / "c.npy").read_bytes() == (tmp_path / "little.npy").read_bytes()


def test_one_field_in_a_single_file(tmp_path: Path) -> None:
    source = write_every_kind(tmp_path / "a.mmds")
    mmds.convert(source, tmp_path / "a.NPY", fields=["array"])
    assert np.array_equal(np.load(tmp_path / "a.NPY"), mmds.open(source)[np.arange(40)]["array"])
    before = (tmp_path / "a.NPY").read_bytes()
    with pytest.raises(ExistsError):
        mmds.convert(source, tmp_path / "a.NPY", fields=["count"])
    assert (tmp_path / "a.NPY").read_bytes() == before
    mmds.convert(source, tmp_path / "a.NPY", fields=["count"], overwrite=True)
    assert np.load(tmp_path / "a.NPY").tolist() == mmds.open(source).column("count").tolist()


@pytest.mark.parametrize("names", [["array", "count"], ["label"], ["bf16"], ["ragged"], ["maybe"], ["json"]])
def test_what_a_single_file_would_lose_is_refused(tmp_path: Path, names: list[str]) -> None:
    source = write_every_kind(tmp_path / "a.mmds")
    with pytest.raises(SchemaError, match=rf"b\.npy: an \.npy file holds one .*; got {names[0]}.*b\.npyd, or .*b\.npz"):
        mmds.convert(source, tmp_path / "b.npy", fields=names)
    assert [*tmp_path.iterdir()] == [source]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_foreign_archives(tmp_path: Path, save: Any) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    save(tmp_path / "a.npz", train_images=images, train_labels=np.arange(20)[:, None], val_images=images[:5])
    reader = mmds.open(tmp_path / "a.npz")
    assert reader.fields.names == ("train_images", "train_labels")
    assert np.array_equal(reader[[19, 3]]["train_images"], images[[19, 3]]) and reader[7]["train_labels"].tolist() == [
        7
    ]
    reader[np.arange(20)]["train_images"][:] = 0
    assert np.array_equal(reader[0]["train_images"], images[0])


@pytest.mark.fault(32)
def test_compressed_members_beyond_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(2000), y=np.zeros(2000))
    monkeypatch.setattr(npz, "MAX_UNPACKED", 20000)
    with pytest.raises(
        FormatError, match=r"a\.npz: y\.npy: compressed members of more than 20000 bytes refused.*savez"
    ):
        mmds.open(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["folder", "file", "stored", "compressed"])
@pytest.mark.fault(31)
def test_object_arrays_are_refused(tmp_path: Path, kind: str) -> None:
    objects = np.array([Bomb()], object)
    folder = tmp_path / "a.npyd"
    folder.mkdir()
    np.save(folder / "x.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "stored.npz", x=objects)
    np.savez_compressed(tmp_path / "compressed.npz", x=objects)
    paths = {"folder": folder, "file": folder / "x.npy"}
    with pytest.raises(FormatError, match=r"x\.npy: an object array refused: nothing is ever unpickled"):
        mmds.open(paths.get(kind, tmp_path / f"{kind}.npz"))


@pytest.mark.fault(31)
def test_a_pickle_is_no_npy_file(tmp_path: Path) -> None:
    (tmp_path / "a.npyd").mkdir()
    (tmp_path / "a.npyd" / "x.npy").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FormatError, match=r"a\.npyd: x\.npy: not an \.npy block"):
        mmds.open(tmp_path / "a.npyd")


@pytest.mark.fault(31)
def test_links_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "outside.npy", np.arange(3))
    (tmp_path / "a.npyd").mkdir()
    (tmp_path / "a.npyd" / "x.npy").symlink_to(tmp_path / "outside.npy")
    with pytest.raises(FormatError, match=r"a\.npyd: x\.npy: not a plain file: refused"):
        mmds.open(tmp_path / "a.npyd")


@pytest.mark.parametrize("shape", ["(1000000,)", "(-1,)", "(2**70,)", "(2, 10**30)"])
@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.fault(31)
def test_declared_shapes_beyond_the_file_are_refused(tmp_path: Path, shape: str, archived: bool) -> None:
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    block = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode() + bytes(80)
    path = tmp_path / ("a.npz" if archived else "a.npy")
    if archived:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", block)
    else:
        path.write_bytes(block)
    with pytest.raises(FormatError, match=r"a\.np[yz]: .*(declares int64|not an \.npy block)"):
        mmds.open(path)


@pytest.mark.fault(31)
def test_a_member_that_is_not_where_the_directory_says(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(5))
    whole = bytearray((tmp_path / "a.npz").read_bytes())
    whole[0] = 0
    (tmp_path / "a.npz").write_bytes(whole)
    with pytest.raises(FormatError, match=r"x\.npy: no such member where the archive's directory says"):
        mmds.open(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"text" * 100])
@pytest.mark.fault(31)
def test_files_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(FormatError, match=r"a\.npz: not a readable \.npz archive"):
        mmds.open(tmp_path / "a.npz")
    (tmp_path / "a.npyd").mkdir()
    with pytest.raises(FormatError, match=r"a\.npyd: no arrays that could be samples"):
        mmds.open(tmp_path / "a.npyd")
