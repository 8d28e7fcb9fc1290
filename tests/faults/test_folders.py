"""Folders with what is no plain, readable file under a sample's name: nothing read elsewhere, nothing left out unsaid."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest

import mmds
from mmds.converters import sources
from tests.conftest import Cases
from tests.faults import foreign
from tests.faults.machine import IS_ROOT, needs_root, open_to_everybody, run_script

# Formats that read a folder of files, and the name of a file in the folder that `foreign.build` makes.
FOLDERS = {
    "jpeg": "class 0/{}.jpg",
    "wav": "class 0/{}.wav",
    "mp4": "class 0/{}.mp4",
    "npyfolder": "class 0/{}.npy",
    "text": "{}.txt",
}


def spoil(root: Path, pattern: str, outside: Path) -> set[str]:
    """Put what is no plain file into a folder; return the names."""
    names = {
        kind: pattern.format(kind) for kind in ("fifo", "socket", "out", "nothing", "loop", "empty", "huge", "device")
    }
    os.mkfifo(root / names["fifo"])
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir((root / names["socket"]).parent)  # an address has at most 108 bytes
        server.bind(Path(names["socket"]).name)
        os.chdir(here)
    (root / names["out"]).symlink_to(outside)
    (root / names["nothing"]).symlink_to("nothing at all")
    (root / names["loop"]).symlink_to(Path(names["loop"]).name)
    (root / names["empty"]).touch()
    (root / names["huge"]).touch()
    os.truncate(root / names["huge"], 2**40)
    if IS_ROOT:
        os.mknod(root / names["device"], stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
    else:
        del names["device"]
    return set(names.values())


@pytest.mark.fault(33)
@pytest.mark.parametrize("name", FOLDERS)
def test_33_what_is_no_file_is_listed_by_name(name: str, tmp_path: Path, cases: Cases) -> None:
    (tmp_path / "in").mkdir()
    path = foreign.build(name, tmp_path / "in")
    whole = len(foreign.read_tree(path))
    first = path / sorted(foreign.read_tree(path))[0]
    outside = tmp_path / f"outside{first.suffix}"
    outside.write_bytes(first.read_bytes())
    spoiled = spoil(path, FOLDERS[name], outside)
    if name != "text":
        (path / "class 9").mkdir()
    (path / "notes.md").write_text("no sample")
    subject = foreign.SUBJECTS[name]
    options = {**subject.options, "per": "file"} if name == "text" else subject.options
    (source,) = sources(path, subject.source, **options)
    result = mmds.convert(
        path, tmp_path / "out.mmds", source_format=subject.source, on_error="quarantine", num_workers=1, **options
    )
    failed = {each.removeprefix("./") for each, _ in result.errors}
    fine = {FOLDERS[name].format("empty")} if name == "text" else set()  # an empty text is one
    assert failed == spoiled - fine
    assert result.samples == whole + len(fine) and len(source) + len(source.problems) == whole + len(spoiled)
    assert sum(each.count for each in result.ignored.values()) == (1 if name == "text" else 2)
    listed = [json.loads(line) for line in (tmp_path / "out.mmds.quarantine.jsonl").read_text().splitlines()]
    assert len(listed) == len(result.errors)
    if name != "text":
        assert mmds.open(tmp_path / "out.mmds").fields[1].kind.names == ("class 0", "class 1", "class 9")
    cases(len(spoiled) + 2)


AS_ANOTHER = """
import json, os, sys, mmds
from mmds.converters import sources
sources(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))  # imports what is needed
mmds.convert(sys.argv[1], sys.argv[4] + "/all.mmds", source_format=sys.argv[2], num_workers=1, **json.loads(sys.argv[3]))
os.setgroups([]); os.setgid(65534); os.setuid(65534)
result = mmds.convert(sys.argv[1], sys.argv[4] + "/out.mmds", source_format=sys.argv[2], num_workers=1, on_error="skip",
    **json.loads(sys.argv[3]))
print(json.dumps([result.samples, result.errors]))
"""


@needs_root
@pytest.mark.fault(33)
@pytest.mark.parametrize("name", FOLDERS)
def test_33_what_may_not_be_read_is_listed_by_name(name: str, cases: Cases) -> None:
    with open_to_everybody() as folder:
        (folder / "in").mkdir()
        (folder / "to").mkdir()
        (folder / "to").chmod(0o777)
        path = foreign.build(name, folder / "in")
        files = sorted(foreign.read_tree(path))
        (path / files[0]).chmod(0)
        subject = foreign.SUBJECTS[name]
        options = {**subject.options, "per": "file"} if name == "text" else subject.options
        done = run_script(AS_ANOTHER, path, subject.source, json.dumps(options), folder / "to")
    assert done.returncode == 0, done.stderr[-2000:]
    samples, errors = json.loads(done.stdout)
    assert samples == len(files) - 1 and errors == [[files[0], "cannot be read (Permission denied)"]]
    cases(1)
