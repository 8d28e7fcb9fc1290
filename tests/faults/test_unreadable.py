"""Rows 17 and 18: disks that fail and files that are cut short while they are read, with ``verify="read"`` and through maps."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

import mmds
from mmds.errors import ChangedError, FormatError, StorageError
from mmds.format import BLOCK
from tests.conftest import Cases
from tests.faults.disk import Disk, disk
from tests.faults.machine import needs_loop_device

COUNT = 60


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Disk]:
    with disk(tmp_path, megabytes=48) as found:
        yield found


def write(path: Path) -> Path:
    """Write samples of 100 KB, ten or eleven to a block, with text in the index."""
    with mmds.Writer(path, {"x": mmds.Array("uint8", (100_000,)), "text": mmds.Text(column=True)}) as writer:
        for k in range(COUNT):
            writer.write({"x": np.full(100_000, k, "uint8"), "text": f"text {k}" * 50})
    return path


def readable(path: Any) -> tuple[list[int], list[StorageError]]:
    """Return which samples can be read, and the errors of the others."""
    reader, found, errors = mmds.open(path, verify="read"), [], []
    for k in range(len(reader)):
        try:
            assert reader[k]["x"][0] == k % COUNT and reader[k]["text"].startswith(f"text {k % COUNT}")
            found.append(k)
        except StorageError as error:
            errors.append(error)
    return found, errors


@needs_loop_device
@pytest.mark.fault(18)
@pytest.mark.parametrize("block", [0, 2, 4])
def test_18_a_block_that_cannot_be_read_is_named_and_other_samples_are_readable(
    block: int, small: Disk, cases: Cases
) -> None:
    path = write(small.root / "a.mmds")
    small.unreadable(path, block * BLOCK + 70_000)
    found, errors = readable(path)
    first, last = max(0, (block * BLOCK - 4096) // 100_032), ((block + 1) * BLOCK - 4096 - 1) // 100_032
    assert found == [*range(first), *range(last + 1, COUNT)]
    for error in errors:
        assert error.errno == errno.EIO
        assert f"a.mmds: block {block} (bytes" in str(error)
        assert f"cannot be read (Input/output error): samples {first} to {last}, field x" in str(error)
    damages = mmds.verify(path).damages
    assert [(damage.samples, damage.fields) for damage in damages] == [((first, last + 1), ("x",))]
    saved = mmds.repair(path, small.root / "b.mmds")
    assert [sample["x"][0] for sample in mmds.open(small.root / "b.mmds")] == found
    assert saved.samples_lost == last + 1 - first
    cases(COUNT)


@needs_loop_device
@pytest.mark.fault(18)
@pytest.mark.parametrize("part", ["ends", "values", "blocks", "footer", "header"])
def test_18_an_index_that_cannot_be_read(part: str, small: Disk) -> None:
    path = write(small.root / "a.mmds")
    footer = mmds.open(path).footer
    size = path.stat().st_size
    sections = {"ends": footer.section("ends"), "values": footer.section("values", 1), "blocks": footer.sections[-1]}
    small.unreadable(path, {"footer": size - 100, "header": 10}.get(part) or sections[part].data)
    with pytest.raises((StorageError, FormatError), match=r"a\.mmds"):
        list(mmds.open(path, verify="read"))
    assert not mmds.verify(path)


@needs_loop_device
@pytest.mark.fault(18)
def test_18_other_shards_are_readable(small: Disk, cases: Cases) -> None:
    paths = [write(small.root / f"{k}.mmds") for k in range(3)]
    small.unreadable(paths[1], 3 * BLOCK)
    found, errors = readable(paths)
    assert set(found) >= {*range(COUNT), *range(2 * COUNT, 3 * COUNT)} and 0 < len(errors) < 25
    assert all("1.mmds: block 2" in str(error) or "1.mmds: block 3" in str(error) for error in errors)
    cases(3 * COUNT)


@needs_loop_device
@pytest.mark.fault(18)
def test_18_without_verify_read_it_is_a_signal_as_the_documentation_says(small: Disk) -> None:
    path = write(small.root / "a.mmds")
    small.unreadable(path, 2 * BLOCK)
    script = "import mmds, sys; [sample['x'].sum() for sample in mmds.open(sys.argv[1], verify=sys.argv[2])]"
    for verify, code in (("off", -signal.SIGBUS), ("read", 1)):
        command = [sys.executable, "-c", script, str(path), verify]
        assert subprocess.run(command, capture_output=True, check=False).returncode == code


@pytest.mark.fault(17)
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.stress)])
def test_17_a_file_cut_short_in_the_middle_of_an_epoch(start: str, tmp_path: Path) -> None:
    dataset = mmds.MemoryMappedDataset(write(tmp_path / "a.mmds"), verify="read")
    loader = DataLoader(dataset, 4, num_workers=2, multiprocessing_context=start, prefetch_factor=1)
    batches = iter(loader)
    next(batches)
    os.truncate(tmp_path / "a.mmds", 2 * BLOCK)
    # a worker that had not opened it yet finds no trailer
    with pytest.raises(
        (ChangedError, FormatError), match=r"a\.mmds(: no trailer| has become shorter while it was read)"
    ):
        list(batches)
