"""A computer that stops at any moment, and of what was not synced any part is there: the old dataset or the new one, whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conftest import Cases
from tests.faults.losing import Disk
from tests.faults.machine import needs_strace
from tests.faults.recorder import Name, Node, Operation, Page, Recording, Size, Sync
from tests.faults.test_calls import run
from tests.faults.writers import WRITERS

PUBLISHING = [name for name in WRITERS if "cache" not in name]  # test_killed.py has those that are never synced


@needs_strace
@pytest.mark.fault(1)
@pytest.mark.parametrize("name", PUBLISHING)
def test_01_some_states_after_a_crash(name: str, cases: Cases) -> None:
    cases(run("tests.faults.crashes", name, 200, 1)["states"])


@needs_strace
@pytest.mark.stress
@pytest.mark.fault(1)
@pytest.mark.parametrize("name", PUBLISHING)
def test_01_states_after_a_crash(name: str, cases: Cases) -> None:
    """Together they are more than 100,000."""
    cases(run("tests.faults.crashes", name, 60_000, 2)["states"])


@needs_strace
@pytest.mark.parametrize("of_folders", [False, True])
def test_a_writer_that_forgets_to_sync_is_found_out(of_folders: bool) -> None:
    found = run("tests.faults.crashes", "a folder of arrays", 200, 1, "folders" if of_folders else "files")
    assert found["torn"] > 0


def states(recording: Recording, folder: Path, most: int = 4096) -> set[tuple[tuple[str, bytes], ...]]:
    """Return all that may be in a folder after the last step."""
    disk = Disk(recording)
    found = set()
    for number, (steps, kept) in enumerate(disk.states(random.Random(0), most)):
        if steps == len(recording.steps):
            place = folder / str(number)
            place.mkdir()
            disk.build(kept, place)
            found.add(tuple((path.name, path.read_bytes()) for path in sorted(place.iterdir())))
    return found


def test_the_model_keeps_what_is_synced_and_nothing_else(tmp_path: Path) -> None:
    root, file = Node(True), Node(False)
    named, sized = Name(((root, "a", file),), root), Size(file, 2)
    page = Page(file, 0, b"xy")
    steps: list[list[Operation]] = [[named], [sized, page]]
    assert states(Recording(root, steps), tmp_path) == {(), (("a", b""),), (("a", b"\0\0"),), (("a", b"xy"),)}
    for each in tmp_path.iterdir():
        each.rename(tmp_path.parent / f"{tmp_path.name}-{each.name}")
    assert states(Recording(root, [*steps, [Sync(file)]]), tmp_path) == {(), (("a", b"xy"),)}


def test_the_model_renames_in_one_step(tmp_path: Path) -> None:
    old, new = Node(False, b"old"), Node(False, b"new")
    root = Node(True, names={"a": old, "b": new})
    rename = Name(((root, "b", None), (root, "a", new)), root)
    assert states(Recording(root, [[rename]]), tmp_path) == {(("a", b"old"), ("b", b"new")), (("a", b"new"),)}
    (tmp_path / "synced").mkdir()
    assert states(Recording(root, [[rename], [Sync(root)]]), tmp_path / "synced") == {(("a", b"new"),)}
