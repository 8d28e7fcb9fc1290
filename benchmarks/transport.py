"""A DataLoader with two workers over mmds, against moving batches alone as PyTorch does it; and a `Loader` instead.

    python -m benchmarks.transport [--scale X] [--rounds N] [--quick] [--json]

The same epoch (shuffled, batches of 256, default collation, two living workers) over a `MemoryMappedDataset`, and over a
dataset that returns one constant tensor of a sample's size: transport alone. Values of different length are `Jagged`, and the
constant tensor has their mean length. Beside them `mmds.Loader` with two threads. All take turns; the page cache is warm.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import mmds
from benchmarks.machine import describe
from benchmarks.rounds import medians
from benchmarks.suite_workloads import BATCH, WORKLOADS, Workload, make

NAMES = ("fixed", "ragged", "tiny", "tokens")
LEVEL = 0.95  # of transport alone: what mmds promises


class Constant(Dataset[Any]):
    """A sample of one tensor, `count` times."""

    def __init__(self, count: int, tensor: torch.Tensor) -> None:
        self.count, self.sample = count, {"x": tensor}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.sample


def write(path: Path, workload: Workload, count: int) -> torch.Tensor:
    """Write the samples, and return a tensor of their mean size."""
    samples = make(workload, count)
    if workload.shape is not None:
        with mmds.Writer(path, {"x": mmds.Array(workload.dtype, workload.shape)}) as writer:
            writer.write_batch({"x": samples.values})
        return torch.from_numpy(samples.values[0].copy())
    with mmds.Writer(
        path, {"x": mmds.Array(workload.dtype, (None,), align=np.dtype(workload.dtype).itemsize)}
    ) as writer:
        for block in samples.blocks():
            writer.write_batch({"x": list(block.all())})
    return torch.from_numpy(np.zeros(len(samples.values) // count, workload.dtype))


def epochs(path: Path, count: int, constant: torch.Tensor, rounds: int) -> dict[str, float]:
    """Return the seconds that an epoch takes."""
    torch.manual_seed(0)
    dataset = mmds.MemoryMappedDataset(path, ragged="jagged")
    options: dict[str, Any] = {"shuffle": True, "num_workers": 2, "persistent_workers": True}
    loaders: dict[str, Any] = {
        "transport": DataLoader(Constant(count, constant), BATCH, **options),
        "dataset": DataLoader(dataset, BATCH, **options),
        "loader": mmds.Loader(dataset, BATCH, shuffle=True, num_threads=2),
    }

    def run(loader: Any) -> Callable[[int], None]:
        def epoch(_: int) -> None:
            for batch in loader:
                len(batch["x"])

        return epoch

    return medians({name: run(loader) for name, loader in loaders.items()}, rounds)


def measure(scale: float, rounds: int) -> dict[str, dict[str, float]]:
    """Return all figures, by workload."""
    figures: dict[str, dict[str, float]] = {}
    for name in NAMES:
        workload = WORKLOADS[name]
        count = workload.count(scale)
        with tempfile.TemporaryDirectory(prefix="mmds-transport-") as folder:
            path = Path(folder) / "a.mmds"
            constant = write(path, workload, count)
            figures[name] = {"samples": count, **epochs(path, count, constant, rounds)}
    return figures


def report(figures: dict[str, dict[str, float]], rounds: int) -> str:
    """Return the figures as a markdown table."""
    lines = [
        f"| | transport alone | MemoryMappedDataset : transport (≥ {LEVEL}) | Loader : DataLoader over MemoryMappedDataset |",
        "|---|---:|---:|---:|",
    ]
    for name, found in figures.items():
        rate = found["samples"] / found["transport"] / 1e3
        lines.append(
            f"| {WORKLOADS[name].title} | {rate:.0f} k/s | {found['transport'] / found['dataset']:.2f} "
            f"| {found['dataset'] / found['loader']:.1f} |"
        )
    return "\n".join([*lines, "", f"Speed; medians of {rounds} epochs in turns. " + describe("numpy", "torch")])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="DataLoader epochs against transport alone, and against Loader.")
    parser.add_argument(
        "--scale", type=float, default=0.2, help="1: 40,960 pictures, 2 million vectors, ... (default: 0.2)"
    )
    parser.add_argument("--rounds", type=int, default=9, help="measured epochs of each (default: 9)")
    parser.add_argument("--quick", action="store_true", help="few samples, one epoch: shows that it works, no more")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    scale, rounds = (0.0, 1) if arguments.quick else (arguments.scale, arguments.rounds)
    figures = measure(scale, rounds)
    if arguments.json:
        print(json.dumps({"epochs": figures, "rounds": rounds, "machine": describe("numpy", "torch")}, indent=2))
    else:
        print(report(figures, rounds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
