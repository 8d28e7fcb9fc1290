"""A library's file or folder appears whole or not at all, and nothing is left beside it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from pathlib import Path

import pytest

from mmds.errors import ExistsError, StorageError
from mmds.staging import Staging
from tests.faults.machine import inject, needs_strace


def fill(staging: Staging, folder: bool, text: str) -> None:
    if folder:
        (staging.content / "inner").mkdir(parents=True)
        (staging.content / "inner" / "data").write_text(text)
    else:
        staging.content.write_text(text)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def text_at(path: Path) -> str:
    return (path / "inner" / "data" if path.is_dir() else path).read_text()


@pytest.fixture(params=[False, True], ids=["file", "folder"])
def folder(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def publish(path: Path, folder: bool, text: str, overwrite: bool = False) -> None:
    staging = Staging(path, overwrite=overwrite)
    try:
        fill(staging, folder, text)
        staging.publish()
    finally:
        staging.discard()


def test_nothing_is_at_the_path_before_publish_and_nothing_beside_it_after(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "a.zarr"
    staging = Staging(path)
    fill(staging, folder, "one")
    assert staging.content.suffix == ".zarr" and not path.exists()
    staging.publish()
    staging.discard()
    staging.discard()
    assert text_at(path) == "one" and names(tmp_path) == ["a.zarr"]


def test_discard_removes_all(tmp_path: Path, folder: bool) -> None:
    staging = Staging(tmp_path / "a")
    fill(staging, folder, "one")
    staging.discard()
    assert not names(tmp_path)


def test_what_is_there_stays_unless_overwriting(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "a"
    publish(path, folder, "one")
    with pytest.raises(ExistsError, match="exists"):
        Staging(path)
    publish(path, folder, "two", overwrite=True)
    assert text_at(path) == "two" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("before", [False, True], ids=["file", "folder"])
def test_a_file_replaces_a_folder_and_the_other_way_round(tmp_path: Path, folder: bool, before: bool) -> None:
    publish(tmp_path / "a", before, "one")
    publish(tmp_path / "a", folder, "two", overwrite=True)
    assert text_at(tmp_path / "a") == "two" and names(tmp_path) == ["a"]


def test_whoever_publishes_first_wins(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "a"
    slow = Staging(path)
    fill(slow, folder, "slow")
    publish(path, folder, "fast")
    with pytest.raises(ExistsError):
        slow.publish()
    slow.discard()
    assert text_at(path) == "fast" and names(tmp_path) == ["a"]


PUBLISH = """if True:
    import sys
    from mmds.errors import StorageError
    from mmds.staging import Staging
    staging = Staging(sys.argv[1], overwrite="overwrite" in sys.argv)
    try:
        if "folder" in sys.argv:
            staging.content.mkdir()
            (staging.content / "data").write_text("new")
        else:
            staging.content.write_text("new")
        staging.publish()
    except StorageError as error:
        print(error)
        sys.exit(error.errno)
    finally:
        staging.discard()
"""


@needs_strace
def test_a_new_folder_that_cannot_be_named_leaves_nothing(tmp_path: Path) -> None:
    for options in (["folder"], ["folder", "overwrite"]):
        done = inject("rename", "error=EIO", 1, PUBLISH, tmp_path / "a", *options)
        assert (done.returncode, names(tmp_path)) == (errno.EIO, [])
        assert f"cannot write {tmp_path / 'a'}: " in done.stdout


@needs_strace
def test_a_failed_exchange_leaves_the_old_one(tmp_path: Path) -> None:
    publish(tmp_path / "a", True, "old")
    done = inject("exchange", "error=EIO", 1, PUBLISH, tmp_path / "a", "folder", "overwrite")
    assert (done.returncode, names(tmp_path), text_at(tmp_path / "a")) == (errno.EIO, ["a"], "old")


@needs_strace
@pytest.mark.parametrize("number", ["EINVAL", "ENOSYS", "EOPNOTSUPP"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_where_nothing_can_be_exchanged_the_old_one_is_moved_aside(number: str, kind: str, tmp_path: Path) -> None:
    publish(tmp_path / "a", True, "old")
    done = inject("exchange", f"error={number}", "1+", PUBLISH, tmp_path / "a", kind, "overwrite")
    assert (done.returncode, names(tmp_path)) == (0, ["a"]), done.stdout
    assert (tmp_path / "a" / "data" if kind == "folder" else tmp_path / "a").read_text() == "new"


def test_a_c_library_that_cannot_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())  # there is no such library here
    publish(tmp_path / "a", True, "old")
    publish(tmp_path / "a", True, "new", overwrite=True)
    assert text_at(tmp_path / "a") == "new" and names(tmp_path) == ["a"]


def cannot_exchange(*_: Path) -> bool:
    return False


def test_what_was_moved_aside_comes_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, folder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    publish(path, True, "old")
    staging = Staging(path, overwrite=True)
    fill(staging, folder, "new")
    rename = os.rename

    def gone(source: Path, target: Path) -> None:
        if source == path:  # somebody takes the new one away just then
            rename(staging.content, tmp_path / "elsewhere")
        rename(source, target)

    monkeypatch.setattr("mmds.staging.exchange", cannot_exchange)
    monkeypatch.setattr(os, "rename", gone)
    with pytest.raises(StorageError, match="No such file"):
        staging.publish()
    staging.discard()
    assert text_at(path) == "old" and sorted(names(tmp_path)) == ["a", "elsewhere"]


def test_what_a_dead_writer_had_moved_aside_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".a.12345678.tmp.d" / "replaced").mkdir(parents=True)
    (tmp_path / ".a.12345678.tmp.d" / "replaced" / "data").write_text("old")
    with pytest.raises(ExistsError):
        Staging(tmp_path / "a")
    assert names(tmp_path) == ["a"] and (tmp_path / "a" / "data").read_text() == "old"
    (tmp_path / ".a.12345678.tmp.d" / "replaced").mkdir(parents=True)  # but not over what is there
    Staging(tmp_path / "a", overwrite=True).discard()
    assert names(tmp_path) == ["a"] and (tmp_path / "a" / "data").read_text() == "old"


def test_overwriting_what_is_not_there(tmp_path: Path, folder: bool) -> None:
    publish(tmp_path / "a", folder, "one", overwrite=True)
    assert text_at(tmp_path / "a") == "one" and names(tmp_path) == ["a"]


def test_somebody_is_faster_at_the_last_moment(tmp_path: Path, folder: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Staging(tmp_path / "a")
    fill(slow, folder, "slow")
    name, step = ("rename", os.rename) if folder else ("link", os.link)

    def late(source: Path, target: Path) -> None:
        monkeypatch.undo()
        publish(tmp_path / "a", folder, "fast")
        step(source, target)

    monkeypatch.setattr(os, name, late)
    with pytest.raises(ExistsError, match="exists already"):
        slow.publish()
    slow.discard()
    assert text_at(tmp_path / "a") == "fast" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("locks", [False, True])
def test_a_folder_that_is_taken_before_it_is_locked_is_made_again(
    locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Path] = []
    mkdir, opened = os.mkdir, []

    def late(folder: Path) -> None:
        monkeypatch.undo()
        mkdir(folder)
        taken.append(folder)
        if locks:  # as one who reclaims it does, before he removes it
            opened.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
            fcntl.flock(opened[0], fcntl.LOCK_EX)
        else:
            Staging(tmp_path / "a").discard()
            assert not folder.exists()

    monkeypatch.setattr(os, "mkdir", late)
    staging = Staging(tmp_path / "a")
    assert staging.content.parent.exists() and staging.content.parent != taken[0]
    staging.discard()
    assert not names(tmp_path)
    for fd in opened:
        os.close(fd)


def test_where_no_folder_can_be_made(tmp_path: Path) -> None:
    for path, number in {"missing/a": errno.ENOENT, "x" * 250: errno.ENAMETOOLONG}.items():
        with pytest.raises(StorageError) as caught:
            Staging(tmp_path / path)
        assert caught.value.errno == number
    assert not names(tmp_path)


def test_what_dead_writers_left_is_removed_and_what_others_have_is_not(tmp_path: Path) -> None:
    living = Staging(tmp_path / "a")
    dead = tmp_path / ".a.12345678.tmp.d"
    (dead / "content").mkdir(parents=True)
    rest = (".a.tmp.d", ".b.12345678.tmp.d", ".a.12345678.tmp", "a.12345678.tmp.d", ".a.12345678.tmp.x")
    others = [tmp_path / name for name in rest]
    for other in others:
        other.mkdir()
    link = tmp_path / ".a.87654321.tmp.d"
    link.symlink_to(others[1])
    Staging(tmp_path / "a").discard()
    assert not dead.exists() and living.content.parent.exists() and link.is_symlink()
    assert all(other.exists() for other in others)
    living.discard()


def test_a_forked_child_neither_publishes_nor_removes(tmp_path: Path, folder: bool) -> None:
    staging = Staging(tmp_path / "a")
    fill(staging, folder, "one")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            staging.publish()
        except StorageError:
            staging.discard()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    staging.publish()
    staging.discard()
    assert text_at(tmp_path / "a") == "one"
