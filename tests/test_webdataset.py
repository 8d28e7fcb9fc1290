"""WebDataset shards: what the library itself would give, and a clear answer to everything that is not a sample."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

import mmds
from mmds.converters import Source, sources
from mmds.converters.webdataset import CAME_BACK, FOLDER, HIDDEN, META, NO_EXTENSION, NO_SHARD, UNMATCHED, split_name
from mmds.errors import SourceError
from tests.samples import jpeg
from tests.source_contract import SourceContract
from tests.test_tararchive import END, file, header, members, pax

FIELDS = {
    "__key__": mmds.Text(key=True),
    "jpg": mmds.Image(),
    "cls": mmds.Scalar("int64"),
    "json": mmds.Json(),
    "points.npy": mmds.Array("float32", (None, 2)),
    "pth": mmds.Bytes(),
    "txt": mmds.Text(nullable=True),
}


def made(number: int) -> dict[str, Any]:
    """Return sample `number` as `mmds.open` shall give it."""
    return {
        "__key__": f"train/a.b/{number:05}",
        "jpg": jpeg(number),
        "cls": number % 7,
        "json": {"number": number, "é": [0.5, None]},
        "points.npy": np.arange(number % 5 * 2, dtype="f4").reshape(-1, 2),
        "pth": bytes([number]) * number,
        "txt": f"Über {number}" if number % 3 else None,
    }


def write(path: Path, numbers: Iterable[int]) -> Path:
    """Write samples as `webdataset` does."""
    with path.open("wb") as stream, webdataset.TarWriter(stream, mtime=0.0) as writer:
        for number in numbers:
            sample = made(number)
            # In the order of the fields: the writer would sort them.
            writer.write({key: value for key, value in sample.items() if value is not None})
    return path


def only(path: Path, **options: Any) -> Source:
    (source,) = sources(path, "webdataset", **options)
    return source


def loaded(path: Path, **options: Any) -> list[Any]:
    source = only(path, **options)
    return [source.load(item) for item in source.items()]


def put(folder: Path, *blocks: bytes, name: str = "x.tar") -> Path:
    (folder / name).write_bytes(b"".join(blocks) + END)
    return folder / name


def as_read() -> list[Any]:
    """Return samples with their fields in the order in which the writer wrote them: sorted."""
    order = ["__key__", "cls", "jpg", "json", "points.npy", "pth", "txt"]
    return [{key: made(number)[key] for key in order} for number in range(45)]


class TestOneShard(SourceContract):
    format = "webdataset"

    def make(self, folder: Path) -> Path:
        return write(folder / "x.tar", range(45))

    def samples(self) -> list[Any]:
        return as_read()

    def spoil(self, path: Path) -> str | None:
        spoil(path, "train/a.b/00011.jpg")
        return "train/a.b/00011"


class TestFolderOfShards(SourceContract):
    format = "webdataset"

    def make(self, folder: Path) -> Path:
        for name, numbers in (("s-1.tar", range(20, 45)), ("s-0.tar", range(20)), ("s-2.tar", range(0))):
            write(folder / name, numbers)
        return folder

    def samples(self) -> list[Any]:
        return as_read()

    def spoil(self, path: Path) -> str | None:
        spoil(path / "s-1.tar", "train/a.b/00033.cls")
        return "s-1.tar/train/a.b/00033"


class TestCompressedShard(SourceContract):
    format = "webdataset"

    def make(self, folder: Path) -> Path:
        path = write(folder / "x.tar", range(45))
        (folder / "x.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        return folder / "x.tar.gz"

    def samples(self) -> list[Any]:
        return as_read()

    def spoil(self, path: Path) -> str | None:
        path.write_bytes(gzip.decompress(path.read_bytes()))
        spoil(path, "train/a.b/00011.json")
        path.write_bytes(gzip.compress(path.read_bytes()))
        return "train/a.b/00011"


def spoil(path: Path, name: str) -> None:
    """Overwrite the beginning of a member's data."""
    (place,) = (member.offset for member in members(path) if member.name == name)
    with path.open("r+b") as shard:
        shard.seek(place)
        shard.write(b"\x00")


def test_fields(tmp_path: Path) -> None:
    assert only(write(tmp_path / "x.tar", range(4))).fields == FIELDS
    assert only(write(tmp_path / "x.tar", range(1, 3))).fields["txt"] == mmds.Text()
    assert only(write(tmp_path / "x.tar", range(1, 2))).fields["points.npy"] == mmds.Array("float32", (1, 2))
    source = only(tmp_path / "x.tar", kinds={"cls": "text", "pth": "image", "npy": "bytes"}, check="off")
    kinds = source.fields
    assert (kinds["cls"], kinds["pth"], kinds["points.npy"]) == (mmds.Text(), mmds.Image(), mmds.Bytes())
    assert next(map(source.load, source.items()))["cls"] == "1"
    assert source.metadata == {"source": "webdataset", "kinds": {"cls": "text", "pth": "image", "npy": "bytes"}}
    assert not source.cpu_bound and only(tmp_path / "x.tar", check="decode").cpu_bound


NAMES = [
    "a.jpg", "a.cls", "b.Seg.PNG", "b.seg.jpg", "dir.x/c.tar.gz", "dir.x/c.JPG", "./d.txt", "../e.txt", "/f/g.txt", "noext",
    "h.jpg", "noext2", "h.cls", "deep/i.j.k.l", "__meta__", "__meta__/x.jpg", "__meta__.json", "__x.jpg", "ü.jpg", "k k.txt",
    "m.", "n\nx.jpg", "p.jpg\n", "..q", "r..s", "t/u/__v__", "__w__x.jpg",
]  # fmt: skip


def test_keys_and_extensions_are_webdatasets(tmp_path: Path) -> None:
    path = put(tmp_path, *(file(name, b"7") for name in NAMES))
    with path.open("rb") as stream:
        theirs = list(webdataset.tariterators.group_by_keys(
            webdataset.tariterators.tar_file_expander([{"url": "x", "stream": stream}])
        ))  # fmt: skip
    want = [{key: value for key, value in each.items() if key not in ("__url__", "")} for each in theirs]
    source = only(path, kinds={name.rpartition(".")[2].lower(): "bytes" for name in NAMES} | {"txt": "bytes"})
    ours = [{key: value for key, value in source.load(item).items() if value is not None} for item in source.items()]
    assert ours == [each for each in want if len(each) > 1] and len(ours) > 12
    assert {reason: found.count for reason, found in source.ignored.items()} == {NO_EXTENSION: 4, META: 2, HIDDEN: 1}
    assert not source.problems


def test_hidden_files_are_no_samples(tmp_path: Path) -> None:
    # webdataset would make a sample "d/" of these, which macOS adds to archives.
    source = only(put(tmp_path, file("d/._a.jpg"), file("d/a.jpg", jpeg(1)), file("d/.DS_Store")))
    assert [item[2] for item in source.items()] == ["d/a"] and source.ignored[HIDDEN].examples == [
        "x.tar/d/._a.jpg",
        "x.tar/d/.DS_Store",
    ]


@pytest.mark.fault(30)
def test_a_key_that_comes_back_is_a_failure(tmp_path: Path) -> None:
    path = put(
        tmp_path, *(file(name, b"1") for name in ("a.cls", "b.cls", "a.txt", "c.cls", "c.CLS", "c.txt", "d.cls"))
    )
    source = only(path)
    items = list(source.items())
    assert [item[0] for item in items] == ["x.tar/a", "x.tar/b", "x.tar/a", "x.tar/c", "x.tar/d"] and len(source) == 5
    assert source.fields == {"__key__": mmds.Text(key=True), "cls": mmds.Scalar("int64")}  # of the good ones
    assert source.load(items[4]) == {"__key__": "d", "cls": 1}
    for item, reason in ((items[2], CAME_BACK), (items[3], "two members with the same extension, '.cls'")):
        with pytest.raises(SourceError) as raised:
            source.load(item)
        assert str(raised.value) == reason


def test_a_key_may_be_in_several_shards(tmp_path: Path) -> None:
    put(tmp_path, file("0.cls", b"1"), name="a.tar")
    put(tmp_path, file("0.cls", b"2"), name="b.tar")
    assert [each["cls"] for each in loaded(tmp_path)] == [1, 2]


def test_samples_end_with_their_shard(tmp_path: Path) -> None:
    put(tmp_path, file("0.cls", b"1"), name="a.tar")
    put(tmp_path, file("0.txt", b"2"), name="b.tar")
    assert loaded(tmp_path) == [{"__key__": "0", "cls": 1, "txt": None}, {"__key__": "0", "cls": None, "txt": "2"}]


@pytest.mark.fault(30)
def test_hostile_members(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = put(
        tmp_path / "in",
        file("../../evil.txt", b"up"),
        file("/etc/evil.txt", b"root"),
        header("link.jpg", 0, tarfile.SYMTYPE, linkname="/etc/passwd"),
        header("hard.jpg", 0, tarfile.LNKTYPE, linkname="../../evil.txt"),
        header("tty.jpg", 0, tarfile.CHRTYPE),
        pax({"GNU.sparse.major": "1"}) + file("sparse.txt"),
        pax({"path": "\udcff.txt"}) + file("x"),
        pax({"path": "n" * 5000 + ".txt"}) + file("x"),
        file("k.__key__", b"other"),
        file("e\x1b[2J.txt", b"esc"),
    )
    before = set(tmp_path.rglob("*"))
    source = only(path)
    assert [source.load(item) for item in source.items()] == [
        {"__key__": "../../evil", "txt": "up"},
        {"__key__": "/etc/evil", "txt": "root"},
        {"__key__": "e\x1b[2J", "txt": "esc"},
    ]
    reasons = [
        "a sparse file",
        "a name that is not UTF-8",
        "a name of 5004 characters",
        "an extension that WebDataset reserves",
    ]
    assert [any(reason.startswith(each) for each in reasons) for _, reason in source.problems] == [True] * 4
    assert {reason: found.examples for reason, found in source.ignored.items()} == {
        "a link, which is never followed": ["x.tar/link.jpg", "x.tar/hard.jpg"],
        "a device, FIFO or other member that is no file": ["x.tar/tty.jpg"],
    }
    with pytest.raises(SourceError, match="a sparse file"):
        mmds.convert(path, tmp_path / "out.mmds", source_format="webdataset")
    result = mmds.convert(path, tmp_path / "out.mmds", source_format="webdataset", on_error="skip")
    assert result.samples == 3 and all("\x1b" not in name + reason for name, reason in result.errors)
    assert set(tmp_path.rglob("*")) == before | {tmp_path / "out.mmds"}


@pytest.mark.fault(30)
def test_a_shard_that_is_cut_off_keeps_its_whole_samples(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tar", range(10)).read_bytes()
    end = next(each.offset for each in members(tmp_path / "a.tar") if each.name == "train/a.b/00006.jpg")
    (tmp_path / "a.tar").write_bytes(whole[: end + 5])
    write(tmp_path / "b.tar", range(20, 22))
    source = only(tmp_path)
    numbers = [int(source.load(item)["__key__"][-5:]) for item in source.items()]
    assert numbers == [0, 1, 2, 3, 4, 5, 20, 21] and len(source) == 8  # 6 may lack members
    ((name, reason),) = source.problems
    assert name == "a.tar" and "it was cut off" in reason and "from the last sample before that on" in reason


def test_what_lies_beside_the_shards(tmp_path: Path) -> None:
    write(tmp_path / "train-0.tar", range(2))
    write(tmp_path / "val-0.tar", range(2, 3))
    (tmp_path / "README.md").touch()
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "train-1.tar")
    (tmp_path / "train-2.tar").symlink_to("/etc/passwd")
    (tmp_path / "train-3.tar").symlink_to("val-0.tar")
    (tmp_path / "train-4.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd...")
    source = only(tmp_path, pattern="train-*")
    assert [item[0] for item in source.items()] == [
        f"train-{n}.tar/train/a.b/{k:05}" for n, k in ((0, 0), (0, 1), (3, 2))
    ]
    assert {reason: found.examples for reason, found in source.ignored.items()} == {
        NO_SHARD: ["README.md"],
        FOLDER: ["sub"],
        UNMATCHED: ["val-0.tar"],
    }
    assert [(name, reason.partition(";")[0].partition(". ")[0]) for name, reason in source.problems] == [
        ("train-1.tar", "not a file but a FIFO"),
        ("train-2.tar", "a symbolic link out of the tree"),
        ("train-4.tar.zst", "compressed with zstd"),
    ]


@pytest.mark.fault(32)
def test_a_large_member_of_a_compressed_shard_is_named(tmp_path: Path) -> None:
    size = 2**26 + 1
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1) as shard:
        shard.write(header("a.bin", size) + bytes(size + -size % 512) + file("b.bin") + END)
    (tmp_path / "x.tar.gz").write_bytes(stream.getvalue())
    source = only(tmp_path / "x.tar.gz")
    first, second = source.items()
    with pytest.raises(SourceError, match=f"{size} bytes in a compressed shard, the limit is {2**26}: unpack it"):
        source.load(first)
    assert source.load(second) == {"__key__": "b", "bin": b"data"}


def test_a_shard_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = put(tmp_path, file("a.bin", b"1" * 2000), file("b.bin"))
    source = only(path)
    items = list(source.items())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SourceError, match="became shorter"):
        source.load(items[0])
    put(tmp_path, file("a.json", b"1"))
    with pytest.raises(SourceError, match="has changed since"):
        source.load(next(source.items()))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"check": "no"}, "expected 'quick', 'decode' or 'off'"),
        ({"pattern": 7}, "expected text such as"),
        ({"kinds": "cls"}, "expected a dict"),
        ({"kinds": {"cls": "label"}}, "expected an extension in small letters and one of image"),
        ({"kinds": {"CLS": "int"}}, "expected an extension in small letters"),
    ],
)
def test_options_are_checked(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        only(write(tmp_path / "x.tar", range(1)), **options)


def test_no_samples(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no samples found"):
        mmds.convert(put(tmp_path), tmp_path / "out.mmds", source_format="webdataset")


def test_split_name() -> None:
    assert split_name("a/b.c/d.E.f") == (("a/b.c/d", "e.f"), "")
    assert [split_name(name)[0] for name in ("a/", "x", ".x.y", "a/.x.y", "a/.x", "__a__/x.y")] == [None] * 6
