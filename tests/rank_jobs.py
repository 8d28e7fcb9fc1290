"""Jobs of several ranks, for test_ranks.py: each rank is a process with torch.distributed (gloo), and trains a small network.

    python -m tests.rank_jobs < jobs.jsonl

runs one job after the other, and prints how each has ended, as an `Ended`. The ranks are forked from this process, which has
loaded torch once and has no threads. What a rank trained on is in the job's folder: one line per batch, written when its step
was made.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # DistributedDataParallel needs it: loaded once here, and not by each rank
from torch import distributed, nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from mmds import BlockShuffleSampler, Loader, MemoryMappedDataset

SEED = 5
BLOCKS = {"block_size": 8, "window": 16}  # of BlockShuffleSampler


@dataclass(frozen=True)
class Job:
    """What is trained, and how it ends."""

    data: str  # {"number": int64, "x": float32 (4,)}
    folder: str  # of what is written
    kind: str  # a name in `SOURCES`; or "page": what docs/ranks.md says
    world_size: int
    batch_size: int
    drop_last: bool = False
    workers: int = 0  # processes of a DataLoader, or threads of a Loader
    epochs: int = 1
    every: int = 0  # steps between checkpoints; 0: none
    kill: tuple[int, int] | None = None  # (rank, step): this rank is killed in the middle of this step
    resume: str | None = None  # the folder of the job whose checkpoint this one begins with


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    rank: int | None = None  # that ended first, and not well
    signal: str | None = None  # that killed it
    error: str = ""  # that it raised


# What gives batches. Each is iterated over once per epoch, after `set_epoch`.


class TorchLoader:
    """A `DataLoader` with a sampler for ranks, resumed as its sampler can be: by its own state, or by skipping batches."""

    def __init__(self, job: Job, dataset: MemoryMappedDataset, sampler: Any) -> None:
        self.sampler, self.batch_size = sampler, job.batch_size
        self.loader = DataLoader(
            dataset,
            job.batch_size,
            sampler=sampler,
            num_workers=job.workers,
            drop_last=job.drop_last,
            multiprocessing_context="fork" if job.workers else None,
        )
        self.epoch = self.taken = self.skip = 0

    def __iter__(self) -> Iterator[Any]:
        skip, self.skip = self.skip, 0
        self.taken = skip
        for batch in islice(self.loader, skip, None):
            self.taken += 1
            yield batch
        self.epoch, self.taken = self.epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        if hasattr(self.sampler, "state_dict"):
            return {"epoch": self.epoch, "sampler": self.sampler.state_dict(used=self.taken * self.batch_size)}
        return {"epoch": self.epoch, "skip": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.skip = state["epoch"], state.get("skip", 0)
        if "sampler" in state:
            self.sampler.load_state_dict(state["sampler"])


def shuffled(job: Job, dataset: MemoryMappedDataset) -> Any:
    """Return what torch has for ranks."""
    return DistributedSampler(dataset, seed=SEED, drop_last=job.drop_last)


def blocks(job: Job, dataset: MemoryMappedDataset) -> Any:
    return BlockShuffleSampler(dataset, seed=SEED, drop_last=job.drop_last, **BLOCKS)


def dealing(job: Job, dataset: MemoryMappedDataset, **options: Any) -> Loader:
    return Loader(dataset, job.batch_size, num_threads=job.workers, drop_last=job.drop_last, **options)


def told(job: Job, dataset: MemoryMappedDataset) -> Loader:
    """Return a Loader that is told its rank."""
    place = {"rank": distributed.get_rank(), "world_size": job.world_size}
    return dealing(job, dataset, shuffle=True, seed=SEED, **place)


SOURCES: dict[str, Any] = {
    "DistributedSampler": lambda job, dataset: TorchLoader(job, dataset, shuffled(job, dataset)),
    "BlockShuffleSampler": lambda job, dataset: TorchLoader(job, dataset, blocks(job, dataset)),
    "Loader": lambda job, dataset: dealing(job, dataset, shuffle=True, seed=SEED),
    "Loader told": told,
    "Loader made first": lambda job, dataset: dealing(job, dataset, shuffle=True, seed=SEED),
    "Loader, BlockShuffleSampler": lambda job, dataset: dealing(job, dataset, sampler=blocks(job, dataset)),
    "Loader, DistributedSampler": lambda job, dataset: dealing(job, dataset, sampler=shuffled(job, dataset)),
}


def rank_of(rank: int, job: Job, meeting: str) -> None:
    """Be one rank."""
    faulthandler.dump_traceback_later(120, exit=True)  # rather than hang
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dataset = MemoryMappedDataset(job.data, fields=("number", "x"))
    meet = {"init_method": f"file://{meeting}", "rank": rank, "world_size": job.world_size}
    if job.kind == "page":
        read_page(Path(job.folder), meet)
        return
    early = SOURCES[job.kind](job, dataset) if job.kind == "Loader made first" else None
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60), **meet)  # type: ignore[arg-type]
    train(rank, job, early or SOURCES[job.kind](job, dataset))
    distributed.destroy_process_group()


def train(rank: int, job: Job, source: Any) -> None:
    """Train on one rank. The model is gone when this returns: torch 2.13 can hang where it is freed after its group."""
    folder = Path(job.folder)
    torch.manual_seed(1)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    parts = {"model": model.module, "optimizer": optimizer, "source": source}
    step = 0
    if job.resume:
        state = torch.load(Path(job.resume) / "checkpoint.pt", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        step = state["step"]
    with open(folder / f"rank{rank}.jsonl", "a") as log:
        while source.epoch < job.epochs:
            epoch = source.epoch
            source.set_epoch(epoch)
            for numbers, x in source:
                if job.kill == (rank, step):
                    os.kill(os.getpid(), signal.SIGKILL)
                loss = nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1
                line = {"epoch": epoch, "step": step, "numbers": numbers.tolist(), "loss": loss.item()}
                print(json.dumps(line), file=log, flush=True)
                if rank == 0 and job.every and step % job.every == 0:
                    saved = {name: part.state_dict() for name, part in parts.items()}
                    torch.save({**saved, "step": step}, folder / "unfinished.pt")
                    (folder / "unfinished.pt").replace(folder / "checkpoint.pt")
    torch.save(model.module.state_dict(), folder / f"model{rank}.pt")


def read_page(folder: Path, meet: dict[str, Any]) -> None:
    """Run the blocks of docs/ranks.md that a rank runs, one after the other. `meet` is what torchrun says."""
    os.chdir(folder)
    used: list[int] = []

    def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> None:
        loss = model(batch["x"]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        used.extend(batch["number"].tolist())

    names = {"train_step": train_step, "network": lambda: nn.Linear(4, 1)}
    for block in page_blocks("with torchrun: every rank runs this"):
        block = block.replace('("gloo")', f'("gloo", **{meet})')
        exec(compile(block, "ranks.md", "exec"), names)
    found = {name: names[name].state_dict() for name in ("loader", "sampler")}  # type: ignore[attr-defined]
    Path(f"page{meet['rank']}.json").write_text(json.dumps({**found, "used": used}))
    names.clear()  # the model is gone before its group
    distributed.destroy_process_group()


def page_blocks(first_line: str) -> list[str]:
    """Return the Python blocks of docs/ranks.md that begin with a comment."""
    page = (Path(__file__).parent.parent / "docs" / "ranks.md").read_text()
    return re.findall(rf"^```python\n(# {re.escape(first_line)}\n.*?)^```", page, re.M | re.S)


def run(job: Job) -> Ended:
    """Run a job to its end. As torchrun does: when a rank ends badly, the others are ended, too."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            start_processes(rank_of, (job, f"{folder}/meeting"), nprocs=job.world_size, start_method="fork")  # type: ignore[no-untyped-call]
        except ProcessExitedException as error:
            return Ended(error.error_index, error.signal_name)
        except ProcessRaisedException as error:
            return Ended(error.error_index, error=str(error))
    return Ended()


def main() -> None:
    """Run the jobs on standard input."""
    for line in sys.stdin:
        fields = json.loads(line)
        kill = fields.pop("kill")
        print(json.dumps(asdict(run(Job(**fields, kill=kill and (kill[0], kill[1]))))), flush=True)


if __name__ == "__main__":
    main()
