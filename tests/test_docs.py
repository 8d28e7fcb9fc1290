"""README's blocks run as they stand, in order, in a folder with pictures."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import mmds
from mmds.cli import main
from tests.samples import jpeg
from tests.test_integrity import flip
from tests.test_positioned import write_blocks

ROOT = Path(__file__).parent.parent


def test_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "photos" / name / f"{number}.jpg").write_bytes(jpeg(number + len(name), (64, 64)))
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "cubes.npy", np.arange(2000.0) ** 3)
    (tmp_path / "train.py").write_text("import mmds\nmmds.verify('raw.mmds')\n")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # README's python is this one
    names: dict[str, Any] = {}
    commands = 0
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S):
        if block.startswith("# steps.py\n"):
            (tmp_path / "steps.py").write_text(block)
        elif language == "python":
            exec(compile(block, "README.md", "exec"), names)
        for line in re.findall(r"^\$ mmds (.*)$", block, re.M):
            result = CliRunner().invoke(main, shlex.split(line, comments=True))
            assert result.exit_code == 0, f"mmds {line}: {result.output}"
            commands += 1
    assert commands >= 8
    images = list(names["loader"])
    assert images[0][0].shape == (8, 3, 64, 64) and (tmp_path / "first.jpg").read_bytes().startswith(b"\xff\xd8")
    assert mmds.open("raw.mmds").fields[0].kind == mmds.Array("uint8", (3, 48, 48))
    assert (tmp_path / "photos-again" / "cat" / "3.jpg").read_bytes() == (
        tmp_path / "photos" / "cat" / "3.jpg"
    ).read_bytes()
    assert mmds.open("numbers.mmds").get("number 7") == {"n": 7, "name": "number 7", "square": 49, "cube": 343.0}
    assert len(mmds.open("centred.mmds")) == 90 and len(mmds.open("cats.mmds")) == 4
    assert names["reader"].column("meta.0")[3] == "scan 3" and names["reader"][10:20][0]["points"].shape == (10, 3)


def test_the_page_about_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python blocks run; other pages have doctests, or tests of their own."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "sources.md").read_text(), re.M | re.S)
    for block in blocks:
        exec(compile(block, "sources.md", "exec"), {})
    assert len(blocks) == 2
    assert [path.name for path in sorted((tmp_path / "two").rglob("*"))] == ["a", "1.txt", "2.txt", "b"]


def test_the_page_about_reliability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command says what the page shows, and its Python block runs."""
    monkeypatch.chdir(tmp_path)
    for name in ("out", "damaged"):
        write_blocks(tmp_path / f"{name}.mmds")
    flip(tmp_path / "damaged.mmds", 4096 + 25 * 100_032)
    page = (ROOT / "docs" / "reliability.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    exec(compile(block, "reliability.md", "exec"), {"MemoryMappedDataset": mmds.MemoryMappedDataset})
    (command, shown), *others = re.findall(r"^\$ mmds (.*?)\n(.*?)^```", page, re.M | re.S)
    result = CliRunner().invoke(main, shlex.split(command))
    assert result.exit_code == 1 and not others
    assert result.output.replace(f"{tmp_path}/", "") == shown


def test_every_promise_is_shown_by_a_test() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    promised = {int(row) for row in re.findall(r"^\*\*(\d+)\. ", page, re.M)}
    shown: set[int] = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        for rows in re.findall(r"mark\.fault\(([\d, ]+)\)", file.read_text()):
            shown |= {int(row) for row in rows.split(",")}
    assert promised == shown == set(range(1, 36))


def test_links_in_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "README.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
