"""Every ``raise`` of the modules that read a file is reached by a literal hostile file, or is listed here with the reason.

The cases of the other ``test_hostile_*`` modules, and a few more, are read while Python tells which lines run. That happens
in a process of its own with 512 MB of address space, so that memory which a file must not take is refused to it.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mmds import canonical, fields
from mmds.errors import FormatError, MmdsError
from mmds.format import MAX_RATIO
from mmds.reader import Reader
from mmds.schema import Schema
from tests.conftest import Cases
from tests.resealing import MemoryFile, assert_refused, golden, little, put, read_all, resealed, text_of
from tests.test_hostile_fields import FIELDS
from tests.test_hostile_frames import BYTES, FRAMES, file, zeros
from tests.test_hostile_index import AT_OPEN, WHEN_READ, at
from tests.test_hostile_rules import FOOTER, FRAME, NEWER, STRINGS, TEXTS, metadata

MODULES = ("parse", "canonical", "schema", "fields", "items", "itemdecoders", "compression", "keys")

# Functions whose errors are about what users pass in, not about what is in a file; their own tests have them.
OF_USERS = {
    "fields": ("encode", "as_stored", "stored"),
    "schema": ("index", "_flatten", "select", "_subtree", "_infer"),
    "compression": ("parse", "_zstandard", "compressor"),
    "keys": ("KeyLookup",),
}


def later(gap: int) -> bytes:
    """Return a file whose footer stands `gap` zero bytes after the place where it has to be."""
    start = int.from_bytes(STRINGS[-64:-56], "little")
    text = text_of(STRINGS)
    return resealed(STRINGS[:start] + bytes(gap) + text + little(start + gap) + STRINGS[-56:])


# Not for the independent reader, which finds out later or not at all: nothing is allocated by then.
MORE = {
    "a footer that stands later": (later(64), "footer: begins at"),
    "arrays that find no room": (
        resealed(golden("mixed_alignment"), put("fields", 0, "shape", [10**6])),
        "0: 3 times 1000000 bytes, but the data has",
    ),
    "arrays that find no room in frames": (
        resealed(golden("compressed"), put("fields", 0, "shape", [2**30, 2**8])),
        "fixed: 3 times 1099511627776 bytes, but the data has",
    ),
    "a frame that there is no memory for": (file(BYTES, zeros(2**13)), "a zstd frame of 1073741824 bytes, for which"),
    "a dictionary too large": (
        file(BYTES, b"", dictionary=bytes(2**20 + 1)),
        "a dictionary of more than 1048576 bytes",
    ),
}

KEYS = {
    "a row that there is not": (at("keys", "key_rows", 0, little(6), 16), "the index of keys leads to sample 6"),
    "a hash of another key": (at("keys", "key_rows", 0, b"".join(map(little, (2, 0, 3, 1, 4, 5)))), "has another hash"),
}

# What no file can break, because reading has made sure of it before; a writer or another store can.
DIRECT: dict[str, Callable[[], Any]] = {
    "a text longer than a footer can be": lambda: canonical.load(b" " * (canonical.MAX_BYTES + 1)),
    "metadata longer than a footer can be": lambda: canonical.dump("x" * canonical.MAX_BYTES),
    "a key that is a number": lambda: canonical.dump({1: 2}),
    "names that are no list": lambda: fields.Label(3),  # type: ignore[arg-type]
    "a shape that is a number": lambda: fields.Array("uint8", 3),  # type: ignore[arg-type]
    "a field name that is no Unicode": lambda: Schema({"\ud800": fields.Text()}),
}


def look_up_all(data: bytes) -> None:
    """Look up every key that a file has, and some that it has not."""
    stored = MemoryFile(data)
    reader = Reader(stored, range(stored.n), "name")
    reader._positions = [0]
    for key in ("b/ü", "", "a", "日本", "c"):
        list(stored.find_key(0, key.encode()))


def read_both_ways(data: bytes) -> None:
    """Read the samples of a file together and one by one."""
    stored = MemoryFile(data)
    with contextlib.suppress(FormatError):
        Reader(stored, range(stored.n))[range(stored.n)]
    read_all(data)


@pytest.mark.parametrize("name", MORE)
def test_more_rules(name: str) -> None:
    if "no memory" not in name:  # which has to be little for that
        assert_refused(*MORE[name], also=False)


@pytest.mark.parametrize("name", KEYS)
def test_an_index_of_keys_that_leads_astray(name: str) -> None:
    data, message = KEYS[name]
    read_all(data)
    with pytest.raises(FormatError) as caught:
        look_up_all(data)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", DIRECT)
def test_what_only_writers_can_break(name: str) -> None:
    with pytest.raises((MmdsError, ValueError, TypeError)):
        DIRECT[name]()


def test_a_footer_that_is_too_long_in_canonical_form() -> None:
    data = resealed(golden("metadata"), text=metadata(b'{"a":[' + b"1e15," * 10**6 + b"1]}"))
    assert_refused(data, "bytes of JSON; at most 16777216 are allowed")


def test_an_array_that_just_finds_room() -> None:
    shape = [MAX_RATIO, 2**6]
    with pytest.raises(FormatError, match="sample 0, field 'fixed'"):
        read_all(resealed(golden("compressed"), put("fields", 0, "shape", shape)))


def raising_lines() -> dict[str, dict[int, str]]:
    """Return the line of every ``raise`` in `MODULES` that is about a file, with the statement, by file."""
    found: dict[str, dict[int, str]] = {}

    def visit(node: ast.AST, module: str, lines: dict[int, str]) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)) and child.name in OF_USERS.get(module, ()):
                continue
            if isinstance(child, ast.Raise):
                lines[child.lineno] = ast.unparse(child)
            visit(child, module, lines)

    for module in MODULES:
        path = str(importlib.import_module(f"mmds.{module}").__file__)
        visit(ast.parse(Path(path).read_text()), module, found.setdefault(path, {}))
    return found


def cases_to_read() -> Iterator[Callable[[], Any]]:
    """Yield the reading of every literal case."""
    for table in (FRAME, NEWER, TEXTS, AT_OPEN, WHEN_READ, MORE):
        for case in table.values():
            data = case[0] if table is not TEXTS else resealed(golden("metadata"), text=case[0])
            yield lambda data=data: read_both_ways(data)  # type: ignore[misc]
    for base, edit, *_ in FIELDS.values():
        yield lambda base=base, edit=edit: read_all(resealed(golden(base), edit))  # type: ignore[misc]
    for edit, _ in FOOTER.values():
        yield lambda edit=edit: read_all(resealed(STRINGS, edit))  # type: ignore[misc]
    for kind, item, _ in FRAMES.values():
        yield lambda kind=kind, item=item: read_all(file(kind, item))  # type: ignore[misc]
    yield lambda: read_all(resealed(golden("constant_stride"), put("fields", 1, "align", 64)))
    for data, _ in KEYS.values():
        yield lambda data=data: look_up_all(data)  # type: ignore[misc]
    yield from DIRECT.values()


def trace_all() -> dict[str, Any]:
    """Read every case; return how many there were, and the ``raise`` statements that were not reached."""
    wanted = raising_lines()
    missing = {(path, line) for path, lines in wanted.items() for line in lines}

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            missing.discard((frame.f_code.co_filename, frame.f_lineno))
        return local

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        return local if frame.f_code.co_filename in wanted else None

    count = 0
    sys.settrace(trace)
    for count, read in enumerate(cases_to_read(), start=1):  # noqa: B007 (the last one is wanted)
        with contextlib.suppress(MmdsError, ValueError, TypeError):
            read()
    sys.settrace(None)
    statements = sum(map(len, wanted.values()))
    return {
        "cases": count,
        "statements": statements,
        "missing": sorted(f"{Path(p).name}:{n}: {wanted[p][n]}" for p, n in missing),
    }


@pytest.mark.fault(13)
def test_13_every_raise_has_a_file_that_reaches_it(cases: Cases) -> None:
    script = """if True:
        import json, resource
        from tests.test_hostile_raises import trace_all
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + 512 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        print(json.dumps(trace_all()))
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["missing"] == []
    assert report["statements"] > 60
    cases(report["cases"])


def test_functions_that_are_left_out_exist() -> None:
    for module, names in OF_USERS.items():
        source = Path(str(importlib.import_module(f"mmds.{module}").__file__)).read_text()
        defined = {
            node.name for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        }
        assert set(names) <= defined
