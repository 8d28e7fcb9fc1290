"""Texts: files, lines and paragraphs, of a file and of a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import mmds
from mmds.converters import Source, sources
from mmds.errors import SourceError
from tests.source_contract import SourceContract

LINES = [f"line {number} ü" * (number % 5) for number in range(60)]


def only(path: Path, **options: Any) -> Source:
    (source,) = sources(path, "text", **options)
    return source


def texts(path: Path, **options: Any) -> list[Any]:
    source = only(path, **options)
    return [source.load(item)["text"] for item in source.items()]


def fill(folder: Path) -> Path:
    root = folder / "texts"
    for number, text in enumerate(LINES):
        path = root / str(number % 3) / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\nmore\n\n")
    return root


def filled() -> list[tuple[str, str]]:
    return sorted((f"{number % 3}/{number}.txt", text) for number, text in enumerate(LINES))


class TestFile(SourceContract):
    format = "text"

    def make(self, folder: Path) -> Path:
        path = folder / "a.txt"
        path.write_text("\n".join(LINES))
        return path

    def samples(self) -> list[Any]:
        return [{"text": line} for line in LINES]

    def spoil(self, path: Path) -> str | None:
        path.write_bytes(path.read_bytes().replace(b"line 7", b"line \xff7"))
        return "line 8"


class TestFolder(SourceContract):
    format = "text"

    def make(self, folder: Path) -> Path:
        return fill(folder)

    def samples(self) -> list[Any]:
        return [{"text": f"{text}\nmore\n\n", "path": path} for path, text in filled()]

    def spoil(self, path: Path) -> str | None:
        (path / "1" / "7.txt").write_bytes(b"\xff")
        return "1/7.txt"


class TestFolderByLine(TestFolder):
    options: dict[str, Any] = {"per": "line"}  # noqa: RUF012 (the contract has it so)

    def samples(self) -> list[Any]:
        return [{"text": line, "path": path} for path, text in filled() for line in (text, "more", "")]

    def spoil(self, path: Path) -> str | None:
        (path / "1" / "7.txt").write_bytes(b"a\n\xff\nb")
        return "1/7.txt: line 2"


@pytest.mark.parametrize(
    ("content", "lines", "paragraphs"),
    [
        (b"", [], []),
        (b"\n", [""], []),
        (b"a", ["a"], ["a"]),
        (b"a\n", ["a"], ["a"]),
        (b"a\n\nb\n", ["a", "", "b"], ["a", "b"]),
        (b"a\r\nb\r\n\r\n \t\r\nc\r\n", ["a", "b", "", " \t", "c"], ["a\r\nb", "c"]),
        (b"\xef\xbb\xbfa\nb\n", ["a", "b"], ["a\nb"]),
        (b"\n\n a\n\tb \n\n\n", ["", "", " a", "\tb ", "", ""], [" a\n\tb "]),
        ("a\u2028b\x0bc\x85".encode(), ["a\u2028b\x0bc\x85"], ["a\u2028b\x0bc\x85"]),
    ],
)
def test_lines_and_paragraphs(tmp_path: Path, content: bytes, lines: list[str], paragraphs: list[str]) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert texts(path, per="line") == lines
    assert texts(path, per="paragraph") == paragraphs
    assert texts(path, per="file") == [content.decode("utf-8-sig")]


def test_paragraphs_are_named_by_their_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a\nb\n\n\nc\n")
    assert [item[0] for item in only(path, per="paragraph").items()] == ["line 1", "line 5"]


@pytest.mark.fault(33)
def test_what_is_no_text_is_counted_or_a_problem(tmp_path: Path) -> None:
    root = fill(tmp_path)
    (root / "notes.md").write_text("x")
    (root / "alias").symlink_to("1")
    (root / "link.txt").symlink_to("1/7.txt")
    outside = tmp_path / "outside.txt"
    outside.write_text("x")
    (root / "out.txt").symlink_to(outside)
    (root / "gone.txt").symlink_to("nothing")
    os.mkfifo(root / "fifo.txt")
    (root / os.fsdecode(b"\xff.txt")).write_text("x")
    source = only(root)
    assert source.ignored["file whose name does not end in .txt"].examples == ["notes.md"]
    assert source.problems == [("alias", "a symbolic link to a folder")]
    result = mmds.convert(root, tmp_path / "out.mmds", source_format="text", on_error="skip")
    assert dict(result.errors) == {
        "alias": "a symbolic link to a folder",
        "fifo.txt": "not a file but a folder, a FIFO or a device",
        "gone.txt": "cannot be read (No such file or directory)",
        "out.txt": "a symbolic link out of the tree",
        "\\udcff.txt": "a file name that is not UTF-8",
    }
    assert result.samples == 61
    by_line = only(root, per="line")
    assert [name for name, _ in by_line.problems] == ["alias", "fifo.txt", "gone.txt", "out.txt"]


def test_a_folder_of_other_things_is_not_recognised_as_text(tmp_path: Path) -> None:
    from mmds.converters.textfiles import recognise

    root = fill(tmp_path)
    assert recognise(root)
    (root / "1" / "a.jpg").write_bytes(b"")
    assert not recognise(root)
    (tmp_path / "empty").mkdir()
    assert not recognise(tmp_path / "empty")


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a\nb\n")
    source = only(path)
    path.write_text("a\n")
    with pytest.raises(SourceError, match="changed"):
        source.load(next(iter(source.items())))


def test_sizes_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.truncate(2**30 + 1)  # a hole
    with pytest.raises(SourceError, match="1073741825 bytes; the limit is 1073741824"):
        texts(path, per="file")


@pytest.mark.parametrize("per", ["word", 1])
def test_options_are_checked(tmp_path: Path, per: Any) -> None:
    with pytest.raises(ValueError, match="per="):
        only(tmp_path, per=per)
