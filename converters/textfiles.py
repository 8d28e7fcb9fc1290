"""Texts: a ``.txt`` file, or a folder of them, as one sample per file, line or paragraph.

A sample is ``{"text": ...}``, of a folder ``{"text": ..., "path": ...}`` with the path relative to it. Files come in the order
of their paths as strings. Every line is a sample, also an empty one; its line end is no part of it. Paragraphs are what
blank lines separate, as they stand in the file. A byte order mark is left out. What is not UTF-8 is named, not replaced.

Links within the folder are followed if they lead to files; links to folders, and out of the folder, are refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import mmds
from mmds.converters import Ignored, Source
from mmds.converters.lines import BYTE_ORDER_MARK, MAX_LINE_BYTES, Spans, each_line
from mmds.converters.rawfile import RawFile, whole_source
from mmds.converters.records import Records
from mmds.errors import SourceError

SUFFIX = ".txt"
NOT_TEXT = "file whose name does not end in .txt"
LOOKED_AT = 1000  # files of a folder, to tell whether it is one of texts
MAX_FILE_BYTES = 2**30
BLANKS = b" \t\r\n\v\f"

Item = tuple[
    str, str, RawFile | None, int, int
]  # name, path relative to the folder; if it is a part: file, start, size


def recognise(path: Path) -> bool:
    """Return whether `path` is a ``.txt`` file, or a folder in which no other files are found first."""
    if not path.is_dir():
        return path.suffix.lower() == SUFFIX and path.is_file()
    visible = (name for name in _walk(str(path), []) if not Path(name).name.startswith("."))
    first = list(islice(visible, LOOKED_AT))
    return bool(first) and all(map(_is_text, first))


def sources(path: Path, *, per: str | None = None) -> list[Source]:
    """Return the source at `path`.

    `per` is what a sample is: "file", "line" or "paragraph". By default it is a line of a file, and a file of a folder.
    """
    if per not in (None, "file", "line", "paragraph"):
        raise ValueError(f"per={per!r}: expected 'file', 'line' or 'paragraph'")
    is_folder = path.is_dir()
    per = per or ("file" if is_folder else "line")
    real = os.path.realpath(path)
    problems: list[tuple[str, str]] = []
    left_out = Ignored()
    if is_folder:
        names = sorted(_walk(real, problems))
        for name in names:
            if not _is_text(name):
                left_out.add(name)
        load = LoadText(real, with_path=True)
        texts = list(filter(_is_text, names))
    else:
        whole_source(path)
        load = LoadText(str(Path(real).parent), with_path=False)
        texts = [Path(real).name]
    parts = [(name, *_parts(load, name, per, problems)) for name in texts] if per != "file" else []
    count = len(texts) if per == "file" else sum(len(spans) for _, _, spans in parts)

    def begin() -> Iterator[Item]:
        if per == "file":
            yield from ((name, name, None, 0, 0) for name in texts)
        for path, file, spans in parts:
            for name, start, size in spans.items(f"{path}: " if is_folder else ""):
                yield name, path, file, start, size

    fields: dict[str, Any] = {"text": mmds.Text()}
    if is_folder:
        fields["path"] = mmds.Text(key=True)
    metadata = {"source": "text", "per": per}
    ignored = {NOT_TEXT: left_out} if left_out.count else {}
    return [Records(load, fields, metadata, count, begin, problems, ignored)]


def _is_text(name: str) -> bool:
    return name.lower().endswith(SUFFIX)


def _walk(root: str, problems: list[tuple[str, str]]) -> Iterator[str]:
    """Yield the paths of all files below `root`, relative to it; links to folders are problems, not followed."""

    def note(error: OSError) -> None:
        problems.append((os.path.relpath(error.filename, root), f"a folder that cannot be listed ({error.strerror})"))

    for folder, folders, files in os.walk(root, onerror=note):
        inner = os.path.relpath(folder, root)
        for name in folders:
            if (Path(folder) / name).is_symlink():
                problems.append((os.path.normpath(f"{inner}/{name}"), "a symbolic link to a folder"))
        yield from (os.path.normpath(f"{inner}/{name}") for name in files)


def _parts(load: LoadText, path: str, per: str, problems: list[tuple[str, str]]) -> tuple[RawFile | None, Spans]:
    """Return a file and where its lines or paragraphs are."""
    spans = Spans()
    try:
        file = load.file(path)
        found = ((number, start, end) for number, start, end, _ in _lines(file)) if per == "line" else _paragraphs(file)
        for number, start, end in found:
            spans.add(number, start, end)
    except SourceError as error:
        problems.append((path, str(error)))
        return None, Spans()
    return file, spans


def _lines(file: RawFile) -> Iterator[tuple[int, int, int, bool]]:
    """Yield (number, start, end, is blank) of every line without its line end."""
    for number, (start, end, line) in enumerate(each_line(file), 1):
        line_end = 2 if line.endswith(b"\r\n") else 1 if line.endswith(b"\n") else 0
        yield number, start, end - line_end, not line.strip(BLANKS)


def _paragraphs(file: RawFile) -> Iterator[tuple[int, int, int]]:
    """Yield (number of its first line, start, end) of every run of lines that are not blank."""
    for is_blank, lines in groupby(_lines(file), key=lambda line: line[3]):
        if not is_blank:
            number, start, end, _ = next(lines)
            for line in lines:
                end = line[2]
            yield number, start, end


@dataclass(frozen=True)
class LoadText:
    """The function from item to sample: the text, or a part of it, of a file in the folder `root`."""

    root: str
    with_path: bool

    def file(self, path: str) -> RawFile:
        """Return the file at `path`, or raise `SourceError`."""
        return RawFile.find(f"{self.root}/{path}", self.root)

    def __call__(self, item: Item) -> dict[str, str]:
        """Return the sample of an item, or raise `SourceError` with the reason why there is none."""
        _, path, part_of, start, size = item
        try:
            path.encode()
        except UnicodeEncodeError:
            raise SourceError("a file name that is not UTF-8") from None
        file = part_of or self.file(path)
        limit = MAX_LINE_BYTES if part_of else MAX_FILE_BYTES
        size = size if part_of else file.size
        if size > limit:
            raise SourceError(f"a text of {size} bytes; the limit is {limit}")
        data = file.read(start, size)
        if not part_of:
            data = data.removeprefix(BYTE_ORDER_MARK)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise SourceError(f"text that is not UTF-8 (byte {data[error.start]:#04x})") from None
        return {"text": text, "path": path} if self.with_path else {"text": text}
