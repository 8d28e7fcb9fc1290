"""Several ranks, each a process of its own with torch.distributed: every sample once, the same after a kill, other numbers of
ranks. The ranks are those of rank_jobs.py.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DistributedSampler

import mmds
from mmds.permutation import Permutation
from mmds.samplers import BlockShuffle
from tests.rank_jobs import BLOCKS, SEED, SOURCES, Ended, Job, page_blocks

N = 1003

Run = Callable[[Job], Ended]
Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("ranks") / "numbers.mmds"
    with mmds.Writer(path, {"number": mmds.Scalar("int64"), "x": mmds.Array("float32", (4,))}) as writer:
        for number in range(N):
            writer.write({"number": number, "x": generator.normal(size=4).astype("float32")})
    return str(path)


@pytest.fixture(scope="module")
def run(data: str) -> Iterator[Run]:
    """Return what runs a job. All jobs of this module are started by one process, which has loaded torch."""
    command = [sys.executable, "-W", "error", "-m", "tests.rank_jobs"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdin and launcher.stdout

        def start(job: Job) -> Ended:
            assert launcher.stdin and launcher.stdout
            Path(job.folder).mkdir()
            (Path(job.folder) / "train.mmds").symlink_to(data)  # as the page calls it
            print(json.dumps(asdict(job)), file=launcher.stdin, flush=True)
            return Ended(**json.loads(launcher.stdout.readline()))

        yield start
        launcher.stdin.close()
    assert launcher.returncode == 0


def order(kind: str, epoch: int) -> list[int]:
    """Return all samples of an epoch in the order in which they are shared among ranks."""
    if "DistributedSampler" in kind:
        return list(torch.randperm(N, generator=torch.Generator().manual_seed(SEED + epoch)).tolist())
    return list(BlockShuffle(N, (SEED, epoch), **BLOCKS) if "Block" in kind else Permutation(N, (SEED, epoch)))


def logs(job: Job) -> list[Lines]:
    """Return for each rank its batches."""
    files = [Path(job.folder) / f"rank{rank}.jsonl" for rank in range(job.world_size)]
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def numbers(ranks: list[Lines], epoch: int) -> list[int]:
    return [number for lines in ranks for line in lines if line["epoch"] == epoch for number in line["numbers"]]


def saved_step(job: Job) -> int:
    return int(torch.load(Path(job.folder) / "checkpoint.pt", weights_only=True)["step"])


def up_to(step: int, ranks: list[Lines]) -> list[Lines]:
    return [[line for line in lines if line["step"] <= step] for lines in ranks]


def check_epochs(job: Job, ranks: list[Lines]) -> None:
    """Check that each epoch has what this job promises: all samples once, and then few twice, or few left out."""
    for epoch in range(job.epochs):
        whole = order(job.kind, epoch)
        if job.drop_last:
            left_out = N % (job.world_size * job.batch_size)
            want = Counter(whole[: N - left_out])
        else:
            want = Counter(whole + whole[: -N % job.world_size])
        assert Counter(numbers(ranks, epoch)) == want
    shapes = {tuple((line["epoch"], line["step"], len(line["numbers"])) for line in lines) for lines in ranks}
    assert len(shapes) == 1  # so no rank waits for another at the end


def check_coverage(run: Run, job: Job) -> None:
    assert run(job) == Ended()
    ranks = logs(job)
    check_epochs(job, ranks)
    orders = [numbers(ranks, epoch) for epoch in range(job.epochs)]
    assert all(one != other for one, other in itertools.combinations(orders, 2))
    models = [torch.load(Path(job.folder) / f"model{rank}.pt", weights_only=True) for rank in range(job.world_size)]
    for name, weights in models[0].items():
        assert all(torch.equal(weights, model[name]) for model in models)
    losses = [sum(line["loss"] for line in ranks[0] if line["epoch"] == epoch) for epoch in range(job.epochs)]
    assert losses[-1] < losses[0] / 2


def test_every_sample_comes_once_per_epoch(run: Run, data: str, tmp_path: Path) -> None:
    check_coverage(run, Job(data, str(tmp_path / "job"), "BlockShuffleSampler", world_size=3, batch_size=7, epochs=2))


@pytest.mark.stress
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("world_size", "batch_size", "workers"), [(2, 7, 0), (3, 11, 2), (4, 5, 1)])
@pytest.mark.parametrize("kind", SOURCES)
def test_every_sample_comes_once_on_any_number_of_ranks(
    run: Run, data: str, tmp_path: Path, kind: str, world_size: int, batch_size: int, workers: int, drop_last: bool
) -> None:
    folder = str(tmp_path / "job")
    check_coverage(run, Job(data, folder, kind, world_size, batch_size, drop_last=drop_last, workers=workers, epochs=3))


def check_killed(run: Run, job: Job) -> None:
    """Kill the job, check that it ended there, and that its checkpoint is from before."""
    assert job.kill
    rank, step = job.kill
    ended = run(job)
    assert ended.signal == "SIGKILL" or ended.error  # of another rank, which lost its connection
    assert logs(job)[rank][-1]["step"] == step  # and not one more
    assert saved_step(job) == (step // job.every * job.every)


def check_resumed(
    run: Run, data: str, folder: Path, kind: str, world_size: int, kill: tuple[int, int], batch_size: int = 7
) -> None:
    """Check that a killed job, started again, has trained on what the same job has that was not killed."""
    jobs = {name: str(folder / name) for name in ("whole", "killed", "resumed")}
    options = {"kind": kind, "world_size": world_size, "batch_size": batch_size, "epochs": 2, "every": 6}
    whole = Job(data, jobs["whole"], **options)  # type: ignore[arg-type]
    killed = Job(data, jobs["killed"], kill=kill, workers=2, **options)  # type: ignore[arg-type]
    resumed = Job(data, jobs["resumed"], resume=jobs["killed"], workers=1, **options)  # type: ignore[arg-type]
    assert run(whole) == Ended()
    check_killed(run, killed)
    assert run(resumed) == Ended()
    before = up_to(saved_step(killed), logs(killed))
    joined = [one + other for one, other in zip(before, logs(resumed), strict=True)]
    check_epochs(whole, joined)
    assert [[line["numbers"] for line in lines] for lines in joined] == [
        [line["numbers"] for line in lines] for lines in logs(whole)
    ]
    for rank in range(world_size):
        want = torch.load(Path(whole.folder) / f"model{rank}.pt", weights_only=True)
        got = torch.load(Path(resumed.folder) / f"model{rank}.pt", weights_only=True)
        for name, weights in want.items():
            if world_size == 2:
                assert torch.equal(weights, got[name])
            else:  # gloo adds three gradients up in an order that changes with DDP's buckets, after its first step
                torch.testing.assert_close(weights, got[name], rtol=1e-4, atol=1e-6)


def test_a_job_goes_on_after_a_rank_was_killed(run: Run, data: str, tmp_path: Path) -> None:
    check_resumed(run, data, tmp_path, "Loader made first", 2, kill=(1, 35), batch_size=23)


@pytest.mark.stress
@pytest.mark.parametrize(("world_size", "kill"), [(2, (0, 17)), (3, (2, 47)), (4, (1, 37)), (4, (3, 70))])
@pytest.mark.parametrize("kind", SOURCES)
def test_a_job_of_any_kind_goes_on(
    run: Run, data: str, tmp_path: Path, kind: str, world_size: int, kill: tuple[int, int]
) -> None:
    check_resumed(run, data, tmp_path, kind, world_size, kill)


def chain(run: Run, data: str, folder: Path, kind: str, ranks: list[int], batch_sizes: list[int]) -> None:
    """Check that jobs of different numbers of ranks, each killed but for the last, share one epoch."""
    taken: list[int] = []
    step = 0
    resume = None
    for number, (world_size, batch_size) in enumerate(zip(ranks, batch_sizes, strict=True)):
        last = number == len(ranks) - 1
        kill = None if last else (world_size - 1, step + 15)
        job = Job(data, str(folder / str(number)), kind, world_size, batch_size, every=4, kill=kill, resume=resume)
        if last:
            assert run(job) == Ended()
            taken += numbers(logs(job), 0)
        else:
            check_killed(run, job)
            step = saved_step(job)
            taken += numbers(up_to(step, logs(job)), 0)
        resume = job.folder
    whole = order(kind, 0)
    extra = len(taken) - N
    assert 0 <= extra < ranks[-1]
    assert Counter(taken) == Counter(whole + whole[:extra])


def test_another_number_of_ranks_goes_on(run: Run, data: str, tmp_path: Path) -> None:
    chain(run, data, tmp_path, "Loader, BlockShuffleSampler", [4, 2, 3], [5, 7, 4])


@pytest.mark.stress
@pytest.mark.parametrize("ranks", [[4, 2, 3], [2, 4, 1], [3, 4, 2]])
@pytest.mark.parametrize("kind", ["Loader", "Loader told", "Loader made first", "Loader, BlockShuffleSampler"])
def test_any_number_of_ranks_goes_on(run: Run, data: str, tmp_path: Path, kind: str, ranks: list[int]) -> None:
    chain(run, data, tmp_path, kind, ranks, [5, 7, 4])


@pytest.mark.stress
def test_a_sampler_goes_on_where_the_ranks_divide_its_position(run: Run, data: str, tmp_path: Path) -> None:
    chain(run, data, tmp_path, "BlockShuffleSampler", [4, 2, 3], [6, 9, 5])  # 4 * 6 * 12 by 2, then + 2 * 9 * 12 by 3


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        pytest.param(
            "BlockShuffleSampler", "position 80 cannot be shared among world_size=3 ranks", marks=pytest.mark.stress
        ),
        ("Loader, DistributedSampler", "{'world_size': 4}, this one has {'world_size': 3}"),
    ],
)
def test_what_another_number_of_ranks_cannot_go_on_with_is_refused(
    run: Run, data: str, tmp_path: Path, kind: str, message: str
) -> None:
    check_killed(run, first := Job(data, str(tmp_path / "first"), kind, 4, 5, every=4, kill=(1, 5)))
    ended = run(Job(data, str(tmp_path / "second"), kind, 3, 5, resume=first.folder))
    assert "ValueError" in ended.error and message in ended.error


# docs/ranks.md


def test_the_page(run: Run, data: str, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    job = Job(data, str(folder), "page", world_size=2, batch_size=64)
    assert len(page_blocks("with torchrun: every rank runs this")) == 3
    assert run(job) == Ended()
    ranks = [json.loads((folder / f"page{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0]["loader"] == ranks[1]["loader"]
    assert (ranks[0]["loader"]["epoch"], ranks[0]["loader"]["position"]) == (3, 0)
    assert ranks[0]["sampler"] == ranks[1]["sampler"]
    counts = Counter(ranks[0]["used"] + ranks[1]["used"])
    assert set(counts) == set(range(N)) and counts.total() == 4 * (N + 1)  # three epochs, and one of the DataLoader
    state = torch.load(folder / "last.pt", weights_only=True)["loader"]
    assert state["epoch"] == 2 and state["position"] == 4 * 2 * 64  # step 20 of 24


@pytest.mark.stress
def test_the_page_with_frameworks(data: str, tmp_path: Path) -> None:
    """In a process of its own: the frameworks warn."""
    (tmp_path / "train.mmds").symlink_to(data)
    script = """
import sys, torch
from mmds import Loader, MemoryMappedDataset
from tests.rank_jobs import page_blocks
(lightning,), (accelerate,) = page_blocks("with Lightning"), page_blocks("with Accelerate")
names = {"torch": torch, "Loader": Loader, "MemoryMappedDataset": MemoryMappedDataset, "network": lambda: torch.nn.Linear(4, 1)}
exec(accelerate, names)
next(iter(names["loader"]))
names["accelerator"].save_state("saved")
names["loader"].set_epoch(7)
names["accelerator"].load_state("saved")
assert names["loader"].state_dict()["position"] == 64 and names["loader"].epoch == 0
exec(lightning, names)
class Model(names["Classifier"]):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(4, 1), []
    def training_step(self, batch, number):
        self.seen += batch["number"].tolist()
        return self.layer(batch["x"]).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
from lightning.pytorch import Trainer
model = Model()
Trainer(accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False).fit(model)
half = len(model.seen) // 2
assert sorted(model.seen[:half]) == sorted(model.seen[half:]) == list(range(1003)) and model.seen[:half] != model.seen[half:]
print("both")
"""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("both\n")


# One rank, in this process


def test_a_loop_that_counts_its_batches_has_another_epoch_each_time(data: str) -> None:
    """It never asks for the batch behind the last one, and so does not end the loader's loop: Lightning's does not."""
    dataset = mmds.MemoryMappedDataset(data, fields="number")
    samplers: list[dict[str, Any]] = [
        {"batch_size": 100, "shuffle": True},
        {"batch_size": 100, "shuffle": True, "drop_last": True},
        {"batch_size": 100, "sampler": mmds.BlockShuffleSampler(dataset)},
        {"batch_size": 100, "sampler": DistributedSampler(dataset, 2, 0)},
        {"batch_size": 100, "sampler": DistributedSampler(dataset, 2, 0), "drop_last": True},
        {"batch_sampler": BatchSampler(DistributedSampler(dataset, 2, 0), 100, drop_last=False)},
    ]
    for options in samplers:
        loader = mmds.Loader(dataset, num_threads=0, **options)
        want = [[batch.tolist() for batch in loader] for _ in range(3)]
        assert want[0] != want[1] != want[2]
        again = mmds.Loader(dataset, num_threads=1, **options)
        counts = range(len(again))
        assert [[batch.tolist() for _, batch in zip(counts, again)] for _ in range(3)] == want  # noqa: B905
        assert [batch.tolist() for _, batch in zip(counts[:-1], again)] != want[0][:-1]  # noqa: B905
        assert next(iter(again)).tolist() != want[0][0]  # epoch 3, begun again
        assert again.epoch == 3
        again.set_epoch(0)
        for _ in range(2):
            assert [batch.tolist() for _, batch in zip(counts, again)] == want[0]  # noqa: B905
            again.set_epoch(0)


def test_a_state_of_another_sampler_is_refused(data: str) -> None:
    dataset = mmds.MemoryMappedDataset(data, fields="number")

    def loader(**options: Any) -> mmds.Loader:
        return mmds.Loader(dataset, 10, sampler=mmds.BlockShuffleSampler(dataset, **options))

    state = json.loads(json.dumps(loader(seed=(1, 2)).state_dict()))
    loader(seed=(1, 2), rank=1, world_size=3).load_state_dict(state)
    for options in ({"seed": 1}, {"seed": (1, 2), "window": 3}, {"seed": (1, 2), "block_size": 3}):
        with pytest.raises(ValueError, match="this state is of a loader with order="):
            loader(**options).load_state_dict(state)
    with pytest.raises(ValueError, match="this state is of a loader with order="):
        mmds.Loader(dataset, 10).load_state_dict(state)


def test_the_last_batch_may_count_as_a_whole_one() -> None:
    sampler = mmds.BlockShuffleSampler(100, rank=1, world_size=3)
    assert len(list(sampler)) == 34
    end = sampler.state_dict()
    assert end["position"] == 102
    assert sampler.state_dict(used=33)["position"] == 99
    assert sampler.state_dict(used=4 * 10) == end
    assert len(list(itertools.islice(sampler, 30))) == 30
    with pytest.raises(ValueError, match="used=40: expected an integer from 0 to 30"):
        sampler.state_dict(used=4 * 10)


def test_ranks_that_do_not_know_of_each_other_are_warned(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = mmds.MemoryMappedDataset(data, fields="number")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert len(mmds.Loader(dataset, 10)) == 101
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert len(mmds.Loader(dataset, 10, rank=0, world_size=2)) == 51
    with pytest.warns(UserWarning, match="rank 1 of 2 .* not initialised, so it gets the samples of all ranks"):
        assert len(mmds.Loader(dataset, 10)) == 101
    with pytest.warns(UserWarning, match="call init_process_group before, or give rank and world_size"):
        assert len(mmds.BlockShuffleSampler(dataset)) == N
