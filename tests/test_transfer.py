"""Batches brought to a device: the same values, one ahead, whatever they are nested in."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmds
from mmds.jagged import Jagged
from mmds.transfer import map_tensors, to_device

Pair = namedtuple("Pair", ["x", "y"])
BATCH: dict[str, Any] = {
    "a": torch.arange(3),
    "b": [torch.zeros(2), (torch.ones(1), "text")],
    "c": Pair(torch.ones(2), 5),
    "d": Jagged(torch.arange(4), torch.tensor([0, 1, 4])),
}


def test_tensors_are_mapped_wherever_they_are() -> None:
    doubled = map_tensors(
        lambda tensor: tensor.to(torch.float64) if isinstance(tensor, torch.Tensor) else tensor, BATCH
    )
    assert (
        doubled["a"].dtype == doubled["b"][0].dtype == doubled["b"][1][0].dtype == doubled["c"].x.dtype == torch.float64
    )
    assert doubled["b"][1][1] == "text"
    assert isinstance(doubled["c"], Pair)
    assert doubled["c"].y == 5
    assert doubled["d"] is BATCH["d"]


def test_a_device_without_streams() -> None:
    [(position, moved)] = to_device(iter([(7, BATCH)]), torch.device("meta"))
    assert position == 7
    assert {moved["a"].device.type, moved["b"][1][0].device.type, moved["d"].offsets.device.type} == {"meta"}
    assert moved["b"][1][1] == "text"


def test_a_loader_brings_batches_to_a_device(tmp_path: Path) -> None:
    with mmds.Writer(tmp_path / "a.mmds", {"x": mmds.Array("uint8", (3,))}) as writer:
        writer.write_batch({"x": np.zeros((10, 3), "uint8")})
    loader = mmds.Loader(mmds.MemoryMappedDataset(tmp_path / "a.mmds"), 4, device="meta")
    assert [(batch["x"].device.type, len(batch["x"])) for batch in loader] == [("meta", 4), ("meta", 4), ("meta", 2)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pin_memory", [False, True])
def test_batches_on_cuda(tmp_path: Path, pin_memory: bool) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (2000, 3, 64, 64), "uint8")
    with mmds.Writer(
        tmp_path / "a.mmds", {"x": mmds.Array("uint8", (3, 64, 64)), "t": mmds.Array("int32", (None,))}
    ) as writer:
        writer.write_batch({"x": rows, "t": [np.arange(i % 7, dtype="int32") for i in range(2000)]})
    dataset = mmds.MemoryMappedDataset(tmp_path / "a.mmds", ragged="jagged")
    found, lengths = [], []
    for batch in mmds.Loader(dataset, 64, device="cuda", pin_memory=pin_memory, num_threads=3):
        assert batch["x"].device.type == batch["t"].values.device.type == "cuda"
        torch.cuda._sleep(1_000_000)  # type: ignore[no-untyped-call]  # the copy of the next batch goes on meanwhile
        found.append((batch["x"].clone(), batch["t"].lengths.clone()))
    assert torch.equal(torch.cat([x for x, _ in found]).cpu(), torch.from_numpy(rows))
    lengths = torch.cat([t for _, t in found]).tolist()
    assert lengths == [i % 7 for i in range(2000)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_one_batch_is_copied_ahead() -> None:
    taken: list[int] = []

    def batches() -> Iterator[Any]:
        for number in range(4):
            taken.append(number)
            yield number, {"x": torch.full((2,), number)}

    moved = to_device(batches(), torch.device("cuda"))
    for number in range(4):
        position, batch = next(moved)
        assert (position, batch["x"].tolist()) == (number, [number, number])
        assert len(taken) == min(4, number + 2)
