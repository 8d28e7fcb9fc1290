"""Little memory: of a control group, of a memory file system, and what opening takes of it."""

from __future__ import annotations

import gc
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import mmds
from benchmarks.memory import limit_group
from benchmarks.sparse import write_sparse
from tests.conftest import Cases
from tests.faults.machine import needs_root, run_script

MIB = 2**20
needs_groups = pytest.mark.skipif(limit_group.refusal() is not None, reason=str(limit_group.refusal()))
needs_unshare = pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed (util-linux)")

# 21: less memory than data


def run_limited(limit: int, script: str, *arguments: object) -> str:
    """Run a script that joins, by its first argument, a control group of `limit` bytes; nothing may be killed there."""
    with limit_group.memory_group(limit) as group:
        done = run_script(f"{JOIN}\n{script}", group / "cgroup.procs", *arguments)
        assert limit_group.kills(group) == 0
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


JOIN = """
import os, sys
def join():
    with open(sys.argv.pop(1), "w") as group:
        group.write(str(os.getpid()))
"""
READ_ALL = """
join()
import mmds, numpy as np
reader = mmds.open(sys.argv[1])
total = 0
pids = []
for worker in range(4):
    pid = os.fork()
    if not pid:
        rows = np.random.default_rng(0).permutation(len(reader))[worker::4]
        for part in np.array_split(rows, len(rows)):
            batch = reader[part]["data"]
            assert (batch[:, -1] == part % 251).all() and (batch[:, 4096 * 7] == part % 251).all()
            assert batch.sum(1, dtype="u8").tolist() == (part % 251 * batch.shape[1]).tolist()
        os._exit(0)
    pids.append(pid)
assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
print(len(reader))
"""

EPOCH = """
import gc, warnings, mmds, torch
from torch.utils.data import DataLoader
gc.freeze()  # or the first full collection copies what PyTorch has made, 35 MB, in every worker
join()
warnings.simplefilter("ignore")  # that 4 workers are more than processors
dataset = mmds.MemoryMappedDataset(sys.argv[1])
found = []
for batch in DataLoader(dataset, 16, shuffle=True, num_workers=4, multiprocessing_context="fork"):
    assert (batch["data"] == batch["data"][:, :1]).all()
    found += batch["row"].tolist()
assert sorted(found) == list(range(len(dataset)))
print(len(found))
"""


def write_large(path: Path, count: int, size: int) -> Path:
    """Write so many samples of `size` bytes."""
    with mmds.Writer(path, {"row": mmds.Scalar("int64"), "data": mmds.Array("uint8", (size,))}) as writer:
        for row in range(count):
            writer.write({"row": row, "data": np.full(size, row % 251, "u1")})
    return path


@pytest.mark.fault(21)
@needs_groups
def test_21_a_file_of_four_times_the_memory(tmp_path: Path) -> None:
    path = write_large(tmp_path / "a.mmds", 256, MIB)
    assert run_limited(64 * MIB, READ_ALL, path) == "256\n"
    path.unlink()


@pytest.mark.stress
@pytest.mark.fault(21)
@needs_groups
def test_21_an_epoch_of_2_gb_in_256_mb(tmp_path: Path, cases: Cases) -> None:
    """PyTorch, which takes 150 MB for itself, is loaded before; all that its workers and the data take is counted."""
    path = write_large(tmp_path / "a.mmds", 2**15, 2**16)
    assert run_limited(256 * MIB, EPOCH, path) == "32768\n"
    path.unlink()
    cases(2**15)


# 22, 23: what opening costs

OPEN = """
import json, os, sys, time, mmds
from pathlib import Path

def private():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))

def mapped(path):
    lines = Path("/proc/self/smaps").read_text().split(path)[1].splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))

mmds.open(sys.argv[2])[0]  # loads what is loaded at first use
before = private()
start = time.perf_counter()
reader = mmds.open(sys.argv[1])
seconds = time.perf_counter() - start
n, first, last = len(reader), reader[0]["label"], reader[-1]["label"]
grown = private() - before
print(json.dumps([n, first, last, grown, mapped(sys.argv[1]), seconds]))
"""


@pytest.mark.fault(22)
def test_22_an_index_of_a_billion_samples(tmp_path: Path) -> None:
    write_sparse(tmp_path / "small.mmds", 3)
    write_sparse(tmp_path / "huge.mmds", 10**9)
    done = run_script(OPEN, tmp_path / "huge.mmds", tmp_path / "small.mmds")
    n, first, last, grown, read, seconds = json.loads(done.stdout)
    assert (n, first, last) == (10**9, 0, 0)
    assert grown < 2**20, "bytes of private memory"
    assert read < 2**20, "bytes of the file that are in memory"
    print(f"opening 10**9 samples: {seconds * 1000:.2f} ms, {grown:,} bytes private, {read:,} bytes of the file")


def held() -> tuple[int, int, int]:
    """Return how many descriptors and maps this process has, and its bytes of memory."""
    gc.collect()  # of shards, what was dropped is freed by this
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    rss = next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
    return len(list(Path("/proc/self/fd").iterdir())), len(Path("/proc/self/maps").read_text().splitlines()), rss * 1024


def open_and_drop(file: Path, folder: Path, count: int) -> None:
    for number in range(count):
        for path in (file, folder):
            assert mmds.open(path)[number % 30]["x"][0] == number % 30
            dataset = mmds.MemoryMappedDataset(path)
            assert dataset.__getitems__([1, 2])


def check_flat(folder: Path, count: int) -> None:
    """Open a file and a folder of shards `count` times each; descriptors, maps and memory must not grow with that."""
    file = folder / "a.mmds"
    with mmds.Writer(file) as writer:
        writer.extend({"x": np.full(40, number)} for number in range(30))
    mmds.convert(file, folder / "shards", shard_size=2000, num_workers=1)
    open_and_drop(file, folder / "shards", 50)
    before = held()
    open_and_drop(file, folder / "shards", count)
    after = held()
    assert after[0] == before[0], "descriptors"
    assert after[1] <= before[1] + 4, "maps"
    assert after[2] <= before[2] + 4 * MIB, "memory"


@pytest.mark.fault(23)
def test_23_opening_again_and_again(tmp_path: Path, cases: Cases) -> None:
    check_flat(tmp_path, 200)
    cases(400)


@pytest.mark.stress
@pytest.mark.fault(23)
def test_23_opening_ten_thousand_times(tmp_path: Path, cases: Cases) -> None:
    check_flat(tmp_path, 10_000)
    cases(20_000)


# 28: shared memory that is full

SHARE = """
import sys, warnings, numpy as np
from mmds import SharedDataset

class Rows:
    def __init__(self, count, size):
        self.count, self.size, self.reads = count, size, 0
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        self.reads += 1
        return np.full(self.size, index % 251, "u1")

count, size, read = map(int, sys.argv[1:4])
rows = Rows(count, size)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    shared = SharedDataset(rows, f"fault-28-{sys.argv[4]}")
    for _ in range(2):
        for index in range(read):
            found = shared[index]
            assert found.shape == (size,) and (found == index % 251).all()
    print(len(caught), rows.reads)
    shared.close()
assert all("is full" in str(each.message) for each in caught), caught
"""
SMALL = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=4M tmpfs /dev/shm && exec "$@"', "sh"]


@pytest.mark.fault(28)
@needs_root
@needs_unshare
@pytest.mark.parametrize(("count", "size", "fits"), [(100, 100_000, 40), (100, 4_300_000, 0), (100, 10_000, 100)])
def test_28_a_full_dev_shm(cases: Cases, count: int, size: int, fits: int) -> None:
    """Of its own, of 4 MiB, which other programs do not see."""
    done = run_script(SHARE, count, size, count, os.getpid(), before=SMALL)
    assert done.returncode == 0, done.stderr
    warned, reads = map(int, done.stdout.split())
    assert warned == (fits < count)
    assert 2 * count - fits - 2 <= reads <= 2 * count - fits + 2
    cases(count)


@pytest.mark.fault(28)
@needs_root
@needs_unshare
def test_28_a_dev_shm_that_cannot_even_hold_the_table(cases: Cases) -> None:
    done = run_script(SHARE, 10**6, 100, 50, os.getpid(), before=SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 100\n"
    cases(50)


@pytest.mark.fault(28)
@needs_groups
def test_28_more_than_the_control_group_may_hold(cases: Cases) -> None:
    warned, reads = map(int, run_limited(128 * MIB, f"join()\n{SHARE}", 100, 2 * MIB, 100, os.getpid()).split())
    assert warned == 1
    assert 100 < reads < 200
    cases(100)
