"""Power cuts: what was published is there after the journal's replay, whole, and of the rest the old or the new."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import mmds
from tests.conftest import Cases
from tests.faults.disk import Disk, disk
from tests.faults.machine import inject, needs_loop_device, needs_strace, run_script

pytestmark = [pytest.mark.fault(5), needs_loop_device, needs_strace]

STEPS = ("write", "fsync", "link", "rename", "unlink", "mkdir")
SHARD = 40_000

# What writes, in a process of its own. It prints a line when it has returned.
WRITE = f"""
import os, sys, mmds
how, source, path = sys.argv[1:]
if how in ("new", "replaced"):
    reader = mmds.open(source)
    with mmds.Writer(path, reader.fields, overwrite=how == "replaced") as writer:
        writer.extend(reader)
else:
    options = {{"sharded": {{"shard_size": {SHARD}}}, "appended": {{"append": True, "shard_size": {SHARD}}}}}
    mmds.convert(source, path, num_workers=1, **options[how])
print("published", flush=True)
"""


class Writing(NamedTuple):
    """One way to write: what is there before, and the samples that readers may see, by their numbers."""

    name: str
    before: range | None
    after: range


WRITINGS = {
    "new": Writing("a.mmds", None, range(100, 140)),
    "replaced": Writing("a.mmds", range(20), range(100, 140)),
    "sharded": Writing("a", None, range(100, 140)),
    "appended": Writing("a", range(20), range(100, 140)),
}
CASES = [
    *(("new", "write", 2), ("new", "fsync", 1), ("new", "fsync", 2), ("new", "link", 1), ("new", "unlink", 1)),
    *(("replaced", "fsync", 1), ("replaced", "rename", 1), ("replaced", "fsync", 2)),
    *(("sharded", "fsync", 7), ("sharded", "rename", 2), ("appended", "rename", 3), ("appended", "fsync", 9)),
]


def sample(number: int) -> dict[str, Any]:
    generator = np.random.default_rng(number)
    return {"number": number, "data": generator.integers(0, 256, 3000 + number, "uint8")}


def write(path: Path, numbers: range) -> Path:
    with mmds.Writer(path, {"number": mmds.Scalar("int64"), "data": mmds.Array("uint8", (None,))}) as writer:
        writer.extend(map(sample, numbers))
    return path


def seen(path: Path) -> list[int] | None:
    """Return the numbers of the samples that a reader sees, each of which must be whole; None: no dataset."""
    if not path.exists() or (path.is_dir() and not (path / "dataset.json").exists()):
        return None
    found = mmds.verify(path)
    assert found, found.damages
    reader = mmds.open(path)
    for one in reader:
        assert (one["data"] == sample(one["number"])["data"]).all()
    return [one["number"] for one in reader]


class Power:
    """A disk on which a writer is stopped by a power cut."""

    def __init__(self, small: Disk, folder: Path, how: str) -> None:
        self.disk, self.how = small, how
        self.path = small.root / WRITINGS[how].name
        _, before, after = WRITINGS[how]
        self.source = write(folder / f"{how}.mmds", after)
        self.aside = folder / f"before-{how}"
        self.before = None if before is None else list(before)
        if before is not None:
            old = write(folder / f"old-{how}.mmds", before)
            if how == "replaced":
                old.rename(self.aside)
            else:
                mmds.convert(old, self.aside, num_workers=1, shard_size=SHARD)
        self.after = [*(self.before or [] if how == "appended" else []), *after]
        self.begin()
        done = run_script(WRITE, how, self.source, self.path)
        assert done.stdout == "published\n", done.stderr
        assert seen(self.path) == self.after
        self.content = self.files()

    def files(self) -> dict[str, bytes]:
        """Return the content of all files on the disk."""
        return {str(file): file.read_bytes() for file in self.disk.root.rglob("*") if file.is_file()}

    def begin(self) -> None:
        """Let the disk hold what was there before, and nothing else."""
        for path in list(self.disk.root.iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.aside.exists():
            (shutil.copytree if self.aside.is_dir() else shutil.copy)(self.aside, self.path)
        self.disk.sync()

    def cut(self, call: str, turn: int, *, after_commit: bool = False) -> bool:
        """End the writer at system call number `turn` and cut the power; return whether it had returned before that."""
        self.begin()
        done = inject(call, "signal=KILL", turn, WRITE, self.how, self.source, self.path)
        published = done.stdout == "published\n"
        assert done.returncode == -9 or (done.returncode == 0 and published), done.stderr
        self.disk.cut_power(after_commit=after_commit)
        self.disk.restart()
        found = seen(self.path)
        allowed = [self.after] if published else [self.before, self.after]
        assert found in allowed, (self.how, call, turn, found)
        self.again(found)
        return done.returncode == 0

    def again(self, found: list[int] | None) -> None:
        """Check that writing goes on from here, gives the same bytes as without a fault, and leaves nothing else."""
        if self.how in ("new", "replaced"):
            reader = mmds.open(self.source)
            with mmds.Writer(self.path, reader.fields, overwrite=True) as writer:
                writer.extend(reader)
        elif found != self.after or (self.path / "unfinished.jsonl").exists():
            append = self.how == "appended"
            mmds.convert(self.source, self.path, num_workers=1, shard_size=SHARD, resume=True, append=append)
        assert self.files() == self.content


Make = Callable[[str], Power]


@pytest.fixture
def power(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Make]:
    with disk(tmp_path, megabytes=16, options=getattr(request, "param", "")) as small:
        yield lambda how: Power(small, tmp_path, how)
        assert small.faults() == ""


def test_05_a_writer_that_does_not_sync_would_be_caught(power: Make) -> None:
    new = power("replaced")
    new.begin()
    done = run_script(f"import os; os.fsync = lambda fd: None\n{WRITE}", new.how, new.source, new.path)
    assert done.stdout == "published\n"
    new.disk.cut_power()
    with pytest.raises(OSError, match="Input/output error"):
        (new.disk.root / "c").write_bytes(b"")
    new.disk.restart()
    assert seen(new.path) == new.before


@pytest.mark.parametrize("how", WRITINGS)
def test_05_after_a_power_cut_there_is_the_old_or_the_new(power: Make, cases: Cases, how: str) -> None:
    writing = power(how)
    chosen = [(call, turn) for name, call, turn in CASES if name == how]
    ended = [writing.cut(call, turn) for call, turn in chosen]
    assert not any(ended), "a call that the writer does not make"
    cases(len(chosen))


@pytest.mark.stress
@pytest.mark.parametrize("after_commit", [False, True])
@pytest.mark.parametrize("power", ["", "data=writeback,noauto_da_alloc"], indirect=True)
@pytest.mark.parametrize("how", WRITINGS)
def test_05_a_power_cut_after_every_step(power: Make, cases: Cases, how: str, after_commit: bool) -> None:
    writing = power(how)
    for call in STEPS:
        for turn in itertools.count(1):
            if writing.cut(call, turn, after_commit=after_commit):
                break
        cases(turn)
