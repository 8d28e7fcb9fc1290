"""Disks that are full, read-only, or have blocks that cannot be read: a clean error, and nothing that was whole is lost."""

from __future__ import annotations

import errno
import gc
import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.errors import MmdsError, StorageError
from tests.conftest import Cases
from tests.faults.disk import BLOCK, Disk, disk
from tests.faults.machine import needs_loop_device

pytestmark = needs_loop_device

COUNT = 40
SUFFIXES = {"zarr": ".zarr", "npy": ".npyd", "lmdb": ".lmdb", "arrow": ".arrow", "parquet": ".parquet"}


def sample(number: int) -> dict[str, Any]:
    data = np.random.default_rng(number).integers(0, 256, 3000 + number, "uint8")
    return {"number": number, "data": data}


FIELDS = {"number": mmds.Scalar("int64"), "data": mmds.Array("uint8", (None,))}


def write(path: Path, start: int = 0, **options: Any) -> Path:
    with mmds.Writer(path, FIELDS, **options) as writer:
        writer.extend(sample(start + number) for number in range(COUNT))
    return path


def write_store(root: Path, source: Path, format: str) -> None:
    mmds.convert(source, root / f"new{SUFFIXES[format]}", num_workers=1)


# How something is written to a disk that holds old.mmds and the folder old, from the samples of a file that is elsewhere.
WAYS: dict[str, Callable[[Path, Path], object]] = {
    "new": lambda root, source: write(root / "new.mmds", 100),
    "replaced": lambda root, source: write(root / "old.mmds", 100, overwrite=True),
    "sharded": lambda root, source: mmds.convert(source, root / "new", num_workers=1, shard_size=40_000),
    "appended": lambda root, source: mmds.convert(source, root / "old", num_workers=1, shard_size=40_000, append=True),
    "selected": lambda root, source: mmds.select(source, root / "new.mmds", indices=range(0, COUNT, 2)),
    "split": lambda root, source: mmds.split(source, root / "new.mmds", count=10),
    "column": lambda root, source: mmds.add_column(root / "old", "extra", np.arange(COUNT)),
}
STORES = {name: partial(write_store, format=name) for name in SUFFIXES}
RESUMED = ("sharded", "appended")
UNLISTED: dict[str, set[str]] = {  # what may stay: no part of a dataset, and no obstacle to the next attempt
    "column": {"columns", "extra-0.mmds"},
    "sharded": {"new"},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("source") / "source.mmds", 100)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Disk]:
    """Return a disk that holds a file and a folder of shards, of the same samples."""
    with disk(tmp_path, megabytes=16) as small:
        yield small


def prepare(small: Disk) -> None:
    """Let the disk hold a file and a folder of shards, and nothing else."""
    gc.collect()  # of readers of files that are deleted now, or their blocks come free later
    small.fill(leave=2**40)
    for path in list(small.root.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write(small.root / "old.mmds")
    mmds.convert(small.root / "old.mmds", small.root / "old", num_workers=1, shard_size=40_000)
    small.sync()


def content(root: Path, way: str) -> dict[str, bytes]:
    """Return what is in a folder; of Zarr, whose threads may go on after an error, without a temporary folder that stays."""
    paths = [
        path for path in root.rglob("*") if way != "zarr" or not re.search(r"/\.new\.zarr\.\w{8}\.tmp\.d", str(path))
    ]
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in paths}


def check_old(root: Path) -> None:
    """Check that what was there before is read as before."""
    for path in (root / "old.mmds", root / "old"):
        reader = mmds.open(path)
        for number in (0, 17, COUNT - 1):
            assert (reader[number]["data"] == sample(number)["data"]).all()


def refused(small: Disk, way: str, source: Path, expected: int, root: Path | None = None) -> str | None:
    """Write to `root`, and return where in mmds that was refused by a clean error that leaves nothing; None if it was not.

    Of shards, those that are whole may stay, to be resumed.
    """
    before = content(small.root, way)
    try:
        (WAYS | STORES)[way](root or small.root, source)
    except StorageError as error:
        assert error.errno == expected or (way == "lmdb" and error.errno == errno.EIO), error  # LMDB says no more
        assert str(small.root) in str(error), error
        check_old(small.root)
        after = content(small.root, way)
        assert before.items() <= after.items()
        stayed = {Path(path).name for path in after.keys() - before.keys()}
        if way in RESUMED and stayed - {"new"}:
            assert "unfinished.jsonl" in stayed
            assert all(re.fullmatch(r"new|unfinished\.jsonl|\d{5}\.mmds", name) for name in stayed), stayed
        else:
            assert stayed <= UNLISTED.get(way, set[str]()), stayed
        return innermost(error)
    return None


def innermost(error: BaseException) -> str:
    """Return the name of the last function of mmds that the error came through."""
    found = ""
    trace = (error.__cause__ or error).__traceback__
    while trace is not None:
        if "/mmds/" in trace.tb_frame.f_code.co_filename:
            found = trace.tb_frame.f_code.co_name
        trace = trace.tb_next
    return found


def until_it_fits(small: Disk, way: str, source: Path, step: int) -> list[str]:
    """Write with more and more room, until that is enough; return where it failed each time."""
    failed: list[str] = []
    for leave in itertools.count(0, step):
        if way in RESUMED:
            prepare(small)
        small.fill(leave)
        where = refused(small, way, source, errno.ENOSPC)
        if where is None:
            assert not list(small.root.glob(".*")), "the next writer removes what a failed one left"
            return failed
        failed.append(where)
    raise AssertionError


@pytest.mark.fault(6)
@pytest.mark.parametrize(
    "way",
    [
        "new",
        "sharded",
        *(pytest.param(way, marks=pytest.mark.stress) for way in [*WAYS, *STORES] if way not in ("new", "sharded")),
    ],
)
def test_06_a_full_disk(small: Disk, source: Path, cases: Cases, way: str) -> None:
    prepare(small)
    failed = until_it_fits(small, way, source, (4 if way == "column" else 64) * 2**10)
    assert failed
    assert mmds.verify(small.root / "old.mmds") and mmds.verify(small.root / "old")
    cases(len(failed))


@pytest.mark.stress
@pytest.mark.fault(6)
@pytest.mark.parametrize("way", [*WAYS, *STORES])
def test_06_a_disk_that_is_full_after_every_block(small: Disk, source: Path, cases: Cases, way: str) -> None:
    prepare(small)
    failed = until_it_fits(small, way, source, BLOCK)
    assert len(failed) > 2
    cases(len(failed))


@pytest.mark.fault(6)
@pytest.mark.parametrize("way", ["sharded", "appended"])
def test_06_a_conversion_goes_on_when_there_is_room_again(small: Disk, source: Path, way: str) -> None:
    prepare(small)
    options: dict[str, Any] = {"num_workers": 1, "shard_size": 40_000, "append": way == "appended"}
    path = small.root / ("old" if way == "appended" else "new")
    small.fill(100_000)
    with pytest.raises(StorageError):
        mmds.convert(source, path, **options)
    small.fill(2**40)
    mmds.convert(source, path, **options, resume=True)
    assert mmds.verify(path)
    expected = [number + first for first in ([0, 100] if way == "appended" else [100]) for number in range(COUNT)]
    assert [one["number"] for one in mmds.open(path)] == expected


@pytest.mark.fault(6)
@pytest.mark.parametrize("way", ["new", *(pytest.param(way, marks=pytest.mark.stress) for way in WAYS if way != "new")])
def test_06_a_disk_that_can_hold_no_more_files(tmp_path: Path, source: Path, cases: Cases, way: str) -> None:
    """Blocks are left, inodes are not: creating a file or a folder fails, each one in turn."""
    with disk(tmp_path, megabytes=16, inodes=64) as small:
        spare = small.root.parent / "spare"
        for left in itertools.count():
            shutil.rmtree(spare, ignore_errors=True)
            prepare(small)
            spare.mkdir()
            names = (spare / str(number) for number in itertools.count())
            with pytest.raises(OSError, match="No space left"):
                while True:
                    next(names).touch()
            for number in range(left):
                (spare / str(number)).unlink()
            if refused(small, way, source, errno.ENOSPC) is None:
                break
        assert left
        cases(left)


@pytest.mark.stress
@pytest.mark.fault(6)
def test_06_no_room_for_another_name_in_a_folder(small: Disk, source: Path, cases: Cases) -> None:
    """The folder has to grow by a block, for the temporary name, or in the last moment for the final one."""
    prepare(small)
    room = len(until_it_fits(small, "new", source, BLOCK)) * BLOCK
    where = []
    for names in range(328, 340):  # of 12 bytes each: about what fits into a block
        prepare(small)
        folder = small.root / "folder"
        folder.mkdir()
        for number in range(names):
            (folder / f"{number:04}").touch()
        small.sync()
        small.fill(room)
        where.append(refused(small, "new", source, errno.ENOSPC, folder))
    assert {None, "write", "link_into_place"} <= {*where}
    cases(len(where) - where.count(None))


@pytest.mark.fault(6)
def test_06_a_read_only_disk(small: Disk, source: Path, cases: Cases) -> None:
    prepare(small)
    small.read_only()
    for way in (*WAYS, *STORES):
        assert refused(small, way, source, errno.EROFS), f"{way} has written to a read-only disk"
    assert mmds.verify(small.root / "old.mmds") and mmds.verify(small.root / "old")
    cases(len(WAYS) + len(STORES))


COPIES: dict[str, Callable[[Path, Path], object]] = {
    "select": lambda folder, path: mmds.select(folder, path),
    "merge": lambda folder, path: mmds.merge([folder], path),
    "split": lambda folder, path: mmds.split(folder, path, count=10),
}


@pytest.mark.fault(18)
def test_18_a_disk_error_in_one_shard(small: Disk, tmp_path: Path, cases: Cases) -> None:
    """Programs that copy and check say which file it is; samples of other shards are read as before."""
    prepare(small)
    folder = small.root / "old"
    damaged = sorted(folder.glob("*.mmds"))[1]
    small.unreadable(damaged, 20_000)
    damages = mmds.verify(folder).damages
    assert damages and all(each.reason.startswith("00001.mmds: block 0 ") for each in damages)
    assert any("cannot be read (Input/output error)" in each.reason for each in damages)
    for copy in COPIES.values():
        with pytest.raises(OSError, match=r"cannot read .*00001\.mmds: Input/output error") as caught:
            copy(folder, tmp_path / "out.mmds")
        assert isinstance(caught.value, MmdsError) and caught.value.errno == errno.EIO
        assert not list(tmp_path.glob("*out*"))
    lost = range(*next(each.samples for each in damages if each.samples is not None))
    others = [number for number in range(COUNT) if number not in lost]
    assert lost and others
    reader = mmds.open(folder)
    for number in others:
        assert (reader[number]["data"] == sample(number)["data"]).all()
    mmds.select(folder, tmp_path / "others.mmds", indices=others)
    assert [one["number"] for one in mmds.open(tmp_path / "others.mmds")] == others
    cases(len(COPIES) + 1 + len(others))
