"""Zarr: what plain zarr-python sees of our folders, what we see of others', and what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr

import mmds
from mmds.converters.zarr import Writer, _refuse_pickles
from mmds.errors import FormatError
from tests.samples import EVERY_KIND, sample


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.zarr"


def test_plain_zarr_reads_what_we_write(path: Path) -> None:
    with Writer(path, EVERY_KIND) as writer:
        writer.extend(map(sample, range(40)))
    group: Any = zarr.open_group(path, mode="r")
    assert group["array"].shape == (40, 3, 100) and group["array"].dtype == "<f4"
    assert group["label"][:].tolist() == [number % 3 for number in range(40)]
    values, offsets = group["nested/0/values"][:], group["nested/0/offsets"][:]
    assert bytes(values[offsets[7] : offsets[8]]) == b"text 7"
    assert json.loads(group.attrs["mmds"])["n"] == 40
    explicit = {file.parent for file in path.rglob("zarr.json")}
    assert explicit >= {path, path / "nested", path / "nested" / "1", path / "_valid"}


def test_shards_are_written_once_and_hold_whole_chunks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Writer, "block_bytes", 2**20)
    rows = np.random.default_rng(0).integers(0, 256, (100, 3, 96, 96), np.uint8)
    stored: list[str] = []
    put = zarr.storage.LocalStore.set

    async def noting(self: Any, key: str, value: Any) -> None:
        stored.append(key)
        await put(self, key, value)

    monkeypatch.setattr(zarr.storage.LocalStore, "set", noting)
    with Writer(path, mmds.Array("uint8", (3, 96, 96))) as writer:
        for start in range(0, 100, 7):
            writer.write_batch(rows[start : start + 7])
    array: Any = zarr.open_group(path, mode="r")["value"]
    assert array.chunks == (2, 3, 96, 96) and array.shards == (36, 3, 96, 96)
    shards = [key for key in stored if "/c/" in key]
    assert len(shards) == len(set(shards)) == 3
    assert np.array_equal(mmds.open(path)[:][np.arange(100)], rows)


def test_reading_from_front_to_back_reads_each_shard_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.arange(300, dtype="<i4").reshape(100, 3)
    zarr.create_array(path, data=data, chunks=(5, 3), shards=(20, 3))
    reader = mmds.open(path)
    read: list[slice] = []
    get = zarr.Array.__getitem__

    def noting(self: Any, rows: slice) -> Any:
        read.append(rows)
        return get(self, rows)

    monkeypatch.setattr(zarr.Array, "__getitem__", noting)
    for start in range(0, 100, 7):
        batch = reader[np.arange(start, min(start + 7, 100))]
        assert np.array_equal(batch, data[start : start + 7])
        batch[:] = -1
    assert [(rows.start, rows.stop) for rows in read] == [(0, 7), *((20 * k, 20 * k + 20) for k in range(5))]
    assert np.array_equal(reader[[50, 3, 99]], data[[50, 3, 99]])


def test_negative_zeros_keep_their_sign(path: Path) -> None:
    with Writer(path, mmds.Array("float32", (100,))) as writer:
        writer.write_batch(np.full((3, 100), -0.0, "f4"))
    assert np.signbit(mmds.open(path)[1]).all()


@pytest.mark.parametrize("version", [2, 3])
def test_foreign_groups(path: Path, version: Any) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 16, 16), np.uint8)
    group = zarr.create_group(path, zarr_format=version)
    group.create_array("images", data=images, chunks=(4, 3, 16, 8))
    group.create_array("target/label", data=np.arange(20, dtype=">i4"))
    group.create_array("mean", data=np.zeros(3))
    (path / "README.md").write_text("no part of the hierarchy")
    reader = mmds.open(path)
    assert reader.fields.names == ("images", "target.label")
    wanted = np.array([19, 0, 7, 7])
    assert np.array_equal(reader[wanted]["images"], images[wanted]) and reader[7]["target"]["label"] == 7
    assert "README.md" in {file.name for file in path.iterdir()}


@pytest.mark.parametrize("version", [2, 3])
def test_a_single_array(path: Path, version: Any) -> None:
    zarr.create_array(path, data=np.arange(12.0).reshape(4, 3), zarr_format=version)
    assert [row.tolist() for row in mmds.open(path)[[3, 1]]] == [[9, 10, 11], [3, 4, 5]]


@pytest.mark.parametrize("version", [2, 3])
def test_strings(path: Path, version: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that strings are not yet in the specification
        array: Any = zarr.create_array(path / "t", shape=(3,), dtype=str, zarr_format=version)
        zarr.create_group(path, zarr_format=version)
        array[:] = ["a", "ü", ""]
    assert [value["t"] for value in mmds.open(path)] == ["a", "ü", ""]


def test_missing_chunks_are_fill_values_within_reason(path: Path) -> None:
    zarr.create_array(path, shape=(1000, 4), chunks=(10, 4), dtype="i4", fill_value=7)
    assert mmds.open(path)[999].tolist() == [7] * 4


def _edit(path: Path, **changes: Any) -> None:
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | changes))


@pytest.mark.fault(31)
def test_declared_sizes_far_beyond_the_folder_are_refused(path: Path) -> None:
    zarr.create_array(path, shape=(2**40, 4), chunks=(2**10, 4), dtype="i4")
    with pytest.raises(
        FormatError, match=rf"a\.zarr: its arrays declare {2**44} bytes, but [0-9]+ are stored: refused"
    ):
        mmds.open(path)


@pytest.mark.fault(31)
def test_chunks_that_no_memory_holds_are_refused(path: Path) -> None:
    zarr.create_array(path, shape=(8, 2**30), chunks=(8, 2**30), dtype="i4")
    with pytest.raises(FormatError, match=f"chunks of {2**35} bytes refused"):
        mmds.open(path)


@pytest.mark.parametrize("entry", ["filters", "compressor"])
@pytest.mark.fault(31)
def test_pickles_are_refused(path: Path, entry: str) -> None:
    zarr.create_array(path, data=np.arange(4), zarr_format=2)
    codec = {"id": "pickle", "protocol": 5}
    _edit(path / ".zarray", **{entry: [codec] if entry == "filters" else codec})
    with pytest.raises(FormatError, match=r"a\.zarr: .*pickle"):
        mmds.open(path)


@pytest.mark.fault(31)
def test_pickles_are_refused_in_any_place_where_a_version_of_zarr_might_take_them() -> None:
    inner = {"name": "sharding_indexed", "configuration": {"codecs": [{"name": "numcodecs.pickle"}]}}
    for said in ({"codecs": ({"name": "bytes"}, inner)}, {"filters": [{"id": "pickle"}]}):
        array = SimpleNamespace(metadata=SimpleNamespace(to_dict=lambda said=said: said))
        with pytest.raises(FormatError, match=r"here: the codec .*pickle refused: nothing is ever unpickled"):
            _refuse_pickles("here", array)


@pytest.mark.fault(31)
def test_object_arrays_are_refused(path: Path) -> None:
    zarr.create_array(path, data=np.arange(4), zarr_format=2)
    _edit(path / ".zarray", dtype="|O", filters=[{"id": "pickle", "protocol": 5}], fill_value=None)
    with pytest.raises(FormatError, match=r"a\.zarr"):
        mmds.open(path)


@pytest.mark.fault(31)
def test_damage_names_array_and_rows(path: Path) -> None:
    with Writer(path, mmds.Array("float32", (1000,))) as writer:
        writer.write_batch(np.ones((100, 1000), "f4"))
    shard = path / "value" / "c" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # of the checksum over the shard's index
    shard.write_bytes(data)
    with pytest.raises(FormatError, match=r"a\.zarr: rows 5 to 6 of the array value: "):
        mmds.open(path)[5]


@pytest.mark.fault(31)
def test_folders_that_are_none(path: Path) -> None:
    path.mkdir()
    with pytest.raises(FormatError, match=r"a\.zarr: not a readable Zarr group"):
        mmds.open(path)
    (path / "zarr.json").write_text("{")
    with pytest.raises(FormatError, match=r"a\.zarr"):
        mmds.open(path)
    file = path.with_name("b.zarr")
    file.write_text("text")
    with pytest.raises(FormatError, match=r"b\.zarr: not a folder"):
        mmds.open(file)
