"""Files of format version 1 that were written once: every later mmds reads and writes them alike, to the bit."""

from __future__ import annotations

import ast
import hashlib
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard

import mmds
from mmds.format import BLOCK
from tests import independent_reader
from tests.likeness import assert_alike
from tests.make_golden import FOLDER, GOLDEN, ZSTD_VERSION, write

NAMES = sorted(GOLDEN)


def test_every_golden_file_has_its_samples_and_is_small() -> None:
    files = sorted(FOLDER.glob("*.mmds"))
    assert [path.name for path in files] == [f"{name}.mmds" for name in NAMES]
    assert max(path.stat().st_size for path in files) < 20_000


@pytest.mark.parametrize("name", NAMES)
def test_the_same_samples_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    if mmds.Schema(GOLDEN[name].fields).compressed and zstandard.ZSTD_VERSION != ZSTD_VERSION:
        pytest.skip("another libzstd gives other frames")
    write(GOLDEN[name], tmp_path / "again.mmds")
    assert (tmp_path / "again.mmds").read_bytes() == (FOLDER / f"{name}.mmds").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_both_readers_return_the_samples(name: str) -> None:
    path = FOLDER / f"{name}.mmds"
    reader = mmds.open(path)
    assert_alike(list(reader), GOLDEN[name].samples)
    assert_alike(independent_reader.read(path.read_bytes()), GOLDEN[name].samples)
    assert dict(reader.metadata) == GOLDEN[name].metadata
    assert reader.fields == mmds.Schema(GOLDEN[name].fields)
    assert reader.content_id == hashlib.sha256(path.read_bytes()[_footer(path) : -64]).hexdigest()[:32]


def _footer(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[-64:-56], "little")


@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_ask_for_samples_agrees(name: str) -> None:
    reader, want = mmds.open(FOLDER / f"{name}.mmds"), GOLDEN[name].samples
    n = len(want)
    assert len(reader) == n
    assert_alike([reader[i] for i in range(-n, n)], want + want)
    bounds = (None, -n - 1, -1, 0, 1, 2, n, n + 1)
    for start, stop, step in itertools.product(bounds, bounds, (None, 1, 2, -1, -2)):
        part = reader[start:stop:step]
        assert_alike(list(part), want[start:stop:step])
        assert_alike(list(part[::-1]), want[start:stop:step][::-1])
    for indices in ([], list(range(n)), list(range(n))[::-1] * 2, [-1, 0, -n] if n else []):
        batch = reader[indices]
        for field, leaf in zip(reader.fields, reader.fields.leaves(batch), strict=True):
            assert len(leaf) == len(indices)
            for row, index in enumerate(indices):
                got = leaf[row, ...] if isinstance(leaf, np.ndarray) else leaf[row]
                sample = reader.fields.leaves(want[index])[reader.fields.index(field.name)]
                kind = field.kind
                if isinstance(leaf, np.ndarray) and not isinstance(kind, mmds.Array):
                    assert_alike(got.item(), sample)
                else:
                    assert_alike(got, sample)


def test_a_file_of_several_blocks(tmp_path: Path) -> None:
    samples = [
        {"x": (np.arange(3 * size) * 2654435761 >> 13).astype("uint8").reshape(size, 3), "key": str(size)}
        for size in (BLOCK // 3, 1, 0, BLOCK, 7)
    ]
    path = tmp_path / "large.mmds"
    with mmds.Writer(path, {"x": mmds.Array("uint8", (None, 3)), "key": mmds.Text(column=True)}) as writer:
        writer.extend(samples)
    data = path.read_bytes()
    assert len(data) > 4 * BLOCK
    assert_alike(independent_reader.read(data), samples)
    assert_alike(list(mmds.open(path)), samples)
    # These bytes must never change: the id covers every one of them.
    assert mmds.open(path).content_id == "8352aa6db827f8885b7beeaf25a63ae2"


def test_the_independent_reader_is_short_and_independent() -> None:
    source = Path(independent_reader.__file__).read_text()
    tree = ast.parse(source)
    strings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    code = {number for number, line in enumerate(source.splitlines(), 1) if line.strip()} - strings
    assert len(code - {node.lineno for node in imports}) <= 100
    modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert modules <= {"numpy", "zstandard", *sys.stdlib_module_names}
