"""Processes that race, are interrupted, or are killed, one or all of a group: what the others see, and what is left."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

import mmds
from mmds.errors import FormatError
from mmds.shareddataset import SharedDataset
from tests.conftest import Cases
from tests.faults import writers
from tests.faults.machine import run_script
from tests.faults.racing import RACES
from tests.faults.test_calls import ROOT, run
from tests.faults.writers import NAME, listing, rows
from tests.test_resume import children, command, state

# Row 7


@pytest.mark.fault(7)
@pytest.mark.parametrize("name", RACES)
def test_07_of_processes_that_write_to_one_path_one_wins(name: str, cases: Cases) -> None:
    cases(run("tests.faults.racing", name, 3)["cases"])


@pytest.mark.stress
@pytest.mark.fault(7)
@pytest.mark.parametrize("name", RACES)
def test_07_many_races(name: str, cases: Cases) -> None:
    cases(run("tests.faults.racing", name, 60)["cases"])


# Row 8; test_calls.py interrupts at every system call


class Ends(Exception):
    """What a source may raise."""


def ending(count: int, error: BaseException) -> Iterator[Any]:
    yield from rows(count, 2000, 1)
    raise error


ENDING: dict[str, Callable[[Path, Any], object]] = {
    "file": lambda folder, samples: _extend(mmds.Writer(folder / NAME, writers.FIELDS), samples),
    "overwriting": lambda folder, samples: _extend(mmds.Writer(folder / NAME, writers.FIELDS, overwrite=True), samples),
    "conversion": lambda folder, samples: mmds.convert(samples, folder / NAME),
    "overwriting shards": lambda folder, samples: mmds.convert(
        samples, folder / NAME, shard_size=20_000, overwrite=True
    ),
    "store": lambda folder, samples: mmds.convert(samples, folder / "d.npyd"),
}


def _extend(writer: mmds.Writer, samples: Any) -> None:
    with writer:
        writer.extend(samples)


@pytest.mark.fault(8)
@pytest.mark.parametrize("what", ENDING)
def test_08_an_exception_at_any_sample_leaves_nothing(what: str, tmp_path: Path, cases: Cases) -> None:
    if what.startswith("overwriting"):
        writers.write_file(tmp_path, 3, 100)
    if what == "overwriting shards":
        (tmp_path / NAME).unlink()
        mmds.convert(rows(3, 100), tmp_path / NAME, shard_size=100)
    before = listing(tmp_path)
    for count in range(25):
        for error in (Ends(), KeyboardInterrupt()):
            with pytest.raises((Ends, KeyboardInterrupt)):
                ENDING[what](tmp_path, ending(count, error))
            assert listing(tmp_path) == before
    cases(50)


# Row 9; tests/test_resume.py kills more often


def begin(source: Path, path: Path, workers: int = 2) -> subprocess.Popen[bytes]:
    chosen = [part.replace("-j2", f"-j{workers}") for part in command(source, path)]
    return subprocess.Popen(chosen, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_eight(folder: Path, count: int, kills: int) -> int:
    """Kill workers of eight, then the process that has them, `kills` times. Return how often it was not done by then."""
    values = np.random.default_rng(0)
    with mmds.Writer(folder / "source.mmds", {"n": mmds.Scalar("int64"), "x": mmds.Array("uint8", (None,))}) as writer:
        for n in range(count):
            writer.write({"n": n, "x": values.integers(0, 256, int(values.integers(1, 4000)), np.uint8)})
    assert begin(folder / "source.mmds", folder / "want.mmds").wait() == 0
    chance = random.Random(kills)
    path, unfinished = folder / "out.mmds", 0
    for _ in range(kills):
        with begin(folder / "source.mmds", path, 8) as process:
            while process.poll() is None and len(children(process.pid)) < 8:
                time.sleep(0.01)
            for _ in range(3):
                time.sleep(chance.uniform(0, 0.3))
                for victim in chance.sample(children(process.pid), min(1, len(children(process.pid)))):
                    os.kill(victim, signal.SIGKILL)
            process.kill()
        if not (path / "dataset.json").exists():
            unfinished += 1
            with pytest.raises((FormatError, FileNotFoundError)):
                mmds.open(path)
    assert begin(folder / "source.mmds", path).wait() == 0
    assert state(path) == state(folder / "want.mmds")
    assert sorted(each.name for each in folder.iterdir()) == ["out.mmds", "source.mmds", "want.mmds"]
    return unfinished


@pytest.mark.stress
@pytest.mark.fault(9)
def test_09_one_of_eight_workers_and_then_all_are_killed(tmp_path: Path, cases: Cases) -> None:
    kill_eight(tmp_path, 600, 1)
    cases(4)


@pytest.mark.stress
@pytest.mark.fault(9)
def test_09_eight_workers_killed_at_random(tmp_path: Path, cases: Cases) -> None:
    assert kill_eight(tmp_path, 4000, 12) > 3
    cases(48)


# Row 25; tests/test_workers.py has the workers of conversions


SLOW = [("spawn", False), ("spawn", True), ("forkserver", False), ("forkserver", True)]


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    ("method", "shared"),
    [("fork", False), ("fork", True), *(pytest.param(*each, marks=pytest.mark.stress) for each in SLOW)],
)
def test_25_a_killed_dataloader_worker_is_an_error_and_no_hang(method: str, shared: bool, tmp_path: Path) -> None:
    writers.write_file(tmp_path, 400, 100)
    dataset: Any = mmds.MemoryMappedDataset(tmp_path / NAME)
    if shared:
        dataset = SharedDataset(dataset, f"test-{secrets.token_hex(6)}", directory=tmp_path)
    loader: DataLoader[Any] = DataLoader(
        dataset, 2, num_workers=2, multiprocessing_context=method, collate_fn=_first, prefetch_factor=2
    )
    batches = iter(loader)
    next(batches)
    victim = multiprocessing.active_children()[0].pid
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* (killed by signal|exited unexpectedly)"):
        for _ in batches:
            pass
    assert time.monotonic() - start < 10
    if shared:
        assert dataset[7]["n"] == 7  # nobody waits for what the killed one had locked
        dataset.close()


def _first(samples: list[Any]) -> Any:
    return samples[0]["n"]


# Row 26; test_calls.py kills at every system call, tests/test_shared_dataset.py a few that read from a slow dataset


@pytest.mark.fault(26)
def test_26_some_fillers_are_killed(cases: Cases) -> None:
    cases(run("tests.faults.fillers", 160, 1)["cases"])


@pytest.mark.stress
@pytest.mark.fault(26)
def test_26_ten_thousand_fillers_are_killed(cases: Cases) -> None:
    cases(run("tests.faults.fillers", 10_000, 2)["cases"])


@pytest.mark.fault(26)
def test_26_some_caches_on_a_disk_after_a_power_cut(cases: Cases) -> None:
    found = run("tests.faults.cachepages", 150, 1)
    assert found["told"]["damaged"] > 10 < found["told"]["states that are whole"]
    cases(found["cases"])


@pytest.mark.stress
@pytest.mark.fault(26)
def test_26_caches_on_a_disk_after_a_power_cut(cases: Cases) -> None:
    cases(run("tests.faults.cachepages", 5000, 2)["cases"])


def test_26_samples_whose_place_was_lost_would_be_found_out() -> None:
    forgetful = (
        "from mmds.samplecache import SampleCache\n"
        "SampleCache._forget_lost = lambda *_: None\n"
        "from tests.faults import cachepages\n"
        "cachepages.main('300', '1')\n"
    )
    done = run_script(forgetful)
    assert done.returncode == 1 and "is wrong" in done.stderr


# Row 27

GROUP = """if True:
    import multiprocessing, os, sys, time
    import mmds
    from mmds import shareddataset
    from mmds.shareddataset import SharedDataset
    from pathlib import Path
    shareddataset.MEMORY = Path(sys.argv[1])  # a folder of /dev/shm, so that nobody else removes what is left

    class Texts:
        def __len__(self): return 1000
        def __getitem__(self, index): return b"x" * 5000

    def fill(shared, packed, start):
        for index in range(start, 1000, 4):
            assert shared[index] == Texts()[index] and packed[index] == index
        os.write(1, b"full\\n")
        time.sleep(100)

    if __name__ == "__main__":
        shared, packed = SharedDataset(Texts(), "group"), mmds.share(list(range(1000)))
        shared[0]
        context = multiprocessing.get_context("fork")
        for start in range(4):
            context.Process(target=fill, args=(shared, packed, start)).start()
        time.sleep(100)
"""
NEXT = """if True:
    import sys
    from pathlib import Path
    from mmds import shareddataset
    from mmds.shareddataset import SharedDataset
    shareddataset.MEMORY = Path(sys.argv[1])
    other = SharedDataset([1, 2], "other")
    assert other[1] == 2
    print([path.name.rsplit("-")[-1] for path in Path(sys.argv[1]).iterdir()])
"""


@pytest.mark.fault(27)
@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no memory file system at /dev/shm")
def test_27_the_memory_of_a_killed_group_is_taken_back_at_the_next_start(cases: Cases) -> None:
    memory = Path("/dev/shm") / f"mmds-test-{secrets.token_hex(6)}"
    memory.mkdir()
    try:
        for _ in range(2):
            group = subprocess.Popen(
                [sys.executable, "-B", "-c", GROUP, memory], stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True
            )
            with group:
                try:
                    assert group.stdout is not None
                    for _ in range(4):
                        assert group.stdout.readline() == b"full\n"
                    (left,) = memory.iterdir()
                    assert left.stat().st_blocks * 512 > 5_000_000
                finally:
                    os.killpg(group.pid, signal.SIGKILL)
            wait_for(partial(_is_closed, left))
            assert left.exists()
            assert run_script(NEXT, memory).stdout == "['other']\n"
            assert not list(memory.iterdir())
        cases(2)
    finally:
        for path in memory.iterdir():
            path.unlink()
        memory.rmdir()


def _is_closed(path: Path) -> bool:
    """Return whether no process has a file open: killed ones need a moment to end."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
