"""A library's file or folder appears whole or not at all, and nothing is left beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmds.errors import ExistsError, StorageError
from mmds.staging import Staging


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


def test_a_failed_replacement_leaves_the_old_one(tmp_path: Path, folder: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    publish(path, True, "old")
    staging = Staging(path, overwrite=True)
    fill(staging, folder, "new")
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if source == staging.content:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(StorageError, match="No space left"):
        staging.publish()
    monkeypatch.undo()
    staging.discard()
    assert text_at(path) == "old" and names(tmp_path) == ["a"]


def test_what_dead_writers_left_is_removed_and_what_others_have_is_not(tmp_path: Path) -> None:
    living = Staging(tmp_path / "a")
    dead = tmp_path / ".a.12345678.tmp.d"
    (dead / "content").mkdir(parents=True)
    others = [tmp_path / name for name in (".a.tmp.d", ".b.12345678.tmp.d", ".a.12345678.tmp", "a.12345678.tmp.d")]
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
