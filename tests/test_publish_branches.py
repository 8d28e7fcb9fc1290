"""What may happen between two steps of publishing: another writer reclaims, is faster, or the system refuses a call.

Where the order of two writers matters, the other one acts inside of a call of the first, with the calls that it would make.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmds import Array, Scalar, Text, Writer, writer
from mmds.errors import ExistsError, StorageError
from mmds.publish import Draft, link_into_place, log_of, reclaim, storage_errors
from tests.faults.machine import inject, needs_strace

PUBLISH = """if True:
    import sys
    from mmds.errors import StorageError
    from mmds.publish import Draft
    try:
        draft = Draft(sys.argv[1], overwrite="overwrite" in sys.argv)
        try:
            draft.write(memoryview(b"new"))
            draft.publish()
        finally:
            draft.discard()
    except StorageError as error:
        print(error)
        sys.exit(error.errno)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def published(path: Path, text: bytes, *, overwrite: bool = False) -> None:
    draft = Draft(path, overwrite=overwrite)
    try:
        draft.write(memoryview(text))
        draft.publish()
    finally:
        draft.discard()


# Between making the temporary file and locking it


@pytest.mark.parametrize("how", ["is gone", "is locked"])
def test_a_temporary_file_that_is_reclaimed_before_it_is_locked_is_made_again(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "d.mmds", os.open
    taken: list[Path] = []
    others: list[int] = []

    def late(name: Path, flags: int, *mode: int) -> int:
        monkeypatch.undo()
        fd = real(name, flags, *mode)
        taken.append(name)
        if how == "is gone":
            reclaim(path)
            assert not name.exists()
        else:
            others.append(os.open(name, os.O_RDONLY))
            fcntl.flock(others[0], fcntl.LOCK_EX)
        return fd

    reclaim(path)
    monkeypatch.setattr(os, "open", late)
    before = len(list(Path("/proc/self/fd").iterdir()))
    draft = Draft(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1 + len(others)
    (temporary,) = names(tmp_path)
    assert temporary != taken[0].name
    draft.write(memoryview(b"new"))
    draft.publish()
    assert (names(tmp_path), path.read_bytes()) == (["d.mmds"], b"new")
    for fd in others:
        os.close(fd)


@needs_strace
def test_a_temporary_file_that_cannot_be_locked_goes_away(tmp_path: Path) -> None:
    done = inject("flock", "error=ENOLCK", 1, PUBLISH, tmp_path / "d.mmds")
    assert (done.returncode, names(tmp_path)) == (errno.ENOLCK, [])
    assert f"cannot write {tmp_path / 'd.mmds'}: No locks available" in done.stdout


# Between looking for the destination and naming it


def test_somebody_is_faster_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "d.mmds", os.link

    def late(source: Path, target: Path) -> None:
        monkeypatch.undo()
        published(path, b"fast")
        real(source, target)

    slow = Draft(path)
    slow.write(memoryview(b"slow"))
    monkeypatch.setattr(os, "link", late)
    with pytest.raises(ExistsError, match=r"d\.mmds exists already; pass overwrite=True to replace it"):
        slow.publish()
    slow.discard()
    assert (names(tmp_path), path.read_bytes()) == (["d.mmds"], b"fast")


@needs_strace
@pytest.mark.parametrize("number", ["EPERM", "EOPNOTSUPP", "ENOSYS"])
def test_a_file_system_without_hard_links(number: str, tmp_path: Path) -> None:
    done = inject("link", f"error={number}", "1+", PUBLISH, tmp_path / "d.mmds")
    assert done.returncode == getattr(errno, number)
    assert "this file system has no hard links; pass overwrite=True to publish by rename" in done.stdout
    assert names(tmp_path) == []
    done = inject("link", f"error={number}", "1+", PUBLISH, tmp_path / "d.mmds", "overwrite")
    assert (done.returncode, names(tmp_path)) == (0, ["d.mmds"])


def test_other_failures_of_a_link_are_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        link_into_place(tmp_path / "missing", tmp_path / "d.mmds")


def test_what_is_not_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="exists and is not a file; it is left as it is") as caught:
        Draft(tmp_path / "folder", overwrite=True)
    assert caught.value.errno == errno.EINVAL
    (tmp_path / "nowhere").symlink_to("missing")
    with pytest.raises(ExistsError):
        Draft(tmp_path / "nowhere")
    published(tmp_path / "nowhere", b"new", overwrite=True)  # as `open` would
    assert names(tmp_path) == ["folder", "missing", "nowhere"]


# Discarding


def test_discarding_twice_closes_nothing_of_others(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "d.mmds")
    with draft.open_log() as log:
        log.write(b"x")
    assert len(names(tmp_path)) == 2
    draft.discard()
    fd = os.open(tmp_path, os.O_RDONLY)  # has the number that was free
    draft.discard()
    os.fstat(fd)
    os.close(fd)
    assert names(tmp_path) == []


def test_what_is_gone_when_it_is_discarded(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "d.mmds")
    draft.open_log().close()
    for path in tmp_path.iterdir():
        path.unlink()
    draft.discard()


def test_a_forked_child_removes_nothing(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "d.mmds")
    draft.open_log().close()
    pid = os.fork()
    if pid == 0:
        failed = []
        steps: list[Callable[[], None]] = [lambda: draft.write(memoryview(b"child")), draft.publish]
        for step in steps:
            try:
                step()
            except StorageError as error:
                failed.append(error.errno)
        draft.discard()
        os._exit(0 if failed == [errno.EPERM] * 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(names(tmp_path)) == 2
    draft.write(memoryview(b"parent"))
    draft.publish()
    assert (names(tmp_path), (tmp_path / "d.mmds").read_bytes()) == (["d.mmds"], b"parent")


# Reclaiming


def leave(folder: Path, *found: str) -> None:
    for name in found:
        (folder / name).touch()


def test_leftovers_are_files_with_the_names_of_ours(tmp_path: Path) -> None:
    leave(tmp_path, ".d.00000000.tmp", ".d.00000000.log", ".d.ffffffff.log", ".d.12345678.tmp")
    others = [".d.0000000g.tmp", ".d.000000000.tmp", ".d.0000000.log", ".dx00000000.tmp", ".d.00000000.bak", "d.log"]
    leave(tmp_path, *others, ".e.00000000.tmp", "e.00000000.log")
    (tmp_path / ".d.22222222.tmp").symlink_to("d.log")
    reclaim(tmp_path / "d")
    assert names(tmp_path) == sorted([*others, ".e.00000000.tmp", "e.00000000.log", ".d.22222222.tmp"])


def test_a_name_is_no_pattern(tmp_path: Path) -> None:
    leave(tmp_path, ".axb.00000000.tmp", ".a.b.00000000.tmp")
    reclaim(tmp_path / "a.b")
    assert names(tmp_path) == [".axb.00000000.tmp"]


def test_the_log_of_a_living_writer_stays(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "d")
    draft.open_log().close()
    before = names(tmp_path)
    reclaim(tmp_path / "d")
    assert names(tmp_path) == before and len(before) == 2
    assert log_of(tmp_path / ".d.00000000.tmp").name == ".d.00000000.log"
    draft.discard()


@pytest.mark.parametrize("call", ["open", "unlink"])
def test_two_who_reclaim_at_once(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(tmp_path, ".d.00000000.tmp", ".d.00000000.log", ".d.11111111.log")
    real: Callable[..., Any] = getattr(os, call)

    def late(*arguments: Any) -> Any:
        monkeypatch.undo()
        for path in tmp_path.iterdir():
            path.unlink()
        return real(*arguments)

    monkeypatch.setattr(os, call, late)
    reclaim(tmp_path / "d")
    assert names(tmp_path) == []


def test_errors_of_ours_and_of_the_system(tmp_path: Path) -> None:
    ours = StorageError(errno.EPERM, "as it was")
    with pytest.raises(StorageError) as caught, storage_errors(tmp_path):
        raise ours
    assert caught.value is ours
    with pytest.raises(StorageError, match=r"cannot write .*: disk on fire") as caught, storage_errors(tmp_path):
        raise OSError(errno.EIO, "disk on fire")
    assert (caught.value.errno, type(caught.value.__cause__)) == (errno.EIO, OSError)
    with pytest.raises(KeyError), storage_errors(tmp_path):
        raise KeyError


# The log of a writer


def test_the_log_grows_beside_the_file_and_changes_nothing_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"x": Array("uint8", (None,)), "t": Text(column=True), "y": Scalar("int8", nullable=True)}
    batch = {"x": [np.full(2**19, k, "uint8") for k in range(8)], "t": list("abcdefgh"), "y": [None, *range(7)]}
    seen: dict[int, list[str]] = {}
    for every in (64, 1):
        monkeypatch.setattr(writer, "CHECKPOINT", every)
        with Writer(tmp_path / f"{every}", fields) as file:
            assert file.nbytes > 0
            for _ in range(2):
                file.write_batch(batch)
            seen[every] = [path.suffix for path in sorted(tmp_path.glob(".*"))]
            assert file.nbytes > 8 * 2**20
    assert seen == {64: [".tmp"], 1: [".log", ".tmp"]}
    assert names(tmp_path) == ["1", "64"]
    assert (tmp_path / "1").read_bytes() == (tmp_path / "64").read_bytes()


def test_a_writer_that_has_not_begun_has_no_bytes(tmp_path: Path) -> None:
    file = Writer(tmp_path / "d")
    assert file.nbytes == 0
    file.abort()
