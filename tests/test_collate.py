"""A batch from a plain `DataLoader` equals what default collation makes of single samples, for everything that loads data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    StackDataset,
    Subset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)

import mmds
from mmds import sending
from mmds.collate import Batch, SampleDict, SampleTensor
from mmds.items import FixedItems
from tests.samples import write_every_kind, write_fixed

ROWS = [3, 1, 4, 1, 5, 9, 2, 6]
COLLATABLE = ["image", "array", "small", "bf16", "count", "score", "flag", "label", "nested"]


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_every_kind(tmp_path_factory.mktemp("every") / "kind.mmds")


def _batch(dataset: mmds.MemoryMappedDataset, rows: list[int]) -> Any:
    return dataset.__getitems__(rows)


def assert_same(got: Any, want: Any) -> None:
    """Check that two batches are equal, in values, dtypes and containers."""
    assert type(got) is type(want)
    if isinstance(want, dict):
        assert list(got) == list(want)
        for key in want:
            assert_same(got[key], want[key])
    elif isinstance(want, (list, tuple)):
        assert len(got) == len(want)
        for mine, theirs in zip(got, want, strict=True):
            assert_same(mine, theirs)
    elif isinstance(want, torch.Tensor):
        assert got.dtype == want.dtype and torch.equal(got, want)
    else:
        assert got == want


@pytest.mark.parametrize("format", ["torch", "numpy", "raw"])
@pytest.mark.parametrize(
    "fields",
    [COLLATABLE, ("image", "label"), ("nested", "score"), "array", "label", "image", "bf16", {"x": ("small", "flag")}],
)
def test_a_batch_is_what_default_collation_makes_of_its_samples(every_kind: Path, format: str, fields: Any) -> None:
    dataset = mmds.MemoryMappedDataset(every_kind, fields=fields, format=format)
    assert_same(default_collate(_batch(dataset, ROWS)), default_collate([dataset[row] for row in ROWS]))


def test_every_scalar_type_collates_as_python_numbers_do(tmp_path: Path) -> None:
    names = [
        "bool",
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "float16",
        "float32",
        "float64",
    ]
    with mmds.Writer(tmp_path / "a.mmds", {name: mmds.Scalar(name) for name in names}) as writer:
        writer.extend({name: bool(i) if name == "bool" else i for name in names} for i in (0, 1, 1))
    dataset = mmds.MemoryMappedDataset(tmp_path / "a.mmds")
    assert_same(default_collate(_batch(dataset, [0, 1, 2])), default_collate([dataset[row] for row in range(3)]))


def test_custom_collate_functions_see_a_sequence_of_samples(every_kind: Path) -> None:
    pairs = mmds.MemoryMappedDataset(every_kind, fields=("array", "label"))
    batch = pairs.__getitems__(ROWS)
    assert len(batch) == len(ROWS) and [label for _, label in batch] == [row % 3 for row in ROWS]
    arrays, labels = zip(*batch, strict=True)
    assert torch.stack(arrays).shape == (8, 3, 100) and labels == tuple(row % 3 for row in ROWS)
    assert batch[-1][1] == 0 and [label for _, label in batch[2:4]] == [1, 1]
    tensors = _batch(mmds.MemoryMappedDataset(every_kind, fields="array"), ROWS)
    assert torch.stack(tensors).shape == (8, 3, 100)
    assert isinstance(tensors[0], SampleTensor) and type(tensors[0] + 1) is torch.Tensor


def test_a_collate_function_may_change_its_samples_and_collate_them(every_kind: Path) -> None:
    dataset = mmds.MemoryMappedDataset(every_kind, fields=["array", "label"])

    def halve(batch: Any) -> Any:
        for sample in batch:
            sample["array"] = sample["array"] / 2
        return default_collate(batch)

    assert halve(_batch(dataset, ROWS))["array"][:, 0, 0].tolist() == [row / 2 for row in ROWS]
    first_only = _batch(dataset, ROWS)
    first_only[0]["label"] = 7
    assert default_collate(first_only)["label"].tolist() == [7, *(row % 3 for row in ROWS[1:])]
    first_only[0]["new"] = 1
    with pytest.raises(KeyError):
        default_collate(first_only)
    ordered = _batch(dataset, ROWS)
    ordered.sort(key=lambda sample: float(sample["array"][0, 0]), reverse=True)
    del ordered[-1]
    assert default_collate(ordered)["array"][:, 0, 0].tolist() == sorted(ROWS, reverse=True)[:-1]


def test_samples_that_somebody_else_collects_still_collate(every_kind: Path) -> None:
    dataset = mmds.MemoryMappedDataset(every_kind, fields=COLLATABLE)
    batch = dataset.__getitems__(ROWS)
    assert isinstance(batch[0], SampleDict)
    assert_same(default_collate([batch[0], batch[1]]), default_collate([dataset[3], dataset[1]]))
    stacked = StackDataset(dataset, mmds.MemoryMappedDataset(every_kind, fields="array"))
    assert_same(default_collate(stacked.__getitems__(ROWS)), default_collate([stacked[row] for row in ROWS]))


def test_fields_that_do_not_stack_are_named(every_kind: Path) -> None:
    for name, error in (("ragged", RuntimeError), ("maybe", TypeError)):
        dataset = mmds.MemoryMappedDataset(every_kind, fields=[name])
        with pytest.raises(error) as caught:
            default_collate(_batch(dataset, ROWS))
        assert f"field '{name}': give the DataLoader a collate_fn" in caught.value.__notes__[0]


def test_fixed_fields_are_gathered_once_and_not_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = mmds.MemoryMappedDataset(write_fixed(tmp_path / "a.mmds"))
    handle = dataset._open()
    gathers: list[int] = []
    reads: list[int] = []
    gather = FixedItems.gather

    def counted_gather(self: FixedItems, rows: Any, out: Any = None) -> Any:
        gathers.append(len(rows))
        return gather(self, rows, out)

    def counted(get: Callable[[int], Any]) -> Callable[[int], Any]:
        def counted_get(row: int) -> Any:
            reads.append(row)
            return get(row)

        return counted_get

    monkeypatch.setattr(FixedItems, "gather", counted_gather)
    for leaf in handle.leaves:
        monkeypatch.setattr(leaf, "get", counted(leaf.get))
    batches = list(DataLoader(dataset, batch_size=16))
    assert gathers == [16] * 2 * 4  # two fields, four batches
    assert reads == [0, 0, 16, 16, 32, 32, 48, 48]  # the sample at whose type default collation looks
    assert torch.cat([batch["image"] for batch in batches])[:, 0, 0, 0].tolist() == list(range(64))


def _loads(
    make: Callable[[mmds.MemoryMappedDataset], Any], **options: Any
) -> Callable[[mmds.MemoryMappedDataset], Any]:
    return lambda dataset: DataLoader(make(dataset), batch_size=10, **options)


def _whole(dataset: Any) -> Any:
    return dataset


LOADERS: dict[str, Callable[[mmds.MemoryMappedDataset], Any]] = {
    "in process": _loads(_whole),
    "shuffled": _loads(_whole, shuffle=True),
    "fork": _loads(_whole, num_workers=2, multiprocessing_context="fork"),
    "spawn": _loads(_whole, num_workers=2, multiprocessing_context="spawn"),
    "forkserver": _loads(_whole, num_workers=2, multiprocessing_context="forkserver"),
    "subset": _loads(lambda dataset: Subset(dataset, range(64)), num_workers=1),
    "split": _loads(lambda dataset: ConcatDataset(random_split(dataset, [40, 24]))),
    "concatenated": _loads(lambda dataset: ConcatDataset([dataset[:30], dataset[30:]]), num_workers=1),
    "batch sampler": lambda dataset: DataLoader(
        dataset, sampler=[list(range(k, min(k + 10, 64))) for k in range(0, 64, 10)], batch_size=None
    ),
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("format", ["torch", "numpy"])
def test_every_loader_delivers_every_sample_once(tmp_path: Path, name: str, format: str) -> None:
    dataset = mmds.MemoryMappedDataset(write_fixed(tmp_path / "a.mmds"), format=format)
    assert dataset[0]["label"] == 0  # the parent has read before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches = list(LOADERS[name](dataset))
    images = torch.cat([batch["image"] for batch in batches])
    labels = torch.cat([batch["label"] for batch in batches])
    assert images.shape == (64, 3, 16, 16) and images.dtype == torch.uint8
    assert sorted(images[:, 0, 0, 0].tolist()) == list(range(64))
    assert torch.equal(images.amax((1, 2, 3)).long() % 3, labels)


def test_workers_persist_over_epochs_and_gather_into_memory_that_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = mmds.MemoryMappedDataset(write_fixed(tmp_path / "a.mmds"))
    loader = DataLoader(dataset, batch_size=32, num_workers=2, persistent_workers=True, prefetch_factor=1)
    places: set[int] = set()
    monkeypatch.setattr(sending, "SMALL", 1)
    for _ in range(3):
        seen = [batch["image"] for batch in loader]
        assert sorted(torch.cat(seen)[:, 0, 0, 0].tolist()) == list(range(64))
        places |= {image.data_ptr() for image in seen}
        del seen
    assert len(places) <= 6


def doubled(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "image": sample["image"].float() * 2}


def to_pair(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
    return sample["image"].clone(), sample["label"]


def to_list(sample: dict[str, Any]) -> list[Any]:
    return [sample["image"], sample["label"]]


def to_image(sample: dict[str, Any]) -> torch.Tensor:
    return sample["image"].clone()  # type: ignore[no-any-return]


@pytest.mark.parametrize("transform", [doubled, to_pair, to_list, to_image])
def test_what_transforms_return_is_collated_in_workers_as_anywhere(
    tmp_path: Path, transform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "SMALL", 1000)
    dataset = mmds.MemoryMappedDataset(write_fixed(tmp_path / "a.mmds"), transform=transform)
    expected = [default_collate([dataset[row] for row in range(start, start + 16)]) for start in range(0, 64, 16)]
    for workers in (0, 2):
        found = list(DataLoader(dataset, 16, num_workers=workers))
        for batch, want in zip(found, expected, strict=True):
            assert_same(batch, want)


def test_a_collate_function_sees_what_the_transform_returned(tmp_path: Path) -> None:
    seen: list[Any] = []
    dataset = mmds.MemoryMappedDataset(write_fixed(tmp_path / "a.mmds"), transform=to_pair)
    for batch in DataLoader(dataset, 16, collate_fn=lambda samples: seen.append(samples) or default_collate(samples)):  # type: ignore[func-returns-value]
        assert_same(batch, default_collate([tuple(sample) for sample in seen[-1]]))
        assert isinstance(seen[-1], list)
        assert all(isinstance(sample, tuple) for sample in seen[-1])


def test_samplers_of_pytorch(tmp_path: Path) -> None:
    dataset = mmds.MemoryMappedDataset(write_fixed(tmp_path / "a.mmds"))

    def ranks() -> Iterator[int]:
        for rank in range(2):
            sampler: DistributedSampler[Any] = DistributedSampler(dataset, num_replicas=2, rank=rank, seed=1)
            for batch in DataLoader(dataset, batch_size=8, sampler=sampler):
                yield from batch["image"][:, 0, 0, 0].tolist()

    assert sorted(ranks()) == list(range(64))
    only_b = (dataset.targets == 1).astype(float).tolist()
    for batch in DataLoader(dataset, batch_size=8, sampler=WeightedRandomSampler(only_b, 32)):
        assert batch["label"].tolist() == [1] * 8


def test_a_batch_that_is_kept_is_never_overwritten(tmp_path: Path) -> None:
    dataset = mmds.MemoryMappedDataset(write_fixed(tmp_path / "a.mmds", count=40, shape=(3, 96, 96)))
    kept = list(DataLoader(dataset, batch_size=20))  # large enough to live in recycled buffers
    again = [batch["image"].clone() for batch in DataLoader(dataset, batch_size=20)]
    for batch, copy in zip(kept, again, strict=True):
        assert torch.equal(batch["image"], copy)
    assert isinstance(dataset.__getitems__([0]), Batch) and np.array_equal(
        kept[1]["label"], [n % 3 for n in range(20, 40)]
    )


def _as_it_is(batch: Any) -> Any:
    return batch


@pytest.mark.parametrize("fields", ["array", ("array", "label"), ["array"]])
def test_a_worker_may_return_samples_uncollated(every_kind: Path, fields: Any) -> None:
    dataset = mmds.MemoryMappedDataset(every_kind, fields=fields)
    loader = DataLoader(dataset, batch_size=4, num_workers=1, collate_fn=_as_it_is, timeout=30)
    batch = next(iter(loader))
    assert type(batch) is list
    assert_same(batch, [dataset[row] for row in range(4)])


def test_a_changed_list_of_tensors_collates_as_it_is_now(every_kind: Path) -> None:
    dataset = mmds.MemoryMappedDataset(every_kind, fields="array")
    batch = dataset.__getitems__(ROWS)
    assert isinstance(batch, list)
    batch.pop()
    batch[1] = torch.zeros_like(batch[1])
    want = [dataset[row] for row in ROWS[:-1]]
    want[1] = torch.zeros_like(want[1])
    assert_same(default_collate(batch), default_collate(want))
