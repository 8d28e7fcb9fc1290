"""Python objects and datasets in stores as sources: what is asked for samples, what hands them over, what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

import mmds
from mmds.errors import SourceError
from mmds.objects import Indexed, Iterated, Stored, as_source
from tests.steps import Slow


def all_of(source: Iterated | Indexed) -> list[Any]:
    return [source.load(item) for item in source.items()]


class Stream(IterableDataset[int]):
    """Has a length and, from its base, a `__getitem__` that only raises."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[int]:
        return iter((5, 6, 7))


class Endless:
    """Has a `__len__` that says that there is no length."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> int:
        raise AssertionError("is not asked")

    def __iter__(self) -> Iterator[int]:
        return iter((5, 6))


@pytest.mark.parametrize(
    ("given", "kind", "samples"),
    [
        ([3, 4], Iterated, [3, 4]),
        ((3, 4), Iterated, [3, 4]),
        (np.arange(2), Iterated, [0, 1]),
        ({7}, Iterated, [7]),
        (Stream(), Iterated, [5, 6, 7]),
        (Endless(), Iterated, [5, 6]),
        (range(2, 5), Indexed, [2, 3, 4]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_asked_and_what_hands_over(given: Any, kind: type, samples: list[Any]) -> None:
    source = as_source(given)
    assert type(source) is kind and all_of(source) == samples
    assert [item[0] for item in source.items()] == [f"sample {number}" for number in range(len(samples))]


def test_lengths_that_are_known_and_those_that_are_not() -> None:
    assert len(as_source([3, 4])) == 2 and len(as_source(Slow(9))) == 9 and len(as_source(Stream())) == 3
    for given in (iter([1]), Endless()):
        with pytest.raises((TypeError, NotImplementedError)):
            len(as_source(given))


def test_a_map_style_dataset_goes_to_workers_and_its_samples_do_not() -> None:
    source = as_source(TensorDataset(torch.arange(6.0).reshape(3, 2)))
    items = list(source.items())
    assert items == [("sample 0", 0), ("sample 1", 1), ("sample 2", 2)]
    (row,) = pickle.loads(pickle.dumps(source.load))(items[2])
    assert row.tolist() == [4.0, 5.0]


@pytest.mark.parametrize("given", [{"a": 1}, "text", b"bytes", 5, None], ids=repr)
def test_what_is_no_source_is_refused(given: Any) -> None:
    with pytest.raises(SourceError, match=f"cannot convert a {type(given).__name__}"):
        as_source(given)


def test_a_dataset_is_opened_by_each_process_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.mmds"
    with mmds.Writer(path, {"n": mmds.Scalar("int8"), "label": mmds.Label(("x", "y"))}, metadata={"made": 1}) as writer:
        writer.extend({"n": n, "label": n % 2} for n in range(5))
    source = Stored(partial(mmds.open, path), {"class": "label"})
    assert len(source) == 5 and dict(source.metadata) == {"made": 1}
    assert source.fields.names == ("class",) and source.fields[0].kind == mmds.Label(("x", "y"))
    assert all_of(source)[3] == {"class": 1}
    load = pickle.dumps(source.load)  # also after it has been read
    assert len(load) < 1000
    path.rename(tmp_path / "b.mmds")
    with pytest.raises(FileNotFoundError):  # opened again, not taken along
        pickle.loads(load)(("sample 0", 0))
