"""Files that nobody vouches for: what is opened, what is read, and what is noticed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from mmds.converters.rawfile import RawFile, whole_source
from mmds.errors import SourceError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(b"0123456789")
    return tmp_path / "in" / "a"


def test_parts_and_whole(path: Path) -> None:
    file = pickle.loads(pickle.dumps(RawFile.find(path)))
    assert (file.read(), file.read(3, 4), file.read(8), file.read(10, 0)) == (b"0123456789", b"3456", b"89", b"")
    with file.stream() as stream:
        assert stream.read() == b"0123456789"


@pytest.mark.parametrize(
    ("offset", "size"), [(-1, 1), (0, 11), (10, 1), (11, 0), (5, -1), (2**63, 1), (0, 2**64), (-(2**64), 5)]
)
def test_what_the_file_does_not_have_is_refused(path: Path, offset: int, size: int) -> None:
    with pytest.raises(SourceError, match=f"{size} bytes at offset {offset} of a file of 10"):
        RawFile.find(path).read(offset, size)


@pytest.mark.fault(33)
def test_links_lead_below_the_boundary(path: Path, tmp_path: Path) -> None:
    inside = os.path.realpath(tmp_path / "in")
    (tmp_path / "in" / "link").symlink_to("a")
    (tmp_path / "in" / "out").symlink_to("../other")
    (tmp_path / "other").write_bytes(b"x")
    (tmp_path / "in2").write_bytes(b"a name that begins alike")
    (tmp_path / "in" / "near").symlink_to("../in2")
    (tmp_path / "in" / "loop").symlink_to("loop")
    assert RawFile.find(tmp_path / "in" / "link", inside).path == os.path.realpath(path)
    assert RawFile.find(tmp_path / "in" / "out").read() == b"x"
    for name in ("out", "near"):
        with pytest.raises(SourceError, match="out of the tree"):
            RawFile.find(tmp_path / "in" / name, inside)
    with pytest.raises(SourceError, match="symbolic links"):
        RawFile.find(tmp_path / "in" / "loop", inside)


@pytest.mark.fault(33)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(SourceError, match="not a file"):
            RawFile.find(tmp_path / name)
    with pytest.raises(SourceError, match=r"gone\\n: cannot be read \(No such file"):
        whole_source(tmp_path / "gone\n")


def test_a_change_is_noticed(path: Path) -> None:
    file = RawFile.find(path)
    changed = path.stat().st_mtime_ns + 1
    os.utime(path, ns=(changed, changed))
    with pytest.raises(SourceError, match="changed"):
        file.read(0, 1)
    file = RawFile.find(path)
    os.truncate(path, 5)
    with pytest.raises(SourceError, match="changed"):
        file.read(0, 1)
    path.unlink()
    with pytest.raises(SourceError, match="No such file"):
        file.read(0, 1)


def test_nothing_stays_open(path: Path) -> None:
    file = RawFile.find(path)
    before = sorted(Path("/proc/self/fd").iterdir())
    file.read()
    with file.stream() as stream:
        stream.read(1)
    with pytest.raises(SourceError):
        RawFile.find(path.parent)
    assert sorted(Path("/proc/self/fd").iterdir()) == before
