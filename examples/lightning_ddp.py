"""Train a small network on several ranks with Lightning, and go on where it was killed.

    python -m examples.lightning_ddp pictures-train.mmds pictures-val.mmds --checkpoints folder

`mmds.Loader` is the train dataloader as it is. Lightning saves its `state_dict()` in every checkpoint, and loads it where a
training goes on in the middle of an epoch. The same command again goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

import mmds
from examples.ddp import accuracy, network, to_float


class Classifier(LightningModule):
    """A network that says the class of a picture, and the samples that it learns from."""

    def __init__(self, train: Path, val: Path, batch_size: int) -> None:
        super().__init__()
        self.val, self.batch_size = val, batch_size
        self.dataset = mmds.MemoryMappedDataset(train, fields=("image", "label"))
        self.network = network(len(self.dataset.classes))
        self.losses: list[float] = []

    def train_dataloader(self) -> mmds.Loader:
        """Return the batches of this rank."""
        self.loader = mmds.Loader(self.dataset, self.batch_size, shuffle=True, seed=1, num_threads=1)
        return self.loader

    def on_train_epoch_start(self) -> None:
        """Choose the epoch: a training that goes on with a new one has a new loader. Not called in the middle of one."""
        self.loader.set_epoch(self.current_epoch)

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self.network(to_float(images)), labels)
        self.losses.append(loss.item())
        return loss

    def on_train_epoch_end(self) -> None:
        """Evaluate on rank 0 alone, which reads all held-out samples once: a padded rest would count twice."""
        mean, self.losses = sum(self.losses) / max(len(self.losses), 1), []
        if self.trainer.is_global_zero:
            right = accuracy(self.network, self.val)
            print(f"epoch {self.current_epoch}: loss {mean:.3f}, validation accuracy {right:.1%}", flush=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return what makes the steps."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main() -> None:
    """Run the command line; Lightning runs it again for each other rank."""
    parser = argparse.ArgumentParser(description="Train on several ranks with Lightning, from and to a checkpoint.")
    parser.add_argument("train", type=Path, help="file to train on")
    parser.add_argument("val", type=Path, help="file of held-out samples")
    parser.add_argument("--checkpoints", type=Path, default=Path("lightning"), help="folder (default: lightning)")
    parser.add_argument("--every", type=int, default=5, help="batches between checkpoints (default: 5)")
    parser.add_argument("--epochs", type=int, default=8, help="(default: 8)")
    parser.add_argument("--batch-size", type=int, default=8, help="of each rank (default: 8)")
    arguments = parser.parse_args()

    torch.set_num_threads(1)  # of each rank; by default every rank has one per core
    seed_everything(0, verbose=False)
    checkpoints = ModelCheckpoint(
        arguments.checkpoints, "last", every_n_train_steps=arguments.every, enable_version_counter=False
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        use_distributed_sampler=False,  # the loader shares the samples among the ranks
        max_epochs=arguments.epochs,
        callbacks=[checkpoints],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = arguments.checkpoints / "last.ckpt"
    print(f"rank {trainer.global_rank} of {trainer.world_size} is process {os.getpid()}", flush=True)
    model = Classifier(arguments.train, arguments.val, arguments.batch_size)
    trainer.fit(model, ckpt_path=last if last.exists() else None)
    trainer.save_checkpoint(arguments.checkpoints / "done.ckpt")


if __name__ == "__main__":
    main()
