"""Long sweeps, run by `make stress`: the counts that the reliability promises name."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest

import mmds
from mmds.errors import MmdsError
from tests.conftest import Cases
from tests.samples import write_every_kind
from tests.test_integrity import flip, write_ragged

pytestmark = pytest.mark.stress


@pytest.mark.fault(12)
def test_12_ten_thousand_flipped_payload_bits_are_all_found_and_named(tmp_path: Path, cases: Cases) -> None:
    path = write_ragged(tmp_path / "a.mmds", 100)
    reader = mmds.open(path)
    ends = np.array(reader.footer.section("ends").shape)
    ends = np.frombuffer(path.read_bytes(), "<u8", int(ends[0]), reader.footer.section("ends").data)
    chance = random.Random(0)
    for _ in range(10_000):
        offset, bit = chance.randrange(4096, reader.footer.data_end), chance.randrange(8)
        flip(path, offset, bit)
        item = int(np.searchsorted(ends, offset, "right")) - 1
        damages = mmds.verify(path, num_workers=1).damages
        assert any(
            d.samples and d.samples[0] <= item // 2 < d.samples[1] and "ab"[item % 2] in d.fields for d in damages
        )
        flip(path, offset, bit)
    cases(10_000)


@pytest.mark.fault(10)
def test_10_a_64_kb_file_cut_at_every_length(tmp_path: Path, cases: Cases) -> None:
    path = write_every_kind(tmp_path / "a.mmds", 36)
    size = path.stat().st_size
    assert size >= 2**16
    for length in reversed(range(size)):
        os.truncate(path, length)
        with pytest.raises(MmdsError):
            mmds.open(path)
    cases(size)


@pytest.mark.fault(23)
def test_ten_thousand_opens_leave_nothing_behind(tmp_path: Path) -> None:
    path = write_every_kind(tmp_path / "a.mmds")
    maps = Path("/proc/self/maps")
    for number in range(10_000):
        assert mmds.open(path)[number % 40]["count"] == number % 40
        if number == 100:
            before = len(list(Path("/proc/self/fd").iterdir())), len(maps.read_text().splitlines())
    assert len(list(Path("/proc/self/fd").iterdir())) == before[0]
    assert len(maps.read_text().splitlines()) <= before[1] + 2
