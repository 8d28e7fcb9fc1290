"""Files cut short at every length and damaged in every bit: an error of mmds, or the samples as they were.

Header, section headers, padding, footer and trailer are guarded at open, by both readers. Of the index and the payload
only what decides where bytes are read is looked at, so that opening stays O(1): a flip there may change values, which is
what `verify` is for, but gives no other exception. All sweeps run in processes of their own, which a signal would end.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest

import mmds
from mmds.errors import FormatError, MmdsError
from tests import independent_reader
from tests.conftest import Cases
from tests.faults.exercise import MANY, exercise
from tests.make_golden import GOLDEN
from tests.resealing import golden, read_all, resealed, text_of

TRUNCATED = ("constant_stride", "empty", "keys", "nested", "nullable", "strings")
FLIPPED = ("empty", "nested", "strings")  # the others take minutes
EVERY_BIT = tuple(1 << bit for bit in range(8))
Sweep = tuple[int, list[str]]  # how many cases there were, and what went wrong


def refused(data: bytes) -> tuple[bool, bool]:
    """Return whether mmds and the independent reader refuse a file; any other exception passes through."""
    answers = []
    for read, error in (
        (partial(read_all, limit=MANY), MmdsError),
        (partial(independent_reader.read, limit=MANY), independent_reader.Bad),
    ):
        try:
            read(data)
            answers.append(False)
        except error:
            answers.append(True)
    return answers[0], answers[1]


def truncations(name: str) -> Sweep:
    """Cut a golden file at every length."""
    data = golden(name)
    return len(data), [f"length {n}" for n in range(len(data)) if refused(data[:n]) != (True, True)]


def unguarded(data: bytes) -> set[int]:
    """Return the offsets whose bytes are values: data without padding (as far as it can be told) and section arrays."""
    footer = json.loads(text_of(data))
    spans = [range(4096, footer["data"][1])]
    for section in footer["sections"]:
        size = int(section["dtype"][2:])
        for length in section["shape"]:
            size *= length
        spans.append(range(section["offset"] + 128, section["offset"] + 128 + size))
    return {offset for span in spans for offset in span}


def flips(name: str, exhaustive: bool = False) -> Sweep:
    """Flip every bit of a golden file; unless `exhaustive`, only one per byte of values, and of the zeros behind the header."""
    data, values = golden(name), unguarded(golden(name))
    changed, complaints, count = bytearray(data), [], 0
    for offset in range(len(data)):
        one = not exhaustive and (64 <= offset < 4096 or offset in values)
        for bit in (1 << offset % 8,) if one else EVERY_BIT:
            changed[offset] ^= bit
            count += 1
            try:
                if offset in values:
                    exercise(bytes(changed))  # which compares the readers
                elif refused(bytes(changed)) != (True, True):
                    complaints.append(f"byte {offset}, bit {bit}: accepted")
            except Exception as error:  # noqa: BLE001 (that is what is looked for)
                complaints.append(f"byte {offset}, bit {bit}: {error!r}")
            changed[offset] ^= bit
    return count, complaints


@pytest.fixture(scope="module")
def sweeps() -> Iterator[dict[tuple[str, str], Future[Sweep]]]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {("flips", name): pool.submit(flips, name) for name in FLIPPED}
        futures |= {("truncations", name): pool.submit(truncations, name) for name in TRUNCATED}
        yield futures


@pytest.mark.fault(10)
@pytest.mark.parametrize("name", TRUNCATED)
def test_10_a_file_cut_short_anywhere_is_refused(
    name: str, sweeps: dict[tuple[str, str], Future[Sweep]], cases: Cases
) -> None:
    count, complaints = sweeps["truncations", name].result()
    assert complaints == []
    cases(count)


@pytest.mark.fault(11)
@pytest.mark.parametrize("name", FLIPPED)
def test_11_a_flipped_bit_is_refused_or_changes_a_value(
    name: str, sweeps: dict[tuple[str, str], Future[Sweep]], cases: Cases
) -> None:
    count, complaints = sweeps["flips", name].result()
    assert complaints == []
    cases(count)


@pytest.mark.stress
@pytest.mark.fault(10, 11)
@pytest.mark.parametrize("name", GOLDEN)
def test_11_every_bit_and_every_length_of_every_golden_file(name: str, cases: Cases) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for sweep in (pool.submit(flips, name, True), pool.submit(truncations, name)):
            count, complaints = sweep.result()
            assert complaints == []
            cases(count)


@pytest.mark.fault(10)
@pytest.mark.parametrize("length", [0, 1, 8, 64, 4095, 4096, 4159, 4160, -65, -64, -8, -1])
def test_10_a_file_on_disk_cut_short_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.mmds"
    path.write_bytes(golden("strings")[:length])
    with pytest.raises(FormatError, match=r"cut\.mmds: "):
        mmds.open(path)


@pytest.mark.fault(11)
@pytest.mark.parametrize("offset", [0, 9, 13, 30, 62, 64, 4095, -1, -20, -60, -100])
def test_11_a_file_on_disk_with_a_flipped_bit_is_refused(offset: int, tmp_path: Path) -> None:
    data = bytearray(golden("strings"))
    data[offset] ^= 4
    path = tmp_path / "flipped.mmds"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"flipped\.mmds: "):
        mmds.open(path)


def test_resealing_alone_breaks_nothing() -> None:
    data = golden("strings")
    assert resealed(data) == resealed(data, lambda footer: None) == data
