"""The lines of a file: where each of them is, found once, so that any of them can be read alone."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from mmds.converters.rawfile import RawFile

MAX_LINE_BYTES = 2**26  # a line is held in memory whole; one beyond this is no sample
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Spans:
    """Parts of a file, each with the number of the line where it begins, at 24 bytes of memory for each."""

    lines: array[int] = field(default_factory=lambda: array("Q"))
    starts: array[int] = field(default_factory=lambda: array("Q"))
    ends: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, line: int, start: int, end: int) -> None:
        """Note the part [start, end) of the file, which begins in line number `line`."""
        self.lines.append(line)
        self.starts.append(start)
        self.ends.append(end)

    def __len__(self) -> int:
        return len(self.lines)

    def items(self, prefix: str = "") -> Iterator[tuple[str, int, int]]:
        """Yield (name, start, size) of each."""
        for line, start, end in zip(self.lines, self.starts, self.ends, strict=True):
            yield f"{prefix}line {line}", start, end - start


def each_line(file: RawFile, max_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, int, bytes]]:
    """Yield (start, end, content) of every line, with its line feed; only the beginning of one beyond `max_bytes`.

    A byte order mark belongs to no line.
    """
    with file.stream() as stream:
        start = len(BYTE_ORDER_MARK) if stream.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK else 0
        stream.seek(start)
        while line := stream.readline(max_bytes + 1):
            end = start + len(line)
            rest = line
            while not rest.endswith(b"\n") and (rest := stream.readline(2**20)):
                end += len(rest)
            yield start, end, line
            start = end
