"""CSV and TSV: a row per sample, a column per field, whose names the first row gives.

The type of a column is that of all its cells: int64 (or uint64), float64, bool (``true`` and ``false`` in any case), and text
for everything else. Nothing is lost: ``007`` stays text, and so does a column of numbers that float64 cannot hold. An empty
cell is "" in a column of text and null in any other, which is then nullable. Blank lines count as ignored.

Python's own `csv` parses: its quoting is what spreadsheets write, it needs no other package, and as it asks for one line after
the other, the place of every row in the file is known even where cells hold line feeds. Any row can then be read alone.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmds.converters import Ignored, Source
from mmds.converters.cells import Column, chosen_kinds, kind_named, refuse_unknown
from mmds.converters.lines import Spans, each_line
from mmds.converters.rawfile import RawFile, whole_source
from mmds.converters.records import Records
from mmds.errors import SourceError, printable
from mmds.schema import MAX_FIELDS

MAX_ROW_BYTES = 2**24  # as many commas become a list of 128 MiB
TOO_LONG = f"a row of more than {MAX_ROW_BYTES} bytes (or a quote that does not end)"
BLANK = "blank line"
INTEGER = re.compile(r" *[+-]?(?:0|[1-9][0-9]{0,19}) *")  # no more digits than 2**64 has
FLOAT = re.compile(
    r" *[+-]?(?:(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?|inf|infinity|nan) *", re.IGNORECASE
)
BOOLS = {"true": True, "false": False}
NOT_UTF8 = "text that is not UTF-8"
GZIP = b"\x1f\x8b"


def sources(
    path: Path,
    *,
    types: dict[str, str] | None = None,
    names: list[str] | None = None,
    delimiter: str | None = None,
    quote: str = '"',
    null: str | list[str] | None = None,
) -> list[Source]:
    """Return the source at `path`.

    `types` gives the dtype or "text" of columns whose type shall not be inferred; `names` the columns of a file whose first
    row does not. `delimiter` is a tab in a ``.tsv`` file and a comma in others; `quote=""` is for files where quotes mean
    nothing. A cell that is `null` (such as "NA", or one of a list) is null in any column.
    """
    chosen = chosen_kinds(types, ("text",))
    dialect = _dialect(path, delimiter, quote)
    nulls = _texts("null", [null] if isinstance(null, str) else null or [])
    file = whole_source(path)
    if file.read(0, min(2, file.size)) == GZIP:
        raise SourceError(f"{printable(path)}: compressed by gzip, which cannot be read from the middle; decompress it")
    rows = each_row(file, dialect)
    header = _header(
        path, _texts("names", names) if names is not None else next((row[3] for row in rows if row[3]), [])
    )
    refuse_unknown(chosen, header)
    columns = {name: CellColumn() for name in header}
    spans, ignored, usable = Spans(), Ignored(), 0
    for number, start, end, row in rows:
        if row == []:
            ignored.add(f"line {number}")
            continue
        spans.add(number, start, end)
        if isinstance(row, str) or len(row) != len(header):  # again in `load`, which is asked for every row
            continue
        usable += 1
        for cell, column in zip(row, columns.values(), strict=True):
            if cell not in nulls:
                column.add_cell(cell)
    kinds = {name: chosen.get(name) or column.dtype() or "text" for name, column in columns.items()}
    fields = {name: kind_named(kind, nullable=columns[name].rows(kind) < usable) for name, kind in kinds.items()}
    load = LoadRow(file, dialect, kinds, frozenset(nulls))
    left_out = {BLANK: ignored} if ignored.count else {}
    return [Records(load, fields, {"source": "csv"}, len(spans), spans.items, ignored=left_out)]


@dataclass
class CellColumn(Column):
    """What was seen of one column of cells; `empty` ones may still turn out to be text."""

    empty: int = 0

    def add_cell(self, cell: str) -> None:
        """Take note of a cell that is not null whatever its column is."""
        if str in self.types:  # it stays text, whatever else is in it
            self.values += 1
        elif cell:
            self.add(value_of(cell))
        else:
            self.empty += 1

    def rows(self, kind: str) -> int:
        """Return how many rows have a value if the column is of `kind`."""
        return self.values + self.empty if kind == "text" else self.values


def value_of(cell: str) -> bool | int | float | str:
    """Return what a cell looks like: a number, true or false, or else text.

    >>> [value_of(cell) for cell in ("7", "007", " -1.5e3", "True", "1e999", "NaN")]
    [7, '007', -1500.0, True, '1e999', nan]
    """
    if INTEGER.fullmatch(cell):
        return int(cell)
    if FLOAT.fullmatch(cell):
        number = float(cell)
        if not math.isinf(number) or "f" in cell.lower():  # else a number beyond float64, which would be lost
            return number
    return BOOLS.get(cell.strip(" ").lower(), cell)


def _dialect(path: Path, delimiter: str | None, quote: str) -> tuple[str, str]:
    """Return the delimiter and the quote, checked."""
    delimiter = ("\t" if path.suffix.lower() == ".tsv" else ",") if delimiter is None else delimiter
    delimiter = "\t" if delimiter in ("\\t", "tab") else delimiter
    for name, value in (("delimiter", delimiter), ("quote", quote)):
        if not isinstance(value, str) or len(value) > 1 or value in ("\r", "\n", "\0", " "[: name == "quote"]):
            raise ValueError(f"{name}={value!r}: expected a single character")
    if delimiter in ("", quote):
        raise ValueError(f"delimiter={delimiter!r}, quote={quote!r}: expected two different characters")
    return delimiter, quote


def _texts(option: str, given: Any) -> list[str]:
    if not isinstance(given, (list, tuple)) or not all(isinstance(each, str) for each in given):
        raise ValueError(f"{option}={given!r}: expected a list of texts")
    return list(given)


def _header(path: Path, names: list[str] | str) -> list[str]:
    """Return the names of the columns; one that has none is called after its number, as in ``column0``."""
    if isinstance(names, str):
        raise SourceError(f"{printable(path)}: the first row, which should name the columns, is {names}")
    if len(names) > MAX_FIELDS:
        raise SourceError(f"{printable(path)}: {len(names)} columns; the limit is {MAX_FIELDS}")
    named = [name.strip() or f"column{number}" for number, name in enumerate(names)]
    for name, count in Counter(named).items():
        if count > 1:
            raise SourceError(
                f"{printable(path)}: {count} columns are called '{printable(name)}'; names=[...] gives others"
            )
    return named


class LineFeed:
    """The lines of a file as `csv` asks for them, and where in the file that has led."""

    def __init__(self, file: RawFile) -> None:
        self._lines = each_line(file, MAX_ROW_BYTES)
        self.number = 0  # of the last line
        self.end = 0  # of the last line
        self.start: int | None = None  # of the first line of a row
        self.broken = False  # not UTF-8, somewhere in the row

    def begin(self) -> int:
        """Begin a row; return the number of its line."""
        self.start, self.broken = None, False
        return self.number + 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        start, self.end, line = next(self._lines)
        self.number += 1
        self.start = start if self.start is None else self.start
        if self.end - self.start > MAX_ROW_BYTES:
            raise SourceError(TOO_LONG)
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.broken = True
            return line.decode(errors="replace")  # the row ends where it ends all the same


def each_row(file: RawFile, dialect: tuple[str, str]) -> Iterator[tuple[int, int, int, list[str] | str]]:
    """Yield (number of its first line, start, end, cells) of every row; a text in place of cells says what is wrong."""
    feed = LineFeed(file)
    reader = _parser(feed, dialect)
    while True:
        number = feed.begin()
        row: list[str] | str
        try:
            row = next(reader)
        except StopIteration:
            return
        except (csv.Error, SourceError) as error:  # the parser goes on with the next line
            row = str(error)
        assert feed.start is not None
        yield number, feed.start, feed.end, NOT_UTF8 if feed.broken else row


def _parser(lines: Iterable[str], dialect: tuple[str, str]) -> Iterator[list[str]]:
    delimiter, quote = dialect
    if csv.field_size_limit() < MAX_ROW_BYTES:  # of the whole process: 128 KiB, which texts exceed
        csv.field_size_limit(MAX_ROW_BYTES)
    if not quote:
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    return csv.reader(lines, delimiter=delimiter, quotechar=quote, strict=True)


@dataclass(frozen=True)
class LoadRow:
    """The function from (name, start, size) to sample."""

    file: RawFile
    dialect: tuple[str, str]
    kinds: Mapping[str, str]
    nulls: frozenset[str]

    def __call__(self, item: tuple[str, int, int]) -> dict[str, Any]:
        """Return the row of an item as a dict; `SourceError` with the reason why it is none."""
        _, start, size = item
        if size > MAX_ROW_BYTES:
            raise SourceError(TOO_LONG)
        try:
            text = self.file.read(start, size).decode()
            row = next(_parser(io.StringIO(text, newline="\n"), self.dialect))
        except UnicodeDecodeError:
            raise SourceError(NOT_UTF8) from None
        except csv.Error as error:
            raise SourceError(str(error)) from None
        if len(row) != len(self.kinds):
            raise SourceError(f"{len(row)} cells; there are {len(self.kinds)} columns")
        return {name: self._value(name, kind, cell) for (name, kind), cell in zip(self.kinds.items(), row, strict=True)}

    def _value(self, name: str, kind: str, cell: str) -> Any:
        if cell in self.nulls or (not cell and kind != "text"):
            return None
        if kind == "text":
            return cell
        value = value_of(cell)
        wanted = bool if kind == "bool" else int if "int" in kind else (int, float)
        if not isinstance(value, wanted) or (kind != "bool" and isinstance(value, bool)):
            raise SourceError(f"'{printable(name)}' is '{printable(cell, 60)}', which is no {kind}")
        return value
