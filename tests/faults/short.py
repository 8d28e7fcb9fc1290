"""One writer whose writes are short: of files that may not grow, or of calls that write half (`half.c`).

``python -m tests.faults.short "a file" limits 10``: a limit on the size of files, at so many places.
``LD_PRELOAD=half.so python -m tests.faults.short "a file" halves 10``: so many calls, each alone, and with all after it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import random
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.faults.sweep import Sweep, run_child
from tests.faults.writers import WRITERS, spill

ALL = 2**40


def limits(sweep: Sweep, most: int) -> dict[str, int]:
    """Let files grow only to a limit: before each write, within it, after it; the writer fails, and is clean."""
    failed = count = 0
    for limit in _some([1, 7, *_sizes(sweep)], most):
        with sweep.before() as folder:
            outcome = run_child(partial(_limited, sweep, folder, limit))
            if outcome.error:
                assert outcome.is_ours and outcome.errno == errno.EFBIG, outcome.trace
                failed += 1
            else:
                assert outcome.status == 0, outcome
            assert not sweep.check_clean(folder, outcome)
        count += 1
    return {"cases": count, "failed": failed}


def _limited(sweep: Sweep, folder: Path, limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # Python ignores SIGXFSZ: writing fails with EFBIG
    sweep.case.write(folder)


def _sizes(sweep: Sweep) -> Iterator[int]:
    """Yield lengths that lie at, and next to, all multiples of 4096 that any file of the writer reaches."""
    with sweep.before() as folder:
        sweep.case.write(folder)
        longest = max((path.stat().st_size for path in folder.rglob("*") if path.is_file()), default=2**18)
    for size in range(4096, longest + 1, 4096):
        yield from (size - 1, size, size + 7)


def halves(sweep: Sweep, most: int) -> dict[str, int]:
    """Let calls write half of what they are asked for: all is completed, and the same."""
    library = ctypes.CDLL(None)
    library.half_writes.argtypes = [ctypes.c_long, ctypes.c_long]
    told = mmap.mmap(-1, 16)

    def run(folder: Path, first: int, last: int) -> Callable[[], None]:
        def act() -> None:
            library.half_writes(first, last)
            sweep.case.write(folder)
            told[:16] = library.half_count().to_bytes(8, "little") + library.half_done().to_bytes(8, "little")

        return act

    with sweep.before() as folder:
        run_child(run(folder, ALL, ALL))
    writes = int.from_bytes(told[:8], "little")
    short = count = 0
    for turn in _some(range(1, writes + 1), most):
        for last in (turn, ALL):
            with sweep.before() as folder:
                outcome = run_child(run(folder, turn, last))
                assert outcome.status == 0, outcome.trace
                short += int.from_bytes(told[8:16], "little")
                sweep.check_clean(folder, outcome)
            count += 1
    return {"cases": count, "short": short, "writes": writes}


def _some(values: Iterator[int] | range | list[int], most: int) -> list[int]:
    found = sorted(set(values))
    return found if len(found) <= most else sorted(random.Random(0).sample(found, most))


def main(name: str, how: str, most: str) -> None:
    """Go through the cases of one writer."""
    spill()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"limits": limits, "halves": halves}[how](Sweep(WRITERS[name], Path(folder)), int(most))))


if __name__ == "__main__":
    main(*sys.argv[1:])
