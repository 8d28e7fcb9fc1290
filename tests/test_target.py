"""Destinations: which writer they get, what their parts are called, and options that do not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mmds
from mmds.errors import OptionError, SourceError
from mmds.sharded import ShardedWriter
from mmds.target import Target

FIELDS = {"n": mmds.Scalar("int8")}


def writer(target: Target, split: str = "", conversion: Any = None) -> Any:
    return target.writer(split, FIELDS, {"made": 1}, conversion or {})


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("a.mmds", {}, "mmds.writer"),
        ("a", {}, "mmds.writer"),
        ("a.h5", {}, "mmds.converters.hdf5"),
        ("a.h5", {"format": "mmds"}, "mmds.writer"),
        ("a", {"format": "lmdb"}, "mmds.converters.lmdbwriter"),
        ("a.mmds", {"shard_size": 1}, "mmds.sharded"),
        ("a", {"shard_size": 1}, "mmds.sharded"),
    ],
)
def test_the_writer_for_a_destination(tmp_path: Path, name: str, options: dict[str, Any], kind: str) -> None:
    target = Target(tmp_path / name, **options)
    with writer(target) as opened:
        assert type(opened).__module__ == kind
        opened.write({"n": 5})
        if isinstance(opened, ShardedWriter):
            opened.end(1)
    reader = mmds.open(tmp_path / name, format=options.get("format"))
    assert list(reader) == [{"n": 5}] and dict(reader.metadata) == {"made": 1}


def test_splits_have_names_beside_the_destination() -> None:
    assert Target(Path("x/out.mmds")).part("train") == Path("x/out-train.mmds")
    assert Target(Path("x/out")).part("train") == Path("x/out-train")
    assert Target(Path("x/out.mmds")).part("") == Path("x/out.mmds")


def test_shards_end_where_they_are_full_or_never(tmp_path: Path) -> None:
    for size, count in ((1, 3), (10**9, 1)):
        target = Target(tmp_path / f"{count}.mmds", shard_size=size)
        with writer(target) as opened:
            for n in range(3):
                opened.write({"n": n})
                opened.mark(n, 1)
            opened.end(3)
        assert len(list((tmp_path / f"{count}.mmds").glob("*.mmds"))) == count
    with writer(Target(tmp_path / "3.mmds", append=True)) as opened:  # no size: one more
        for n in range(3):
            opened.write({"n": n})
            assert not opened.mark(n, 1)
        opened.end(3)
    assert len(list((tmp_path / "3.mmds").glob("*.mmds"))) == 4


def test_compression_reaches_the_file(tmp_path: Path) -> None:
    for shard_size in (None, 1):
        path = tmp_path / f"{shard_size}.mmds"
        opened = Target(path, compression="zstd", shard_size=shard_size).writer("", {"b": mmds.Bytes()}, {}, {})
        with opened:
            opened.write({"b": b"x" * 1000})
            if isinstance(opened, ShardedWriter):
                opened.end(1)
        assert mmds.open(path).fields[0].is_compressed and mmds.open(path)[0] == {"b": b"x" * 1000}


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("a.mmds", {"shard_size": 0}, ValueError, "shard_size=0: expected a number of bytes"),
        ("a.mmds", {"resume": True}, OptionError, "needs shard_size="),
        ("a.mmds", {"resume": True, "overwrite": True, "shard_size": 1}, OptionError, "expected one of them"),
        ("a.mmds", {"append": True, "overwrite": True}, OptionError, "expected one of them"),
        ("a.h5", {"shard_size": 1}, OptionError, "is hdf5: shards and compression are for .mmds files"),
        ("a.zarr", {"append": True}, OptionError, "is zarr: shards"),
        ("a\x1b.parquet", {"compression": "zstd"}, OptionError, r"a\\x1b.parquet is parquet: shards and compression"),
        ("a.mmds", {"format": "nope"}, SourceError, "no store 'nope'"),
    ],
)
def test_options_that_do_not_go_together(name: str, options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Target(Path(name), **options)


def test_what_is_kept_after_an_error() -> None:
    assert Target(Path("a")).kept == "Nothing was written"
    assert Target(Path("a"), shard_size=5).kept == "Whole shards are kept, for resume=True"


def test_what_else_decides_the_bytes_is_resumed_only_alike(tmp_path: Path) -> None:
    path = tmp_path / "a.mmds"
    with pytest.raises(KeyboardInterrupt), writer(Target(path, shard_size=1), conversion={"map": "f"}) as opened:
        opened.write({"n": 1})
        opened.mark(1, 0)
        raise KeyboardInterrupt
    for options in ({"shard_size": 2}, {"shard_size": 1, "compression": "zstd"}):
        with pytest.raises(OptionError, match="begun differently"):
            writer(Target(path, resume=True, **options), conversion={"map": "f"})
    with writer(Target(path, resume=True, shard_size=1), conversion={"map": "f"}) as opened:
        assert opened.position == (1, 0)
        opened.end(1)
    assert len(mmds.open(path)) == 1
