"""Loading in parallel and in order: bounded, and no worker is left behind, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmds.errors import SourceError
from mmds.ordered import CHUNK, CHUNK_BYTES, Failure, load_chunk, load_in_order


class Numbers:
    """Loads a number: an array of as many MiB, or an error below zero."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def __call__(self, item: tuple[int]) -> Any:
        self.loaded.append(item[0])
        if item[0] < 0:
            raise SourceError("negative")
        return np.zeros(item[0] * 2**20, np.uint8)


def test_threads_run_ahead_only_as_far_as_the_window() -> None:
    load = Numbers()
    taken = load_in_order(load, ((0,) for _ in range(10_000)), num_workers=2, processes=False)
    next(taken)
    time.sleep(0.1)
    assert len(load.loaded) <= 5 * CHUNK
    taken.close()


def test_a_worker_hands_over_before_it_holds_too_much() -> None:
    load = Numbers()
    got = load_chunk(load, [(3,), (4,), (2,), (1,)])
    assert sum(array.nbytes for array in got) == 9 * 2**20 > CHUNK_BYTES and len(got) == 3
    sizes = [5, 0, -1, 9, 9, 1, 2, 0, -1, 30, 1] * 3
    results = list(load_in_order(load, ((size,) for size in sizes), num_workers=3, processes=False))
    assert [item[0] for item, _ in results] == sizes
    assert [
        sample.reason if isinstance(sample, Failure) else sample.nbytes >> 20 for _, sample in results
    ] == ["negative" if size < 0 else size for size in sizes]  # fmt: skip


SCRIPT = r"""
import os, signal, sys, time
from mmds.errors import SourceError
from mmds.ordered import load_in_order

def load(item):
    if item[0] == 100 and sys.argv[1] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "sleep":
        os.write(1, b"%d\n" % os.getpid())  # in one piece, also where two workers write at once
        time.sleep(0.3)
    return item[0]

if __name__ == "__main__":
    try:
        for item, sample in load_in_order(load, ((k,) for k in range(1000)), num_workers=2, processes=True):
            assert item == (sample,)
        print("all")
    except SourceError as error:
        print(error)
"""


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    started: list[subprocess.Popen[str]] = []

    def start(mode: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(path), mode],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_worker_that_dies_ends_the_conversion_with_its_reason(script: Callable[[str], subprocess.Popen[str]]) -> None:
    output, errors = script("die").communicate(timeout=20)
    assert "a worker process died" in output and "num_workers=1" in output
    assert errors == ""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_conversion(script: Callable[[str], subprocess.Popen[str]], how: signal.Signals) -> None:
    process = script("sleep")
    assert process.stdout is not None
    pids = {int(process.stdout.readline()) for _ in range(4)}
    start = time.monotonic()
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does
    else:
        os.kill(process.pid, how)
    process.wait(timeout=20)
    while any(map(alive, pids)) and time.monotonic() - start < 10:
        time.sleep(0.05)
    assert not any(map(alive, pids))
    _, errors = process.communicate(timeout=5)
    if how == signal.SIGINT:
        assert errors.strip().splitlines()[-1] == "KeyboardInterrupt" and errors.count("Traceback") == 1


class Broken:
    """Fails in a way that it should not."""

    def __call__(self, item: tuple[str]) -> Any:
        raise KeyError("a bug")


@pytest.mark.parametrize("workers", [1, 2])
def test_unforeseen_errors_name_the_item(workers: int) -> None:
    with pytest.raises(KeyError, match="a bug") as caught:
        list(load_in_order(Broken(), [("c/x\n.jpg",)], num_workers=workers, processes=False))
    assert caught.value.__notes__ == [r"while c/x\n.jpg was loaded"]
