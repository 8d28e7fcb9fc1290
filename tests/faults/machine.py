"""What faults can be provoked with here, and the reason where something cannot."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

STRACE = shutil.which("strace")
IS_ROOT = os.geteuid() == 0

needs_strace = pytest.mark.skipif(STRACE is None, reason="strace is not installed (apt-get install strace)")
needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root can do this")


def refusal_of_loop_devices() -> str | None:
    """Return why no file system can be mounted from a file here; None where it can."""
    for tool in ("mkfs.ext4", "losetup", "mount"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (apt-get install e2fsprogs mount)"
    if not IS_ROOT:
        return "only root can mount a file system"
    found = subprocess.run(["losetup", "--find"], capture_output=True, text=True, check=False)
    return None if found.returncode == 0 else f"no loop device: {found.stderr.strip()}"


LOOP_REFUSAL = refusal_of_loop_devices()
needs_loop_device = pytest.mark.skipif(LOOP_REFUSAL is not None, reason=str(LOOP_REFUSAL))

# The spellings of one call of the C library, and of different processors.
CALLS = {
    "open": "openat",
    "write": "write,pwrite64",
    "fsync": "fsync",
    "fdatasync": "fdatasync",
    "fallocate": "fallocate",
    "flock": "flock",
    "ftruncate": "ftruncate",
    "link": "?link,?linkat",
    "rename": "?rename,?renameat,?renameat2",
    "exchange": "?renameat2",
    "unlink": "?unlink,?unlinkat",
    "mkdir": "?mkdir,?mkdirat",
    "close": "close",
}


def inject(call: str, how: str, turn: int | str, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a Python script in which call number `turn` of `CALLS` ends as `how` says, such as "error=EIO", "signal=KILL".

    ``turn="3+"`` means the third and all after it. strace counts the calls of each spelling by themselves.
    """
    assert STRACE is not None
    names = CALLS[call]
    options = ["-qq", "-f", "-o", os.devnull, "-e", f"trace={names}", "-e", f"inject={names}:{how}:when={turn}"]
    return run_script(script, *arguments, before=[STRACE, *options])


def run_script(script: str, *arguments: object, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a Python script in a process of its own."""
    command = [*before, sys.executable, "-B", "-c", script, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2], timeout=120
    )


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Have the kernel refuse (EFBIG) what would make a file larger; Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def open_to_everybody() -> Iterator[Path]:
    """Yield a temporary folder that every user may enter; pytest's own, and what other sessions do to them, may not be."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
