"""Files that are replaced while they are read, many shards with few descriptors, many processes."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import mmds
from mmds.errors import ChangedError
from mmds.format import schema_id
from mmds.manifest import Manifest, Shard, describe_shard, publish_manifest
from tests import store_cases
from tests.conftest import Cases
from tests.store_probe import digest, digests

ROOT = Path(__file__).parents[2]
TEMPLATES = 7  # different files that many shards are links to
PER_SHARD = 3


# 19: files that are replaced

REPLACE = """
import itertools, sys, mmds
for version in itertools.count(1):
    with mmds.Writer(sys.argv[1], overwrite=True) as writer:
        writer.extend({"version": version, "row": row} for row in range(400))
    print(version, flush=True)
"""


def write_version_0(path: Path) -> None:
    with mmds.Writer(path) as writer:
        writer.extend({"version": 0, "row": row} for row in range(400))


@contextmanager
def being_replaced(path: Path) -> Iterator[Callable[[], object]]:
    """Replace a file in another process by one whose samples all have the next version, again and again.

    The function that is returned waits until that has been done once more.
    """
    command = [sys.executable, "-c", REPLACE, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline
        finally:
            process.kill()


@pytest.mark.fault(19)
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.stress)])
def test_19_an_epoch_in_which_the_file_is_replaced(tmp_path: Path, cases: Cases, method: str) -> None:
    path = tmp_path / "a.mmds"
    write_version_0(path)
    dataset = mmds.MemoryMappedDataset(path)
    assert dataset[0]["version"] == 0
    loader: DataLoader[Any] = DataLoader(dataset, 7, num_workers=2, multiprocessing_context=method)
    epoch = iter(loader)
    batches = [next(epoch), next(epoch)]  # one of each worker, which are a few batches ahead at most
    with being_replaced(path) as wait:
        for _ in range(5):
            wait()
        for batch in epoch:
            batches.append(batch)
            wait()
        assert torch.cat([batch["row"] for batch in batches]).tolist() == list(range(400))
        assert not torch.cat([batch["version"] for batch in batches]).any()
        assert dataset[399]["version"] == 0
        with pytest.raises(ChangedError, match="was replaced since this dataset was opened"):
            pickle.loads(pickle.dumps(dataset))[0]
        with pytest.raises(ChangedError, match="was replaced since this dataset was opened"):
            list(loader)  # new workers open it anew
    cases(len(batches) + 2)


@pytest.mark.fault(19)
def test_19_whoever_opens_a_file_that_is_being_replaced_has_one_version(tmp_path: Path, cases: Cases) -> None:
    path = tmp_path / "a.mmds"
    write_version_0(path)
    seen: list[int] = []
    with being_replaced(path) as wait:
        wait()
        for _ in range(100):
            reader = mmds.open(path)
            assert len(reader) == 400
            seen += sorted({int(version) for version in reader.column("version")})
    assert len(seen) == 100 and seen == sorted(seen)
    assert len({*seen}) > 3
    cases(100)


# 20: many shards


def many_shards(folder: Path, count: int) -> Path:
    """Make a dataset of so many shards, which are links to a few files; sample k holds what `expected` says."""
    folder.mkdir()
    with mmds.Writer(folder / "template.mmds", {"x": mmds.Array("int64", (40,))}) as writer:
        pass
    shards = []
    for number in range(TEMPLATES):
        path = folder / f"{number:05}.mmds"
        with mmds.Writer(path, writer.fields) as writer:
            writer.extend({"x": np.full(40, PER_SHARD * number + row)} for row in range(PER_SHARD))
        shards.append(describe_shard(path, path.name))
    for number in range(TEMPLATES, count):
        like = shards[number % TEMPLATES]
        os.link(folder / like.path, folder / f"{number:05}.mmds")
        shards.append(Shard(f"{number:05}.mmds", like.n, like.bytes, like.content_id))
    (folder / "template.mmds").unlink()
    publish_manifest(folder, Manifest(schema_id(mmds.open(path).fields).hex(), tuple(shards)), overwrite=False)
    return folder


def expected(rows: Any) -> list[int]:
    found: list[int] = (np.asarray(rows) % (TEMPLATES * PER_SHARD)).tolist()
    return found


@contextmanager
def descriptors(number: int) -> Iterator[None]:
    """Lower what `ulimit -n` says for this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.stress
@pytest.mark.fault(20)
def test_20_five_thousand_shards_with_256_descriptors(tmp_path: Path, cases: Cases) -> None:
    folder = many_shards(tmp_path / "many", 5000)
    total = 5000 * PER_SHARD
    with descriptors(256):
        reader = mmds.open(folder)
        assert len(reader) == total
        assert [sample["x"][7] for sample in reader] == expected(range(total))
        rows = np.random.default_rng(0).permutation(total)[:2000]
        assert reader[rows]["x"][:, 39].tolist() == expected(rows)
        dataset = mmds.MemoryMappedDataset(folder)
        loader = DataLoader(dataset, 50, sampler=rows.tolist(), num_workers=2, multiprocessing_context="fork")
        assert torch.cat([batch["x"][:, 0] for batch in loader]).tolist() == expected(rows)
    cases(5000)


@pytest.mark.stress
@pytest.mark.fault(20)
def test_20_more_shards_than_a_process_may_map(tmp_path: Path, cases: Cases) -> None:
    count = 70_000
    assert count > int(Path("/proc/sys/vm/max_map_count").read_text())
    folder = many_shards(tmp_path / "many", count)
    reader = mmds.open(folder)
    total = count * PER_SHARD
    rows = np.random.default_rng(0).integers(0, total, 5000)
    assert reader[rows]["x"][:, 0].tolist() == expected(rows)
    assert [reader[int(row)]["x"][3] for row in rows[:2000]] == expected(rows[:2000])
    cases(count)


# 24: processes


def check_workers(path: Path, source: Path, method: str, number: int) -> None:
    """Check that workers read what a file holds, after their parent has read."""
    want = [digest(sample) for sample in mmds.open(source)]
    dataset = mmds.MemoryMappedDataset(path, format="raw")
    assert digest(dataset[3]) == want[3]
    options: dict[str, Any] = {"multiprocessing_context": method, "collate_fn": digests, "timeout": 120}
    loader: DataLoader[Any] = DataLoader(dataset, 3, num_workers=number, **options)
    assert [found for batch in loader for found in batch] == want
    assert digest(dataset[5]) == want[5]


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a file of samples of every kind, and those samples as shards."""
    folder = tmp_path_factory.mktemp("every")
    source = store_cases.write_every(folder / "file.mmds", count=60)
    mmds.convert(source, folder / "shards", shard_size=20_000, num_workers=1)
    return folder


@pytest.mark.fault(24)
@pytest.mark.parametrize("name", ["file.mmds", "shards"])
def test_24_forked_workers_of_a_parent_that_has_read(every: Path, name: str) -> None:
    check_workers(every / name, every / "file.mmds", "fork", 2)


@pytest.mark.stress
@pytest.mark.fault(24)
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("name", ["file.mmds", "shards"])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 16 worker processes")
def test_24_sixteen_workers(every: Path, name: str, method: str) -> None:
    check_workers(every / name, every / "file.mmds", method, 16)
