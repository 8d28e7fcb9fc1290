"""Readahead: the pages of a batch are asked for all at once, while there is a disk to read from, and only then."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds import readahead
from mmds.errors import FormatError
from mmds.gather import PAGE, address
from mmds.mapped import MappedFile
from mmds.readahead import BATCHES, DiskReads, Readahead

NdArray = np.ndarray[Any, Any]
SAMPLES = 500


@pytest.fixture
def path(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    schema = {
        "image": mmds.Array("uint8", (3, 40, 40)),
        "file": mmds.Bytes(),
        "caption": mmds.Text(nullable=True),
        "label": mmds.Scalar("int32"),
    }
    with mmds.Writer(tmp_path / "a.mmds", schema) as writer:
        for i in range(SAMPLES):
            image = generator.integers(0, 256, (3, 40, 40), "uint8")
            text = None if i % 3 else "x" * i
            writer.write({"image": image, "file": generator.bytes(i * 7), "caption": text, "label": i})
    return tmp_path / "a.mmds"


def asked_by(reader: mmds.Reader, indices: NdArray, monkeypatch: pytest.MonkeyPatch) -> NdArray:
    """Return which bytes of the file are asked for."""
    store = reader.store
    assert isinstance(store, MappedFile)
    assert store._readahead is not None
    base = store._readahead._base
    asked = np.zeros(len(store.view), bool)

    def ask(starts: NdArray, stops: NdArray) -> None:
        for start, stop in zip(starts - base, stops - base, strict=True):
            asked[start:stop] = True

    with monkeypatch.context() as patch:
        patch.setattr(store._readahead, "ask", ask)
        reader.prefetch(indices)
    return asked


def test_what_is_asked_for_is_what_a_batch_reads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = mmds.open(path)
    asked = asked_by(reader, np.array([7, 300, 7, 20]), monkeypatch)
    image, file = reader.items[0], reader.items[1]
    for row in (7, 20, 300):
        for items in (image, file):
            start, stop = items.span(row)  # type: ignore[attr-defined]
            assert asked[start:stop].all()
    sizes = [
        len(reader[i]["image"].tobytes() + reader[i]["file"]) + len(reader[i]["caption"] or "") for i in (7, 20, 300)
    ]
    assert asked[: reader.footer.data_end].sum() == sum(sizes)
    assert asked[reader.footer.data_end :].sum() == 3 * (4 * 8 + 4)  # between the ends of a sample's values; labels


def test_pages_are_disjoint_and_cover(path: Path) -> None:
    generator = np.random.default_rng(1)
    for _ in range(50):
        starts = generator.integers(0, 100 * PAGE, 40)
        stops = starts + generator.integers(0, 3 * PAGE, 40)
        covered = np.zeros(104, bool)
        previous = -1
        for start, stop in zip(*readahead._pages(starts, stops), strict=True):
            assert start > previous
            assert start % PAGE == stop % PAGE == 0
            assert start <= stop
            covered[start // PAGE : stop // PAGE] = True
            previous = stop
        want = np.zeros(104, bool)
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            want[start // PAGE : -(-stop // PAGE)] = True
        assert np.array_equal(covered, want)
    assert readahead._pages(starts[:0], stops[:0]) == ([], [])


def test_it_is_on_for_the_first_batch_and_while_the_disk_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 5.0
    monkeypatch.setattr(readahead, "_disk_reads", lambda: reads)
    disk = DiskReads()
    assert [disk.wanted(10) for _ in range(2 * BATCHES + 2)] == [True] + [False] * (2 * BATCHES + 1)
    reads += 10  # an eighth of the samples: a little of something else
    assert [disk.wanted(10) for _ in range(2 * BATCHES)] == [False] * 2 * BATCHES
    reads += 11
    assert [disk.wanted(10) for _ in range(BATCHES + 1)] == [True] * BATCHES + [False]  # and one to look
    reads += 2
    assert [disk.wanted(10) for _ in range(2 * BATCHES)] == [True] * BATCHES + [False] * BATCHES


def test_a_warm_batch_asks_for_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Readahead, "ask", lambda self, starts, stops: asked.append(len(starts)))
    monkeypatch.setattr(readahead, "_disk_reads", lambda: 0)
    reader = mmds.open(path)
    reader[[1, 2]]
    assert asked
    asked.clear()
    for _ in range(3 * BATCHES):
        reader[[1, 2]]
    assert asked == []


def test_every_way_to_read_a_batch_asks_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Readahead, "ask", lambda self, starts, stops: asked.append(len(starts)))
    fields = ["image", "label"]
    for read in (
        mmds.open(path)[2:].__getitem__,
        mmds.MemoryMappedDataset(path, fields=fields).__getitem__,
        mmds.MemoryMappedDataset(path, fields=fields).__getitems__,
        mmds.MemoryMappedDataset(path, fields=fields, transform=dict).__getitems__,
    ):
        read([400, 3])
        assert set(asked) == {2}
        asked.clear()


def test_the_kernel_reads_what_it_was_asked_for(path: Path) -> None:
    dataset = mmds.MemoryMappedDataset(path)
    start, stop = dataset.reader.items[1].span(400)  # type: ignore[attr-defined]
    wanted = slice(start // PAGE, -(-stop // PAGE))
    for ask in (dataset.reader.prefetch, dataset.__getitems__):  # what this returns has read nothing yet
        if _resident(path, drop=True)[wanted].any():
            pytest.skip("this file system keeps files in memory")
        dataset.reader.store.wanted = DiskReads().wanted  # type: ignore[attr-defined]
        ask([400, 3])
        limit = time.monotonic() + 10
        while not _resident(path)[wanted].all() and time.monotonic() < limit:
            time.sleep(0.01)
        assert _resident(path)[wanted].all()


def test_opening_reads_both_ends_and_little_else(path: Path) -> None:
    if _resident(path, drop=True).any():
        pytest.skip("this file system keeps files in memory")
    reader = mmds.open(path)
    resident = _resident(path)
    assert resident[0]
    assert resident[-1]
    assert resident.sum() <= readahead.TAIL // PAGE + 16 < len(resident) / 10  # and a page per section
    assert len(reader) == SAMPLES


def test_ends_that_lie_are_refused_by_the_batch_not_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Readahead, "ask", lambda self, starts, stops: None)  # these ends are not in the map
    reader = mmds.open(path)
    items: Any = reader.items[1]
    for bad in (0, 2**64 - 1, 2**63):
        ends = items._ends.copy()
        ends[3 * 7 + 2] = bad
        kept = items._ends, items._pairs
        items._ends, items._pairs = ends, ends.view("u1").data
        assert items.spans(np.array([3, 7])) is None
        reader.prefetch([3, 7])
        for index in ([7], [3, 7, 7], [7, 1]):
            with pytest.raises(FormatError, match=r"sample [78], field 'file'.*run mmds verify"):
                reader[index]
        items._ends, items._pairs = kept
    assert reader[[7]]["file"] == [reader[7]["file"]]


def _resident(path: Path, drop: bool = False) -> NdArray:
    """Return for each page of a file whether it is in the page cache (mincore), after dropping it from there."""
    with path.open("rb") as file:
        if drop:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        size = path.stat().st_size
        with mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as mapped:
            array = np.frombuffer(mapped, np.uint8)
            pages = np.zeros(-(-size // PAGE), np.uint8)
            libc = ctypes.CDLL(None, use_errno=True)
            at, out = (ctypes.c_void_p(address(a)) for a in (array, pages))
            if libc.mincore(at, ctypes.c_size_t(size), out):
                raise OSError(ctypes.get_errno(), "mincore")
            del array
    return (pages & 1).astype(bool)
