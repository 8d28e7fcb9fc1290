"""One writer, and each of its system calls in turn: killed, interrupted, failing once, failing from there on.

``python -m tests.faults.sweep "a file"`` imports everything once. Each case is then a fork: it waits until strace is
attached to it (which thus counts nothing but the writer's own calls), writes, and says through shared memory how that
ended, since every system call may be the one that fails. The last line of the output is a JSON object of counts.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmds.errors import MmdsError
from tests.faults.writers import WRITERS, Case, listing, spill

CALLS = (  # those that a writer may make, in all spellings
    *("openat", "mkdir", "mkdirat", "write", "pwrite64", "writev", "copy_file_range", "ftruncate", "fallocate"),
    *("fsync", "fdatasync", "msync", "flock", "fcntl", "link", "linkat", "rename", "renameat", "renameat2"),
    *("unlink", "unlinkat", "rmdir", "close", "read", "pread64"),
)
READING = {"openat", "read", "pread64", "close", "fcntl"}  # which may be of a source: a plain OSError then
CLEANING = {"openat", "unlink", "unlinkat", "rmdir", "close", "fcntl"}  # what these cannot remove stays for the next
FAULTS = {
    "kill": "signal=KILL:when={}",
    "interrupt": "signal=INT:when={}",
    "ENOSPC once": "error=ENOSPC:when={}",
    "EIO once": "error=EIO:when={}",
    "ENOSPC for ever": "error=ENOSPC:when={}+",
    "EIO for ever": "error=EIO:when={}+",
}
OUTCOME = 2**16  # bytes
READY = OUTCOME - 1  # which of them says that the child waits
PR_SET_PTRACER = 0x59616D61
NOT_ALLOWED = 77  # the exit status where strace may not attach


@dataclass(frozen=True)
class Outcome:
    """How a child ended: `status` as `waitstatus_to_exitcode` gives it; the exception, if there was one; its calls."""

    status: int
    error: str  # its class, "" for none
    errno: int | None
    is_ours: bool  # an exception of mmds
    trace: str
    calls: list[str]  # lines of strace


def run_child(act: Callable[[], object], strace: list[str] | None = None) -> Outcome:
    """Run `act` in a fork, with strace attached where options for it are given."""
    memory = mmap.mmap(-1, OUTCOME)
    gate, opener = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(act, gate, opener, memory)
    os.close(gate)
    log: list[str] = []
    try:
        while not memory[READY]:
            time.sleep(0.0005)
        if strace is None:
            os.write(opener, b".")
            status = os.waitpid(pid, 0)[1]
        else:
            status, log = _traced(pid, opener, strace)
    finally:
        os.close(opener)
    size = int.from_bytes(memory[:4], "little")
    told: dict[str, Any] = json.loads(memory[4 : 4 + size]) if size else {}
    memory.close()
    return Outcome(
        os.waitstatus_to_exitcode(status),
        told.get("error", ""),
        told.get("errno"),
        told.get("is_ours", False),
        told.get("trace", ""),
        log,
    )


def _child(act: Callable[[], object], gate: int, opener: int, memory: mmap.mmap) -> None:
    told: dict[str, Any] = {}
    try:
        os.close(opener)
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, -1)  # strace is no ancestor of this process
        signal.signal(signal.SIGINT, signal.default_int_handler)
        waiting = select.poll()  # not `read`: that may be what is to fail
        waiting.register(gate, select.POLLIN)
        memory[READY] = 1  # from here on, nothing but `poll` is called until strace is there
        waiting.poll()
        try:
            act()
        except BaseException as error:  # noqa: BLE001 (told to the parent)
            told = {
                "error": type(error).__name__,
                "errno": getattr(error, "errno", None),
                "is_ours": isinstance(error, MmdsError),
                "trace": "".join(traceback.format_exception(error))[-4000:],  # fits, escaped, into OUTCOME
            }
        data = json.dumps(told).encode()
        memory[: 4 + len(data)] = len(data).to_bytes(4, "little") + data
    finally:
        os._exit(3 if told else 0)


def _traced(pid: int, opener: int, options: list[str]) -> tuple[int, list[str]]:
    with tempfile.NamedTemporaryFile("r") as log:
        command = ["strace", "-f", "-y", "-s", "0", "-o", log.name, *options, "-p", str(pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr is not None
            said = tracer.stderr.readline()
            if "attached" not in said:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                print(f"strace cannot attach to a process: {said.strip()}", flush=True)
                raise SystemExit(NOT_ALLOWED)
            os.write(opener, b".")
            status = os.waitpid(pid, 0)[1]
            tracer.stderr.read()
        return status, log.read().splitlines()


_call = re.compile(r"^\d+\s+(\w+)\(").match


@dataclass
class Sweep:
    """All faults of one writer. `counts` are the cases by kind of fault."""

    case: Case
    folder: Path

    def __post_init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        with self.before() as folder:
            self.case.write(folder)  # here: so that nothing is imported later on
        with self.before() as folder:
            self.old, self.old_files = self.case.look(folder), listing(folder)
            outcome = run_child(lambda: self.case.write(folder))
            if outcome.status:
                raise RuntimeError(outcome.trace)
            self.new, self.new_files = self.case.look(folder), listing(folder)

    def count_calls(self) -> None:
        """Count the system calls of an undisturbed writer."""
        with self.before() as folder:
            names = ",".join(f"?{call}" for call in CALLS)
            outcome = run_child(lambda: self.case.write(folder), ["-e", f"trace={names}"])
        self.calls = Counter(found[1] for line in outcome.calls if (found := _call(line)))

    @contextmanager
    def before(self) -> Iterator[Path]:
        """Give a folder as it is before the writer."""
        folder = self.folder / "case"
        prepared = self.folder / "prepared"
        if not prepared.exists():
            prepared.mkdir()
            self.case.prepare(prepared)
        shutil.copytree(prepared, folder)
        yield folder
        shutil.rmtree(folder)

    def turns(self, quick: random.Random | None) -> Iterator[tuple[str, int, str]]:
        """Yield which call, which turn of it, and what happens to it: all, or some of each call."""
        for call, count in sorted(self.calls.items()):
            if quick is None:
                yield from ((call, turn, fault) for turn in range(1, count + 1) for fault in FAULTS)
                yield call, count + 1, "EIO once"  # which there is not
            else:
                for turn in sorted({quick.randint(1, count), count}):
                    yield call, turn, quick.choice(list(FAULTS))

    def fails_at(self, call: str, turn: int, fault: str) -> None:
        """Let one call fail; `AssertionError` where anything is lost, torn, left, or not said as it should be."""
        with self.before() as folder:
            options = ["-e", f"trace={call},fsync", "-e", f"inject={call}:{FAULTS[fault].format(turn)}"]
            outcome = run_child(lambda: self.case.write(folder), options)
            injected = [line for line in outcome.calls if "(INJECTED)" in line]
            if sum(f" {call}(" in line for line in outcome.calls) < turn:  # there were not so many
                assert not injected and outcome.status == 0, outcome
                fault = "none"
            elif fault == "kill":
                assert outcome.status == -signal.SIGKILL, outcome
            elif fault == "interrupt":
                # shutil.rmtree closes a descriptor again where closing it was interrupted, and that fails
                is_closed_twice = outcome.errno == errno.EBADF and "KeyboardInterrupt" in outcome.trace
                assert outcome.error in ("KeyboardInterrupt", "") or is_closed_twice, outcome
            else:
                assert injected and outcome.status in (0, 3), outcome
                if outcome.error:
                    assert outcome.is_ours or (outcome.error == "OSError" and call in READING), outcome
                    assert outcome.errno == getattr(errno, fault.split()[0]), outcome
                _check_syncs(outcome.calls)
            left = self.check_clean(folder, outcome)
            is_cleaning = call in CLEANING or (call == "flock" and self.case.varies)  # is somebody using the cache?
            assert not left or fault in ("kill", "interrupt") or is_cleaning, f"left behind: {left}"
            self.counts[fault] += 1

    def check_clean(self, folder: Path, outcome: Outcome) -> set[str]:
        """See what readers see, and let the next writer end the work. Return what the last one left beside it."""
        files = listing(folder)
        seen = self.case.look(folder)
        assert seen in (self.old, self.new), f"torn: {seen}"
        assert seen == self.new or outcome.status, "it said that it was done"
        left = {name for name in files if any(part.startswith(".") for part in name.split("/"))}
        if not self.case.resumes and (files.keys() - left) not in (self.old_files.keys(), self.new_files.keys()):
            left |= files.keys() ^ self.old_files.keys()
        self.case.go_on(folder)
        assert self.case.look(folder) == self.new, "the next one did not end well"
        files = listing(folder)
        assert files.keys() == self.new_files.keys(), sorted(files.keys() ^ self.new_files.keys())
        assert self.case.varies or files == self.new_files
        return left


def _check_syncs(calls: list[str]) -> None:
    """See that no file is synced again once that has failed: the second answer would be that all is well."""
    for number, line in enumerate(calls):
        if "fsync(" in line and "(INJECTED)" in line:
            path = line.split("(", 1)[1].split(")")[0]
            assert not any(f"fsync({path})" in later for later in calls[number + 1 :]), calls


def main(name: str, seed: str = "", *only: str) -> int:
    """Sweep over one writer: everything, or with a seed some of it. Return how many cases went wrong."""
    spill()
    quick = random.Random(int(seed)) if seed else None
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(WRITERS[name], Path(folder))
        sweep.count_calls()
        for turn in sweep.turns(quick):
            if only and turn[0] not in only:
                continue
            try:
                sweep.fails_at(*turn)
            except Exception as error:  # noqa: BLE001 (counted, and shown)
                wrong += 1
                print(turn, "".join(traceback.format_exception(error))[-3000:] if wrong < 4 else repr(error)[:300])
                shutil.rmtree(Path(folder) / "case", ignore_errors=True)
    print(json.dumps({"wrong": wrong, "calls": sweep.calls, "cases": sweep.counts}))
    return wrong


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) > 0)
