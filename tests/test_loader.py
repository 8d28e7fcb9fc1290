"""`Loader`: the batches of a DataLoader from threads; epochs that any number of threads and ranks can go on with."""

from __future__ import annotations

import gc
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import mmds
from mmds.errors import FormatError
from mmds.images import CenterCrop, ImageBatch, RandomHorizontalFlip, RandomResizedCrop
from mmds.readahead import DiskReads, Readahead
from tests.samples import jpeg

N = 103
THREADS = [0, 1, 3]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("loader") / "a.mmds"
    schema = {
        "image": mmds.Array("uint8", (3, 40, 40)),
        "meta": (
            mmds.Scalar("int64"),
            mmds.Text(),
            {"score": mmds.Scalar("float32"), "brain": mmds.Array("bfloat16", (2,))},
        ),
        "tokens": mmds.Array("int32", (None,)),
    }
    with mmds.Writer(path, schema) as writer:
        for i in range(N):
            brain = torch.full((2,), float(i)).to(torch.bfloat16)
            image = generator.integers(0, 256, (3, 40, 40), "uint8")
            meta = (i, f"text {i}", {"score": i / 2, "brain": brain})
            writer.write({"image": image, "meta": meta, "tokens": np.arange(i % 9, dtype="int32")})
    return path


@pytest.fixture(autouse=True)
def _no_thread_left_behind() -> Iterator[None]:
    yield
    gc.collect()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("mmds")] == []


def numbers(path: Path, **options: Any) -> mmds.MemoryMappedDataset:
    """The number of each sample, alone."""
    return mmds.MemoryMappedDataset(path, fields="meta.0", **options)


def epoch(loader: mmds.Loader) -> list[list[int]]:
    return [batch.tolist() for batch in loader]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, mmds.Jagged):
        return isinstance(other, mmds.Jagged) and same(one.values, other.values) and same(one.offsets, other.offsets)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


# What a batch is


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(
    "options",
    [
        {"fields": ["image", "meta"]},
        {"fields": ("image", "meta.0")},
        {"fields": "image"},
        {"fields": "meta.1"},
        {"fields": {"x": "meta.2", "y": "meta.0"}},
        {"ragged": "jagged"},
        {"ragged": "padded"},
        {"fields": ["image"], "transform": lambda sample: {"mean": sample["image"].float().mean(), **sample}},
        {"fields": ("image", "meta.0"), "target_transform": lambda target: target + 1},
        {"fields": ["image", "meta"], "format": "numpy"},
    ],
)
def test_batches_are_those_of_a_dataloader(path: Path, threads: int, options: dict[str, Any]) -> None:
    dataset = mmds.MemoryMappedDataset(path, **options)
    want = list(DataLoader(dataset, batch_size=10))
    got = list(mmds.Loader(dataset, 10, num_threads=threads))
    assert len(got) == len(want) == 11
    assert all(map(same, want, got))


@pytest.mark.parametrize("threads", THREADS)
def test_other_datasets_and_collate_functions(path: Path, threads: int) -> None:
    class Squares(Dataset[int]):
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> int:
            return index**2

    class Shifted(mmds.MemoryMappedDataset):
        def __getitem__(self, index: Any) -> Any:
            return super().__getitem__(index) + 1000

    assert epoch(mmds.Loader(Squares(), 4, num_threads=threads)) == [[0, 1, 4, 9], [16, 25, 36, 49], [64, 81]]
    assert epoch(mmds.Loader(Shifted(path, fields="meta.0"), 50, num_threads=threads))[2] == [1100, 1101, 1102]
    tensors = mmds.Loader(TensorDataset(torch.arange(6), torch.arange(6) * 2), 4, num_threads=threads)
    assert [[part.tolist() for part in batch] for batch in tensors] == [[[0, 1, 2, 3], [0, 2, 4, 6]], [[4, 5], [8, 10]]]
    tokens = mmds.MemoryMappedDataset(path, fields="tokens")
    lists = list(mmds.Loader(tokens, 50, collate_fn=list, num_threads=threads))
    assert [len(tokens) for batch in lists for tokens in batch] == [i % 9 for i in range(N)]
    sliced = mmds.Loader(numbers(path)[10:20], 4, num_threads=threads, batch_transform=lambda batch: batch * -1)
    assert epoch(sliced) == [[-10, -11, -12, -13], [-14, -15, -16, -17], [-18, -19]]
    assert epoch(mmds.Loader(numbers(path)[:0], 4, num_threads=threads)) == []


def test_batches_that_are_kept_stay_as_they_were(path: Path) -> None:
    dataset = mmds.MemoryMappedDataset(path, fields=["image"])
    batches = list(mmds.Loader(dataset, 64, num_threads=3, shuffle=True)) + list(
        mmds.Loader(dataset, 64, num_threads=3)
    )
    assert same(
        torch.cat([batch["image"] for batch in batches[2:]]), torch.stack([dataset[i]["image"] for i in range(N)])
    )


# The order of an epoch


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_has_every_sample_once_in_an_order_of_its_own(path: Path, drop_last: bool) -> None:
    orders = []
    for threads in THREADS:
        loader = mmds.Loader(numbers(path), 10, shuffle=True, seed=5, num_threads=threads, drop_last=drop_last)
        assert len(loader) == (10 if drop_last else 11)
        epochs = [epoch(loader) for _ in range(3)]
        assert loader.epoch == 3
        assert {len(batches) for batches in epochs} == {len(loader)}
        for batches in epochs:
            flat = list(itertools.chain(*batches))
            assert len(flat) == len(set(flat)) == (100 if drop_last else N)
            assert set(flat) <= set(range(N))
            assert flat != sorted(flat)
        orders.append(epochs)
        loader.set_epoch(1)
        assert epoch(loader) == epochs[1]
    assert orders[0] == orders[1] == orders[2]
    assert orders[0][0] != orders[0][1]
    assert epoch(mmds.Loader(numbers(path), 10, shuffle=True, seed=6, drop_last=drop_last)) != orders[0][0]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 7), (2, 7), (3, 5), (4, 30), (7, 1), (8, 200), (250, 1)])
def test_ranks_get_different_samples_and_equally_many(
    path: Path, world_size: int, batch_size: int, shuffle: bool
) -> None:
    ranks = [
        mmds.Loader(numbers(path), batch_size, shuffle=shuffle, num_threads=0, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    batches = [epoch(loader) for loader in ranks]
    assert {len(found) for found in batches} == {len(ranks[0])}
    assert len({tuple(map(len, found)) for found in batches}) == 1
    whole = [number for found in zip(*batches, strict=True) for batch in found for number in batch]
    extra = len(whole) - N
    assert 0 <= extra < world_size
    alone = list(itertools.chain(*epoch(mmds.Loader(numbers(path), 1, shuffle=shuffle))))
    assert whole[:N] == alone
    assert whole[N:] == (alone * 3)[:extra]
    dropping = [
        mmds.Loader(numbers(path), batch_size, num_threads=0, drop_last=True, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    found = [number for loader in dropping for batch in loader for number in batch.tolist()]
    assert len(found) == len(set(found)) == N // (world_size * batch_size) * world_size * batch_size


def test_ranks_are_those_of_torch_distributed(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    import torch.distributed as distributed

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    assert epoch(mmds.Loader(numbers(path), 50)) == [list(range(50, 100)), [102, 0]]


def test_samplers_of_torch(path: Path) -> None:
    dataset = numbers(path)
    torch.manual_seed(0)
    subset = SubsetRandomSampler(range(20, 40))
    assert sorted(itertools.chain(*epoch(mmds.Loader(dataset, 6, sampler=subset)))) == list(range(20, 40))
    weighted = WeightedRandomSampler([0.0] * 50 + [1.0] * 53, 30)
    loader = mmds.Loader(dataset, 8, sampler=weighted, drop_last=True)
    assert [len(batch) for batch in loader] == [8, 8, 8]
    assert len(loader) == 3
    batches = BatchSampler(range(0, 20, 2), 4, drop_last=False)
    loader = mmds.Loader(dataset, batch_sampler=batches)
    assert epoch(loader) == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]
    assert len(loader) == 3


def test_a_distributed_sampler_is_told_the_epoch(path: Path) -> None:
    sampler: Any = DistributedSampler(numbers(path), num_replicas=2, rank=1, shuffle=True)
    loaders = [
        mmds.Loader(numbers(path), 10, sampler=sampler),
        mmds.Loader(numbers(path), batch_sampler=BatchSampler(sampler, 10, drop_last=False)),
    ]
    want = []
    for number in range(2):
        sampler.set_epoch(number)
        want.append(list(sampler))
    assert want[0] != want[1]
    for loader in loaders:
        assert [list(itertools.chain(*epoch(loader))) for _ in range(2)] == want


# Going on


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 4, 11])
def test_a_loader_goes_on_at_the_next_sample(path: Path, stop: int, shuffle: bool) -> None:
    for first, then in [(0, 3), (3, 0), (2, 1)]:
        loader = mmds.Loader(numbers(path), 10, shuffle=shuffle, num_threads=first)
        whole = [epoch(loader) for _ in range(3)]
        loader.set_epoch(1)
        iterator = iter(loader)
        found = [next(iterator).tolist() for _ in range(stop)]
        state = json.loads(json.dumps(loader.state_dict()))
        assert found == whole[1][:stop]
        iterator.close()  # type: ignore[attr-defined]
        other = mmds.Loader(numbers(path), 10, shuffle=shuffle, num_threads=then)
        other.load_state_dict(state)
        assert other.state_dict() == state
        other.set_epoch(other.epoch)  # as training loops do
        assert epoch(other) == whole[1][stop:]
        assert epoch(other) == whole[2]


def test_another_number_of_ranks_goes_on_with_the_rest(path: Path) -> None:
    def ranks(world_size: int, batch_size: int) -> list[mmds.Loader]:
        return [
            mmds.Loader(numbers(path), batch_size, shuffle=True, seed=9, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]

    alone = list(itertools.chain(*epoch(ranks(1, 1)[0])))
    before, states = [], []
    for loader in ranks(3, 8):
        iterator = iter(loader)
        before += next(iterator).tolist() + next(iterator).tolist()
        states.append(loader.state_dict())
        iterator.close()  # type: ignore[attr-defined]
    assert states[0] == states[1] == states[2]
    assert sorted(before) == sorted(alone[:48])
    after = []
    for loader in ranks(2, 11):
        loader.load_state_dict(states[0])
        after += list(itertools.chain(*epoch(loader)))
    assert sorted(after) == sorted([*alone[48:], *alone[:1]])  # 55 samples for two ranks


def test_a_loader_with_a_sampler_goes_on(path: Path) -> None:
    for options in ({"sampler": range(50, 100)}, {"batch_sampler": BatchSampler(range(50, 100), 1, drop_last=False)}):
        loader = mmds.Loader(numbers(path), **options)
        iterator = iter(loader)
        assert [next(iterator).tolist() for _ in range(3)] == [[50], [51], [52]]
        other = mmds.Loader(numbers(path), **options, num_threads=0)
        other.load_state_dict(loader.state_dict())
        assert epoch(other)[0] == [53]
        iterator.close()  # type: ignore[attr-defined]


def test_a_state_of_another_dataset_or_order_is_refused(path: Path) -> None:
    loader = mmds.Loader(numbers(path), 10, shuffle=True)
    state = loader.state_dict()
    changes: list[tuple[dict[str, Any], str]] = [
        ({"samples": 5}, "samples=5, this one has 103"),
        ({"shuffle": False}, "shuffle=False, this one has True"),
        ({"seed": 7}, "seed=7, this one has 0"),
        ({"unit": "batches"}, "unit='batches', this one has 'samples'"),
    ]
    for change, message in changes:
        with pytest.raises(ValueError, match=message):
            loader.load_state_dict({**state, **change})
    with pytest.raises(ValueError, match=r"no 'position' in this state"):
        loader.load_state_dict({"epoch": 1})


def test_leaving_a_loop_begins_the_epoch_again(path: Path) -> None:
    loader = mmds.Loader(numbers(path), 10, shuffle=True)
    first = next(iter(loader)).tolist()
    gc.collect()
    assert loader.epoch == 0
    assert epoch(loader)[0] == first


# What goes wrong


@pytest.mark.parametrize("threads", THREADS)
def test_an_exception_is_raised_at_its_batch_and_names_the_sample(path: Path, threads: int) -> None:
    def fails(number: int) -> int:
        if number == 57:
            raise ZeroDivisionError("no such thing")
        return number

    loader = mmds.Loader(numbers(path, transform=fails), 10, num_threads=threads)
    found = []
    with pytest.raises(ZeroDivisionError, match="no such thing") as info:
        for batch in loader:
            found.append(batch.tolist())
    assert found == [list(range(k, k + 10)) for k in range(0, 50, 10)]
    notes = info.value.__notes__
    assert f"{path}: sample 57" in notes
    assert "in the batch of samples 50, 51, 52, 53, 54, 55, 56, 57 and 2 more (epoch 0)" in notes


def test_damage_is_named(path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "b.mmds"
    with mmds.Writer(damaged, {"x": mmds.Image(mode="RGB")}) as writer:
        writer.extend({"x": b"\xff\xd8\xff nothing"} for _ in range(4))
    with pytest.raises(FormatError, match=r"sample 0, field 'x': cannot be decoded"):
        list(mmds.Loader(mmds.MemoryMappedDataset(damaged), 2))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size=0: expected an int of at least 1"),
        ({"batch_size": 2.0}, ValueError, "batch_size=2.0: expected an int"),
        ({"num_threads": -1}, ValueError, "num_threads=-1: expected an int of at least 0"),
        ({"prefetch_factor": 0}, ValueError, "prefetch_factor=0: expected"),
        ({"sampler": [1], "shuffle": True}, ValueError, "sampler: not together with shuffle"),
        ({"sampler": [1], "batch_sampler": [[1]]}, ValueError, "sampler: not together with shuffle or batch_sampler"),
        ({"batch_sampler": [[1]], "batch_size": 3}, ValueError, "batch_sampler: not together with batch_size"),
        ({"rank": 1}, ValueError, "rank=1, world_size=None: give both"),
        ({"rank": 2, "world_size": 2}, ValueError, "expected 0 <= rank < world_size"),
    ],
)
def test_bad_arguments_are_named(path: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        mmds.Loader(numbers(path), **options)


def test_a_dataset_without_length_is_refused() -> None:
    with pytest.raises(TypeError, match=r"dataset: expected __getitem__ and __len__, got generator"):
        mmds.Loader(i for i in range(3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_pinned_memory_needs_a_device(path: Path) -> None:
    with pytest.raises(ValueError, match="pin_memory=True: expected a CUDA device, and there is none"):
        mmds.Loader(numbers(path), pin_memory=True)


def test_ctrl_c_ends_at_once(path: Path) -> None:
    code = f"""
import mmds, os, time
def slow(sample):
    os.write(1, b"reading\\n")  # in one piece, also where two threads write at once
    time.sleep(0.2)
    return sample
try:
    for batch in mmds.Loader(mmds.MemoryMappedDataset({str(path)!r}, fields="meta.0", transform=slow), 1):
        pass
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(mmds.__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        rest = process.stdout.read()
        assert process.wait(timeout=30) == 0
    assert rest.splitlines()[-1] == "interrupted"
    assert rest.count("reading") < 30  # of 103: what had begun, not the rest
    assert time.monotonic() - start < 20


# What it costs


def test_threads_live_as_long_as_the_loop(path: Path) -> None:
    loader = mmds.Loader(numbers(path), 10, num_threads=3)
    iterator = iter(loader)
    next(iterator)
    running = [thread for thread in threading.enumerate() if thread.name.startswith("mmds-loader")]
    assert 1 <= len(running) <= 3
    del iterator
    gc.collect()
    for thread in running:
        thread.join(10)
        assert not thread.is_alive()


def test_a_bounded_number_of_batches_is_read_ahead(path: Path) -> None:
    read: list[int] = []

    def seen(number: int) -> int:
        read.append(number)
        return number

    loader = mmds.Loader(numbers(path, transform=seen), 1, num_threads=2, prefetch_factor=3)
    iterator = iter(loader)
    next(iterator)
    time.sleep(0.2)
    assert len(read) <= 1 + 2 * 3
    iterator.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("threads", [0, 1])
def test_the_kernel_is_asked_before_batches_are_read(path: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(DiskReads, "wanted", lambda self, samples: True)
    monkeypatch.setattr(Readahead, "ask", lambda self, starts, stops: events.append("ask"))
    collate = mmds.MemoryMappedDataset.collate

    def reading(dataset: mmds.MemoryMappedDataset, rows: Any, images: Any) -> Any:
        events.append("read")
        return collate(dataset, rows, images)

    monkeypatch.setattr(mmds.MemoryMappedDataset, "collate", reading)
    assert len(list(mmds.Loader(numbers(path), 10, num_threads=threads, prefetch_factor=4))) == 11
    assert events.count("ask") == events.count("read") == 11
    for k in range(11):
        asked = [i for i, event in enumerate(events) if event == "ask"][k]
        read = [i for i, event in enumerate(events) if event == "read"][k]
        assert asked < read


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")
def test_released_pages_leave_the_process(tmp_path: Path) -> None:
    path = tmp_path / "large.mmds"
    with mmds.Writer(path, {"x": mmds.Array("uint8", (1 << 16,))}) as writer:
        writer.write_batch({"x": np.random.default_rng(0).integers(0, 256, (400, 1 << 16), "uint8")})
    want = [int(batch["x"].sum()) for batch in mmds.Loader(mmds.MemoryMappedDataset(path), 16)]

    def resident(release: bool) -> int:
        dataset = mmds.MemoryMappedDataset(path)
        got = [int(batch["x"].sum()) for batch in mmds.Loader(dataset, 16, num_threads=1, release=release)]
        assert got == want
        text = Path("/proc/self/smaps").read_text()
        found = re.findall(rf"{path}\n(?:.*\n)*?Rss: +(\d+) kB", text)
        return sum(map(int, found))

    gc.collect()
    assert resident(release=True) < 4096
    gc.collect()
    assert resident(release=False) > 20_000


def test_worker_processes_after_a_loader(path: Path) -> None:
    dataset = numbers(path)
    iterator = iter(mmds.Loader(dataset, 10, num_threads=2))
    next(iterator)
    assert [batch.tolist() for batch in DataLoader(dataset, 50, num_workers=2)][2] == [100, 101, 102]
    assert len(list(iterator)) == 10


# Pictures


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "p.mmds"
    with mmds.Writer(path, {"image": mmds.Image(mode="RGB"), "label": mmds.Scalar("int64")}) as writer:
        writer.extend({"image": jpeg(i, (50 + i, 60)), "label": i} for i in range(20))
    return path


def test_pictures_are_made_into_one_tensor(photos: Path) -> None:
    dataset = mmds.MemoryMappedDataset(photos)
    loader = mmds.Loader(dataset, 8, images=[CenterCrop(40)])
    batches = list(loader)
    assert [batch["image"].shape for batch in batches] == [(8, 3, 40, 40), (8, 3, 40, 40), (4, 3, 40, 40)]
    assert torch.cat([batch["label"] for batch in batches]).tolist() == list(range(20))
    for k in (0, 13, 19):
        whole = dataset[k]["image"]
        top, left = round((whole.shape[1] - 40) / 2), round((whole.shape[2] - 40) / 2)
        assert torch.equal(batches[k // 8]["image"][k % 8], whole[:, top : top + 40, left : left + 40])


def test_random_pictures_depend_on_seed_and_epoch_alone(photos: Path) -> None:
    dataset = mmds.MemoryMappedDataset(photos, fields=("image", "label"))
    operations: list[Any] = [RandomResizedCrop(16), RandomHorizontalFlip()]

    def epochs(**options: Any) -> list[Any]:
        loader = mmds.Loader(dataset, 8, shuffle=True, images=operations, **options)
        return [list(loader), list(loader)]

    want = epochs(num_threads=0)
    assert same(want, epochs(num_threads=3))
    assert not same(want[0][0][0], want[1][0][0])
    assert not same(want[0][0][0], epochs(seed=1)[0][0][0])
    assert same(epochs(seed=-1), epochs(seed=-1, num_threads=0))
    alone = {
        int(y): x for k in range(2) for xs, ys in epochs(rank=k, world_size=2)[0] for x, y in zip(xs, ys, strict=True)
    }
    assert len(alone) == 20
    for xs, ys in want[0]:  # the same place in the epoch, whichever rank has it
        assert all(torch.equal(x, alone[int(y)]) for x, y in zip(xs, ys, strict=True))
    loader = mmds.Loader(dataset, 8, shuffle=True, images=ImageBatch(operations))
    loader.load_state_dict({**loader.state_dict(), "position": 8})
    assert same(want[0][1:], list(loader))


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    with mmds.Writer(tmp_path / "b.mmds", {"a": mmds.Image(mode="RGB", nullable=True)}) as writer:
        writer.extend({"a": [jpeg(1, (9, 9)), b"\xff\xd8\xff nothing", None][i % 3]} for i in range(6))
    dataset = mmds.MemoryMappedDataset(tmp_path / "b.mmds")
    with pytest.raises(FormatError, match=r"b\.mmds: sample 4, field 'a': "):
        list(mmds.Loader(dataset, 2, images=[CenterCrop(8)], sampler=[0, 3, 3, 4]))
    with pytest.raises(FormatError, match=r"b\.mmds: sample 2, field 'a': null"):
        list(mmds.Loader(dataset, 2, images=[CenterCrop(8)], sampler=[0, 2]))


def test_bad_images_are_refused(path: Path, photos: Path) -> None:
    dataset = mmds.MemoryMappedDataset(photos)
    with pytest.raises(ValueError, match=r"images: 'label' is no field of pictures; there are: image"):
        mmds.Loader(dataset, images={"label": []})
    with pytest.raises(ValueError, match="images: this dataset has no field of pictures"):
        mmds.Loader(mmds.MemoryMappedDataset(path), images=[CenterCrop(8)])
    with pytest.raises(ValueError, match="images: expected a MemoryMappedDataset without transforms"):
        mmds.Loader(mmds.MemoryMappedDataset(photos, transform=dict), images=[CenterCrop(8)])
