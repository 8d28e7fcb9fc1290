"""Train a small network on several ranks with Accelerate, and go on where it was killed.

    torchrun --standalone --nproc-per-node 2 -m examples.accelerate_ddp pictures-train.mmds pictures-val.mmds

`mmds.Loader` shares the samples among the ranks itself: it is registered for checkpoints, and not handed to `prepare`, which
is for the dataloaders of torch. The same command again goes on from the last checkpoint. On GPUs, `accelerate launch` starts
the ranks as well; with --cpu it starts a single process, whatever --num_processes says.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

import mmds
from examples.ddp import accuracy, network, to_float


def train(arguments: argparse.Namespace, accelerator: Accelerator) -> None:
    """Train on this rank."""
    dataset = mmds.MemoryMappedDataset(arguments.train, fields=("image", "label"))
    loader = mmds.Loader(dataset, arguments.batch_size, shuffle=True, seed=1, num_threads=1, device=accelerator.device)
    torch.manual_seed(0)
    model = network(len(dataset.classes))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=3e-3))
    accelerator.register_for_checkpointing(loader)

    last = arguments.checkpoints / "last"  # a link: it leads to a whole checkpoint at any time
    if last.exists():
        accelerator.load_state(str(last))

    def save() -> None:
        steps = f"{loader.epoch}-{loader.state_dict()['position']}"
        accelerator.save_state(str(arguments.checkpoints / steps))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            following, former = arguments.checkpoints / "following", last.resolve()
            following.unlink(missing_ok=True)
            following.symlink_to(steps)
            following.replace(last)
            if former.name != steps and former != last:
                shutil.rmtree(former)

    rank, ranks = accelerator.process_index, accelerator.num_processes
    print(f"rank {rank} of {ranks} is process {os.getpid()}: begins in {loader.state_dict()}", flush=True)
    while loader.epoch < arguments.epochs:
        epoch, losses = loader.epoch, []
        for number, (images, labels) in enumerate(loader, 1):
            loss = nn.functional.cross_entropy(model(to_float(images)), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.item())
            if number % arguments.every == 0:
                save()
        save()
        if accelerator.is_main_process and losses:
            right = accuracy(accelerator.unwrap_model(model), arguments.val)
            print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f}, validation accuracy {right:.1%}", flush=True)


def main() -> None:
    """Run the command line, on one rank."""
    parser = argparse.ArgumentParser(description="Train on several ranks with Accelerate, from and to a checkpoint.")
    parser.add_argument("train", type=Path, help="file to train on")
    parser.add_argument("val", type=Path, help="file of held-out samples")
    parser.add_argument("--checkpoints", type=Path, default=Path("accelerate"), help="folder (default: accelerate)")
    parser.add_argument("--every", type=int, default=4, help="batches between checkpoints (default: 4)")
    parser.add_argument("--epochs", type=int, default=8, help="(default: 8)")
    parser.add_argument("--batch-size", type=int, default=8, help="of each rank (default: 8)")
    arguments = parser.parse_args()

    torch.set_num_threads(1)  # of each rank; by default every rank has one per core
    accelerator = Accelerator(cpu=not torch.cuda.is_available())  # said here, or each rank would train alone
    train(arguments, accelerator)
    accelerator.end_training()  # after the model, which uses its process group, is gone


if __name__ == "__main__":
    main()
