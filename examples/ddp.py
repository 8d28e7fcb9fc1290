"""Train a small network on several ranks with torchrun, and go on where it was killed.

    torchrun --standalone --nproc-per-node 2 -m examples.ddp pictures-train.mmds pictures-val.mmds --checkpoint ddp.pt

Each rank gets other samples, and equally many. The same command again goes on from the checkpoint: the place in the epoch
is `loader.state_dict()`, which is the same on all ranks, and may be loaded by another number of them.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import mmds


def network(classes: int) -> nn.Module:
    """Return two convolutions, each of which makes the picture smaller, and an average over what is left."""
    first, second = nn.Conv2d(3, 16, 5, stride=4), nn.Conv2d(16, 32, 5, stride=4)
    return nn.Sequential(
        first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, classes)
    )


def to_float(images: Tensor) -> Tensor:
    """Return pixels as float32 around 0."""
    return images.float().div_(127.5).sub_(1)


@torch.no_grad()
def accuracy(model: nn.Module, path: Path) -> float:
    """Return the share of samples whose class the model says. This rank alone reads all of them: no padding counts."""
    dataset = mmds.MemoryMappedDataset(path, fields=("image", "label"))
    batches = mmds.Loader(dataset, 64, num_threads=1, rank=0, world_size=1)
    return sum(int((model(to_float(images)).argmax(1) == labels).sum()) for images, labels in batches) / len(dataset)


def train(arguments: argparse.Namespace) -> None:
    """Train on this rank."""
    rank = distributed.get_rank()
    dataset = mmds.MemoryMappedDataset(arguments.train, fields=("image", "label"))
    loader = mmds.Loader(dataset, arguments.batch_size, shuffle=True, seed=1, num_threads=1)
    torch.manual_seed(0)
    model = DistributedDataParallel(network(len(dataset.classes)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    if arguments.checkpoint.exists():
        state = torch.load(arguments.checkpoint, weights_only=True)
        model.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])

    def save() -> None:
        if rank == 0:  # its state is that of all
            saved = {"model": model.module, "optimizer": optimizer, "loader": loader}
            unfinished = arguments.checkpoint.with_suffix(".tmp")
            torch.save({name: part.state_dict() for name, part in saved.items()}, unfinished)
            unfinished.replace(arguments.checkpoint)  # a checkpoint is there whole, or the one before it

    print(f"rank {rank} of {loader.world_size} is process {os.getpid()}: begins in {loader.state_dict()}", flush=True)
    while loader.epoch < arguments.epochs:
        epoch, losses = loader.epoch, []
        for number, (images, labels) in enumerate(loader, 1):
            loss = nn.functional.cross_entropy(model(to_float(images)), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            if number % arguments.every == 0:
                save()
        save()
        if rank == 0 and losses:
            right = accuracy(model.module, arguments.val)
            print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f}, validation accuracy {right:.1%}", flush=True)


def main() -> None:
    """Run the command line, on one rank."""
    parser = argparse.ArgumentParser(description="Train on several ranks, from and to a checkpoint.")
    parser.add_argument("train", type=Path, help="file to train on")
    parser.add_argument("val", type=Path, help="file of held-out samples")
    parser.add_argument("--checkpoint", type=Path, default=Path("ddp.pt"), help="(default: ddp.pt)")
    parser.add_argument("--every", type=int, default=4, help="batches between checkpoints (default: 4)")
    parser.add_argument("--epochs", type=int, default=8, help="(default: 8)")
    parser.add_argument("--batch-size", type=int, default=8, help="of each rank (default: 8)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # of each rank; by default every rank has one per core
    distributed.init_process_group("gloo")
    train(arguments)
    distributed.destroy_process_group()  # after the model, which uses it, is gone


if __name__ == "__main__":
    main()
