"""Lines of a file and where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmds.converters.lines import Spans, each_line
from mmds.converters.rawfile import RawFile


def found(folder: Path, content: bytes, limit: int = 100) -> list[tuple[int, int, bytes]]:
    (folder / "a").write_bytes(content)
    return list(each_line(RawFile.find(folder / "a"), limit))


@pytest.mark.parametrize("content", [b"", b"\n", b"a", b"a\n", b"a\nb", b"a\r\n\n\nb\rc\n", b"\xef\xbb", b"\x00\n\xff"])
def test_lines_are_those_of_python(tmp_path: Path, content: bytes) -> None:
    lines = found(tmp_path, content)
    assert [line for _, _, line in lines] == content.splitlines(keepends=True) or b"\r" in content
    assert b"".join(content[start:end] for start, end, _ in lines) == content
    assert all(content[start:end] == line for start, end, line in lines)


def test_a_byte_order_mark_belongs_to_no_line(tmp_path: Path) -> None:
    assert found(tmp_path, b"\xef\xbb\xbfa\n\xef\xbb\xbfb") == [(3, 5, b"a\n"), (5, 9, b"\xef\xbb\xbfb")]
    assert found(tmp_path, b"\xef\xbb\xbf") == []


@pytest.mark.parametrize("size", [99, 100, 101, 2**20 + 101, 2**21 + 300])
def test_a_line_beyond_the_limit_is_passed_over(tmp_path: Path, size: int) -> None:
    assert found(tmp_path, b"a\n" + b"x" * size + b"\nb\n") == [
        (0, 2, b"a\n"),
        (2, size + 3, (b"x" * size + b"\n")[:101]),
        (size + 3, size + 5, b"b\n"),
    ]
    assert found(tmp_path, b"x" * size) == [(0, size, b"x" * min(size, 101))]


def test_spans() -> None:
    spans = Spans()
    spans.add(2, 10, 15)
    spans.add(2**40, 2**50, 2**50)
    assert list(spans.items("a: ")) == [("a: line 2", 10, 5), (f"a: line {2**40}", 2**50, 0)]
    assert len(spans) == 2
