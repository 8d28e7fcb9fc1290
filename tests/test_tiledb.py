"""TileDB: what plain TileDB sees of our groups, what we see of others', and what is refused."""

from __future__ import annotations

import contextvars
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiledb
from torch.utils.data import DataLoader

import mmds
from mmds.converters.tiledb import Writer, context
from mmds.errors import FormatError
from tests.samples import EVERY_KIND, sample, write_fixed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.tiledb"


def create(path: Path, attributes: dict[str, Any], domains: Any = ((0, 3),), **options: Any) -> Path:
    """Create an array as other people do, and fill it if it is dense and `attributes` are values."""
    ctx = context()
    dims = [
        tiledb.Dim(
            f"d{axis}",
            domain=domain,
            tile=min(domain[1] - domain[0] + 1, options.get("tile", 1024)),
            dtype=np.int64,
            ctx=ctx,
        )
        for axis, domain in enumerate(domains)
    ]
    attrs = [
        tiledb.Attr(name, dtype=values.dtype, nullable=options.get("nullable", False), ctx=ctx)
        for name, values in attributes.items()
    ]
    schema = tiledb.ArraySchema(tiledb.Domain(*dims, ctx=ctx), attrs, sparse=options.get("sparse", False), ctx=ctx)
    tiledb.Array.create(str(path), schema, ctx=ctx)
    if not options:
        with tiledb.open(str(path), "w", ctx=ctx) as array:
            array[:] = attributes
    return path


def group_of(path: Path, **members: str) -> Path:
    tiledb.Group.create(str(path), ctx=context())
    with tiledb.Group(str(path), "w", ctx=context()) as group:
        for name, uri in members.items():
            group.add(uri, name, relative=not os.path.isabs(uri))  # noqa: PTH117 (of a text)
    return path


def in_a_fork(work: Callable[[], bool], seconds: float = 60) -> str:
    """Run `work` in a forked process; return "true", "false", or how else that ended. A process that hangs is killed."""
    child = os.fork()
    if child == 0:
        status = 2
        try:
            status = 0 if work() else 1
        finally:
            os._exit(status)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return {0: "true", 1: "false"}.get(os.waitstatus_to_exitcode(status), f"status {status}")
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return f"no answer in {seconds} seconds"


def test_plain_tiledb_reads_what_we_write(path: Path) -> None:
    with Writer(path, EVERY_KIND) as writer:
        writer.extend(map(sample, range(40)))
    with tiledb.open(str(path / "array"), ctx=context()) as array:
        assert array.nonempty_domain()[0] == (0, 39)
        assert np.array_equal(array[7:8], np.full((1, 3, 100), 7, "f4"))
    with tiledb.Group(str(path), ctx=context()) as group:
        assert group["label"].uri.endswith("label") and '"n":40' in group.meta["mmds"]


def test_fragments_are_blocks_and_their_metadata_one_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Writer, "block_bytes", 2**20)
    rows = np.random.default_rng(0).integers(0, 256, (100, 3, 96, 96), np.uint8)
    with Writer(path, mmds.Array("uint8", (3, 96, 96))) as writer:
        for start in range(0, 100, 7):
            writer.write_batch(rows[start : start + 7])
    assert len(list((path / "value" / "__fragments").iterdir())) == 3
    assert len(list((path / "value" / "__fragment_meta").iterdir())) == 1
    reader = mmds.open(path)
    for wanted in (np.arange(100), np.array([99, 0, 35, 36, 35]), np.array([5])):
        assert np.array_equal(reader[wanted], rows[wanted])


def test_single_arrays(path: Path) -> None:
    with tiledb.from_numpy(str(path), np.arange(12.0).reshape(4, 3), ctx=context()):
        pass
    assert [row.tolist() for row in mmds.open(path)[[3, 1]]] == [[9, 10, 11], [3, 4, 5]]


def test_attributes_are_fields_and_rows_count_from_the_first_filled_one(path: Path) -> None:
    create(path, {"a": np.arange(8, dtype="i4").reshape(4, 2), "b": np.ones((4, 2), "f8")}, ((10, 13), (-1, 0)))
    reader = mmds.open(path)
    assert len(reader) == 4 and reader[3]["a"].tolist() == [6, 7] and reader[[0, 2]]["b"].tolist() == [[1, 1], [1, 1]]


def test_groups(path: Path) -> None:
    group_of(path, x="x", inner="inner")
    group_of(path / "inner", y="y")
    create(path / "x", {"": np.arange(4)})
    create(path / "inner" / "y", {"": np.arange(4, dtype="u1") * 2})
    assert mmds.open(path)[3] == {"x": 3, "inner": {"y": 6}}


@pytest.mark.fault(31)
def test_arrays_outside_the_folder_are_refused(path: Path, tmp_path: Path) -> None:
    create(tmp_path / "outside", {"": np.arange(4)})
    group_of(path, x=str(tmp_path / "outside"))
    with pytest.raises(FormatError, match=r"a\.tiledb: x is at .*outside: refused, data must be inside"):
        mmds.open(path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"sparse": True}, "x: a sparse array"), ({"nullable": True}, "x: an attribute of variable length, or nullable")],
)
def test_what_is_no_field_is_named(path: Path, options: dict[str, Any], reason: str) -> None:
    group_of(path, x="x")
    create(path / "x", {"v": np.arange(4)}, **options)
    with pytest.raises(FormatError, match=f"no arrays that could be samples .*{reason}"):
        mmds.open(path)


@pytest.mark.fault(31)
def test_declared_sizes_far_beyond_the_folder_are_refused(path: Path) -> None:
    create(path, {"": np.arange(1)}, ((0, 2**40),), empty=True)
    with tiledb.open(str(path), "w", ctx=context()) as array:
        array[0:1] = np.array([1])
        array[2**39 : 2**39 + 1] = np.array([1])
    with pytest.raises(FormatError, match=rf"a\.tiledb: its arrays declare {2**42 + 8} bytes, but [0-9]+ are stored"):
        mmds.open(path)


@pytest.mark.fault(31)
def test_tiles_that_no_memory_holds_are_refused(path: Path) -> None:
    create(path, {"": np.arange(1)}, ((0, 2**40),), tile=2**30)
    with pytest.raises(FormatError, match=rf"a\.tiledb: : chunks of {2**33} bytes refused"):
        mmds.open(path)


@pytest.mark.fault(31)
def test_folders_that_are_none(path: Path) -> None:
    path.mkdir()
    with pytest.raises(FormatError, match=r"a\.tiledb: not a TileDB group or array"):
        mmds.open(path)


def test_forked_workers_have_a_context_of_their_own(path: Path, tmp_path: Path) -> None:
    fork = os.fork
    source = mmds.open(write_fixed(tmp_path / "a.mmds"))
    with Writer(path, source.fields) as writer:
        writer.write_batch(source[np.arange(64)])
    dataset = mmds.MemoryMappedDataset(path)
    dataset[3]
    assert os.fork is fork  # TileDB replaces it by one that warns
    loader = DataLoader(dataset, 16, num_workers=2, multiprocessing_context="fork", timeout=60)
    labels = [label for batch in loader for label in batch["label"].tolist()]
    assert labels == [number % 3 for number in range(64)]


@pytest.mark.parametrize("rows", [4, [*range(60, 0, -3)], range(3, 60)], ids=["single", "scattered", "consecutive"])
def test_a_forked_process_reads_through_the_reader_that_its_parent_has_used(
    path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Writer, "block_bytes", 2**18)  # several fragments, for which TileDB uses its threads
    values = np.random.default_rng(0).integers(0, 256, (64, 3, 96, 96), np.uint8)
    with Writer(path, {"x": mmds.Array("uint8", (3, 96, 96)), "k": mmds.Scalar("int64")}) as writer:
        writer.write_batch({"x": values, "k": np.arange(64)})
    reader = mmds.open(path)

    def read(rows: Any = rows) -> bool:
        found = reader[rows]
        own = len([*Path("/proc/self/task").iterdir()]) > 1  # a fork leaves the parent's threads behind
        return own and np.array_equal(found["x"], values[rows]) and np.array_equal(found["k"], rows)

    assert read(3) and read([5, 1, 30])
    assert in_a_fork(read) == "true"
    assert in_a_fork(lambda: in_a_fork(read) == "true" and read()) == "true"
    assert read()


def test_the_default_context_is_never_made(path: Path) -> None:
    """TileDB keeps it in a context variable, so there is one per thread, with threads of its own."""

    def write_and_read() -> list[Any]:
        with Writer(path, {"x": mmds.Array("float32", (3,)), "t": mmds.Text(nullable=True)}) as writer:
            writer.extend({"x": np.full(3, k, "f4"), "t": None} for k in range(9))
        reader = mmds.open(path)
        assert reader[[7, 2]]["x"].tolist() == [[7] * 3, [2] * 3] and reader[3]["t"] is None and len(reader[:4]) == 4
        return [value for value in contextvars.copy_context().values() if isinstance(value, tiledb.Ctx)]

    assert contextvars.Context().run(write_and_read) == []


def test_attributes_are_read_alone(path: Path) -> None:
    wide = np.arange(4 * 2, dtype="i4").reshape(4, 2)
    create(path, {"a": wide, "b": wide * 2.5}, ((0, 3), (0, 1)))
    reader = mmds.open(path, fields="b")
    assert reader[[3, 0, 2]].tolist() == [[15, 17.5], [0, 2.5], [10, 12.5]] and reader[1].tolist() == [5, 7.5]
    for place in (path / "__fragments").glob("*/a0.tdb"):
        place.write_bytes(b"")
    assert reader[2].tolist() == [10, 12.5]


def test_a_batch_reads_its_tiles_and_not_all_between(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default TileDB reads up to 20 MB at once, whatever part of that is wanted."""
    rows = np.random.default_rng(0).integers(0, 256, (400, 30_000), np.uint8)
    with Writer(path, mmds.Array("uint8", (30_000,))) as writer:
        writer.write_batch(rows)
    reader = mmds.open(path)

    def bytes_read() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(dict(line.split(": ") for line in lines)["rchar"])

    before = bytes_read()
    wanted = np.array([390, 10, 200])
    assert np.array_equal(reader[wanted], rows[wanted])
    assert bytes_read() - before < 10 * 2**16
