"""The cache against S3 (moto, in processes of their own): many processes that start at once, and a killed server."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.errors import StorageError
from mmds.remote import Remote
from tests.s3 import S3
from tests.shard_folders import write_folder
from tests.test_cachedshards import files, fork, read_all

spawn = multiprocessing.get_context("spawn")
pytestmark = pytest.mark.stress


def upload(folder: Path, url: str) -> None:
    """Put a dataset at a URL."""
    for path in sorted(folder.iterdir(), key=lambda path: path.suffix == ".json"):
        Remote(url).child(path.name).upload(path)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_two_ranks_with_four_workers_each_download_each_shard_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: str
) -> None:
    write_folder(tmp_path / "ds", [10] * 6, lambda i: {"x": np.full(5000, i, np.uint8), "i": i})
    with S3() as server:
        url = f"{server.bucket(monkeypatch)}/ds"
        upload(tmp_path / "ds", url)
        server.clear()
        ranks = [
            fork.Process(target=read_all, args=(url, tmp_path / "cache", rank, 2, 4, context)) for rank in range(2)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(300)
        assert [rank.exitcode for rank in ranks] == [0, 0]
        asked = Counter(Path(request.path).name for request in server.asked("GET"))
    assert {name: times for name, times in asked.items() if name.endswith(".mmds")} == {
        f"{number:05}.mmds": 1 for number in range(6)
    }


def serve(folder: Path, url: Any, stall: Any, is_stalled: Any) -> None:
    """Serve a dataset; once `stall` is set, the second part of a shard that is asked for never comes."""
    monkeypatch, parts = pytest.MonkeyPatch(), Counter[str]()
    server = S3()
    place = server.bucket(monkeypatch)
    upload(folder, f"{place}/ds")

    def stalled(environ: dict[str, Any]) -> None:
        if stall.is_set() and environ["REQUEST_METHOD"] == "GET":
            parts[environ["PATH_INFO"]] += 1
            if parts[environ["PATH_INFO"]] > 1:
                is_stalled.set()
                time.sleep(600)

    server.fault = stalled
    url.put((place, {name: value for name, value in os.environ.items() if name.startswith("AWS_")}))
    time.sleep(600)


def test_a_server_killed_in_the_middle_of_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (8, 3 * 2**20), np.uint8)
    write_folder(tmp_path / "ds", [1, 7], lambda i: {"x": rows[i], "i": i})  # of 7 parts
    cache = tmp_path / "cache"

    def start() -> tuple[Any, str, Any, Any]:
        url, stall, is_stalled = spawn.Queue(), spawn.Event(), spawn.Event()
        process = spawn.Process(target=serve, args=(tmp_path / "ds", url, stall, is_stalled))
        process.start()
        place, variables = url.get(timeout=60)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return process, place, stall, is_stalled

    process, place, stall, is_stalled = start()
    reader = mmds.open(f"{place}/ds", cache_dir=cache)
    stall.set()

    def read() -> None:
        began = time.monotonic()
        with pytest.raises(StorageError, match=rf"^{place}/ds/00001\.mmds: ") as caught:
            reader[5]
        assert len(str(caught.value).splitlines()) == 1 and time.monotonic() - began < 60

    child = fork.Process(target=read)
    child.start()
    assert is_stalled.wait(60)
    process.kill()
    process.join()
    child.join(90)
    assert child.exitcode == 0 and len(files(cache)) == 1
    process, place, *_ = start()
    again = mmds.open(f"{place}/ds", cache_dir=cache)
    assert all((again[i]["x"] == rows[i]).all() for i in range(8)) and len(files(cache)) == 2
    process.kill()
    process.join()
