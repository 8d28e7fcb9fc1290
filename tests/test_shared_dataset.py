"""`SharedDataset`: each sample is read once, whoever asks, and nothing half or wrong is ever seen, whoever is killed."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import mmds
from mmds import samplecache
from mmds.errors import ExistsError, FormatError, SampleError
from mmds.shareddataset import SharedDataset
from tests.conftest import Cases
from tests.likeness import assert_alike

COUNT = 60


class Slow:
    """Samples that say who read them: every read adds a line to a file."""

    def __init__(self, log: Path, count: int = COUNT, size: int = 1000, wait: float = 0.0) -> None:
        self.log, self.count, self.size, self.wait = log, count, size, wait
        self.classes = ["cat", "dog"]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        with self.log.open("a") as file:
            file.write(f"{index}\n")
        time.sleep(self.wait)
        return sample(index, self.size)

    def reads(self) -> list[int]:
        return [int(line) for line in self.log.read_text().split()] if self.log.exists() else []


def sample(index: int, size: int = 1000) -> Any:
    generator = np.random.default_rng(index)
    array = generator.integers(0, 256, size + index, "uint8")
    return {"image": torch.from_numpy(array), "label": (index, f"name {index}"), "boxes": [[index / 3]] * (index % 3)}


@pytest.fixture
def name() -> Iterator[str]:
    name = f"test-{secrets.token_hex(6)}"
    yield name
    assert not list(Path("/dev/shm").glob(f"*{name}*")), "nothing may be left"


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    return Slow(tmp_path / "log")


def assert_same(found: Any, index: int, size: int = 1000) -> None:
    want = sample(index, size)
    assert torch.equal(found["image"], want["image"])
    assert type(found["image"]) is torch.Tensor
    assert_alike({**found, "image": None}, {**want, "image": None})


def test_each_sample_is_read_once(slow: Slow, name: str) -> None:
    shared = SharedDataset(slow, name)
    for _ in range(3):
        for index in range(COUNT):
            assert_same(shared[index], index)
    assert sorted(slow.reads()) == list(range(COUNT))
    assert len(shared) == COUNT
    assert shared.filled == COUNT
    assert shared.classes == ["cat", "dog"]
    assert_same(shared[-1], COUNT - 1)
    with pytest.raises(IndexError, match="index 60 is out of range for 60 samples"):
        shared[COUNT]
    shared[0]["image"].fill_(0)
    assert_same(shared[0], 0)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.stress)])
def test_workers_of_a_dataloader_read_together(slow: Slow, name: str, method: str) -> None:
    shared = SharedDataset(slow, name)
    shared[3]  # opened before workers are forked
    loader: DataLoader[Any] = DataLoader(
        shared,  # type: ignore[arg-type]
        None,
        num_workers=2,
        multiprocessing_context=method,
        shuffle=True,
        collate_fn=unchanged,
    )
    for _ in range(2):
        for found in loader:
            assert_same(found, found["label"][0])
    assert sorted(slow.reads()) == list(range(COUNT))
    shared.close()


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.stress)])
def test_what_workers_read_outlives_them(slow: Slow, name: str, method: str) -> None:
    shared = SharedDataset(slow, name)
    for _ in range(2):  # with new workers each time
        options: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": method, "collate_fn": unchanged}
        for found in DataLoader(shared, None, **options):  # type: ignore[arg-type]
            assert_same(found, found["label"][0])
    assert sorted(slow.reads()) == list(range(COUNT))
    shared.close()


def unchanged(sample: Any) -> Any:
    return sample


def read_all(shared: SharedDataset, seed: int) -> None:
    order = list(range(len(shared)))
    random.Random(seed).shuffle(order)
    for index in order:
        assert_same(shared[index], index, shared.dataset.size)


def test_four_processes_that_fill_at_once_read_nothing_twice(tmp_path: Path, name: str) -> None:
    slow = Slow(tmp_path / "log", wait=0.002)
    shared = SharedDataset(slow, name)
    context = multiprocessing.get_context("fork")
    assert shared.filled == 0  # opened here: the first process may be done before the last one has started
    processes = [context.Process(target=read_all, args=(shared, 1)) for _ in range(4)]  # in the same order
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(slow.reads()) == list(range(COUNT))
    read_all(SharedDataset(slow, name), 0)


def test_threads_of_one_process_read_nothing_twice(tmp_path: Path, name: str) -> None:
    slow = Slow(tmp_path / "log", wait=0.001)
    shared = SharedDataset(slow, name)
    threads = [threading.Thread(target=read_all, args=(shared, seed)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(slow.reads()) == list(range(COUNT))
    shared.close()


def test_a_second_program_reuses_what_is_there(slow: Slow, name: str) -> None:
    shared = SharedDataset(slow, name)
    list(shared)
    code = (
        "import sys, pathlib, tests.test_shared_dataset as t\n"
        f"slow = t.Slow(pathlib.Path({str(slow.log)!r}))\n"
        f"t.read_all(t.SharedDataset(slow, {name!r}), 5)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
    assert len(slow.reads()) == COUNT
    read_all(shared, 1)
    shared.close()
    list(SharedDataset(slow, name))  # all were gone, so the memory was
    assert len(slow.reads()) == 2 * COUNT


def test_a_script_and_its_workers_are_one_program(tmp_path: Path, name: str) -> None:
    (tmp_path / "script.py").write_text(
        "import multiprocessing, sys\n"
        "from mmds import SharedDataset\n"
        "class Squares:\n"
        "    def __len__(self): return 9\n"
        "    def __getitem__(self, i): return i * i\n"
        "def read(shared): return shared[5]\n"
        "if __name__ == '__main__':\n"
        f"    shared = SharedDataset(Squares(), {name!r})\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(shared[4], pool.map(read, [shared]), shared.filled)\n"
    )
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True)
    assert done.stdout == "16 [25] 2\n", done.stderr


def test_memory_goes_with_the_last_process(slow: Slow, name: str) -> None:
    one, other = SharedDataset(slow, name), SharedDataset(slow, name)
    one[0], other[0]
    path = one.path
    one.close()
    assert path.exists()
    other.close()
    assert not path.exists()
    assert_same(one[0], 0)
    assert path.exists()
    del one


def die(shared: SharedDataset) -> None:
    shared[0]
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.fault(27)
def test_what_killed_processes_leave_is_removed_by_the_next_one(slow: Slow, name: str) -> None:
    process = multiprocessing.get_context("spawn").Process(target=die, args=(SharedDataset(slow, name),))
    process.start()
    process.join()
    assert SharedDataset(slow, name).path.exists()
    other = SharedDataset(slow, f"{name}-other")
    other[0]
    assert not SharedDataset(slow, name).path.exists()
    other.close()


@pytest.mark.fault(27)
def test_the_same_name_after_a_kill_begins_anew(slow: Slow, name: str) -> None:
    process = multiprocessing.get_context("spawn").Process(target=die, args=(SharedDataset(slow, name),))
    process.start()
    process.join()
    shared = SharedDataset(slow, name)
    read_all(shared, 0)
    assert len(slow.reads()) == COUNT + 1
    shared.close()


class Other(Slow):
    """Another class."""


@pytest.mark.fault(29)
def test_a_name_of_another_dataset_is_refused(slow: Slow, name: str, tmp_path: Path) -> None:
    shared = SharedDataset(slow, name)
    shared[0]
    for dataset, version in ((Slow(tmp_path / "log", 61), ""), (Other(tmp_path / "log"), ""), (slow, "2")):
        with pytest.raises(ExistsError, match="belongs to another dataset; choose another name"):
            SharedDataset(dataset, name, version=version)[0]
    assert_same(shared[1], 1)
    shared.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user takes root")
@pytest.mark.fault(29)
def test_a_file_of_another_user_is_refused(slow: Slow, name: str) -> None:
    shared = SharedDataset(slow, name)
    shared.path.write_bytes(b"")
    os.chown(shared.path, 12345, 12345)
    try:
        with pytest.raises(ExistsError, match="belongs to another user"):
            shared[0]
    finally:
        shared.path.unlink()


@pytest.mark.fault(29)
def test_a_link_in_its_place_is_refused(slow: Slow, name: str, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("whole")
    shared = SharedDataset(slow, name)
    shared.path.symlink_to(tmp_path / "victim")
    try:
        with pytest.raises(OSError, match=r"symbolic links|Too many levels"):
            shared[0]
    finally:
        shared.path.unlink()
    assert (tmp_path / "victim").read_text() == "whole"


def test_over_capacity_the_dataset_is_read_with_one_warning(tmp_path: Path, name: str) -> None:
    slow = Slow(tmp_path / "log", size=10_000)
    shared = SharedDataset(slow, name, capacity=200_000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            for index in range(COUNT):
                assert_same(shared[index], index, 10_000)
    assert [str(warning.message)[:40] for warning in caught] == [f"shared dataset '{name}' is full: "[:40]]
    assert 15 <= shared.filled < 20
    assert len(slow.reads()) == 2 * COUNT - shared.filled
    assert shared.path.stat().st_blocks * 512 <= 204_800
    shared.close()


@pytest.mark.fault(28)
def test_a_full_file_system(tmp_path: Path, name: str) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", mount]).returncode:
        pytest.skip("mounting takes root")
    try:
        slow = Slow(tmp_path / "log", size=10_000)
        shared = SharedDataset(slow, name, directory=mount, capacity=10**8)
        with pytest.warns(RuntimeWarning, match="is full"):
            read_all(shared, 0)
        assert 15 <= shared.filled < 30
        read_all(shared, 1)
        shared.close()
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


def test_a_limit_of_the_control_group(slow: Slow, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplecache, "memory_left", lambda: samplecache.SPARE + 500)
    shared = SharedDataset(slow, name)
    with pytest.warns(RuntimeWarning, match="is full"):
        read_all(shared, 0)
    assert shared.filled == 0
    shared.close()


def test_a_folder_keeps_them(slow: Slow, name: str, tmp_path: Path) -> None:
    shared = SharedDataset(slow, name, directory=tmp_path)
    read_all(shared, 0)
    shared.close()
    again = SharedDataset(slow, name, directory=tmp_path)
    read_all(again, 1)
    assert len(slow.reads()) == COUNT
    again.close()


def test_damage_on_a_disk_is_found(slow: Slow, name: str, tmp_path: Path) -> None:
    shared = SharedDataset(slow, name, directory=tmp_path)
    read_all(shared, 0)
    path = shared.path
    shared.close()
    with path.open("r+b") as file:  # as large as the disk, but mostly a hole
        data = bytearray(file.read(4096 + 8 * COUNT + 2000))
        data[-100] ^= 1
        file.seek(0)
        file.write(data)
    with pytest.raises(FormatError, match="is damaged; delete the file to fill it again"):
        read_all(SharedDataset(slow, name, directory=tmp_path), 0)
    with path.open("r+b") as file:
        file.write(b"something")
    with pytest.raises(FormatError, match="not a cache of samples"):
        SharedDataset(slow, name, directory=tmp_path)[0]


def test_persist_publishes_everything(slow: Slow, name: str, tmp_path: Path) -> None:
    shared = SharedDataset(slow, name)
    shared[5]
    shared.persist(tmp_path / "out.mmds")
    assert sorted(slow.reads()) == list(range(COUNT))
    reader = mmds.open(tmp_path / "out.mmds")
    assert len(reader) == COUNT
    for index in range(COUNT):
        assert reader[index]["image"].tolist() == sample(index)["image"].tolist()
        assert reader[index]["label"] == sample(index)["label"]
    shared.close()


def test_an_error_of_the_dataset_is_its_own(name: str) -> None:
    class Failing(list[int]):
        def __getitem__(self, index: Any) -> Any:
            if index == 1:
                raise OSError("no such picture")
            return index

    shared = SharedDataset(Failing([1, 2, 3]), name)
    for _ in range(2):
        with pytest.raises(OSError, match="no such picture"):
            shared[1]
    assert shared[2] == 2
    shared.close()


def test_what_cannot_be_kept_is_named(name: str) -> None:
    shared = SharedDataset([1, {"x": object()}], name)
    with pytest.raises(SampleError, match=r"^sample 1\['x'\]: a builtins.object, which cannot be kept"):
        shared[1]
    assert shared[0] == 1
    shared.close()


def test_a_transform_is_called_each_time(slow: Slow, name: str) -> None:
    calls: list[Any] = []

    def transform(found: Any) -> Any:
        calls.append(found["label"][0])
        return found["label"]

    shared = SharedDataset(slow, name, transform=transform)
    assert [shared[2], shared[2]] == [(2, "name 2")] * 2
    assert calls == [2, 2]
    shared.close()


def test_a_pickle_holds_no_memory(slow: Slow, name: str) -> None:
    shared = SharedDataset(slow, name)
    read_all(shared, 0)
    data = pickle.dumps(shared)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert_same(again[4], 4)
    again.close()
    shared.close()


def fill_for_ever(shared: SharedDataset, seed: int) -> None:
    while True:
        read_all(shared, seed)
        seed += 1


def kills(tmp_path: Path, name: str, count: int) -> None:
    """Kill processes that fill, at random, and see that what is there is right, and never read twice without need."""
    slow = Slow(tmp_path / "log", count=400, size=3000)
    generator = random.Random(0)
    shared = SharedDataset(slow, name)
    shared[0]
    done = 0
    context = multiprocessing.get_context("fork")
    while done < count:
        processes = [context.Process(target=fill_for_ever, args=(shared, done + k)) for k in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            time.sleep(generator.random() * 0.01)
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            assert process.exitcode == -signal.SIGKILL  # and not an assertion of its own
            done += 1
        read_all(shared, done) if done % 40 == 0 else assert_same(shared[done % 400], done % 400, 3000)
        if done % 80 == 0:  # begin again, so that there is something to fill
            shared.close()
            assert not shared.path.exists()
    shared.close()


@pytest.mark.stress
@pytest.mark.fault(26)
def test_kills(tmp_path: Path, name: str, cases: Cases) -> None:
    kills(tmp_path, name, 80)
    cases(80)
