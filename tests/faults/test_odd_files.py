"""What is at a path, but is no ``.mmds`` file: refused by everything that opens datasets, at once, and without a traceback."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import signal
import socket
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import mmds
from mmds.cli import main
from mmds.errors import MmdsError
from tests.conftest import Cases
from tests.make_golden import PNG, WAV
from tests.resealing import golden

pytestmark = pytest.mark.fault(15)
PATIENCE = 20  # seconds, on a machine that does other things as well: what hangs, hangs for ever


def _empty(path: Path) -> None:
    path.touch()


def _folder(path: Path) -> None:
    path.mkdir()


def _folder_of_files(path: Path) -> None:
    path.mkdir()
    (path / "readme.txt").write_text("hello")
    (path / "a.mmds").write_bytes(golden("strings"))


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


def _link_to_a_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("fifo"))
    path.symlink_to(path.with_name("fifo"))


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket may have no more than 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(here)


def _device(name: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(name)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(golden("strings")[:4096])
        file.truncate(2**40)


def _content(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


def _npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(9999))


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello" * 2000)


def _sqlite(path: Path) -> None:
    sqlite3.connect(path).execute("create table a (b)").connection.close()


ODD: dict[str, Callable[[Path], Any]] = {
    "an empty file": _empty,
    "an empty folder": _folder,
    "a folder without a manifest": _folder_of_files,
    "a FIFO": _fifo,
    "a link to itself": _loop,
    "a link to nothing": _dangling,
    "a link to a FIFO": _link_to_a_fifo,
    "a socket": _socket,
    "/dev/null": _device("/dev/null"),
    "/dev/zero": _device("/dev/zero"),
    "/dev/full": _device("/dev/full"),
    "/dev/random": _device("/dev/random"),
    "a terabyte of nothing behind a header": _sparse,
    "a byte": _content(b"\x89"),
    "text": _content(b"hello\n" * 2000),
    "a CSV file": _content(b"a,b\n1,2\n" * 2000),
    "a PNG": _content(PNG * 99),
    "a WAV": _content(WAV * 999),
    "gzip": _content(gzip.compress(golden("strings"))),
    "a pickle": _content(b"\x80\x04\x95" + bytes(9999)),
    "ELF": _content(b"\x7fELF" + bytes(9999)),
    "zeros": _content(bytes(9999)),
    "ones": _content(b"\xff" * 9999),
    ".npy": _npy,
    "a zip archive": _zip,
    "SQLite": _sqlite,
    "a dataset.json": _content(b'{"mmds": 1}' + b" " * 9999),
    "another magic in a file that is whole otherwise": _content(b"\x89XXX" + golden("strings")[4:]),
}


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Raise TimeoutError in what takes longer than `PATIENCE`."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still busy after {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("suffix", [".mmds", ""])
@pytest.mark.parametrize("name", ODD)
def test_15_what_is_no_dataset_is_refused(name: str, suffix: str, tmp_path: Path, cases: Cases) -> None:
    path = tmp_path / f"odd{suffix}"
    ODD[name](path)
    before = sorted(tmp_path.iterdir())
    pytest.importorskip("torch")
    ways: dict[str, Callable[[], Any]] = {
        "open": lambda: mmds.open(path),
        "open as mmds": lambda: mmds.open(path, format="mmds"),
        "open, in memory": lambda: mmds.open(path, in_memory=True),
        "open, by position": lambda: mmds.open(path, verify="read"),
        "a dataset": lambda: mmds.MemoryMappedDataset(path)[0],
    }
    with patience():
        for way, call in ways.items():
            with pytest.raises((MmdsError, OSError)) as caught:
                call()
            assert isinstance(caught.value, (MmdsError, FileNotFoundError)) or name == "a link to itself", way
            assert str(path) in str(caught.value), (way, caught.value)
        for command, *more in (["info"], ["verify"], ["show", "0"], ["ls"]):
            result = CliRunner().invoke(main, [command, str(path), *more])
            assert result.exit_code == 1 and isinstance(result.exception, SystemExit), (command, result.exception)
            assert "Traceback" not in result.output and len(result.output) < 1000, result.output
        try:
            assert not mmds.verify(path)
        except (MmdsError, OSError) as error:
            assert str(path) in str(error)
    assert sorted(tmp_path.iterdir()) == before
    cases(len(ways) + 5)


def test_15_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "secret.mmds"
    shutil.copyfile(Path(__file__).parents[1] / "golden" / "strings.mmds", path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root may read everything")
    with pytest.raises(PermissionError, match=r"secret\.mmds"):
        mmds.open(path)


@pytest.mark.parametrize(
    "path", ["a\0b.mmds", "", "/", "x" * 5000, "\udcff.mmds", "nowhere/../nothing.mmds", "*.mmds", "["]
)
def test_15_paths_that_lead_nowhere(path: str) -> None:
    with patience(), pytest.raises((MmdsError, OSError, ValueError)):
        mmds.open(path)
    with patience(), contextlib.suppress(MmdsError, OSError, ValueError):
        assert not mmds.verify(path)
