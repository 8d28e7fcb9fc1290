"""Publishing: readers see the old file or the new one, and a writer that fails leaves nothing behind.

tests/faults/test_calls.py lets every system call fail.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds import Array, Scalar, Writer
from mmds.errors import ExistsError, StorageError
from mmds.publish import Draft

WRITE = """if True:
    import sys, numpy, mmds
    try:
        with mmds.Writer(sys.argv[1], mmds.Array("uint8", (2**19,)), overwrite="overwrite" in sys.argv) as writer:
            for k in range(4):
                writer.write(numpy.full(2**19, k, "uint8"))
            if "wait" in sys.argv:
                print("ready", flush=True)
                sys.stdin.read()
    except mmds.errors.StorageError as error:
        sys.exit(f"StorageError {error.errno}")
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A writer to d.mmds in another process that has written and waits."""
    command = [sys.executable, "-c", WRITE, str(tmp_path / "d.mmds"), "wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        if process.poll() is None:
            process.kill()


def test_nothing_has_the_name_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "d.mmds"
    with Writer(path, Scalar("int8")) as writer:
        writer.write(1)
        (temporary,) = names(tmp_path)
        assert temporary.startswith(".d.mmds.")
        assert temporary.endswith(".tmp")
    assert names(tmp_path) == ["d.mmds"]
    assert path.stat().st_nlink == 1


@pytest.mark.fault(7)
def test_of_two_writers_to_one_path_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "d.mmds"
    first, second = Writer(path, Scalar("int8")), Writer(path, Scalar("int8"))
    first.write(1)
    second.write(2)
    second.close()
    with pytest.raises(ExistsError, match=r"d\.mmds exists already"):
        first.close()
    assert list(mmds.open(path)) == [2]
    assert names(tmp_path) == ["d.mmds"]


def test_overwriting_keeps_old_readers_whole(tmp_path: Path) -> None:
    path = tmp_path / "d.mmds"
    with Writer(path, Scalar("int8")) as writer:
        writer.extend([1, 2, 3])
    old = mmds.open(path)
    with Writer(path, Scalar("int8"), overwrite=True) as writer:
        writer.extend([4])
        assert list(mmds.open(path)) == [1, 2, 3]
    assert list(old) == [1, 2, 3]
    assert list(mmds.open(path)) == [4]
    assert names(tmp_path) == ["d.mmds"]


@pytest.mark.fault(8)
def test_a_failed_overwrite_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "d.mmds"
    with Writer(path, Scalar("int8")) as writer:
        writer.write(1)
    with pytest.raises(KeyError), Writer(path, Scalar("int8"), overwrite=True) as writer:
        raise KeyError
    assert list(mmds.open(path)) == [1]
    assert names(tmp_path) == ["d.mmds"]


@pytest.mark.fault(1)
def test_what_a_killed_writer_left_is_reclaimed(waiting: subprocess.Popen[str], tmp_path: Path) -> None:
    (left,) = names(tmp_path)
    waiting.send_signal(signal.SIGKILL)
    waiting.wait()
    assert names(tmp_path) == [left]
    with Writer(tmp_path / "e.mmds", Scalar("int8")):
        assert left in names(tmp_path)  # of another destination
    with Writer(tmp_path / "d.mmds", Scalar("int8")):
        assert left not in names(tmp_path)
    assert names(tmp_path) == ["d.mmds", "e.mmds"]


def test_what_a_living_writer_writes_is_not_reclaimed(waiting: subprocess.Popen[str], tmp_path: Path) -> None:
    (left,) = names(tmp_path)
    Writer(tmp_path / "d.mmds", Scalar("int8")).abort()
    assert names(tmp_path) == [left]
    waiting.communicate("")
    assert waiting.returncode == 0
    assert len(mmds.open(tmp_path / "d.mmds")) == 4


def test_other_files_are_not_reclaimed(tmp_path: Path) -> None:
    others = [
        ".d.mmds.tmp",
        ".d.mmds.12345.tmp",
        ".d.mmds.123456789.tmp",
        "d.mmds.12345678.tmp",
        ".d.mmds.12345678.bak",
    ]
    for name in others:
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / ".d.mmds.0badf1f0.tmp")
    (tmp_path / ".d.mmds.5ca1ab1e.tmp").symlink_to(tmp_path / "kept")
    (tmp_path / "kept").touch()
    before = set(names(tmp_path))
    with Writer(tmp_path / "d.mmds", Scalar("int8")) as writer:
        writer.write(1)
    assert set(names(tmp_path)) >= {*others, "kept", "d.mmds"}
    assert before - set(names(tmp_path)) <= {".d.mmds.0badf1f0.tmp"}


def test_a_child_that_dies_does_not_take_the_file_with_it(tmp_path: Path) -> None:
    script = """if True:
        import os, sys, mmds
        with mmds.Writer(sys.argv[1], mmds.Scalar("int8")) as writer:
            writer.write(1)
            if os.fork() == 0:
                sys.exit(0)  # unwinds the with-block of the child, too
            os.wait()
    """
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "d.mmds"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(mmds.open(tmp_path / "d.mmds")) == [1]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_respects_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with Writer(tmp_path / "d.mmds", Scalar("int8")):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "d.mmds").stat().st_mode) == 0o666 & ~umask


def test_a_destination_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path, number in {
        "missing/d.mmds": errno.ENOENT,
        "file/d.mmds": errno.ENOTDIR,
        "x" * 242: errno.ENAMETOOLONG,
    }.items():
        with pytest.raises(StorageError) as caught:
            Writer(tmp_path / path, Scalar("int8"))
        assert caught.value.errno == number
    with pytest.raises(ExistsError):
        Writer(tmp_path / "folder", Scalar("int8"))
    with pytest.raises(StorageError, match="is not a file; it is left as it is"):
        Writer(tmp_path / "folder", Scalar("int8"), overwrite=True)
    assert names(tmp_path) == ["file", "folder"]


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Writer("d.mmds", Scalar("int8")):
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert names(tmp_path) == ["d.mmds", "elsewhere"]


def test_a_name_of_any_bytes(tmp_path: Path) -> None:
    for name in ("x" * 241, "a\nb\x1b", os.fsdecode(b"\xff\xfe")):
        with Writer(tmp_path / name, Scalar("int8")) as writer:
            writer.write(1)
        assert list(mmds.open(tmp_path / name)) == [1]


def test_publishing_is_synced_before_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def recorded(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            calls.append(name)
            real(*arguments)

        return call

    for name in ("fsync", "link", "replace", "unlink"):
        monkeypatch.setattr(os, name, recorded(name, getattr(os, name)))
    for overwrite, step in ((False, "link"), (True, "replace")):
        calls.clear()
        draft = Draft(tmp_path / "d.mmds", overwrite=overwrite)
        draft.write(memoryview(b"x"))
        draft.publish()
        assert calls == ["fsync", step, "fsync", "unlink"]


def test_a_failed_sync_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def fail(fd: int) -> None:
        calls.append(fd)
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(StorageError, match=r"cannot write .*d\.mmds: Input/output error") as caught:  # noqa: SIM117
        with Writer(tmp_path / "d.mmds", Scalar("int8")) as writer:
            monkeypatch.setattr(os, "fsync", fail)
            writer.write(1)
    assert (caught.value.errno, len(calls)) == (errno.EIO, 1)
    assert names(tmp_path) == []


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    with Writer(tmp_path / "d.mmds", Scalar("int8")) as writer:
        writer.extend(range(10))
    assert list(mmds.open(tmp_path / "d.mmds")) == list(range(10))


@pytest.mark.fault(3)
def test_a_file_size_limit(tmp_path: Path) -> None:
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20 + 5000,) * 2)\n"
    done = subprocess.run(
        [sys.executable, "-c", limit + WRITE, tmp_path / "d.mmds"], capture_output=True, text=True, check=False
    )
    assert done.stderr == f"StorageError {errno.EFBIG}\n"
    assert names(tmp_path) == []


def test_a_forked_child_cannot_damage_its_parents_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mmds"
    with Writer(path, {"x": Array("uint8", (5000,))}) as writer:
        writer.write({"x": np.zeros(5000, "uint8")})
        for closes in (True, False):
            pid = os.fork()
            if pid == 0:
                try:
                    writer.close() if closes else writer.extend([{"x": np.ones(5000, "uint8")}] * 300)
                except StorageError:
                    os._exit(0)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        writer.extend({"x": np.full(5000, i % 256, "uint8")} for i in range(300))
    assert len(mmds.open(path)) == 301 and mmds.verify(path)
