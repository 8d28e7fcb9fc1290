"""What of a `SharedDataset` `test_shared_dataset.py` does not reach: no room at all, odd names, what is written to a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds import Array, Scalar, SharedDataset, Text
from mmds.errors import ExistsError, SchemaError
from tests.faults.machine import files_of_at_most

SIZE = 2**20


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Callable[[Any], SharedDataset]]:
    """The function that shares a list in a folder."""
    opened: list[SharedDataset] = []

    def share(samples: Any) -> SharedDataset:
        opened.append(SharedDataset(samples, f"{len(opened)}", directory=tmp_path, capacity=SIZE))
        return opened[-1]

    yield share
    for dataset in opened:
        dataset.close()


def test_a_shared_dataset_needs_a_name() -> None:
    with pytest.raises(ValueError, match="name=''"):
        SharedDataset([1], "")


def test_what_it_shows_is_safe_to_print() -> None:
    assert repr(SharedDataset([1, 2], "a\x1bb")) == "SharedDataset([1, 2], 'a\\x1bb')"


def test_what_it_does_not_have_is_what_the_dataset_has(shared: Callable[[Any], SharedDataset]) -> None:
    dataset = shared([1, 2, 2])
    assert dataset.count(2) == 2
    for name in ("missing", "__array__"):
        with pytest.raises(AttributeError):
            getattr(dataset, name)


def test_the_fields_of_what_persists_fit_all_samples(shared: Callable[[Any], SharedDataset], tmp_path: Path) -> None:
    samples = [{"x": np.zeros((2, k), "uint8"), "y": None if k == 1 else "text", "z": k} for k in range(3)]
    shared(samples).persist(tmp_path / "a.mmds")
    reader = mmds.open(tmp_path / "a.mmds")
    assert reader.fields == mmds.Schema(
        {"x": Array("uint8", (2, None)), "y": Text(nullable=True), "z": Scalar("int64")}
    )
    assert [sample["y"] for sample in reader] == ["text", None, "text"]


def test_the_fields_of_what_persists_may_be_given(shared: Callable[[Any], SharedDataset], tmp_path: Path) -> None:
    shared([1, 2]).persist(tmp_path / "a.mmds", Scalar("int16"))
    assert mmds.open(tmp_path / "a.mmds").fields == mmds.Schema(Scalar("int16"))
    with pytest.raises(ExistsError):
        shared([3]).persist(tmp_path / "a.mmds")
    shared([3]).persist(tmp_path / "a.mmds", overwrite=True)
    assert list(mmds.open(tmp_path / "a.mmds")) == [3]
    with pytest.raises(SchemaError, match="no samples and no fields"):
        shared([]).persist(tmp_path / "b.mmds")


def test_without_room_for_a_table_the_dataset_is_read_with_one_warning(
    shared: Callable[[Any], SharedDataset], tmp_path: Path
) -> None:
    dataset = shared([1, 2, 3])
    with files_of_at_most(1000), pytest.warns(RuntimeWarning, match="is full: 0 samples take 0 bytes") as caught:
        assert list(dataset) == [1, 2, 3]
        assert [dataset[1], dataset[-1], len(dataset), dataset.filled] == [2, 3, 3, 0]
    assert len(caught) == 1
    assert list(tmp_path.iterdir()) == []
    dataset.close()
    assert list(dataset) == [1, 2, 3] and dataset.filled == 3  # there is room again


def test_a_forked_child_does_not_close_what_its_parent_has(shared: Callable[[Any], SharedDataset]) -> None:
    dataset = shared([1, 2])
    assert dataset[1] == 2
    pid = os.fork()
    if pid == 0:
        dataset.close()
        os._exit(0 if dataset[1] == 2 and dataset.filled == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (dataset[1], dataset.filled) == (2, 1)
