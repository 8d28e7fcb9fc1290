"""`share`: one copy of a list, read by processes of every kind, which nobody has to clean up."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as distributed
from torch.utils.data import DataLoader, Dataset

import mmds
from mmds.errors import MmdsError, SampleError, StorageError
from mmds.sharing import CHUNK, SharedSamples

METHODS = ["fork", "spawn", "forkserver"]


def annotation(i: int) -> dict[str, Any]:
    parts = [[float(k) for k in range(i % 7)]]
    return {"id": i, "bbox": [i / 3, 2.0, 3.0], "name": f"é{i}", "parts": parts, "crowd": i % 2 == 0}


SAMPLES = [annotation(i) for i in range(2 * CHUNK + 5)]


@pytest.fixture(scope="module")
def shared() -> SharedSamples:
    return mmds.share(SAMPLES)


def open_descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def test_it_is_a_sequence_of_the_samples(shared: SharedSamples) -> None:
    assert len(shared) == len(SAMPLES)
    assert list(shared) == SAMPLES
    assert shared[-1] == SAMPLES[-1]
    assert shared[np.int64(3)]  # type: ignore[call-overload]
    assert shared[3] == SAMPLES[3]
    assert list(shared[5:30:4]) == SAMPLES[5:30:4]
    assert list(reversed(shared[:3])) == SAMPLES[2::-1]
    assert SAMPLES[7] in shared[:20]
    assert shared.index(SAMPLES[9]) == 9
    assert "shared samples" in repr(shared)
    with pytest.raises(IndexError, match="index 2053 is out of range for 2053 shared samples"):
        shared[len(SAMPLES)]
    shared[0]["bbox"].append(1)  # a copy
    assert shared[0] == SAMPLES[0]


def test_samples_of_a_generator_and_none_at_all() -> None:
    assert list(mmds.share(i * i for i in range(10))) == [i * i for i in range(10)]
    assert list(mmds.share([])) == []


def test_arrays_and_tensors_keep_their_types() -> None:
    samples = [(torch.full((3, 4), i), np.arange(i), i) for i in range(5)]
    for found, want in zip(mmds.share(samples), samples, strict=True):
        assert type(found) is tuple
        assert torch.equal(found[0], want[0])
        assert np.array_equal(found[1], want[1])


def read(item: tuple[SharedSamples, int]) -> Any:
    return item[0][item[1]]


@pytest.mark.parametrize("method", METHODS)
def test_processes_get_it_as_an_argument(shared: SharedSamples, method: str) -> None:
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        assert pool.map(read, [(shared, i) for i in range(0, 2000, 100)]) == SAMPLES[0:2000:100]
    with ProcessPoolExecutor(2, context) as executor:
        assert list(executor.map(read, [(shared[10:], i) for i in range(5)])) == SAMPLES[10:15]


class Annotations(Dataset[Any]):
    """What people have, with the list replaced."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> int:
        return int(self.samples[index]["id"])


@pytest.mark.parametrize("method", METHODS)
def test_workers_of_a_dataloader_read_it(shared: SharedSamples, method: str) -> None:
    loader = DataLoader(Annotations(shared), 100, num_workers=2, multiprocessing_context=method)
    assert torch.cat(list(loader)).tolist() == list(range(len(SAMPLES)))


def test_a_pickle_is_small_and_reads_the_same_memory(shared: SharedSamples) -> None:
    data = pickle.dumps(shared)
    assert len(data) < 300
    again = pickle.loads(data)
    assert again[5] == SAMPLES[5]
    assert os.fstat(again._file.fd).st_ino == os.fstat(shared._file.fd).st_ino
    assert list(pickle.loads(pickle.dumps(shared[3:6]))) == SAMPLES[3:6]


def hold(shared: SharedSamples, pipe: Any) -> None:
    pipe.send(pickle.dumps(shared))
    pipe.recv()
    pipe.send(shared[1])


def test_it_lives_as_long_as_anybody_has_it() -> None:
    ours, theirs = multiprocessing.Pipe()
    one = mmds.share(SAMPLES[:10])
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(one, theirs))
    process.start()
    theirs.close()
    data = ours.recv()
    del one
    assert list(pickle.loads(data)) == SAMPLES[:10]  # of the other process, which got it from this one
    ours.send("go on")
    assert ours.recv() == SAMPLES[1]
    process.join()
    with pytest.raises(MmdsError, match=rf"process {process.pid} cannot be opened.*while the process"):
        pickle.loads(data)


def test_a_descriptor_that_means_something_else_is_refused() -> None:
    one, other = mmds.share([1]), mmds.share([2])
    _, (pid, fd, _, rows) = one.__reduce__()
    with pytest.raises(MmdsError, match="no longer has these shared samples"):
        mmds.sharing._attach(pid, fd, other._file.mapped.content_id, rows)


def test_nothing_is_left() -> None:
    before, files = open_descriptors(), set(Path("/dev/shm").iterdir())
    for _ in range(3):
        one = mmds.share(SAMPLES)
        assert set(Path("/dev/shm").iterdir()) == files
        del one
    with pytest.raises(SampleError):
        mmds.share([1, object()])
    assert open_descriptors() == before
    assert set(Path("/dev/shm").iterdir()) == files


def test_a_folder_of_a_disk(tmp_path: Path) -> None:
    one = mmds.share(SAMPLES, directory=tmp_path)
    assert not list(tmp_path.iterdir())
    assert list(pickle.loads(pickle.dumps(one))) == SAMPLES


def test_it_cannot_be_changed(shared: SharedSamples) -> None:
    with pytest.raises(OSError, match=r"not permitted|denied"):
        os.ftruncate(os.open(f"/proc/self/fd/{shared._file.fd}", os.O_RDWR), 0)


def test_what_cannot_be_kept_is_named() -> None:
    with pytest.raises(SampleError, match=r"^sample 1500\['x'\]: a builtins.object"):
        mmds.share([*SAMPLES[:1500], {"x": object()}])


def test_no_room(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(StorageError):
            mmds.share([b"x" * 2**19] * 8, directory=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def rank(number: int, size: int, port: int, pipe: Any) -> None:
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=size)
    try:
        one = mmds.share([annotation(i) for i in range(50)] if number == 0 else [])
        pipe.send((list(one) == SAMPLES[:50], os.fstat(one._file.fd).st_ino))
        try:
            mmds.share([object()] if number == 0 else [])
        except Exception as error:  # noqa: BLE001 (sent to the test)
            pipe.send((type(error).__name__, str(error)))
        pipe.send(len(mmds.share([number] * number, distributed=False)))
    finally:
        distributed.destroy_process_group()


def test_the_ranks_of_a_host_share_what_the_first_one_packs() -> None:
    context = multiprocessing.get_context("spawn")
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes = [context.Pipe() for _ in range(2)]
    processes = [context.Process(target=rank, args=(number, 2, port, pipes[number][1])) for number in range(2)]
    for process in processes:
        process.start()
    answers = []
    for (ours, theirs), _ in zip(pipes, processes, strict=True):
        theirs.close()
        answers.append([ours.recv() for _ in range(3)])
    for process in processes:
        process.join()
    assert answers[0][0] == answers[1][0]
    assert answers[0][0][0] is True
    assert answers[0][1][0] == "SampleError"
    assert answers[1][1] == ("MmdsError", answers[1][1][1])
    assert "rank 0 could not share its samples: sample 0" in answers[1][1][1]
    assert [answer[2] for answer in answers] == [0, 1]


def test_only_what_is_needed_is_imported() -> None:
    code = "import mmds, sys; s = mmds.share([1]); print(sorted({'torch', 'pyarrow', 'h5py'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_nothing_is_said_at_exit() -> None:
    code = "import torch.utils.data, mmds; s = mmds.share([1, 2, 3]); assert s[1] == 2"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stderr == b""
