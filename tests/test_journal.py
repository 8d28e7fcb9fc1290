"""The journal of a conversion: every line counts once it is whole, and nothing else is gone on with."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mmds.errors import FormatError, OptionError, StorageError
from mmds.journal import NAME, Entry, Journal
from mmds.manifest import Shard

SHARDS = [Shard(f"{k:05d}.mmds", 10 + k, 5000 + k, f"{k:032x}") for k in range(3)]
NAMES = [("a\x1b\n\u202e", "bad"), ("\udcff.jpg", "not UTF-8")]  # as they are: they are escaped where they are shown
ENTRIES = [Entry(SHARDS[0], 10, 0), Entry(SHARDS[1], 20, 3, NAMES), Entry(SHARDS[2], 30, 0)]
SAID: dict[str, Any] = {"shard": asdict(SHARDS[0]), "item": 1, "outputs": 0, "errors": []}
ODD: list[dict[str, Any]] = [
    {"item": -1},
    {"item": True},
    {"outputs": "1"},
    {"outputs": None},
    {"errors": [[1, 2]]},
    {"errors": [["a", None]]},
    {"shard": {**asdict(SHARDS[0]), "path": "../x.mmds"}},
    {"shard": {**asdict(SHARDS[0]), "n": -1}},
    {"shard": {**asdict(SHARDS[0]), "bytes": 2.0**60}},
    {"shard": []},
]
WHAT = {"source": "\udcff", "limit": None, "steps": {"map": "m:f"}}


@pytest.fixture
def written(tmp_path: Path) -> bytes:
    journal = Journal(tmp_path)
    journal.begin(WHAT)
    for entry in ENTRIES:
        journal.add(entry)
    journal.close()
    journal.close()
    return (tmp_path / NAME).read_bytes()


def test_a_line_for_what_is_done_and_one_per_shard(tmp_path: Path, written: bytes) -> None:
    assert written.isascii()
    lines = [json.loads(line) for line in written.splitlines()]
    assert lines[0] == WHAT and [line["shard"]["path"] for line in lines[1:]] == [shard.path for shard in SHARDS]
    again = Journal(tmp_path)
    assert again.conversion == WHAT and again.entries == ENTRIES
    again.begin(WHAT)
    again.close()
    assert (tmp_path / NAME).read_bytes() == written


@pytest.mark.fault(9)
def test_a_cut_last_line_does_not_count(tmp_path: Path, written: bytes) -> None:
    """Whatever was written of a line when the power went: the lines before it stand, and the next one follows them."""
    whole = [0, *(k + 1 for k, byte in enumerate(written) if byte == ord("\n"))]
    for length in range(len(written) + 1):
        (tmp_path / NAME).write_bytes(written[:length])
        journal = Journal(tmp_path)
        lines = sum(end <= length for end in whole[1:])
        assert journal.entries == ENTRIES[: max(lines - 1, 0)] and (journal.conversion is None) == (lines == 0)
        assert (tmp_path / NAME).read_bytes() == written[: whole[lines]]
        if length % 50 == 0:
            journal.begin(WHAT)
            for entry in ENTRIES[len(journal.entries) :]:
                journal.add(entry)
            assert (tmp_path / NAME).read_bytes() == written
        journal.close()


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({**WHAT, "limit": 5}, "limit was None, and is 5"),
        ({**WHAT, "steps": {"map": "m:g\x1b"}}, r"steps was {'map': 'm:f'}, and is {'map': 'm:g\\x1b'}"),
        ({**WHAT, "more": 1}, "more was None, and is 1"),
        ({"source": "\udcff", "limit": None}, "steps was .*and is None"),
    ],
)
@pytest.mark.fault(9)
def test_nothing_else_is_gone_on_with(tmp_path: Path, written: bytes, now: dict[str, object], message: str) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(OptionError, match=f"begun differently: {message}"):
        journal.begin(now)
    journal.close()
    assert (tmp_path / NAME).read_bytes() == written


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\n",
        b"[]\n",
        b"7\n",
        b"{}\n",
        b'{"shard": {"path": "x"}, "item": 1, "outputs": 0, "errors": []}\n',
        b'{"shard": {"path": "x", "n": 1, "bytes": 1, "content_id": "", "y": 1}, "item": 1, "outputs": 0, "errors": []}\n',
        b'{"shard": {"path": "x", "n": 1, "bytes": 1, "content_id": ""}, "item": 1, "outputs": 0, "errors": ["abc"]}\n',
        b"[" * 100_000 + b"\n",
        *(json.dumps(SAID | odd).encode() + b"\n" for odd in ODD),
    ],
    ids=range(18),
)
@pytest.mark.fault(9)
def test_a_damaged_line_is_an_error(tmp_path: Path, written: bytes, line: bytes) -> None:
    data = written + line + written.splitlines(keepends=True)[-1]
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(FormatError, match=r"unfinished\.jsonl: damaged \(.*start anew with overwrite"):
        Journal(tmp_path)
    assert (tmp_path / NAME).read_bytes() == data
    fds = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FormatError):
        Journal(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == fds


def test_a_first_line_of_something_else(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b'"mine"\n')
    journal = Journal(tmp_path)
    with pytest.raises(OptionError, match="its journal begins with 'mine'"):
        journal.begin(WHAT)
    journal.close()


def test_it_goes_with_the_end(tmp_path: Path, written: bytes) -> None:
    journal = Journal(tmp_path)
    journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NAME)  # reading it would wait for ever
    with pytest.raises(FormatError, match=r"unfinished\.jsonl: not a regular file"):
        Journal(tmp_path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / NAME).symlink_to("precious")
    with pytest.raises(StorageError, match=r"cannot write .*unfinished\.jsonl"):
        Journal(tmp_path)
    assert (tmp_path / "precious").read_text() == "mine"
