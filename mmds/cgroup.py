"""How much memory this process may still take before the kernel ends it: the limits of its control groups, version 1 and 2."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
RECLAIMABLE = ("inactive_file", "active_file", "total_inactive_file", "total_active_file")  # the page cache, of files


def memory_left() -> int | None:
    """Return the bytes that may still be taken in the control group of this process; None where nothing limits them.

    Pages of the page cache that the kernel can drop do not count as taken; memory file systems do.
    """
    left = [room for group in _groups() if (room := _room(group)) is not None]
    return min(left, default=None)


def _groups() -> list[Path]:
    """Return the folders of this process's group and of all above it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux, or no control groups
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" and (ROOT / "cgroup.controllers").exists():
            root = ROOT
        elif "memory" in controllers.split(","):
            root = ROOT / "memory"
        else:
            continue
        group = root / path.lstrip("/")
        above = [folder for folder in (group, *group.parents) if folder == root or root in folder.parents]
        return [folder for folder in above if folder.is_dir()]  # a container may not see its own path
    return []


def _room(group: Path) -> int | None:
    """Return the limit of a group less what its processes have taken; None if it has no limit."""
    for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            most, taken = (group / limit).read_text().strip(), int((group / usage).read_text())
            lines = (group / "memory.stat").read_text().splitlines()
        except OSError:  # the other version, or the root, which has no limit
            continue
        if most == "max" or int(most) >= 2**62:
            return None
        known = dict(line.split() for line in lines)
        names = RECLAIMABLE[2:] if "total_inactive_file" in known else RECLAIMABLE[:2]
        return int(most) - taken + sum(int(known.get(name, 0)) for name in names)
    return None
