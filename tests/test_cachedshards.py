"""Datasets in object storage through a cache: what arrives, how often it is asked for, and what is said when it cannot be."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import resource
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader, DistributedSampler

import mmds
from mmds import cachedshards
from mmds.errors import ChangedError, FormatError, StorageError
from mmds.manifest import publish_manifest, read_manifest
from mmds.openfile import open_file
from mmds.shardcache import settled
from tests.rangeserver import RangeServer, serving
from tests.shard_folders import write_folder, write_shards

SHARDS, EACH = 6, 10
fork = multiprocessing.get_context("fork")


def sample(i: int) -> dict[str, Any]:
    """Return sample `i`, of about 8 KB."""
    return {"x": np.random.default_rng(i).integers(0, 256, 8000, np.uint8), "i": i}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which "ds" is a dataset."""
    root = tmp_path_factory.mktemp("store")
    write_folder(root / "ds", [EACH] * SHARDS, sample)
    return root


@pytest.fixture
def server(dataset: Path) -> Iterator[RangeServer]:
    with serving(dataset) as server:
        yield server


def shard_size(root: Path) -> int:
    """Return the length of a shard of "ds"."""
    return (root / "ds" / "00000.mmds").stat().st_size


def files(cache: Path) -> list[str]:
    """Return what is in a cache but its lock."""
    return sorted(path.name for path in cache.iterdir() if path.name != ".lock")


def maps_of(pid: int | str, cache: Path) -> list[str]:
    """Return the files of a cache that a process maps, as often as it does."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [line.split(maxsplit=5)[5] for line in lines if str(cache) in line]


def check(reader: mmds.Reader, n: int = SHARDS * EACH) -> None:
    """Compare all samples."""
    assert len(reader) == n
    for i in range(n):
        got = reader[i]
        assert got["i"] == i and (got["x"] == sample(i)["x"]).all()


def test_each_shard_is_downloaded_when_it_is_needed_and_never_again(server: RangeServer, tmp_path: Path) -> None:
    reader = mmds.open(f"{server.url}/ds", cache_dir=tmp_path / "cache")
    assert server.shards() == {"ds/00000.mmds": 1}
    reader[25]
    assert server.shards() == {"ds/00000.mmds": 1, "ds/00002.mmds": 1}
    for options in ({}, {"verify": "read"}, {"in_memory": True}, {"cache_size": "1MB"}):
        check(mmds.open(f"{server.url}/ds/", cache_dir=tmp_path / "cache", **options))
    assert set(server.shards().values()) == {1} and len(server.shards()) == SHARDS
    listed = {f"{shard.content_id}.mmds" for shard in read_manifest(server.root / "ds").shards}
    assert set(files(tmp_path / "cache")) == listed


def test_one_file_at_a_url(server: RangeServer, tmp_path: Path) -> None:
    url = f"{server.url}/ds/00001.mmds"
    for _ in range(2):
        assert [each["i"] for each in mmds.open(url, cache_dir=tmp_path)] == list(range(EACH, 2 * EACH))
    mmds.open(f"{server.url}/ds", cache_dir=tmp_path)[EACH]  # the same file, by another name
    assert server.shards() == {"ds/00001.mmds": 1, "ds/00000.mmds": 1}


def test_columns_added_later_come_through_the_cache(server: RangeServer, tmp_path: Path) -> None:
    root = tmp_path / "store"
    write_folder(root.parent / "store", [4, 4])
    mmds.add_column(root, "square", [i * i for i in range(8)])
    with serving(tmp_path) as server:
        for _ in range(2):
            reader = mmds.open(f"{server.url}/store", cache_dir=tmp_path / "cache")
            assert [each["square"] for each in reader] == [i * i for i in range(8)]
        assert set(server.shards().values()) == {1} and len(server.shards()) == 3


def test_a_bounded_cache_holds_what_was_opened_last(server: RangeServer, tmp_path: Path) -> None:
    size = shard_size(server.root)
    reader = mmds.open(f"{server.url}/ds", cache_dir=tmp_path, cache_size=3 * size)
    for _ in range(2):
        for i in range(SHARDS * EACH):
            assert reader[i]["i"] == i
            assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * size
    assert len(maps_of("self", tmp_path)) <= 3


def test_arrays_that_were_handed_out_stay_and_keep_their_shard(server: RangeServer, tmp_path: Path) -> None:
    size = shard_size(server.root)
    reader = mmds.open(f"{server.url}/ds", cache_dir=tmp_path, cache_size=2 * size)
    kept = reader[15]["x"]
    (mine,) = set(maps_of("self", tmp_path)) - {str(tmp_path / f"{first_id(server.root)}.mmds")}
    for i in range(20, SHARDS * EACH):
        reader[i]
    assert (kept == sample(15)["x"]).all() and Path(mine).exists()
    del kept
    reader[25], reader[35]
    assert not Path(mine).exists()


def first_id(root: Path) -> str:
    """Return the content id of the first shard, which stays open as long as its dataset."""
    return read_manifest(root / "ds").shards[0].content_id


def test_maps_and_descriptors_are_bounded_over_many_shards(tmp_path: Path) -> None:
    write_folder(tmp_path / "many", [1] * 100)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(tmp_path) as server:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
            for options in ({}, {"cache_size": "500kB"}):
                cache = tmp_path / f"cache{len(options)}"
                reader = mmds.open(f"{server.url}/many", cache_dir=cache, cache_size=options.get("cache_size"))
                descriptors = len(list(Path("/proc/self/fd").iterdir()))
                for i in range(100):
                    assert reader[i]["number"] == i
                assert len(maps_of("self", cache)) <= 64 + 1  # the first one stays
                assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 2 * (
                    64 + 1
                )  # the map's, and the lock's
                del reader
                assert maps_of("self", cache) == []
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


# What goes wrong


def damaged(root: Path, change: str) -> str:
    """Damage shard 1 of a new dataset "bad" at `root`, and return what the error says."""
    manifest = write_shards(root / "bad", [4, 4])
    publish_manifest(root / "bad", manifest, overwrite=False)
    path = root / "bad" / "00001.mmds"
    data = bytearray(path.read_bytes())
    match change:
        case "a bit":
            data[4100] ^= 1
            path.write_bytes(data)
            return r"not kept after its download: block 0 \(bytes 0 to 1048576\) differs from its hash"
        case "shorter":
            path.write_bytes(data[:-100])
            return f"{len(data) - 100} bytes, expected {len(data)}: replaced, or cut short"
        case "longer":
            path.write_bytes(data + bytes(100))
            return f"{len(data) + 100} bytes, expected {len(data)}: replaced, or cut short"
        case "enormous":
            os.truncate(path, 10**11)  # a hole
            return f"100000000000 bytes, expected {len(data)}: replaced, or cut short"
        case "another":
            path.write_bytes((root / "bad" / "00000.mmds").read_bytes())  # of the same length
            return "not kept after its download: not the file that dataset.json lists: content id"
    path.unlink()
    return "missing, but dataset.json lists it"


@pytest.mark.parametrize("change", ["a bit", "shorter", "longer", "enormous", "another", "missing"])
def test_a_damaged_download_is_an_error_and_nothing_is_kept(tmp_path: Path, change: str) -> None:
    message = damaged(tmp_path, change)
    with serving(tmp_path) as server:
        reader = mmds.open(f"{server.url}/bad", cache_dir=tmp_path / "cache")
        before = files(tmp_path / "cache")
        with pytest.raises(FormatError, match=rf"^{server.url}/bad/00001\.mmds: {message}"):
            reader[5]
        assert files(tmp_path / "cache") == before and server.bodies["bad/00001.mmds"] <= 1


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(server: RangeServer, tmp_path: Path) -> None:
    check(mmds.open(f"{server.url}/ds", cache_dir=tmp_path))
    for name in files(tmp_path):
        with (tmp_path / name).open("r+b") as file:
            file.seek(-30, os.SEEK_END)
            file.write(b"\xff")
    check(mmds.open(f"{server.url}/ds", cache_dir=tmp_path))
    assert set(server.shards().values()) == {2}


def test_damage_that_is_found_while_reading_is_fetched_again(server: RangeServer, tmp_path: Path) -> None:
    url = f"{server.url}/ds/00001.mmds"
    reader = mmds.open(url, cache_dir=tmp_path)
    (cached,) = tmp_path.glob("*.mmds")
    with cached.open("r+b") as file:
        file.seek(cached.stat().st_size // 2)
        file.write(bytes(range(1, 200)))
    advice = r"differs from its hash.*\. It was removed from the cache: open the dataset again"
    damaged = mmds.open(url, cache_dir=tmp_path, verify="read")
    for _ in range(2):
        with pytest.raises(FormatError, match=advice) as caught:
            list(damaged)
        assert "--repair" not in str(caught.value)
    assert files(tmp_path) == [] and len(reader) == EACH
    again = mmds.open(url, cache_dir=tmp_path, verify="read")
    assert [each["i"] for each in again] == list(range(EACH, 2 * EACH))
    with pytest.raises(FormatError, match=advice):
        list(damaged)
    assert files(tmp_path) == [cached.name]  # the other one, which is whole


def test_a_shard_that_is_removed_before_it_is_open_is_fetched_again(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[Path] = []

    def after_its_removal(path: Path, reading: Any) -> Any:
        if reading == "mapped" and len(removed) < 3:  # as another process does that has found it damaged
            removed.append(path)
            path.unlink()
        return open_file(path, reading)

    monkeypatch.setattr(cachedshards, "open_file", after_its_removal)
    reader = mmds.open(f"{server.url}/ds/00001.mmds", cache_dir=tmp_path)
    assert reader[0]["i"] == EACH and len(removed) == 3


def test_a_descriptor_is_settled_before_something_closes_it(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a child that is forked in between closes it twice."""
    closing: list[object] = []

    def look(fd: int) -> None:
        closing.extend(each for each in gc.get_objects() if type(each).__name__ == "_Info" and each.args == (fd,))
        settled(fd)

    monkeypatch.setattr(cachedshards, "settled", look)
    mmds.open(f"{server.url}/ds/00001.mmds", cache_dir=tmp_path)
    assert closing == []


@pytest.mark.parametrize("verify", ["off", "read"])
def test_files_are_let_go_of_at_once(server: RangeServer, tmp_path: Path, verify: str) -> None:
    """Without the garbage collector: until it comes, what is left would keep descriptors and locks."""
    size, reader = shard_size(server.root), None
    gc.collect()
    gc.disable()
    try:
        reader = mmds.open(f"{server.url}/ds", cache_dir=tmp_path, cache_size=2 * size, verify=verify)
        for i in range(SHARDS * EACH):
            assert reader[i]["i"] == i
            assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * size
        opened = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        assert sum(str(tmp_path) in path for path in opened) == 4  # of two files, each with its lock
    finally:
        gc.enable()


def test_a_connection_that_breaks_is_made_anew_and_then_an_error_that_passes(
    server: RangeServer, tmp_path: Path
) -> None:
    reader = mmds.open(f"{server.url}/ds", cache_dir=tmp_path)
    server.cut = 40_000
    assert reader[25]["i"] == 25 and server.bodies["ds/00002.mmds"] == 3
    before, server.cut = files(tmp_path), 0
    with pytest.raises(StorageError, match=rf"^{server.url}/ds/00003\.mmds: "):
        reader[35]
    assert files(tmp_path) == before
    server.cut = None
    check(reader)


def test_a_server_killed_in_the_middle_is_an_error_that_passes(dataset: Path, tmp_path: Path) -> None:
    with serving(dataset) as server:
        port = server.server_address[1]
        reader = mmds.open(f"{server.url}/ds", cache_dir=tmp_path)
        server.cut = 20_000
        server.after_cut = server.die
        with pytest.raises(StorageError, match=rf"^{server.url}/ds/00003\.mmds: ") as caught:
            reader[35]
        assert len(str(caught.value).splitlines()) == 1
    assert len(files(tmp_path)) == 1
    with serving(dataset, port):
        check(reader)


def test_a_dataset_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    write_folder(tmp_path / "ds", [4, 4])
    with serving(tmp_path) as server:
        dataset = mmds.MemoryMappedDataset(f"{server.url}/ds", cache_dir=tmp_path / "cache")
        state = pickle.dumps(dataset)
        assert dataset[5]["number"] == 5
        (tmp_path / "ds").rename(tmp_path / "old")
        write_folder(tmp_path / "ds", [4, 5])
        assert dataset[5]["number"] == 5
        with pytest.raises(ChangedError, match="was replaced since this dataset was opened"):
            len(pickle.loads(state))


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("http://127.0.0.1/ds", {"cache_size": 5}, "cache_size=5: expected a cache_dir, too"),
        ("http://127.0.0.1/ds", {"cache_dir": "c", "cache_size": "x"}, "'x' is no size"),
        ("here", {"cache_dir": "c"}, "cache_dir=c: is for URLs, and here is none"),
        (["s3://me:hidden@bucket/a"], {"cache_dir": "c"}, "^cache_dir=c: is for URLs, and a list of files is none$"),
    ],
)
def test_options_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: Any, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for open_one in (mmds.open, mmds.MemoryMappedDataset):
        with pytest.raises(ValueError, match=message):
            open_one(url, **options)
    assert not list(tmp_path.iterdir())


def test_a_shard_larger_than_the_cache_is_refused(server: RangeServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cache_size=50000: smaller than .*00000\.mmds, which has \d+ bytes"):
        mmds.open(f"{server.url}/ds", cache_dir=tmp_path, cache_size="50kB")
    assert server.shards() == {}


@pytest.mark.parametrize("name", ["dataset.json", "nothing"])
def test_what_is_no_dataset(server: RangeServer, tmp_path: Path, name: str) -> None:
    with pytest.raises((FormatError, FileNotFoundError), match=r"not an mmds file|no dataset at"):
        mmds.open(f"{server.url}/ds/{name}", cache_dir=tmp_path)
    assert files(tmp_path) == []


# Many processes


def test_the_pickle_is_small_and_the_folder_absolute(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = mmds.MemoryMappedDataset(f"{server.url}/ds", cache_dir="cache", cache_size="1MB")
    state = pickle.dumps(dataset)
    assert len(state) < 1000
    monkeypatch.chdir("/")
    assert pickle.loads(state)[7]["i"] == 7 and len(files(tmp_path / "cache")) == 1


def read_all(url: str, cache: Path, rank: int, world_size: int, num_workers: int, context: str) -> None:
    """Go through an epoch of one rank, with workers."""
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more than there are cores
    dataset = mmds.MemoryMappedDataset(url, cache_dir=cache)
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, world_size, rank, shuffle=True)
    loader = DataLoader(
        dataset, 4, sampler=sampler, num_workers=num_workers, multiprocessing_context=context if num_workers else None
    )
    seen = [i for batch in loader for i in batch["i"].tolist()]
    assert sorted(seen) == sorted(sampler)


@pytest.mark.parametrize(
    ("context", "num_workers"),
    [
        ("fork", 2),
        pytest.param("fork", 4, marks=pytest.mark.stress),
        pytest.param("spawn", 4, marks=pytest.mark.stress),
    ],
)
def test_ranks_with_workers_download_each_shard_once(
    server: RangeServer, tmp_path: Path, context: str, num_workers: int
) -> None:
    server.delay = 0.05
    ranks = [
        fork.Process(target=read_all, args=(f"{server.url}/ds", tmp_path, rank, 2, num_workers, context))
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert set(server.shards().values()) == {1} and len(server.shards()) == SHARDS


def read_epoch(url: str, cache: Path, size: int, seed: int) -> None:
    """Read a sample of each shard in some order."""
    reader = mmds.open(url, cache_dir=cache, cache_size=size)
    for number in np.random.default_rng(seed).permutation(len(reader)).tolist():
        assert reader[number]["number"] == number


def check_bound(root: Path, processes: int, shards: int, most: int) -> int:
    """Watch a cache with room for `most` shards while processes read through it; return how often it was looked at.

    What was mapped when it was last looked at counts: who has just let go of it has not looked for a next one yet.
    """
    write_folder(root / "many", [1] * shards)
    size, cache, looks = most * (root / "many" / "00000.mmds").stat().st_size + 500, root / "cache", 0
    with serving(root) as server:
        url = f"{server.url}/many"
        readers = [fork.Process(target=read_epoch, args=(url, cache, size, number)) for number in range(processes)]
        for reader in readers:
            reader.start()
        before: set[str] = set()
        while any(reader.is_alive() for reader in readers):
            first = mapped(readers, cache)
            found = {path.name: size_of(path) for path in cache.glob("*")} if cache.exists() else {}
            now = mapped(readers, cache)
            in_use = before | first | now
            assert sum(found.values()) <= size + sum(found.get(name, 0) for name in in_use)
            assert len(found) <= most + 2 * processes + 1  # each maps the first, and one more: and there is a lock
            before, looks = now, looks + 1
        for reader in readers:
            reader.join()
            assert reader.exitcode == 0
        read_epoch(url, cache, size, 99)
    assert sum(path.stat().st_size for path in cache.iterdir()) <= size
    return looks


def mapped(processes: list[Any], cache: Path) -> set[str]:
    """Return the names of the files in a cache that processes map."""
    found = set()
    for process in processes:
        try:
            found |= {Path(path).name for path in maps_of(process.pid, cache)}
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
    return found


def size_of(path: Path) -> int:
    """Return the length of a file, 0 if it has gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_the_bound_holds_while_processes_read(tmp_path: Path) -> None:
    assert check_bound(tmp_path, processes=3, shards=20, most=8) > 3


@pytest.mark.stress
def test_the_bound_holds_while_eight_processes_read(tmp_path: Path) -> None:
    assert check_bound(tmp_path, processes=8, shards=200, most=20) > 50


def test_threads_share_a_download(server: RangeServer, tmp_path: Path) -> None:
    reader = mmds.open(f"{server.url}/ds", cache_dir=tmp_path)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(reader[55]["i"])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [55] * 4 and server.bodies["ds/00005.mmds"] == 1
