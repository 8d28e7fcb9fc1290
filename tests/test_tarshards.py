"""Exported shards: read by `webdataset` itself, the same bytes each time, there whole or not at all."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

import mmds
from mmds.converters import sources
from mmds.converters.tarshards import export_tar
from mmds.errors import ExistsError, FormatError
from tests.likeness import assert_alike
from tests.samples import EVERY_KIND, sample, write_every_kind
from tests.test_webdataset import made, write


def every_kind(folder: Path, count: int = 40) -> mmds.Reader:
    return mmds.open(write_every_kind(folder / "every.mmds", count))


def members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(each.name, stream.read()) for each in tar if (stream := tar.extractfile(each)) is not None]


def converted(path: Path, destination: Path) -> mmds.Reader:
    """Return a conversion of a shard, sample by sample: what is tested here is not how conversions go."""
    (source,) = sources(path, "webdataset")
    assert not source.problems and not source.ignored
    with mmds.Writer(destination, source.fields) as writer:
        writer.extend(map(source.load, source.items()))
    return mmds.open(destination)


def test_shards_that_come_back_are_the_same(tmp_path: Path) -> None:
    first = converted(write(tmp_path / "a.tar", range(40)), tmp_path / "a.mmds")
    assert export_tar(first, tmp_path / "b.tar") == [tmp_path / "b.tar"]
    assert members(tmp_path / "b.tar") == members(tmp_path / "a.tar")
    second = converted(tmp_path / "b.tar", tmp_path / "b.mmds")
    assert second.fields == first.fields and second.content_id == first.content_id
    for number, got in enumerate(second):
        assert_alike({key: got[key] for key in made(number)}, made(number))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves closing its shards to chance
def test_webdataset_reads_them(tmp_path: Path) -> None:
    paths = export_tar(every_kind(tmp_path), tmp_path / "out.tar", shard_size=100_000)
    assert len(paths) > 2
    dataset = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False).decode("rgb8")
    for number, got in enumerate(dataset):
        want = sample(number)
        assert got["__key__"] == f"{number:06}" and got["jpg"].shape == (32, 40, 3)
        assert (
            got["label.cls"] == want["label"]
            and got["json"] == want["json"]
            and got["nested.0.txt"] == want["nested"][0]
        )
        assert got.get("maybe.cls") == want["maybe"]
        np.testing.assert_array_equal(got["array.npy"], want["array"])
        np.testing.assert_array_equal(got["ragged.npy"], want["ragged"])
    assert number == 39


def test_members_say_nothing_of_who_wrote_them_and_when(tmp_path: Path) -> None:
    reader = every_kind(tmp_path)
    export_tar(reader, tmp_path / "a.tar")
    (tmp_path / "elsewhere").mkdir()
    export_tar(reader, tmp_path / "elsewhere" / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "elsewhere" / "b.tar").read_bytes()
    assert (tmp_path / "a.tar").stat().st_size % 10240 == 0
    with tarfile.open(tmp_path / "a.tar") as tar:
        kept = {(each.mtime, each.uid, each.gid, each.uname, each.gname, each.mode, each.isreg()) for each in tar}
    assert kept == {(0, 0, 0, "", "", 0o644, True)}


def test_long_and_foreign_names(tmp_path: Path) -> None:
    keys = ["ü/" + "long" * 60, "plain", "日本"]
    with mmds.Writer(tmp_path / "x.mmds", {"__key__": mmds.Text(column=True), "txt": mmds.Text()}) as writer:
        writer.extend({"__key__": key, "txt": key} for key in keys)
    export_tar(mmds.open(tmp_path / "x.mmds"), tmp_path / "x.tar")
    assert members(tmp_path / "x.tar") == [(f"{key}.txt", key.encode()) for key in keys]
    assert list(converted(tmp_path / "x.tar", tmp_path / "y.mmds")) == list(mmds.open(tmp_path / "x.mmds"))


def test_shards_hold_all_samples_and_keep_to_their_size(tmp_path: Path) -> None:
    reader = every_kind(tmp_path)
    export_tar(reader, tmp_path / "one.tar")
    paths = export_tar(reader, tmp_path / "out.tar", shard_size=60_000)
    assert [path.name for path in paths] == [f"out-{number:06}.tar" for number in range(len(paths))]
    assert [member for path in paths for member in members(path)] == members(tmp_path / "one.tar")
    assert all(path.stat().st_size <= 60_000 + 10240 for path in paths) and len(paths) > 5
    paths = export_tar(reader[:3], tmp_path / "tiny.tar", shard_size=1)  # a sample is never cut
    assert [{name[:6] for name, _ in members(path)} for path in paths] == [{f"00000{number}"} for number in range(3)]


def test_no_samples(tmp_path: Path) -> None:
    reader = every_kind(tmp_path)[:0]
    (path,) = export_tar(reader, tmp_path / "x.tar", shard_size=1000)
    export_tar(reader, tmp_path / "x.tar")
    assert members(path) == members(tmp_path / "x.tar") == []


def test_progress(tmp_path: Path) -> None:
    said: list[tuple[int, int | None, int]] = []
    export_tar(every_kind(tmp_path, 300), tmp_path / "x.tar", progress=lambda *counts: said.append(counts))
    assert said == [(256, 300, 0), (300, 300, 0)]


def test_what_exists_is_left_as_it_is(tmp_path: Path) -> None:
    reader = every_kind(tmp_path)
    for name, shard_size in (("a.tar", None), ("a-000007.tar", 60_000)):
        (tmp_path / name).write_bytes(b"old")
        with pytest.raises(ExistsError, match=f"{name} exists already"):
            export_tar(reader, tmp_path / "a.tar", shard_size=shard_size)
        assert (tmp_path / name).read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"every.mmds", "a.tar", "a-000007.tar"}


def test_overwriting(tmp_path: Path) -> None:
    reader = every_kind(tmp_path)
    for name in ("a.tar", "a-000001.tar", "a-000099.tar", "a-7.tar", "ab-000001.tar"):
        (tmp_path / name).write_bytes(b"old")
    export_tar(reader, tmp_path / "a.tar", overwrite=True)
    paths = export_tar(reader, tmp_path / "a.tar", shard_size=100_000, overwrite=True)
    assert members(tmp_path / "a.tar") == [member for path in paths for member in members(path)]
    assert not (tmp_path / "a-000099.tar").exists()
    assert (tmp_path / "a-7.tar").read_bytes() == (tmp_path / "ab-000001.tar").read_bytes() == b"old"


@pytest.mark.parametrize("options", [{}, {"shard_size": 20_000}])
def test_a_failure_leaves_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    path = write_every_kind(tmp_path / "x.mmds", 40)
    data = bytearray(path.read_bytes())
    place = data.index(b"text 33")
    data[place] = 0xFF  # no UTF-8
    path.write_bytes(data)
    with pytest.raises((FormatError, ValueError)):
        export_tar(mmds.open(path), tmp_path / "y.tar", **options)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shard_size", [0, -1, True, 1.5, "1GB"])
def test_shard_size_is_checked(tmp_path: Path, shard_size: Any) -> None:
    with pytest.raises(ValueError, match="expected a number of bytes"):
        export_tar(every_kind(tmp_path), tmp_path / "x.tar", shard_size=shard_size)


def test_every_kind_comes_back_in_some_form(tmp_path: Path) -> None:
    reader = every_kind(tmp_path)
    export_tar(reader, tmp_path / "x.tar")
    back = converted(tmp_path / "x.tar", tmp_path / "back.mmds")
    assert len(back) == len(reader) and len(back.fields) == len(reader.fields) + 1  # the number as the key
    assert back.fields[back.fields.index("score.npy")].kind == mmds.Array("float32", ())
    assert back.fields[back.fields.index("array.npy")].kind == EVERY_KIND["array"]
