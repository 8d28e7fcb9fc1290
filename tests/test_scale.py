"""Folders of very many shards: what a manifest takes, and what stays open."""

from __future__ import annotations

import gc
import itertools
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

import mmds
from benchmarks.scale.plans import Plan, write_folder
from mmds import canonical, manifest
from mmds.errors import StorageError
from mmds.manifest import Manifest, Shard, parse_manifest, publish_manifest, read_manifest
from tests import shard_folders

ID = "0123456789abcdef" * 2
COUNT, EACH, LIMIT = 300, 4, 256  # shards, samples in each, and open files that a process may have
OPEN = LIMIT // 4 + 1  # of a dataset, at most: one more while it is opened


# The manifest


def test_both_ways_to_load_a_manifest_read_the_same_characters() -> None:
    allowed = [
        chr(code) for code in range(0x20, 0x110000) if not 0xD800 <= code < 0xE000 and chr(code) not in "/\\\x7f"
    ]
    paths = ["x" + "".join(allowed[start : start + 1000]) for start in range(0, len(allowed), 1000)]
    listed = tuple(Shard(path, number, 2**53 - 1 - number, ID) for number, path in enumerate(paths))
    text = Manifest(ID, listed, (Shard("y", sum(range(len(paths))), 5000, ID),)).text
    quick, other = manifest._load_regular(text), manifest._load_any(text)
    assert quick == other and quick is not None and quick.shards == listed
    assert text == canonical.dump(canonical.load(text))


@pytest.mark.parametrize(
    "change",
    [
        (b'"n":3,"path"', b'"n":3.0,"path"'),
        (b'"n":3,"path"', b'"n":3,"o":1,"path"'),
        (b'"a.mmds"', b'"\\u0061.mmds"'),
        (b'"a.mmds"', b'"a.mmd\\/s"'),
        (b'"bytes":5000', b'"bytes":9007199254740992'),
        (b'"bytes":5000,', b'"bytes":4999,"bytes":5000,'),
        (b'"version":1}', b'"version":1} '),
        (b'"version":1}', b'"version":1,"w":[]}'),
        (b'"shards":[', b'"shards": ['),
        (b"},{", b"}, {"),
        (b'"sidecars":[]', b'"sidecars":[ ]'),
        (b'"schema_id":"0', b'"schema_id":"\\u0030'),
    ],
)
def test_what_is_no_canonical_manifest_is_left_to_the_thorough_way(change: tuple[bytes, bytes]) -> None:
    text = Manifest(ID, (Shard("a.mmds", 3, 5000, ID), Shard("b.mmds", 3, 5000, ID))).text
    assert manifest._load_regular(text) is not None
    broken = text.replace(*change, 1)
    assert broken != text and manifest._load_regular(broken) is None
    with pytest.raises(mmds.errors.FormatError):
        parse_manifest(broken)


def test_shards_need_no_order(tmp_path: Path) -> None:
    listed = tuple(Shard(f"{number:02}", 1, 5000, ID) for number in (3, 1, 2))
    publish_manifest(tmp_path, Manifest(ID, listed), overwrite=False)
    assert read_manifest(tmp_path).shards == listed
    with pytest.raises(mmds.errors.FormatError, match="'03' is listed 2 times"):
        parse_manifest(Manifest(ID, (*listed, listed[0])).text)


OPENING = """
import sys, mmds, msgspec
import mmds.converters.stores
from mmds import canonical
from pathlib import Path

def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

def refuse(text):
    raise AssertionError("a dict for each shard")

mmds.open(sys.argv[2])[0]  # what is imported and made once
thorough, canonical.load = canonical.load, lambda text: refuse(text) if len(text) > 10**6 else thorough(text)
before = status("RssAnon"), status("VmRSS")
reader = mmds.open(sys.argv[1])
reader[0]
print(len(reader), status("RssAnon") - before[0], status("VmHWM") - before[1])
"""


def test_a_hundred_thousand_shards_open_in_less_than_50_mb(tmp_path: Path) -> None:
    plan = Plan("many", mmds.Array("uint8", (1000,)), 1024, 10_000, 2)
    for name in ("many", "few"):
        write_folder(tmp_path / name, plan)
    entry = read_manifest(tmp_path / "many").shards[0]
    names = itertools.chain(["00000"], (f"{number:05d}" for number in range(1, 100_000)))
    listed = tuple(Shard(f"{name}.mmds", entry.n, entry.bytes, entry.content_id) for name in names)
    schema = read_manifest(tmp_path / "many").schema_id
    publish_manifest(tmp_path / "many", Manifest(schema, listed), overwrite=True)
    command = [sys.executable, "-c", OPENING, str(tmp_path / "many"), str(tmp_path / "few")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    samples, private, peak = map(int, done.stdout.split())
    assert samples == 10**9
    assert 10e6 < private < 45e6 and private < peak < 50e6


# What stays open


@contextmanager
def descriptors(number: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def maps_of(folder: Path) -> int:
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


def files_of(folder: Path) -> int:
    found = 0
    for each in Path("/proc/self/fd").iterdir():
        try:
            found += str(each.readlink()).startswith(str(folder))
        except FileNotFoundError:  # the one that lists them
            continue
    return found


def private() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Counting:
    """Collates, and adds how many maps and descriptors there are, and how much private memory, in the process that does it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, samples: Any) -> Any:
        return default_collate(samples), os.getpid(), maps_of(self.folder), files_of(self.folder), private()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset of many shards; sample k is an array of k."""
    return shard_folders.write_folder(
        tmp_path_factory.mktemp("scale") / "many", [EACH] * COUNT, lambda k: {"x": np.full(40, k)}
    )


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> None:
    """Close what earlier tests have left to the garbage collector: it would be counted, and forked workers would have it."""
    gc.collect()


def test_a_reader_and_a_loader_keep_a_quarter_of_the_descriptors_open(folder: Path) -> None:
    rows = np.random.default_rng(0).permutation(COUNT * EACH)
    with descriptors(LIMIT):
        reader = mmds.open(folder)
        for start in range(0, len(rows), 100):
            part = rows[start : start + 100]
            assert (reader[part]["x"][:, 7] == part).all()
            assert maps_of(folder) <= OPEN and files_of(folder) <= OPEN
        del reader
        loader = mmds.Loader(mmds.MemoryMappedDataset(folder), 32, shuffle=True, num_threads=2)
        seen = []
        for batch in loader:
            seen += batch["x"][:, 3].tolist()
            assert maps_of(folder) <= OPEN + 4 and files_of(folder) <= OPEN + 4  # threads hold what they read
        assert sorted(seen) == list(range(COUNT * EACH))


def test_workers_keep_a_quarter_of_the_descriptors_open_each(folder: Path) -> None:
    with descriptors(LIMIT):
        loader = DataLoader(
            mmds.MemoryMappedDataset(folder), 32, shuffle=True, num_workers=2, collate_fn=Counting(folder),
            multiprocessing_context="fork",
        )  # fmt: skip
        batches = list(loader)
    assert sorted(torch.cat([batch["x"][:, 0] for batch, *_ in batches]).tolist()) == list(range(COUNT * EACH))
    assert len({pid for _, pid, *_ in batches}) == 2
    assert max(maps for *_, maps, _, _ in batches) <= OPEN
    assert max(files for *_, files, _ in batches) <= OPEN


@pytest.mark.stress
@pytest.mark.parametrize("workers", ["reader", "threads", "processes"])
def test_three_epochs_of_6000_shards_take_no_more_than_one(tmp_path: Path, workers: str) -> None:
    many = tmp_path / "many"
    write_folder(many, Plan("sparse", mmds.Array("uint8", (1000,)), 1024, 16, 6000))
    counting = Counting(many)
    dataset = mmds.MemoryMappedDataset(many)
    ends: list[
        tuple[int, int, int]
    ] = []  # maps, descriptors and private memory, at most, in the second half of each epoch
    with descriptors(1024):
        if workers == "reader":
            reader = mmds.open(many)
        for epoch in range(3):
            found: list[tuple[int, int, int]] = []
            if workers == "reader":
                for rows in np.random.default_rng(epoch).permutation(96_000)[:12_800].reshape(-1, 256):
                    reader[rows]
                    found.append((maps_of(many), files_of(many), private()))
            elif workers == "threads":
                loader = mmds.Loader(dataset, 256, shuffle=True, num_threads=2, seed=epoch)
                for _ in itertools.islice(loader, 50):
                    found.append((maps_of(many), files_of(many), private()))
            else:
                batches: Any = DataLoader(
                    dataset, 256, shuffle=True, num_workers=2, collate_fn=counting, multiprocessing_context="fork"
                )
                found += [tuple(counts) for _, _, *counts in itertools.islice(batches, 50)]
            half = found[len(found) // 2 :]
            ends.append((max(x[0] for x in half), max(x[1] for x in half), max(x[2] for x in half)))
    for maps, files, _ in ends:
        assert maps <= 256 + 5 and files <= 256 + 5
    assert ends[2][2] < ends[0][2] + 4e6, ends


def test_several_datasets_together_let_go_of_files_when_there_are_too_many(folder: Path) -> None:
    rows = np.arange(0, COUNT * EACH, EACH)
    with descriptors(LIMIT):
        readers = [mmds.open(folder) for _ in range(5)]  # a quarter each
        for reader in readers:
            assert (reader[rows[:90]]["x"][:, 0] == rows[:90]).all()
        assert files_of(folder) <= LIMIT


def test_arrays_that_keep_more_files_open_than_there_may_be_are_an_error_that_says_so(folder: Path) -> None:
    with descriptors(LIMIT):
        reader = mmds.open(folder)
        kept: list[Any] = []
        with pytest.raises(StorageError, match=r"many: file \d+ cannot be opened: Too many open files; this process may "
                           r"have 256 \(ulimit -n\)\. Arrays read without a copy keep their file open: copy"):  # fmt: skip
            for row in range(0, COUNT * EACH, EACH):
                kept.append(reader[row]["x"])
        assert LIMIT // 2 < len(kept) < LIMIT
        assert [array[5] for array in kept] == list(range(0, len(kept) * EACH, EACH))  # what was read stays
        kept.clear()
        assert [reader[row]["x"][0] for row in range(0, COUNT * EACH, EACH)] == list(range(0, COUNT * EACH, EACH))
        kept = [reader[row]["x"].copy() for row in range(0, COUNT * EACH, EACH)]
        assert len(kept) == COUNT


MAPS = """
import mmap, sys, warnings
import mmds, numpy as np
warnings.simplefilter("always")
reader = mmds.open(sys.argv[1])
reader[0]
others = []
protections = (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE)  # neighbours that are alike would be one
try:
    while True:
        others.append(mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, protections[len(others) % 2]))
except OSError:
    pass
del others[-40:]
values = [int(reader[row]["x"][3]) for row in range(0, 400, 4)]
print(values == list(range(0, 400, 4)), len(others))
"""


def test_a_process_that_may_map_nothing_more_reads_by_position_and_says_so(folder: Path) -> None:
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    if most > 200_000:
        pytest.skip(f"{most} maps would have to be made")
    done = subprocess.run([sys.executable, "-c", MAPS, str(folder)], capture_output=True, text=True, check=True)
    correct, others = done.stdout.split()
    assert correct == "True" and int(others) > most - 2000
    assert done.stderr.count("RuntimeWarning") == 1 and "no address space for its map" in done.stderr


def test_a_few_rows_open_only_the_shards_that_they_are_in(folder: Path) -> None:
    reader = mmds.open(folder)
    parts = list(reader[801:810].parts())
    assert [[int(sample["x"][0]) for sample in part] for part in parts] == [
        [801, 802, 803],
        [804, 805, 806, 807],
        [808, 809],
    ]
    assert maps_of(folder) <= 1 + 3  # and the first, which says what the fields are
    assert [len(part) for part in reader[8:8].parts()] == [0]


def test_parts_leave_out_shards_without_samples(tmp_path: Path) -> None:
    shard_folders.write_folder(tmp_path / "a", [0, 2, 0, 0, 3, 0], lambda k: {"x": k})
    reader = mmds.open(tmp_path / "a")
    for start, stop in itertools.combinations(range(6), 2):
        parts = [[sample["x"] for sample in part] for part in reader[start:stop].parts()]
        assert parts == [part for part in (list(range(start, min(2, stop))), list(range(max(2, start), stop))) if part]
