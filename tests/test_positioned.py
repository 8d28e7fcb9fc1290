"""Files read by position: the same values as through a map, errors where that would be a signal, and damage that is named."""

from __future__ import annotations

import gc
import os
import pickle
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

import mmds
from mmds.errors import ChangedError, FormatError, SchemaError, SourceError, StorageError
from mmds.format import BLOCK
from mmds.openfile import open_file
from mmds.positioned import PositionedFile
from mmds.reader import Reader
from tests.conftest import Cases, Write
from tests.likeness import assert_alike
from tests.make_golden import FOLDER, GOLDEN
from tests.samples import write_every_kind
from tests.test_integrity import flip, write_ragged


def positioned(path: Path) -> Reader:
    return Reader(store := open_file(path, "positioned"), range(store.n))


@pytest.mark.parametrize("how", ["positioned", "checked"])
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files_are_the_same(name: str, how: Any) -> None:
    path = FOLDER / f"{name}.mmds"
    mapped = mmds.open(path)
    reader = Reader(store := open_file(path, how), range(store.n))
    assert isinstance(store, PositionedFile)
    assert_alike(list(reader), list(mapped))
    n = len(mapped)
    for rows in ([], [0, n - 1, 0][: 3 * (n > 0)], list(range(n)), list(range(n))[::-1], list(range(0, n, 2))):
        assert_alike(reader[rows], mapped[rows])
        for ragged in ("jagged", "padded"):
            assert_same_call(reader, mapped, "gather", rows, ragged)
    for field in mapped.fields.names:
        assert (reader.valid(field) == mapped.valid(field)).all()
        assert_same_call(reader, mapped, "column", field)
        assert_same_call(reader[1:], mapped[1:], "column", field)


def assert_same_call(reader: Reader, mapped: Reader, name: str, *arguments: Any) -> None:
    answers = []
    for each in (reader, mapped):
        try:
            found = getattr(each, name)(*arguments)
            answers.append(found if isinstance(found, np.ndarray) else repr(found) if name == "gather" else list(found))
        except (SchemaError, ValueError) as error:
            answers.append(str(error))
    assert_alike(*answers)


@pytest.mark.parametrize("shape", [(), (3,), (1000,), (40, 50), (20_000,), (0,), (2, 0)])
@pytest.mark.parametrize("other", [False, True])
def test_arrays_of_every_size(shape: tuple[int, ...], other: bool, write: Write) -> None:
    """Rows that are read alone, with what is between them, and in one piece; with a second field, at a stride."""
    chance = np.random.default_rng(0)
    samples = [{"x": chance.random(shape), **({"y": np.ones(100) * k} if other else {})} for k in range(300)]
    path = write(samples=samples)
    mapped, reader = mmds.open(path), positioned(path)
    for rows in (np.arange(300), np.arange(10, 20), chance.permutation(300), np.array([7, 7, 3])):
        assert_alike(reader[rows], mapped[rows])
        out = np.empty((len(rows), *shape))
        reader.items[0].gather(rows, out)  # type: ignore[call-arg]
        assert_alike(out, mapped[rows]["x"])
    assert_alike(reader[5]["x"], mapped[5]["x"])
    assert not reader[5]["x"].flags.writeable


@pytest.mark.parametrize("how", ["mapped", "in memory", "positioned", "checked"])
def test_a_file_is_closed_as_soon_as_it_is_dropped(how: Any, tmp_path: Path) -> None:
    """Without the garbage collector: a cycle would keep the descriptor until it comes."""
    path = write_every_kind(tmp_path / "a.mmds")
    gc.collect()
    gc.disable()
    try:
        store = open_file(path, how)
        reader = Reader(store, range(store.n))
        list(reader), reader[[0, 1]]
        left = [weakref.ref(each) for each in (store, *store.items, *([] if "m" in how else [store.view]))]
        del store, reader
        assert [each() for each in left] == [None] * len(left)
    finally:
        gc.enable()


def test_keys_are_found(write: Write) -> None:
    path = write({"key": mmds.Text(key=True)}, ({"key": f"{k % 500}"} for k in range(1000)))
    reader = mmds.open(path, verify="read")
    assert [reader.row_of(f"{k}") for k in range(500)] == list(range(500))
    with pytest.raises(KeyError, match="no sample has the key"):
        reader.get("nobody")


def test_flat_and_arrow_say_that_there_is_no_view(write: Write) -> None:
    path = write({"t": mmds.Array("uint16", (None,), align=2)}, ({"t": np.arange(k, dtype="uint16")} for k in range(9)))
    reader = mmds.open(path, verify="read")
    with pytest.raises(SchemaError, match="is not one array of values in one file"):
        reader.flat("t")
    with pytest.raises(SchemaError, match=r"fields=\[...\] with its name copies it"):
        reader.to_arrow()
    assert reader.to_arrow(["t"]).to_pydict() == mmds.open(path).to_arrow().to_pydict()


def test_options_that_exclude_each_other(write: Write, tmp_path: Path) -> None:
    path = write(samples=[1])
    with pytest.raises(ValueError, match="expected 'off' or 'read'"):
        mmds.open(path, verify="on")
    with pytest.raises(ValueError, match="expected one of them"):
        mmds.MemoryMappedDataset(path, in_memory=True, verify="read")
    mmds.convert(path, tmp_path / "a.h5")
    with pytest.raises(SourceError, match=r"verify='read' is for \.mmds files, and this is hdf5"):
        mmds.open(tmp_path / "a.h5", verify="read")


# Damage


def write_blocks(path: Path, n: int = 40) -> Path:
    """Write samples of 100 KB: about ten to a block, and an index of labels."""
    with mmds.Writer(path, {"x": mmds.Array("uint8", (100_000,)), "label": mmds.Label(("a", "b"))}) as writer:
        for k in range(n):
            writer.write({"x": np.full(100_000, k % 256, "uint8"), "label": k % 2})
    return path


def test_a_damaged_block_is_named_when_it_is_read_and_others_are_readable(tmp_path: Path) -> None:
    path = write_blocks(tmp_path / "a.mmds")
    flip(path, 4096 + 25 * 100_032, 3)  # in sample 25: block 2 has samples 20 to 31
    reader = mmds.open(path, verify="read")
    assert [reader[k]["x"][0] for k in (*range(20), *range(32, 40))] == [*range(20), *range(32, 40)]
    for k in range(21, 31):
        with pytest.raises(FormatError, match=r"a\.mmds: block 2 .* differs from its hash: samples 20 to 31, field x"):
            reader[k]
    with pytest.raises(FormatError, match="block 2"):
        reader[[1, 25]]
    assert mmds.open(path)[25]["x"][0] != 25 or mmds.open(path)[25]["label"] == 1  # nobody looks


def test_blocks_are_checked_once_in_a_process(tmp_path: Path) -> None:
    path = write_blocks(tmp_path / "a.mmds")
    reader = mmds.open(path, verify="read")
    for k in range(40):
        reader[k]
    flip(path, 4096 + 25 * 100_032, 3)
    reader[25]  # it was whole when this process read it first
    with pytest.raises(FormatError, match="block 2"):
        mmds.open(path, verify="read")[25]


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    path = write_ragged(tmp_path / "a.mmds", 100)
    section = mmds.open(path).footer.section("ends")
    flip(path, section.data + 80, 0)
    with pytest.raises(FormatError, match=r"block \d+ .* differs from its hash"):
        mmds.open(path, verify="read")[50]


def test_damaged_hashes_are_refused_at_once(tmp_path: Path) -> None:
    path = write_blocks(tmp_path / "a.mmds")
    flip(path, mmds.open(path).footer.sections[-1].data + 3, 0)
    with pytest.raises(FormatError, match="the block hashes differ from their sha256"):
        mmds.open(path, verify="read")


@pytest.mark.fault(12)
def test_12_flipped_bits_of_the_payload_are_named_when_they_are_read(tmp_path: Path, cases: Cases) -> None:
    flips_are_named(tmp_path, cases, 300)


@pytest.mark.stress
@pytest.mark.fault(12)
def test_12_ten_thousand_flipped_bits_of_the_payload_are_named_when_they_are_read(tmp_path: Path, cases: Cases) -> None:
    flips_are_named(tmp_path, cases, 10_000)


def flips_are_named(tmp_path: Path, cases: Cases, number: int) -> None:
    path = write_ragged(tmp_path / "a.mmds", 100)
    reader = mmds.open(path)
    ends = np.frombuffer(path.read_bytes(), "<u8", 201, reader.footer.section("ends").data)
    chance = np.random.default_rng(1)
    for _ in range(number):
        offset, bit = int(chance.integers(4096, reader.footer.data_end)), int(chance.integers(8))
        flip(path, offset, bit)
        item = int(np.searchsorted(ends, offset, "right")) - 1
        with pytest.raises(FormatError) as caught:
            list(mmds.open(path, verify="read"))
        found = re.search(r": block (\d+) .*?: samples? (\d+)(?: to (\d+))?, fields? ([ab, ]*)", str(caught.value))
        assert found is not None and int(found[1]) == offset // BLOCK
        assert int(found[2]) <= item // 2 <= int(found[3] or found[2]) and "ab"[item % 2] in found[4]
        flip(path, offset, bit)
    cases(number)


# Files that change


READS: dict[str, Callable[[Reader], Any]] = {
    "get": lambda reader: [reader[k] for k in (99, 0)],
    "batch": lambda reader: reader[[0, 99]],
    "jagged": lambda reader: [jagged.values for jagged in list(reader.gather([0, 99], "jagged").values())[:2]],
    "column": lambda reader: reader.column("n"),
    "iterate": list,
}


@pytest.mark.fault(17)
@pytest.mark.parametrize("how", READS)
def test_17_a_file_cut_short_while_it_is_read(how: str, tmp_path: Path, cases: Cases) -> None:
    path, errors = tmp_path / "a.mmds", 0
    whole = write_ragged(tmp_path / "whole.mmds", 100).read_bytes()
    wanted = READS[how](mmds.open(tmp_path / "whole.mmds"))
    lengths = range(0, len(whole), len(whole) // 50)
    for length in lengths:
        path.write_bytes(whole)
        reader = mmds.open(path, verify="read")
        list(reader)  # every block has been checked, and is in the page cache
        os.truncate(path, length)
        try:
            assert_alike(READS[how](reader), wanted)  # all that is needed is still there
        except ChangedError as error:
            assert "a.mmds has become shorter while it was read" in str(error)
            errors += 1
    assert errors >= 0.9 * len(lengths)
    cases(len(lengths))


# Datasets


def test_every_kind_through_a_data_loader(tmp_path: Path) -> None:
    path = write_every_kind(tmp_path / "a.mmds", 40)
    fields = ("count", "label")
    plain = mmds.MemoryMappedDataset(path, fields=fields)
    checked = mmds.MemoryMappedDataset(path, fields=fields, verify="read")
    checked[0]
    again = pickle.loads(pickle.dumps(checked))
    assert isinstance(again.reader.store, PositionedFile)
    for start in ("fork", "spawn"):
        loader = DataLoader(checked, 8, num_workers=2, multiprocessing_context=start)
        assert_alike(list(loader), list(DataLoader(plain, 8)))
    assert_alike(list(mmds.Loader(checked, 8)), list(mmds.Loader(plain, 8)))


def test_folders_and_lists_of_files(tmp_path: Path, write: Write) -> None:
    mmds.convert([{"x": np.full(9000, k)} for k in range(30)], tmp_path / "a.mmds", shard_size=100_000)
    one, other = write(samples=[{"x": 1}]), write(samples=[{"x": 2}])
    for source in (tmp_path / "a.mmds", [one, other]):
        assert_alike(list(mmds.open(source, verify="read")), list(mmds.open(source)))
    shard = sorted((tmp_path / "a.mmds").glob("*.mmds"))[1]
    flip(shard, 5000, 1)
    reader = mmds.open(tmp_path / "a.mmds", verify="read")
    reader[0], reader[29]
    with pytest.raises(FormatError, match=f"{shard.name}: block 0"):
        list(reader)


def test_private_memory_stays_small(tmp_path: Path) -> None:
    path = write_blocks(tmp_path / "a.mmds", 400)
    reader = mmds.open(path, verify="read")

    def rss() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    reader[[1, 2, 3]]
    before = rss()
    for k in range(400):
        reader[k]
    assert rss() - before < 8 * 2**20
    maps = Path("/proc/self/maps").read_text()
    assert str(path) not in maps


def test_a_disk_error_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one is in tests/faults; here, a descriptor that cannot be read."""
    path = write_blocks(tmp_path / "a.mmds")
    reader = mmds.open(path, verify="read")
    view = reader.store.view  # type: ignore[attr-defined]
    fd, view.fd = view.fd, os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(
            StorageError, match=r"a\.mmds: block 0 .*cannot be read \(Is a directory\): samples 0 to 10"
        ):
            reader[0]
    finally:
        os.close(view.fd)
        view.fd = fd
