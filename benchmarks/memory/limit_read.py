"""One configuration, in a process of its own: read all rows, and say before each how much memory the process has.

    python -m benchmarks.memory.limit_read SOURCE WAY FILE ROWS [GROUP]

Rows are "dropped" (copied, and forgotten), kept as "copies", or kept as "views" of a map; every byte of each is looked at.
The process imports its library and then joins the control group GROUP, so that the library does not count. Before it opens
the file and after each row it prints a line, so that whoever sees it killed knows where:

    ROWS_READ RssAnon RssFile CHECKSUM
"""

from __future__ import annotations

import importlib
import os
import sys
import zlib
from pathlib import Path

from benchmarks.memory.limit_sources import LIBRARIES, SOURCES


def resident() -> tuple[int, int]:
    """Return the bytes of this process that are in memory: its own, and pages of files that it has mapped."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, of_files = (int(status[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    return own, of_files


def read(source: str, way: str, path: Path, rows: int, group: Path | None) -> None:
    """Read the rows; see above."""
    if source in LIBRARIES:
        importlib.import_module(LIBRARIES[source])
    if group is not None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
    kept = []
    checksum = 0
    print(0, *resident(), checksum, flush=True)
    get = SOURCES[source](path, way != "views")
    for number in range(rows):
        value = get(number)
        checksum = zlib.crc32(value, checksum)
        if way != "dropped":
            kept.append(value)
        del value
        print(number + 1, *resident(), checksum, flush=True)


if __name__ == "__main__":
    name, how, file, count, *groups = sys.argv[1:]
    read(name, how, Path(file), int(count), Path(groups[0]) if groups else None)
