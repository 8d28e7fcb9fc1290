"""A memory limit for one process: a control group of the kernel, version 1 or 2, as containers and job schedulers use.

A group counts what its processes take while they are in it: their own memory, and pages of the page cache that they were
the first to read. What they had before they joined stays on the account of their former group.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
WAIT = 2.0  # seconds for the kernel to take a process that has ended out of its group


@contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """Make a group of at most `limit` bytes and no swap, and remove it in the end, when its processes must have ended.

    A process joins by writing its number to ``cgroup.procs`` in the folder. OSError where groups cannot be made.
    """
    second = (ROOT / "cgroup.controllers").exists()
    folder = Path(tempfile.mkdtemp(prefix="mmds-limit-", dir=ROOT if second else ROOT / "memory"))
    try:
        for name in ("memory.max",) if second else ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
            if name != "memory.memsw.limit_in_bytes" or (folder / name).exists():  # exists if swap is counted
                (folder / name).write_text(str(limit))
        if (folder / "memory.swap.max").exists():
            (folder / "memory.swap.max").write_text("0")
        yield folder
    finally:
        _remove(folder)


def refusal() -> str | None:
    """Return why processes cannot be limited here; None where they can."""
    try:
        with memory_group(2**30):
            return None
    except OSError as error:
        return f"no control group can be made ({error.strerror}: {error.filename})"


def kills(group: Path) -> int:
    """Return how many processes of the group the kernel has killed for their memory."""
    for name in ("memory.events", "memory.oom_control"):
        if (group / name).exists():
            return int(dict(line.split() for line in (group / name).read_text().splitlines())["oom_kill"])
    return 0


def _remove(folder: Path) -> None:
    """Remove a group; the files in its folder are the kernel's, and go with it."""
    end = time.monotonic() + WAIT
    while True:
        try:
            return folder.rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
