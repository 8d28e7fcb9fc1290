"""`in_memory=True`: the same samples from private memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

import mmds
from mmds.errors import SourceError
from tests.likeness import assert_alike
from tests.samples import write_every_kind

FIELDS = ["array", "small", "count", "score", "flag", "label"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_every_kind(tmp_path / "a.mmds")


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def plain(batch: Any) -> Any:
    """Jagged values and tensors as arrays, which `assert_alike` compares bit by bit."""
    if isinstance(batch, mmds.Jagged):
        return [batch.values, batch.offsets]
    if isinstance(batch, dict):
        return {name: plain(value) for name, value in batch.items()}
    return batch.numpy() if hasattr(batch, "numpy") else batch


@pytest.mark.parametrize("ragged", ["list", "jagged"])
def test_samples_and_batches_are_the_same(path: Path, ragged: Any) -> None:
    in_memory, mapped = mmds.open(path, in_memory=True), mmds.open(path)
    assert_alike(list(in_memory), list(mapped))
    assert_alike(plain(in_memory.gather([5, 30, 5, 0], ragged)), plain(mapped.gather([5, 30, 5, 0], ragged)))
    in_memory.prefetch([5])


def test_nothing_is_mapped(path: Path) -> None:
    reader = mmds.open(path, in_memory=True)
    several = mmds.open([path, path], in_memory=True)
    assert_alike(several[45], reader[5])
    assert not is_mapped(path)
    other = mmds.open(path)
    assert is_mapped(path)
    del other


@pytest.mark.parametrize("workers", [0, 2])
def test_one_argument_and_nothing_else_changes(path: Path, workers: int) -> None:
    batches = [
        list(
            map(
                plain, DataLoader(mmds.MemoryMappedDataset(path, fields=FIELDS, in_memory=each), 8, num_workers=workers)
            )
        )
        for each in (False, True)
    ]
    assert_alike(batches[1], batches[0])
    dataset = mmds.MemoryMappedDataset(path, fields=FIELDS, in_memory=True)
    assert_alike(list(map(plain, mmds.Loader(dataset, 8, release=True))), batches[0])
    assert not is_mapped(path)


def test_a_file_may_be_cut_afterwards(path: Path) -> None:
    want = mmds.open(path, in_memory=True)[3]
    reader = mmds.open(path, in_memory=True)
    path.write_bytes(b"")  # would be SIGBUS
    assert_alike(reader[3], want)


def test_other_stores_have_no_such_thing(path: Path, tmp_path: Path) -> None:
    mmds.convert(path, tmp_path / "a.npyd", fields=["array"])
    with pytest.raises(SourceError, match=r"in_memory=True is for \.mmds files, and this is npy"):
        mmds.open(tmp_path / "a.npyd", in_memory=True)
