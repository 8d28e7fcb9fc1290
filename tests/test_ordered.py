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
from mmds.ordered import CHUNK, CHUNK_BYTES, DONE, in_order, load_chunk
from mmds.work import Failure, Work


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
    taken = in_order(Work(load), ((0,) for _ in range(10_000)), num_workers=2, processes=False)
    next(taken)
    time.sleep(0.1)
    assert len(load.loaded) <= 5 * CHUNK
    taken.close()


def test_items_that_carry_their_data_make_short_chunks() -> None:
    taken: list[int] = []

    def items() -> Iterator[tuple[int, bytes]]:
        for number in range(1000):
            taken.append(number)
            yield number, bytes(CHUNK_BYTES // 2)

    results = in_order(Work(len), items(), num_workers=2, processes=False)
    next(results)
    assert len(taken) <= 10
    results.close()


def test_a_thread_hands_over_before_it_holds_too_much() -> None:
    load = Numbers()
    got = load_chunk(Work(load), 7, [(3,), (4,), (2,), (1,)])
    assert sum(array.nbytes for _, array in got) == 9 * 2**20 > CHUNK_BYTES and [n for n, _ in got] == [7, 8, 9]
    sizes = [5, 0, -1, 9, 9, 1, 2, 0, -1, 30, 1] * 3
    results = list(in_order(Work(load), ((size,) for size in sizes), num_workers=3, processes=False))
    assert [(number, item[0]) for number, item, value in results if value is DONE] == list(enumerate(sizes))
    assert [
        value.reason if isinstance(value, Failure) else value.nbytes >> 20 for _, _, value in results if value is not DONE
    ] == ["negative" if size < 0 else size for size in sizes]  # fmt: skip


SCRIPT = r"""
import os, signal, sys, time
from mmds.errors import SourceError
from mmds.ordered import DONE, in_order
from mmds.work import Work

def load(item):
    if sys.argv[1] == "sleep":
        os.write(1, b"%d\n" % os.getpid())  # in one piece, also where two workers write at once
        time.sleep(0.3)
    return item[0]

if __name__ == "__main__":
    try:
        for _, item, sample in in_order(Work(load), ((k,) for k in range(1000)), num_workers=2, processes=True):
            assert sample is DONE or item == (sample,)
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
def test_unforeseen_errors_are_failures_with_their_trace(workers: int) -> None:
    results = list(in_order(Work(Broken()), [("c/x.jpg",)], num_workers=workers, processes=False))
    assert results[0][2].reason == "loading failed: KeyError: 'a bug'" and "in __call__" in results[0][2].trace
