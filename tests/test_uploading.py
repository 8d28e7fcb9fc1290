from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import mmds
from mmds import obstores
from mmds.cli import main
from mmds.errors import ExistsError, FormatError, StorageError
from mmds.remote import Remote
from tests.conftest import Write
from tests.s3 import GONE, S3
from tests.shard_folders import plain_sample, write_folder

_memory = count()


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with S3() as server:
        yield server


@pytest.fixture(params=["s3", "memory", "file"])
def base(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Return the URL of an empty place in each kind of store that can be had without a network."""
    if request.param == "s3":
        url: str = request.getfixturevalue("server").bucket(monkeypatch)
        return url
    return f"memory://{next(_memory)}" if request.param == "memory" else (tmp_path / "store").as_uri()


def names(url: str) -> set[str]:
    return {name for name, _ in Remote(url).list()}


def test_a_file(base: str, write: Write) -> None:
    path = write({"x": mmds.Scalar("int64")}, [{"x": i} for i in range(10)])
    size = path.stat().st_size
    seen = list[tuple[int, int]]()
    done = mmds.upload(path, f"{base}/a.mmds", progress=lambda *now: seen.append(now))
    assert done == mmds.Uploaded(f"{base}/a.mmds", 1, size, 1)
    assert seen == [(0, size), (size, size)]
    assert Remote(done.url).load(size) == path.read_bytes()
    assert mmds.upload(path, done.url).sent == 0  # it is there already
    other = write({"x": mmds.Scalar("int64")}, [{"x": 1}])
    with pytest.raises(ExistsError, match=f"^{done.url}: exists already, with other content"):
        mmds.upload(other, done.url)
    assert mmds.upload(other, f"{base}/into/").url == f"{base}/into/{other.name}"
    Remote(base).child("b.mmds").create(b"something else")
    with pytest.raises(ExistsError, match=r"b\.mmds: exists already, with other content: no \.mmds file"):
        mmds.upload(other, f"{base}/b.mmds")


def test_a_folder(base: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "out.mmds", [3, 0, 2])
    mmds.add_column(folder, "added", [0, 1, 2, 3, 4])
    (folder / "notes.txt").write_text("no part of the dataset")
    url = f"{base}/deep/out.mmds"
    done = mmds.upload(folder, url)
    assert (done.files, done.sent) == (4, 4)
    local = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names(url) == local - {"notes.txt"}
    assert list(mmds.open(url)) == [{**plain_sample(i), "added": i} for i in range(5)]
    assert mmds.upload(folder, url).sent == 0
    Remote(url).child("00000.mmds").delete()
    assert mmds.upload(folder, url).sent == 1  # what is missing is sent again
    other = write_folder(tmp_path / "other.mmds", [1])
    with pytest.raises(ExistsError, match="another dataset is there already"):
        mmds.upload(other, url)
    assert len(mmds.open(url)) == 5


def test_a_name_that_no_url_can_have(write: Write, tmp_path: Path) -> None:
    path = write({"x": mmds.Scalar("int64")}, [{"x": 1}]).rename(tmp_path / "a?b.mmds")
    url = f"memory://{next(_memory)}/into/"
    with pytest.raises(StorageError, match=r"a\?b\.mmds: a name with a '\?', which no URL can have"):
        mmds.upload(path, url)
    assert names(url) == set()
    mmds.upload(path, (tmp_path / "store").as_uri() + "/")
    assert list(mmds.open((tmp_path / "store").as_uri() + "/a%3Fb.mmds")) == [{"x": 1}]


def test_the_manifest_comes_last(server: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "out.mmds", [1] * 9)
    mmds.upload(folder, server.bucket(monkeypatch) + "/out")
    puts = [request.path.rpartition("/")[2] for request in server.asked("PUT")]
    assert len(puts) == 10
    assert puts[-1] == "dataset.json"


def test_an_object_of_the_same_name_with_other_content(base: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "out.mmds", [1, 2, 3])
    other = write_folder(tmp_path / "other.mmds", [1, 1])
    Remote(base).child("00001.mmds").upload(other / "00001.mmds")
    with pytest.raises(ExistsError, match=f"^{base}/00001.mmds: exists already, with other content"):
        mmds.upload(folder, base)
    assert "dataset.json" not in names(base)
    assert Remote(base).child("00001.mmds").load(10**6) == (other / "00001.mmds").read_bytes()


def test_a_server_that_dies_in_between(server: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(obstores, "MAX_RETRIES", 1)
    url, folder = server.bucket(monkeypatch) + "/out.mmds", write_folder(tmp_path / "out.mmds", [1] * 12)
    puts = count()

    server.fault = lambda environ: GONE if environ["REQUEST_METHOD"] == "PUT" and next(puts) >= 5 else None
    try:
        with pytest.raises(StorageError, match=f"^{url}/000") as caught:
            mmds.upload(folder, url)
    finally:
        server.fault = None
    assert "\n" not in str(caught.value)
    there = names(url)
    assert 0 < len(there) < 12
    assert "dataset.json" not in there
    with pytest.raises(FileNotFoundError):
        mmds.open(url)
    server.clear()
    assert mmds.upload(folder, url).sent == 12 - len(there)
    assert len(server.asked("PUT")) == 12 - len(there) + 1
    assert len(mmds.open(url)) == 12


def test_a_server_that_is_down_and_comes_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "out.mmds", [1, 2])
    monkeypatch.setattr(obstores, "MAX_RETRIES", 1)
    with S3() as server:
        url = server.bucket(monkeypatch) + "/out.mmds"
    with pytest.raises(StorageError, match=rf"^{url}/dataset\.json: .*error sending request"):
        mmds.upload(folder, url)
    server.start()
    with server:
        assert mmds.upload(folder, url).sent == 2
        assert len(mmds.open(url)) == 3


def test_an_error_of_the_server_is_retried(server: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url, folder = server.bucket(monkeypatch) + "/out.mmds", write_folder(tmp_path / "out.mmds", [1, 2])
    requests = count()
    server.fault = lambda environ: (None, GONE, None, "503 Slow Down")[next(requests) % 4]
    try:
        assert mmds.upload(folder, url).files == 2
    finally:
        server.fault = None
    assert len(mmds.open(url)) == 3


def test_a_killed_upload_is_continued(server: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url, folder = server.bucket(monkeypatch) + "/out.mmds", write_folder(tmp_path / "out.mmds", [1] * 12)
    puts, reached = count(), threading.Event()

    def stop(environ: dict[str, Any]) -> str | None:
        if environ["REQUEST_METHOD"] == "PUT" and next(puts) >= 5:
            reached.set()
            return GONE
        return None

    server.fault = stop
    try:
        process = subprocess.Popen([sys.executable, "-m", "mmds", "upload", folder, url], stderr=subprocess.DEVNULL)
        assert reached.wait(60)
        process.kill()
        process.wait()
    finally:
        server.fault = None
    there = names(url)
    assert 5 <= len(there) < 12  # what was under way when it was killed may arrive
    assert "dataset.json" not in there
    assert mmds.upload(folder, url).sent == 12 - len(there)
    assert len(mmds.open(url)) == 12


def test_two_at_once(server: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url, folder = server.bucket(monkeypatch) + "/out.mmds", write_folder(tmp_path / "out.mmds", [1] * 8)
    done: list[Any] = []
    threads = [threading.Thread(target=lambda: done.append(mmds.upload(folder, url))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.files for each in done] == [8, 8]
    assert len(mmds.open(url)) == 8


def test_what_is_not_whole_is_not_sent(tmp_path: Path, write: Write) -> None:
    url = f"memory://{next(_memory)}/out.mmds"
    folder = write_folder(tmp_path / "out.mmds", [1, 2])
    (folder / "00001.mmds").write_bytes((folder / "00000.mmds").read_bytes())
    with pytest.raises(FormatError, match=r"not the file that dataset\.json lists"):
        mmds.upload(folder, url)
    (folder / "dataset.json").unlink()
    with pytest.raises(FormatError, match=r"a folder without dataset\.json"):
        mmds.upload(folder, url)
    with pytest.raises(FormatError, match="not an mmds file"):
        text = tmp_path / "text"
        text.write_text("text " * 1000)
        mmds.upload(text, url)
    with pytest.raises(FileNotFoundError):
        mmds.upload(tmp_path / "none.mmds", url)
    assert names(url) == set()


def test_a_web_server_takes_nothing(write: Write) -> None:
    path = write({"x": mmds.Scalar("int64")}, [{"x": 1}])
    with pytest.raises(StorageError, match="a web server can only be read from"):
        mmds.upload(path, "http://127.0.0.1:1/a.mmds")


def test_the_command(tmp_path: Path) -> None:
    folder, url = write_folder(tmp_path / "out.mmds", [1, 2]), (tmp_path / "store").as_uri()
    said = CliRunner().invoke(main, ["upload", str(folder), url + "/"])
    assert said.exit_code == 0, said.output
    assert said.output.startswith(f"{url}/out.mmds: 2 files, ")
    said = CliRunner().invoke(main, ["upload", str(folder), url + "/out.mmds"])
    assert said.output.endswith(", of which 2 were there already\n")
    said = CliRunner().invoke(main, ["upload", str(folder), url + "/out.mmds", "--json"])
    assert json.loads(said.output) == {**vars(mmds.upload(folder, url + "/out.mmds"))}
    said = CliRunner().invoke(main, ["upload", str(folder), "nowhere"])
    assert said.exit_code == 1
    assert "expected a URL" in said.output
