"""Running a command and measuring it: seconds, and the peak of memory over it and all processes that it starts."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

INTERVAL = 0.02  # seconds between looks at memory: costs less than 1 % of a core


@dataclass(frozen=True)
class Run:
    """What a command took."""

    seconds: float
    peak_rss: int


def run(command: Sequence[str], *, expected: int = 0) -> Run:
    """Run `command` and wait for it; CalledProcessError with what it said where its exit code is not the `expected` one.

    The peak is the largest sum of resident memory (RSS) that was seen, libraries that processes share counted in each; or
    the kernel's own figure for the largest single process, which misses no moment, where that is more.
    """
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        peak = [0]
        done = threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, peak, done), daemon=True)
        sampler.start()
        assert process.stderr is not None
        said = process.stderr.read()  # until all who might write have ended
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        done.set()
        sampler.join()
    if process.returncode != expected:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=said.decode(errors="replace"))
    return Run(seconds, max(peak[0], usage.ru_maxrss * 1024))


def _sample(pid: int, peak: list[int], done: threading.Event) -> None:
    while not done.wait(INTERVAL):
        total = 0
        try:
            root = psutil.Process(pid)
            for process in (root, *root.children(recursive=True)):
                total += _rss(process)
        except psutil.NoSuchProcess:
            return
        peak[0] = max(peak[0], total)


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:  # ended just now
        return 0
