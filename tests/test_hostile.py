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
from pathlib import Path

import pytest

import mmds
from mmds.errors import FormatError, MmdsError
from tests import independent_reader
from tests.likeness import alike
from tests.resealing import golden, read_all, resealed, text_of

TRUNCATED = ("constant_stride", "empty", "keys", "nested", "nullable", "strings")
FLIPPED = ("constant_stride", "empty", "nested", "ragged", "strings")
EVERY_BIT = tuple(1 << bit for bit in range(8))


def refused(data: bytes) -> tuple[bool, bool]:
    """Return whether mmds and the independent reader refuse a file; any other exception passes through."""
    answers = []
    for read, error in ((read_all, MmdsError), (independent_reader.read, independent_reader.Bad)):
        try:
            read(data)
            answers.append(False)
        except error:
            answers.append(True)
    return answers[0], answers[1]


def truncations(name: str) -> list[str]:
    data = golden(name)
    return [f"length {n}" for n in range(len(data)) if refused(data[:n]) != (True, True)]


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


def flips(name: str) -> list[str]:
    """Flip every bit of the file, of the zeros after the header one per byte; return what went wrong."""
    data, values = golden(name), unguarded(golden(name))
    changed, complaints = bytearray(data), []
    for offset in range(len(data)):
        for bit in (1 << offset % 8,) if 64 <= offset < 4096 else EVERY_BIT:
            changed[offset] ^= bit
            try:
                if offset not in values:
                    if refused(bytes(changed)) != (True, True):
                        complaints.append(f"byte {offset}, bit {bit}: accepted")
                elif not _agree(bytes(changed), name == "constant_stride"):
                    complaints.append(f"byte {offset}, bit {bit}: the readers differ")
            except Exception as error:  # noqa: BLE001 (that is what is looked for)
                complaints.append(f"byte {offset}, bit {bit}: {error!r}")
            changed[offset] ^= bit
    return complaints


def _agree(data: bytes, constant: bool) -> bool:
    """Return whether mmds refuses, or both readers give the same samples.

    Where items have constant positions, mmds need not look at `ends`, and the other reader does.
    """
    try:
        samples = read_all(data)
    except MmdsError:
        return True
    try:
        return alike(independent_reader.read(data), samples)
    except independent_reader.Bad:
        return constant


@pytest.fixture(scope="module")
def sweeps() -> Iterator[dict[tuple[str, str], Future[list[str]]]]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {("flips", name): pool.submit(flips, name) for name in FLIPPED}
        futures |= {("truncations", name): pool.submit(truncations, name) for name in TRUNCATED}
        yield futures


@pytest.mark.parametrize("name", TRUNCATED)
def test_a_file_cut_short_anywhere_is_refused(name: str, sweeps: dict[tuple[str, str], Future[list[str]]]) -> None:
    assert sweeps["truncations", name].result() == []


@pytest.mark.parametrize("name", FLIPPED)
def test_a_flipped_bit_is_refused_or_changes_a_value(
    name: str, sweeps: dict[tuple[str, str], Future[list[str]]]
) -> None:
    assert sweeps["flips", name].result() == []


@pytest.mark.parametrize("length", [0, 1, 8, 64, 4095, 4096, 4159, 4160, -65, -64, -8, -1])
def test_a_file_on_disk_cut_short_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.mmds"
    path.write_bytes(golden("strings")[:length])
    with pytest.raises(FormatError, match=r"cut\.mmds: "):
        mmds.open(path)


@pytest.mark.parametrize("offset", [0, 9, 13, 30, 62, 64, 4095, -1, -20, -60, -100])
def test_a_file_on_disk_with_a_flipped_bit_is_refused(offset: int, tmp_path: Path) -> None:
    data = bytearray(golden("strings"))
    data[offset] ^= 4
    path = tmp_path / "flipped.mmds"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"flipped\.mmds: "):
        mmds.open(path)


@pytest.mark.stress
@pytest.mark.parametrize("name", ["keys", "compressed", "dictionaries"])
def test_a_flipped_bit_of_a_key_or_a_frame(name: str) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(flips, name).result() == []
        assert pool.submit(truncations, name).result() == []


def test_resealing_alone_breaks_nothing() -> None:
    data = golden("strings")
    assert resealed(data) == resealed(data, lambda footer: None) == data
