"""Train a small network on an mmds file with the standard DataLoader, and validate it on another file.

    python examples/train_cnn.py pictures-train.mmds pictures-val.mmds

All that mmds asks of a training script is in `loader`. Exits with 1 if the network is not clearly better than guessing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmds import MemoryMappedDataset

CLEARLY = 3  # times as good as guessing

Loader = DataLoader[tuple[Tensor, Tensor]]


def loader(path: Path, *, train: bool, num_workers: int, batch_size: int = 32, seed: int = 0) -> Loader:
    """Return batches of (images uint8 (B, 3, H, W), labels int64 (B,)), in random order for training."""
    return DataLoader(
        MemoryMappedDataset(path, fields=("image", "label")),
        batch_size=batch_size,
        shuffle=train,
        num_workers=num_workers,
        persistent_workers=train and num_workers > 0,
        generator=torch.Generator().manual_seed(seed),
    )


def network(classes: int) -> nn.Module:
    """Return four convolutions, each of which halves the picture, and an average over what is left."""

    def block(inputs: int, outputs: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    body = nn.Sequential(block(3, 16), block(16, 32), block(32, 64), block(64, 64))
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def to_float(images: Tensor) -> Tensor:
    """Return pixels as float32 around 0; the workers sent a quarter of the bytes."""
    return images.float().div_(127.5).sub_(1)


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Loader) -> tuple[float, float]:
    """Train on every batch once; return mean loss and accuracy on the way."""
    model.train()
    loss_sum = right = seen = 0.0
    for images, labels in batches:
        scores = model(to_float(images))
        loss = nn.functional.cross_entropy(scores, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss_sum += loss.item() * len(labels)
        right += (scores.argmax(1) == labels).sum().item()
        seen += len(labels)
    return loss_sum / seen, right / seen


@torch.no_grad()
def accuracy(model: nn.Module, batches: Loader) -> float:
    """Return the share of samples whose class the model says."""
    model.eval()
    right = seen = 0
    for images, labels in batches:
        right += int((model(to_float(images)).argmax(1) == labels).sum())
        seen += len(labels)
    return right / seen


def private_memory() -> list[float]:
    """Return for each running worker the MiB that it has for itself alone."""
    return [psutil.Process(worker.pid).memory_full_info().uss / 2**20 for worker in multiprocessing.active_children()]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Train a small convolutional network on an mmds file of labelled images."
    )
    parser.add_argument("train", type=Path, help="file to train on")
    parser.add_argument("val", type=Path, help="file of held-out samples")
    parser.add_argument("--epochs", type=int, default=8, help="(default: 8)")
    parser.add_argument("--num-workers", type=int, default=2, help="DataLoader worker processes (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order (default: 0)")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    training = loader(arguments.train, train=True, num_workers=arguments.num_workers, seed=arguments.seed)
    held_out = loader(arguments.val, train=False, num_workers=arguments.num_workers)
    classes = MemoryMappedDataset(arguments.train).classes
    if MemoryMappedDataset(arguments.val).classes != classes:
        parser.error("the two files have different classes")

    samples = len(training.dataset)  # type: ignore[arg-type]
    print(f"{samples:,} samples of {len(classes)} classes, {arguments.num_workers} workers, {arguments.epochs} epochs")
    model = network(len(classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    seconds = 0.0
    for epoch in range(1, arguments.epochs + 1):
        start = time.perf_counter()
        loss, right = train_epoch(model, optimizer, training)
        taken = time.perf_counter() - start
        seconds += taken
        print(f"epoch {epoch}: loss {loss:.3f}, accuracy {right:.1%}, {samples / taken:,.0f} samples/s", flush=True)

    memory = private_memory()  # before validation, which starts workers of its own
    result, chance = accuracy(model, held_out), 1 / len(classes)
    print(f"validation: accuracy {result:.1%}, {result / chance:.1f} times chance ({chance:.1%})")
    print(f"training: {samples * arguments.epochs / seconds:,.0f} samples/s with decoding, forward and backward passes")
    if memory:
        shown = ", ".join(f"{size:.1f}" for size in memory)
        print(
            f"private memory of each worker: {shown} MiB; that is Python and torch at work. The samples are in the page"
        )
        print("cache, which all processes share, so it does not grow with the dataset.")
    if result < CLEARLY * chance:
        print(f"expected at least {CLEARLY} times chance", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
