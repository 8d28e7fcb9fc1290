"""The file behind a `SharedDataset`, and the samples of `mmds.share`, after somebody else has written to it.

Whoever may write to it is the same user, or root: what they do is noticed where it would give another sample than the dataset
has, and is not a signal. That is not so if the file is made shorter while it is open: see docs/security.md.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmds.errors import FormatError, MmdsError
from mmds.samplecache import ALIGN, HEAD, HEADER, TABLE
from mmds.shareddataset import SharedDataset
from tests.conftest import Cases
from tests.faults.machine import needs_root, run_script

COUNT = 12
EXTREMES = (1, 63, 64, 4096, TABLE + 8 * COUNT, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 64, 2**64 - 1)


class Numbers:
    """A dataset that says how often it was read."""

    def __init__(self) -> None:
        self.reads = 0

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads += 1
        return {"number": index, "array": np.full(5 + index, index, np.int32)}


def right(sample: Any, index: int) -> bool:
    """Return whether this is sample `index`, of which nothing differs."""
    wanted = Numbers()[index]
    return bool(sample["number"] == index and np.array_equal(sample["array"], wanted["array"]))


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """Return the file of a cache that holds every sample, after its only process has closed it."""
    shared = SharedDataset(Numbers(), "x", directory=tmp_path, capacity=2**16)
    assert all(right(shared[index], index) for index in range(COUNT))
    shared.close()
    return shared.path


def outcome(path: Path) -> str:
    """Read all samples through the cache at `path`; return whether they were kept, read again, or refused."""
    dataset = Numbers()
    shared = SharedDataset(dataset, "x", directory=path.parent, capacity=2**16)
    refused = 0
    try:
        for index in range(COUNT):
            try:
                assert right(shared[index], index), index
            except FormatError as error:
                if "sample" not in str(error).partition("mmds-cache: ")[2][:6]:
                    raise
                refused += 1
    except MmdsError:
        return "refused"
    finally:
        shared.close()
    return "damaged samples" if refused else "read again" if dataset.reads else "kept"


@pytest.mark.fault(26, 29)
def test_29_every_byte_of_header_and_table(filled: Path, cases: Cases) -> None:
    """Every bit of what the header says, and every byte of the table and of the first records, flipped."""
    whole = filled.read_bytes()
    places = [(at, 1 << bit) for at in range(HEADER.itemsize) for bit in range(8)]
    places += [(at, 0xFF) for at in range(TABLE, TABLE + 8 * COUNT + 400)]
    found = set()
    for at, change in places:
        data = bytearray(whole)
        data[at] ^= change
        filled.write_bytes(data)
        found.add(outcome(filled))
    assert found == {"refused", "damaged samples", "kept", "read again"}  # kept: `full`, and what lies between records
    cases(len(places))


@pytest.mark.fault(26, 29)
def test_29_a_cache_that_ends_early(filled: Path, cases: Cases) -> None:
    whole = filled.read_bytes()
    lengths = [*range(HEADER.itemsize + 2), *range(HEADER.itemsize, len(whole), 97), len(whole) - 1]
    for length in lengths:
        filled.write_bytes(whole[:length])
        assert outcome(filled) == ("refused" if length else "read again"), length  # an empty one is made
        if not length:
            filled.unlink()
    cases(len(lengths))


@pytest.mark.fault(26, 29)
def test_29_a_shorter_cache_that_says_so(filled: Path, cases: Cases) -> None:
    """With a header that fits: the table, or what it points to, lies behind the end."""
    whole = filled.read_bytes()
    lengths = [*range(64, TABLE + 8 * COUNT + 200, 41), *range(TABLE, len(whole), 1009)]
    for length in lengths:
        data = bytearray(whole[:length])
        data[32:40] = struct.pack("<Q", length)  # size
        filled.write_bytes(data)
        assert outcome(filled) in ("refused", "damaged samples", "kept"), length
    cases(len(lengths))


@pytest.mark.fault(26, 29)
def test_29_table_and_lengths_that_lead_anywhere(filled: Path, cases: Cases) -> None:
    whole = filled.read_bytes()
    starts = np.frombuffer(whole, "<u8", COUNT, TABLE).tolist()
    draw = random.Random(1)
    count = 0
    for value in (*EXTREMES, *starts[1:], *(draw.randrange(len(whole)) // ALIGN * ALIGN for _ in range(200))):
        for place in (TABLE, starts[0] - HEAD, 40):  # the entry of sample 0, its length, where the next record goes
            data = bytearray(whole)
            data[place : place + 8] = struct.pack("<Q", value)
            filled.write_bytes(data)
            outcome(filled)
            count += 1
    swapped = bytearray(whole)  # each record is whole, but it is another sample's
    swapped[TABLE : TABLE + 8 * COUNT] = np.array(starts[::-1], "<u8").tobytes()
    filled.write_bytes(swapped)
    assert outcome(filled) == "damaged samples"
    cases(count + 1)


@pytest.mark.fault(26, 29)
def test_29_memory_of_another_header_that_is_in_use_is_refused(cases: Cases) -> None:
    """Who finds a damaged file that others have open waits for them, but not for ever."""
    name = f"test-{os.getpid()}-{random.getrandbits(32)}"
    first = SharedDataset(Numbers(), name, capacity=2**16)
    assert right(first[0], 0)
    with first.path.open("r+b") as file:
        file.write(b"nonsense")
    second = SharedDataset(Numbers(), name, capacity=2**16)
    with pytest.raises(FormatError, match="damaged, but in use"):
        second[0]
    assert right(first[1], 1)
    first.close()
    third = SharedDataset(Numbers(), name, capacity=2**16)  # nobody has it open now: it is made again
    assert right(third[2], 2)
    third.close()
    assert not third.path.exists()
    cases(2)


@pytest.mark.fault(26, 29)
def test_29_samples_in_memory_are_checked_by_each_process(cases: Cases) -> None:
    name = f"test-{os.getpid()}-{random.getrandbits(32)}"
    first = SharedDataset(Numbers(), name, capacity=2**16)
    assert all(right(first[index], index) for index in range(COUNT))
    with first.path.open("r+b") as file:
        file.seek(TABLE)
        starts = np.frombuffer(file.read(8 * COUNT), "<u8")
        file.seek(int(starts[3]))
        file.write(b"\xff")
        file.seek(TABLE + 8 * 4)
        file.write(struct.pack("<QQ", 2**63, int(starts[0])))
    second = SharedDataset(Numbers(), name, capacity=2**16)
    for index in (3, 4, 5):
        with pytest.raises(FormatError, match=f"sample {index} is damaged"):
            second[index]
    assert right(second[6], 6)
    first.close()
    second.close()
    cases(4)


@pytest.mark.fault(29)
def test_29_what_is_no_file_is_refused_and_left_alone(tmp_path: Path, cases: Cases) -> None:
    path = tmp_path / "x.mmds-cache"
    (tmp_path / "victim").write_text("whole")

    def device() -> None:
        if os.geteuid() == 0:
            os.mknod(path, 0o020666, os.makedev(1, 5))
        else:
            os.mkfifo(path)

    makers: tuple[Callable[[], Any], ...] = (
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("victim"),
        lambda: path.symlink_to("nothing"),
        path.mkdir,
        device,
    )
    for make in makers:
        make()
        with pytest.raises(MmdsError):
            SharedDataset(Numbers(), "x", directory=tmp_path, capacity=2**16)[0]
        assert os.path.lexists(path)
        path.rmdir() if path.is_dir() else path.unlink()
    assert (tmp_path / "victim").read_text() == "whole" and not (tmp_path / "nothing").exists()
    cases(len(makers))


OTHER_USER = """
import os, sys
from tests.faults.test_cache import Numbers
from mmds.shareddataset import SharedDataset
from mmds.errors import MmdsError
SharedDataset(Numbers(), "y", directory=sys.argv[2], capacity=2**16)[0]  # imports what is needed
os.setgroups([]); os.setgid(65534); os.setuid(65534)
shared = SharedDataset(Numbers(), "x", capacity=2**16)
type(shared).path = property(lambda self: __import__("pathlib").Path(sys.argv[1]))
try:
    print("read", shared[0])
except MmdsError as error:
    print("refused", error)
"""


@needs_root
@pytest.mark.fault(29)
def test_29_another_user_neither_reads_nor_takes_it(tmp_path: Path) -> None:
    name = f"test-{os.getpid()}-{random.getrandbits(32)}"
    shared = SharedDataset(Numbers(), name, capacity=2**16)
    assert right(shared[0], 0)
    assert shared.path.stat().st_mode & 0o077 == 0
    done = run_script(OTHER_USER, shared.path, tmp_path)
    assert done.stdout.startswith("refused") and "Permission denied" in done.stdout, done.stdout + done.stderr
    assert right(shared[1], 1)
    shared.close()
