"""Where a measurement was taken: processor, memory, system, versions, and how memory is read off the kernel."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path


def processor() -> str:
    """Return the processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def memory_bytes(name: str = "MemTotal") -> int:
    """Return a line of /proc/meminfo, such as "MemTotal" or "MemAvailable", in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def describe(*packages: str) -> str:
    """Return one line for below a table: the machine, and the versions of Python, mmds and `packages`."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("mmds", *packages)]
    return (
        f"{processor()}, {len(os.sched_getaffinity(0))} cores, {memory_bytes() / 2**30:.0f} GiB, "
        f"Linux {platform.release()}; Python {platform.python_version()}, {', '.join(versions)}"
    )
