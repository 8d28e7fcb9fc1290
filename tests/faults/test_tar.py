"""Archives and datasets whose names lead elsewhere: nothing outside of the output is written, nothing outside is read."""

from __future__ import annotations

import contextlib
import io
import random
import tarfile
from pathlib import Path

import pytest

import mmds
from mmds.errors import MmdsError
from tests.conftest import Cases
from tests.samples import jpeg

PARTS = (
    "..",
    ".",
    "",
    "a",
    "b.jpg",
    "\0",
    "..\\",
    "~",
    "c" * 300,
    "\x1b[2J",
    "out",
    "evil",
    "dev",
    "\u202e",
    "{x}",
    "$HOME",
    "con",
)
KINDS = (
    tarfile.REGTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
    tarfile.DIRTYPE,
)
TARGETS = ("/etc/passwd", "../../secret.jpg", "..", "/", "0/a.jpg", "nothing")


def inventory(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return everything below a folder, with what would differ if it had been written to."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[str(path)] = status.st_ino, status.st_mtime_ns, status.st_size
    return found


def name_of(draw: random.Random) -> str:
    return draw.choice(("", "", "/", "//", "./", "../")) + "/".join(draw.choices(PARTS, k=draw.randrange(1, 4)))


@pytest.mark.fault(30)
def test_30_members_of_any_name_and_kind(tmp_path: Path, cases: Cases) -> None:
    """Each archive has twenty members; it is converted, and what came of it exported as a folder and as an archive."""
    (tmp_path / "secret.jpg").write_bytes(jpeg(9))
    secret = jpeg(9)
    draw = random.Random(30)
    count = converted = exported = 0
    for number in range(15):
        inner = tmp_path / "deep" / "er" / f"{number}"
        inner.mkdir(parents=True)
        archive = inner / "a.tar"
        with tarfile.open(archive, "w") as file:
            for member in range(20):
                info = tarfile.TarInfo(
                    f"{name_of(draw)}{draw.choice(('', f'{member}'))}.{draw.choice(('jpg', 'txt', 'JPG'))}"
                )
                info.type = draw.choice((tarfile.REGTYPE, tarfile.REGTYPE, *KINDS))
                info.linkname = draw.choice(TARGETS)
                content = jpeg(member, (8, 8)) if info.name.lower().endswith("jpg") else b"text"
                info.size = len(content) if info.type == tarfile.REGTYPE else 0
                with contextlib.suppress(ValueError):  # what tarfile itself cannot write
                    file.addfile(info, io.BytesIO(content))
                    count += 1
        before = inventory(tmp_path)
        allowed = set()
        with contextlib.suppress(MmdsError):
            mmds.convert(archive, inner / "out.mmds", on_error="skip", num_workers=1)
            allowed.add(str(inner / "out.mmds"))
            converted += 1
            samples = list(mmds.open(inner / "out.mmds"))
            assert all(sample.get("jpg") != secret for sample in samples)
            for destination in ("folder", "again.tar", "shards.npyd"):
                with contextlib.suppress(MmdsError):
                    mmds.export(inner / "out.mmds", inner / destination)
                    exported += 1
        after = inventory(tmp_path)
        changed = {path for path in before if before[path] != after.get(path)} - {str(inner)}
        added = {path for path in after if path not in before} - allowed
        assert not changed
        assert all(path.startswith((f"{inner}/folder", f"{inner}/again.tar", f"{inner}/shards.npyd")) for path in added)
        assert not any(Path(path).is_symlink() for path in added)
    assert converted > 8 and exported > 8 and count > 180
    cases(count)


@pytest.mark.fault(30)
def test_30_paths_of_a_dataset_stay_below_the_folder(tmp_path: Path, cases: Cases) -> None:
    """What the folder of an export holds is below it, or the export is refused and there is none."""
    draw = random.Random(3)
    refused = written = 0
    (tmp_path / "in").mkdir()
    (tmp_path / "victim").write_text("whole")
    for number in range(80):
        path = tmp_path / "in" / f"{number}.mmds"
        with mmds.Writer(path, {"image": mmds.Bytes(), "path": mmds.Text(column=True)}) as writer:
            for row in range(2):
                name = name_of(draw) if draw.random() < 0.5 else f"a/{row}/{draw.choice(PARTS[3:])}"
                writer.write({"image": b"x", "path": name})
        before = inventory(tmp_path)
        destination = tmp_path / "in" / "out"
        try:
            mmds.export(path, destination)
            written += 1
            assert sum(each.is_file() for each in destination.rglob("*")) == 2
            for each in sorted(destination.rglob("*"), reverse=True):
                each.rmdir() if each.is_dir() else each.unlink()
            destination.rmdir()
        except MmdsError:
            refused += 1
        after = inventory(tmp_path)
        assert {each: found for each, found in after.items() if each != str(tmp_path / "in")} == {
            each: found for each, found in before.items() if each != str(tmp_path / "in")
        }
    assert written > 5 and refused > 5
    cases(80)
