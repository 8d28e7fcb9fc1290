"""Watching the memory of a process and of all processes that it starts. Linux only; needs ``mmds[memory]``.

with mmds.memory.watch() as watched:
    train()
print(watched.summary())
watched.plot("memory.png")
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from mmds.errors import missing
from mmds.smaps import MappedDataset as MappedDataset
from mmds.smaps import ProcessMemory as ProcessMemory
from mmds.smaps import Snapshot as Snapshot
from mmds.smaps import look_at, memory_devices, read_process

KEPT = 4096  # snapshots; with more, every second one is dropped, so that who watches memory does not fill it
REST = 4  # watching pauses for so many times as long as a snapshot took: it has a fifth of one core at most


class Watch:
    """Snapshots of a process tree, taken by a thread from `__enter__` to `__exit__`, at both of which is one, too.

    Processes that were seen once count until they end, even if their parent ends before. Use `watch`.
    """

    def __init__(
        self, pid: int | None = None, interval: float = 0.5, each: Callable[[Snapshot], None] | None = None
    ) -> None:
        if not interval > 0:
            raise ValueError(f"expected an interval of more than 0 seconds, got {interval}")
        self.pid = os.getpid() if pid is None else pid
        self.interval = interval
        self._tree = _Tree(self.pid)
        self._each = each
        self._kept: list[Snapshot] = []
        self._spacing = 0.0  # seconds between two of them, at least
        self._peak: Snapshot | None = None
        self._latest: Snapshot | None = None
        self._began = time.monotonic()
        self._stop, self._ended = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._watch, name="mmds.memory", daemon=True)

    def __enter__(self) -> Watch:
        self._take()
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is None:
            self._take()
        elif error is None:
            raise self._failure

    @property
    def snapshots(self) -> list[Snapshot]:
        """What was seen, in order: all of it, or a regular selection with the first, the latest and the peak."""
        marked = [snapshot for snapshot in (self._peak, self._latest) if snapshot is not None]
        found = {snapshot.seconds: snapshot for snapshot in (*self._kept, *marked)}
        return [found[seconds] for seconds in sorted(found)]

    @property
    def peak(self) -> Snapshot:
        """The snapshot with the most memory in use: the largest sum of PSS and swap."""
        if self._peak is None:
            raise ValueError(f"process {self.pid} ended before anything was seen of it")
        return self._peak

    def wait(self) -> None:
        """Return when the process has ended, or when watching it has failed."""
        self._ended.wait()

    def summary(self) -> str:
        """Return in words what grew: private memory, page cache or shared memory."""
        from mmds.memoryreport import describe, summarize

        return describe(summarize(self.snapshots))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write all snapshots to a file: one line for each process and each mapped dataset."""
        from mmds.memoryreport import csv_rows

        with open(path, "w", newline="", encoding="utf-8") as file:
            write = csv_rows(file)
            for snapshot in self.snapshots:
                write(snapshot)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG of memory over time. Needs matplotlib."""
        from mmds.memoryplot import plot

        plot(self.snapshots, path)

    def _watch(self) -> None:
        pause = self.interval
        try:
            while not self._stop.wait(pause):
                began = time.monotonic()
                self._take()
                if self._tree.has_ended():
                    break
                pause = max(self.interval, REST * (time.monotonic() - began))
        except BaseException as error:  # noqa: BLE001 (raised by __exit__)
            self._failure = error
        finally:
            self._ended.set()

    def _take(self) -> None:
        snapshot = self._tree.snapshot(time.monotonic() - self._began)
        if not snapshot.processes and not snapshot.unreadable:  # it has ended
            return
        if self._each is not None:
            self._each(snapshot)
        self._latest = snapshot
        if self._peak is None or _in_use(snapshot) > _in_use(self._peak):
            self._peak = snapshot
        if not self._kept or snapshot.seconds - self._kept[-1].seconds >= self._spacing:
            self._kept.append(snapshot)
        if len(self._kept) > KEPT:
            self._kept = self._kept[::2]
            self._spacing = 0.9 * (self._kept[-1].seconds - self._kept[0].seconds) / (len(self._kept) - 1)


def watch(
    pid: int | None = None, interval: float = 0.5, each: Callable[[Snapshot], None] | None = None
) -> contextlib.AbstractContextManager[Watch]:
    """Watch a process and its children (by default this one) while the context lasts; `.summary()` says what grew.

    Args:
        pid: the process.
        interval: seconds between two snapshots; more where one takes long.
        each: is called with each `Snapshot`, in the thread that takes them. An error in there ends the watch and is raised
            at the end of the context.

    Raises `ProcessLookupError` for a process that has ended, `PermissionError` for that of another user.
    """
    return _watch_readable(Watch(pid, interval, each))


def look(pid: int | None = None) -> Snapshot:
    """Return what a process and its children (by default this one) have now. Raises what `watch` does."""
    own = os.getpid() if pid is None else pid
    snapshot = _Tree(own).snapshot(0.0)
    _require(own, [snapshot] if snapshot.processes or snapshot.unreadable else [])
    return snapshot


@contextlib.contextmanager
def _watch_readable(watched: Watch) -> Iterator[Watch]:
    with watched:
        _require(watched.pid, watched.snapshots)
        yield watched


def _require(pid: int, snapshots: list[Snapshot]) -> None:
    if not snapshots:
        raise ProcessLookupError(f"process {pid} has no memory: it has ended, or is a part of the kernel")
    if pid in snapshots[0].unreadable:
        raise PermissionError(f"the memory of process {pid} is another user's; only that user and root can see it")


def require_psutil() -> Any:
    """Return the module."""
    try:
        import psutil
    except ImportError:
        raise missing("psutil", "memory", "mmds.memory") from None
    return psutil


def _in_use(snapshot: Snapshot) -> int:
    return snapshot.total("pss") + snapshot.total("swap")


class _Tree:
    """A process and all that descend from it."""

    def __init__(self, pid: int) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError("mmds.memory needs Linux, where /proc says what memory a process has")
        psutil = require_psutil()
        self._gone = (psutil.NoSuchProcess, psutil.AccessDenied)  # ZombieProcess is a NoSuchProcess
        self._zombie = psutil.STATUS_ZOMBIE
        try:
            self._root = psutil.Process(pid)
        except psutil.NoSuchProcess:
            raise ProcessLookupError(f"there is no process {pid}") from None
        self._known: set[Any] = {self._root}

    def has_ended(self) -> bool:
        """Return whether the first process has ended."""
        try:
            return not self._root.is_running() or self._root.status() == self._zombie
        except self._gone:
            return True

    def snapshot(self, seconds: float) -> Snapshot:
        """Return what all processes have now."""
        in_memory = memory_devices(self._root.pid)
        processes, mappings, unreadable = [], [], []
        for process in self._members():
            try:
                found = read_process(process.pid, process.name(), in_memory)
            except PermissionError:
                unreadable.append(process.pid)
            except self._gone:  # between the listing and the reading
                continue
            else:
                if found is not None:
                    processes.append(found[0])
                    mappings += found[1]
        return Snapshot(seconds, tuple(processes), look_at(mappings), tuple(unreadable))

    def _members(self) -> list[Any]:
        members = self._below(self._root)
        for process in self._known.difference(members):  # their parents have ended
            if process not in members:
                members += [other for other in self._below(process) if other not in members]
        self._known = {process for process in members if process.is_running()}
        return sorted(self._known, key=lambda process: int(process.pid))

    def _below(self, process: Any) -> list[Any]:
        try:
            return [process, *process.children(recursive=True)]
        except self._gone:
            return []
