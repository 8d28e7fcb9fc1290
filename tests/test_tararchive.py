"""Tar archives that nobody vouches for: what `tarfile` reads is read, and whatever is wrong is said, with the byte."""

from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mmds.converters.tararchive import LINK, SPARSE, SPECIAL, Member, open_archive
from mmds.errors import SourceError

LONG = "/".join(["folder" * 4] * 9) + "/name.jpg"  # 233 characters


def header(name: str, size: int, type: bytes = tarfile.REGTYPE, **more: Any) -> bytes:
    """Return one header block, with any size and type."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, type
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def resealed(block: bytes) -> bytes:
    """Return a header block with a checksum that fits."""
    total = sum(block[:148]) + 8 * ord(" ") + sum(block[156:512])
    return block[:148] + b"%06o\0 " % total + block[156:]


def file(name: str, data: bytes = b"data") -> bytes:
    return header(name, len(data)) + data + bytes(-len(data) % 512)


def pax(records: dict[str, str], type: bytes = tarfile.XHDTYPE) -> bytes:
    """Return a pax header with any records."""
    lines = b""
    for key, value in records.items():
        rest = f" {key}={value}\n".encode("utf-8", "surrogateescape")
        length = len(rest)
        while len(str(length)) + len(rest) != length:
            length = len(str(length)) + len(rest)
        lines += str(length).encode() + rest
    return header("pax", len(lines), type) + lines + bytes(-len(lines) % 512)


END = bytes(1024)


def members(path: Path) -> list[Member]:
    with open_archive(str(path), str(path.parent)) as archive:
        return list(archive)


def contents(path: Path) -> list[tuple[str, bytes]]:
    with open_archive(str(path), str(path.parent)) as archive:
        return [(member.name, archive.read(member)) for member in archive]


def put(folder: Path, data: bytes, name: str = "x.tar") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("compressed", [False, True])
def test_reads_what_tarfile_writes(tmp_path: Path, format: int, compressed: bool) -> None:
    names = ["a.jpg", "é/ü.txt", "b.bin", LONG, "z.cls"]
    want = [(name, random.Random(number).randbytes(number * 700)) for number, name in enumerate(names)]
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w:gz" if compressed else "w", format=format) as tar:
        for name, data in want:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 12345.5 if format == tarfile.PAX_FORMAT else 12345
            tar.addfile(info, io.BytesIO(data))
    assert contents(path) == want
    if not compressed:
        with tarfile.open(path) as tar:
            assert [(each.name, each.offset, each.size) for each in members(path)] == [
                (each.name, each.offset_data, each.size) for each in tar
            ]


@pytest.mark.fault(30)
def test_what_is_no_plain_file_says_so_and_is_skipped(tmp_path: Path) -> None:
    blocks = [
        header("dir", 0, tarfile.DIRTYPE),
        header("link.jpg", 0, tarfile.SYMTYPE, linkname="/etc/passwd"),
        header("hard.jpg", 0, tarfile.LNKTYPE, linkname="a.jpg"),
        header("device", 0, tarfile.CHRTYPE),
        header("fifo", 0, tarfile.FIFOTYPE),
        header("unknown", 600, b"Z") + bytes(1024),
        pax({"GNU.sparse.major": "1", "size": "4"}) + file("s.bin"),
        file("last.bin", b"end"),
    ]
    found = members(put(tmp_path, b"".join(blocks) + END))
    assert [(each.name, each.reason) for each in found if not each.is_folder] == [
        ("link.jpg", LINK),
        ("hard.jpg", LINK),
        ("device", SPECIAL),
        ("fifo", SPECIAL),
        ("unknown", SPECIAL),
        ("s.bin", SPARSE),
        ("last.bin", ""),
    ]
    assert [each.name for each in found if each.is_folder] == ["dir"]


def test_old_sparse_members_with_a_longer_map(tmp_path: Path) -> None:
    block = bytearray(header("s.bin", 5, tarfile.GNUTYPE_SPARSE))
    block[482] = 1
    more, last = bytearray(512), bytes(512)
    more[504] = 1
    data = resealed(bytes(block)) + bytes(more) + last + b"holes" + bytes(507) + file("a.jpg", b"whole") + END
    found = members(put(tmp_path, data))
    assert [(each.name, each.reason, each.offset) for each in found] == [("s.bin", SPARSE, 1536), ("a.jpg", "", 2560)]


def test_extended_headers_apply_to_what_follows(tmp_path: Path) -> None:
    common, own = pax({"path": "all.txt"}, tarfile.XGLTYPE), pax({"path": "one.txt", "size": "3"})
    data = common + own + header("x", 0) + b"abc" + bytes(509) + file("y") + END
    assert contents(put(tmp_path, data)) == [("one.txt", b"abc"), ("all.txt", b"data")]


REFUSED = {
    "empty": (b"", "no end mark at its end, byte 0"),
    "no end mark": (file("a.jpg"), "no end mark at its end, byte 1024"),
    "half a header": (file("a.jpg") + header("b.jpg", 4)[:100], "no tar header at byte 1024 (truncated header)"),
    "half of the data": (header("a.jpg", 9000) + bytes(700), "the file has 1212"),
    "a lie": (header("a.jpg", 2**62) + bytes(512) + END, f"a member of {2**62} bytes"),
    "a large lie": (header("a.jpg", 2**80) + bytes(512) + END, f"a member of {2**80} bytes"),
    "a negative size": (header("a.jpg", -512) + END, "a size of -512 bytes"),
    "a lie in pax": (pax({"size": str(10**17)}) + file("a.jpg") + END, f"a member of {10**17} bytes"),
    "no number in pax": (pax({"size": "-5"}) + file("a.jpg") + END, "a size that is no number"),
    "checksum": (file("a.jpg") + b"x" + file("b.jpg")[1:] + END, "no tar header at byte 1024 (bad checksum)"),
    "no tar": (b"\x89PNG" * 999, "no tar header at byte 0"),
    "two in one": (file("a.jpg") + END + file("b.jpg") + END, "data after the end mark at byte 1024"),
    "malformed pax": (header("p", 9, tarfile.XHDTYPE) + b"99 path=x" + bytes(503) + file("a") + END, "a malformed pax"),
    "pax of length 0": (
        header("p", 9, tarfile.XHDTYPE) + b"0 path=x\n" + bytes(503) + file("a") + END,
        "malformed pax",
    ),
    "cut in pax": (header("p", 900, tarfile.XHDTYPE) + b"9 path=", "ends within an extended header, at byte 519"),
    "a long long name": (header("L", 2**40, tarfile.GNUTYPE_LONGNAME) + END, "extended headers beyond all measure"),
    "a chain": ((header("L", 2, tarfile.GNUTYPE_LONGNAME) + b"ab" + bytes(510)) * 2000, "beyond all measure"),
    "a map without end": (
        resealed(header("s", 5, tarfile.GNUTYPE_SPARSE)[:482] + b"\1" + bytes(29))
        + (bytes(504) + b"\1" + bytes(7)) * 9,
        "ends within the map of a sparse file",
    ),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(99), "compressed with zstd"),
    "bzip2": (b"BZh9" + bytes(99), "compressed with bzip2"),
    "xz": (b"\xfd7zXZ\x00" + bytes(99), "compressed with xz"),
    "damaged gzip": (gzip.compress(file("a.jpg") + END)[:-20] + bytes(20), "damaged gzip data"),
    "cut gzip": (gzip.compress(file("a.jpg", random.Random(1).randbytes(5000)) + END)[:900], "damaged gzip data"),
    "a lie in gzip": (gzip.compress(header("a.jpg", 10**9) + bytes(900)), "ends at byte 1412, within a member"),
    "a large lie in gzip": (gzip.compress(header("a.jpg", 2**70) + bytes(900)), f"a member of {2**70} bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.fault(30)
def test_whatever_is_wrong_is_said(tmp_path: Path, case: str) -> None:
    data, reason = REFUSED[case]
    with pytest.raises(SourceError) as raised:
        contents(put(tmp_path, data))
    assert reason in str(raised.value)


@pytest.mark.fault(30)
def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    data = pax({"path": "é.jpg"}) + file("x") + file("b.txt", b"y" * 600) + END
    for length in range(0, len(data) - len(END), 7):
        with pytest.raises(SourceError):
            contents(put(tmp_path, data[:length]))


@pytest.mark.stress
@pytest.mark.fault(30)
def test_flipped_bytes_never_do_worse_than_an_error(tmp_path: Path) -> None:
    data = bytearray(pax({"path": "é.jpg", "size": "4"}) + file("x") + file(LONG[:99]) + END)
    numbers = random.Random(7)
    for _ in range(20_000):
        position, old = numbers.randrange(len(data)), data[:]
        data[position] = numbers.randrange(256)
        start = position // 512 * 512
        data[start : start + 512] = resealed(bytes(data[start : start + 512]))
        with suppress(SourceError):
            contents(put(tmp_path, bytes(data)))
        data = old


@pytest.mark.fault(32)
def test_a_bomb_costs_no_memory(tmp_path: Path) -> None:
    size = 50 * 2**20
    with gzip.open(tmp_path / "x.tar", "wb", compresslevel=1) as bomb:
        bomb.write(header("a.bin", size))
        for _ in range(50):
            bomb.write(bytes(2**20))
        bomb.write(END)
    tracemalloc.start()
    try:
        assert [each.size for each in members(tmp_path / "x.tar")] == [size]
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.fault(30)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(SourceError, match="not a file but a FIFO"):
        members(tmp_path / "x.tar")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "y.tar").symlink_to("/etc/passwd")
    with pytest.raises(SourceError, match="a symbolic link out of the tree"):
        members(tmp_path / "in" / "y.tar")
