from __future__ import annotations

import contextlib
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from click import BadParameter
from click.testing import CliRunner

import mmds
from mmds import obstores
from mmds import remote as module
from mmds.cli import main
from mmds.errors import ChangedError, ExistsError, FormatError, StorageError
from mmds.openfile import open_file
from mmds.options import local_path
from mmds.remote import GAP, PART, SMALL_UPLOAD, Remote, is_url
from tests.s3 import S3, WebServer

NAMES = ("a.mmds", "a b~#%5é[x].mmds", "deep/er/a+b=c&d.mmds")
PIECE = 2**18
_memory = count()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", PIECE)


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with S3() as server:
        yield server


@pytest.fixture(params=["s3", "memory", "file"])
def folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Remote:
    """Return a folder in each kind of store that can be had without a network."""
    if request.param == "s3":
        return Remote(request.getfixturevalue("server").bucket(monkeypatch)).child("some folder")
    return Remote(
        f"memory://{next(_memory)}/some folder" if request.param == "memory" else tmp_path.as_uri() + "/some%20folder"
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_object(folder: Remote, name: str) -> None:
    remote, data = folder.child(name), bytes(range(256)) * 40
    with pytest.raises(FileNotFoundError, match="no such object"):
        remote.size()
    with pytest.raises(FileNotFoundError):
        remote.load(100)
    remote.create(data)
    with pytest.raises(ExistsError, match="exists already"):
        remote.create(b"other")
    assert (remote.size(), remote.load(len(data))) == (len(data), data)
    assert remote.tail(5)[0] == data[-5:]
    assert remote.tail(10**6)[0] == data
    assert remote.read(255, 3) == b"\xff\x00\x01"
    assert remote.read(7, 0) == b""
    assert list(folder.list()) == [(name, len(data))]
    assert remote.name == name.rpartition("/")[2]
    assert Remote(remote.url) == remote == pickle.loads(pickle.dumps(remote))
    remote.replace(b"short")
    assert remote.load(5) == b"short"
    with pytest.raises(FormatError, match="5 bytes; at most 4"):
        remote.load(4)
    remote.delete()
    assert list(folder.list()) == []


def test_ranges(folder: Remote) -> None:
    data = np.random.default_rng(0).bytes(3 * PIECE + 5)
    remote = folder.child("a.mmds")
    remote.create(data)
    assert remote.read(1, len(data) - 2) == data[1:-1]
    starts, lengths = np.array([2 * PIECE, 5, 0, 3, 9, len(data) - 1]), np.array([7, 10, 2, 0, PIECE, 1])
    expected = [data[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    assert remote.read_spans(starts, lengths) == expected
    assert remote.read_spans(starts[:0], lengths[:0]) == []


def test_what_was_replaced_is_not_read(folder: Remote) -> None:
    remote = folder.child("a.mmds")
    remote.create(b"0123456789")
    seen = remote.version()
    assert remote.read(2, 2, seen) == b"23"
    remote.replace(b"9876543210")
    with pytest.raises(ChangedError, match="replaced"):
        remote.read(2, 2, seen)
    with pytest.raises(ChangedError, match="replaced"):
        remote.read_spans(np.array([0, 5]), np.array([1, 1]), seen)
    with pytest.raises(ChangedError, match="had 10 bytes, and now 2"):
        remote.replace(b"98")
        remote.read(0, 2, seen._replace(etag=None))
    with pytest.raises(ChangedError, match="it ends at 2"):
        remote.read(1, 5)
    with pytest.raises(StorageError):
        remote.read(7, 5)


@pytest.mark.parametrize("size", [0, 100, 2 * PIECE + 1])
def test_download(folder: Remote, tmp_path: Path, size: int) -> None:
    data, path, done = np.random.default_rng(0).bytes(size), tmp_path / "here", list[int]()
    remote = folder.child("a.mmds")
    remote.create(data)
    with pytest.raises(FileNotFoundError):
        remote.download(path)
    path.write_bytes(b"what was there" * 20)
    with pytest.raises(FormatError, match=f"^{re.escape(remote.url)}: {size} bytes, expected {size + 1}"):
        remote.download(path, expected=size + 1)
    assert path.stat().st_size == 280  # nothing was done to it
    remote.download(path, done.append, expected=size)
    assert path.read_bytes() == data
    assert sum(done) == size


def test_ranges_that_are_near_are_one_request(server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Remote(server.bucket(monkeypatch)).child("a")
    remote.create(bytes(4 * GAP))
    server.clear()
    remote.read_spans(np.arange(100) * 1000, np.full(100, 10))
    assert [request.sent for request in server.asked()] == [99 * 1000 + 10]
    server.clear()
    remote.read_spans(np.array([0, 10 + GAP, 3 * GAP]), np.full(3, 10))
    assert sorted(request.sent for request in server.asked()) == [10, GAP + 20]


def test_a_long_download_is_of_many_ranges(server: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    remote, path = Remote(server.bucket(monkeypatch)).child("a"), tmp_path / "a"
    remote.create(bytes(2 * PIECE + 1))
    path.touch()
    server.clear()
    remote.download(path)
    assert sorted(request.sent for request in server.asked("GET")) == [1, PIECE, PIECE]


@pytest.mark.parametrize("store", ["memory", "file"])
def test_upload(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL_UPLOAD", 2**20)
    remote = Remote(f"memory://{next(_memory)}/a" if store == "memory" else (tmp_path / "a").as_uri())
    for size in (10, 2**20 + 1):
        path = tmp_path / "source"
        with path.open("wb") as file:
            file.truncate(size)
        remote.upload(path)
        assert remote.size() == size
        with pytest.raises(ExistsError):
            remote.upload(path)
        remote.delete()


@pytest.mark.parametrize(
    ("small", "part"), [(2**22, 5 * 2**20), pytest.param(SMALL_UPLOAD, PART, marks=pytest.mark.stress)]
)
def test_a_large_upload_takes_parts_and_little_memory(
    server: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: int, part: int
) -> None:
    remote, path, size = Remote(server.bucket(monkeypatch)).child("a"), tmp_path / "source", 12 * part
    with path.open("wb") as file:
        file.truncate(size)
    program = """
import resource, sys
from pathlib import Path
from mmds import remote
remote.SMALL_UPLOAD, remote.PART = map(int, sys.argv[3:])
remote.Remote(sys.argv[1] + "b").create(b"")  # all that is loaded once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
remote.Remote(sys.argv[1]).upload(Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", program, remote.url, str(path), str(small), str(part)]
    found = subprocess.run(command, check=True, capture_output=True, timeout=120, text=True)
    assert int(found.stdout) * 1024 < size * 3 // 4
    assert remote.size() == size
    assert len(server.asked("PUT")) == 1 + 12


@pytest.mark.parametrize("scheme", ["s3", "file"])
def test_a_forked_process_reads(scheme: str, server: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a parent has used of obstore hangs in its child; `mmds.obstores` gives it another copy."""
    base = server.bucket(monkeypatch) if scheme == "s3" else tmp_path.as_uri()
    Remote(base).child("a").create(b"content")
    program = """
import os, signal, sys
from mmds.remote import Remote
remote = Remote(sys.argv[1]).child("a")
assert remote.load(7) == b"content"
for generation in range(2):  # a child, and its child
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        os._exit(0)
    signal.alarm(20)
    assert remote.load(7) == b"content"
    try:
        Remote(sys.argv[1]).child("none").size()
        os._exit(3)
    except FileNotFoundError:
        pass
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program, base], check=True, timeout=60)


def test_a_server_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with S3() as server:
        remote = Remote(server.bucket(monkeypatch)).child("a")
        remote.create(b"0")
    monkeypatch.setattr(obstores, "MAX_RETRIES", 1)
    for ask in (remote.size, lambda: remote.read(0, 1), lambda: remote.replace(b""), lambda: list(remote.list())):
        with pytest.raises(StorageError, match=rf"^{remote.url}: .*after \d+ retries") as caught:
            ask()
        assert "\n" not in str(caught.value)
        assert "secret-of" not in str(caught.value)
        assert len(str(caught.value)) < 500


def test_a_bucket_that_is_missing(server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Remote(server.bucket(monkeypatch) + "-not/a")
    with pytest.raises(FileNotFoundError):
        remote.size()
    with pytest.raises(StorageError, match="no such bucket"):
        remote.create(b"")


def test_web_server(tmp_path: Path) -> None:
    (tmp_path / "a b#").write_bytes(b"0123456789")
    with WebServer(tmp_path) as server:
        remote = Remote(server.url).child("a b#")
        assert (remote.size(), remote.read(3, 4), remote.tail(2)[0]) == (10, b"3456", b"89")
        with pytest.raises(FileNotFoundError):
            remote.child("b").size()
        refusals: list[Callable[[], None]] = [lambda: remote.create(b""), lambda: remote.replace(b""), remote.delete]
        for refused in refusals:
            with pytest.raises(StorageError, match="can only be read from"):
                refused()
        with pytest.raises(StorageError, match="cannot be listed"):
            list(remote.list())


def test_web_server_without_ranges(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with WebServer(tmp_path, ranges=False) as server, pytest.raises(StorageError, match="ange"):
        Remote(server.url).child("a").read(3, 4)


def test_an_answer_that_is_longer_than_what_was_asked_for_is_not_read_to_its_end() -> None:
    sent: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(206)
            for name, value in {
                "Content-Range": "bytes 0-49/100",
                "Content-Length": str(2**34),
                "ETag": '"a"',
                "Last-Modified": "Mon, 02 Nov 2026 00:00:00 GMT",
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.close_connection = True
            with contextlib.suppress(OSError):
                while len(sent) < 2**10:
                    self.wfile.write(bytes(2**20))
                    sent.append(2**20)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with pytest.raises(StorageError, match="sends more than the 50 bytes that were asked for"):
            Remote(f"http://127.0.0.1:{server.server_port}/a").read(0, 50)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()  # waits for the answer
    assert sum(sent) < 2**27


def test_credentials_of_an_endpoint_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obstores, "MAX_RETRIES", 0)
    for name, value in {"ENDPOINT_URL": "http://me:hidden@127.0.0.1:1", "ALLOW_HTTP": "true", "REGION": "a"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "someone")
    with pytest.raises(StorageError, match=r"http://…@127\.0\.0\.1:1/") as caught:
        Remote("s3://of-a-server-with-a-password/a").size()
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://me:hidden@bucket/x",
        "https://h/x?X-Amz-Signature=hidden",
        "https://h#hidden/x",
        "s3://b#hidden",
        "s3://b/x?hidden",
    ],
)
def test_what_refuses_a_url_does_not_repeat_its_credentials(url: str, tmp_path: Path) -> None:
    refusals: list[Callable[[], object]] = [
        lambda: mmds.open(url),
        lambda: mmds.open(url, in_memory=True),
        lambda: mmds.open(url, format="lmdb"),
        lambda: mmds.open(url, cache_dir=tmp_path / "cache"),
        lambda: mmds.open([url]),
        lambda: mmds.MemoryMappedDataset(url),
        lambda: mmds.MemoryMappedDataset([url]),
        lambda: open_file(url, "in memory"),
        lambda: local_path(url),
    ]
    for refused in refusals:
        with pytest.raises((StorageError, BadParameter)) as caught:
            refused()
        assert "hidden" not in str(caught.value)
    for command in ("info", "verify", "ls"):
        result = CliRunner().invoke(main, [command, url])
        assert result.exit_code and "hidden" not in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://me:hidden@bucket/a", "credentials"),
        ("https://hidden@host/a", "credentials"),
        ("s3://bucket/a?X-Amz-Signature=hidden", "query"),
        ("https://host?sig=hidden", "query"),
        ("https://host/a#hidden", "fragment"),
        ("https://host#hidden/a", "fragment"),
        ("s3://bucket#hidden", "fragment"),
        ("s3://bucket/a/../b", "names between single slashes"),
        ("s3://bucket//a", "names between single slashes"),
        ("s3://bucket/a\nb", "names between single slashes"),
        ("no-url", "expected a URL"),
    ],
)
def test_refused_urls(url: str, reason: str) -> None:
    with pytest.raises(StorageError, match=reason) as caught:
        Remote(url)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://host/a", "unknown scheme; expected one of s3"),
        ("s3:///a", "names no bucket"),
        ("file://elsewhere/a", "another machine"),
    ],
)
def test_urls_of_nothing(url: str, reason: str) -> None:
    with pytest.raises(StorageError, match=reason):
        Remote(url).size()


@pytest.mark.parametrize("url", ["memory://", "memory://a", "file:///"])
def test_a_url_without_a_name(url: str) -> None:
    with pytest.raises(FileNotFoundError):
        Remote(url).size()


def test_is_url() -> None:
    assert is_url("S3://a/b")
    assert not any(is_url(path) for path in ("a.mmds", "/a//b", "a://"[1:], Path("s3://a"), 3, None, b"s3://a"))


def test_a_missing_library_is_named() -> None:
    program = """
import sys
sys.modules["obstore"] = None
from mmds.errors import MissingDependencyError
from mmds.remote import Remote
try:
    Remote("memory://a/b").size()
except MissingDependencyError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=os.environ)
    assert 'pip install "mmds[remote]"' in found.stdout
