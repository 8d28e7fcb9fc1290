"""Sizes that a file declares and does not have: refused in little memory, whatever is asked of the file.

Every number of header, trailer and footer, and numbers all over the index, are replaced by each of `HUGE`, with all checksums
right, in a process that has 512 MB of address space more than it needs, and in which less than 64 MB may be touched.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Cases
from tests.faults.assembly import HEADER_FIELDS, TRAILER_FIELDS
from tests.faults.exercise import READ, exercise
from tests.faults.machine import run_script
from tests.make_golden import GOLDEN
from tests.resealing import HUGE, golden, little, put, resealed, text_of
from tests.test_hostile_index import numbers

pytestmark = pytest.mark.fault(14)
QUICK = ("constant_stride", "keys", "mixed_alignment", "ragged", "strings")
ENTRIES = 12  # numbers of each section that are replaced


def declaring(name: str) -> Iterator[tuple[bytes, bool]]:
    """Yield a golden file with each number replaced by each huge one, and whether it has to be refused."""
    data = golden(name)
    footer = json.loads(text_of(data))
    for place in numbers(footer):
        # Of arrays that have no elements, or of which there are none, any size is as good as another.
        is_free = place[0] == "fields" and (not footer["n"] or 0 in footer["fields"][place[1]].get("shape", ()))
        for number in (*HUGE, -1):
            yield resealed(data, put(*place, number)), not is_free
    for fields in (HEADER_FIELDS, TRAILER_FIELDS):
        for field, (offset, size) in fields.items():
            old = data[offset:][:size]
            for new in (little(number % 256**size, size) for number in HUGE):
                yield resealed(data, patch={offset: new}), new != old and field not in ("minor", "compatible", "crc")
    for section in footer["sections"]:
        size = np.dtype(section["dtype"]).itemsize
        count = int(np.prod(section["shape"]))
        for entry in np.linspace(0, count - 1, ENTRIES).astype(int).tolist() if count else ():
            for number in HUGE:
                at = section["offset"] + 128 + entry * size
                yield resealed(data, patch={at: little(number % 256**size, size)}), False


def refuse_all(*names: str) -> tuple[int, int]:
    """Read all those files; return how many were refused, and how many could be read: where a number is only a value."""
    for name in names:  # loads what is loaded on first use
        assert exercise(golden(name), thorough=True) == READ
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 512 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = read = 0
    for name in names:
        for data, is_size in declaring(name):
            if exercise(data) != READ:
                refused += 1
            else:
                read += 1
                assert not is_size, f"{name}: file number {refused + read} is read"
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert more < 64 * 1024, f"{more} KB"
    with pytest.raises(MemoryError):
        np.ones(2**30, np.uint8)
    return refused, read


def check(names: tuple[str, ...], cases: Cases) -> None:
    """Do that in a process of its own."""
    done = run_script(f"from tests.faults.test_declared import refuse_all; print(*refuse_all(*{names!r}))")
    assert done.returncode == 0, done.stderr
    refused, read = map(int, done.stdout.split())
    assert refused > 200 * len(names)
    cases(refused + read)


def test_14_declared_sizes_allocate_nothing(cases: Cases) -> None:
    check(QUICK, cases)


@pytest.mark.stress
@pytest.mark.parametrize("name", sorted(set(GOLDEN) - set(QUICK)))
def test_14_declared_sizes_of_every_golden_file(name: str, cases: Cases) -> None:
    check((name,), cases)
