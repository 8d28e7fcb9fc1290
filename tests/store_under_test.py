"""A store under test: its entry in the table, what it may refuse, how samples get into it and out of it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest

import mmds
from mmds.converters.stores import StoreFormat, all_stores, find_store
from mmds.errors import SchemaError
from tests import store_cases
from tests.likeness import alike

ROOT = Path(__file__).parent.parent


class Pair(NamedTuple):
    """The same samples in an ``.mmds`` file and in a store."""

    source: Path
    path: Path


def difference(got: Any, want: Any, where: str = "") -> str:
    """Return where two samples or batches first differ, and how; an empty text if they are alike."""
    if alike(got, want):
        return ""
    if type(got) is type(want) and isinstance(want, dict) and list(got) == list(want):
        return next(filter(None, (difference(got[key], want[key], f"{where}[{key!r}]") for key in want)))
    if type(got) is type(want) and isinstance(want, (list, tuple)) and len(got) == len(want):
        return next(
            filter(None, (difference(*two, f"{where}[{k}]") for k, two in enumerate(zip(got, want, strict=True))))
        )
    return f"{where}: got {type(got).__name__} {got!r:.300}, want {type(want).__name__} {want!r:.300}"


def assert_same(got: Any, want: Any) -> None:
    """Fail with the first place where two samples or batches differ."""
    found = difference(got, want)
    assert not found, found


def state(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Return modification time, size and hash of everything below `folder`."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        status = path.stat()
        found[str(path)] = (status.st_mtime_ns, len(data), hashlib.sha256(data).hexdigest())
    return found


def probe(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command of `tests.store_probe` in a process of its own."""
    command = [sys.executable, "-m", "tests.store_probe", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=timeout)


class StoreUnderTest:
    """What a contract knows of a store; `format` is its name in the table of stores."""

    format: ClassVar[str]
    suffix: ClassVar[str]
    refused: ClassVar[frozenset[str]] = frozenset()  # names of `store_cases.EVERY`
    refused_golden: ClassVar[frozenset[str]] = frozenset()  # names of `make_golden.GOLDEN`
    recognised: ClassVar[bool] = True  # by its content, whatever it is called
    step: ClassVar[int] = 1  # of all kinds, one in so many is in the dataset that tests share: more for a slow library
    flips: ClassVar[int] = 20  # bytes to flip; 0 where the library promises nothing about damaged content

    # Writing and reading

    @classmethod
    def store(cls) -> StoreFormat:
        """Return the line of the table."""
        return all_stores()[cls.format]

    def copy(self, source: Path, path: Path, *, singly: bool = False, **options: Any) -> Path:
        """Write the samples of an ``.mmds`` file or another store to the store (or ``.mmds`` file) at `path`."""
        reader = mmds.open(source)
        found = find_store(path)
        make: Callable[..., Any] = mmds.Writer if found is None else found.writer
        with make(path, reader.fields, metadata=dict(reader.metadata), **options) as writer:
            if singly:
                writer.extend(reader)
            else:
                for part in store_cases.slices(len(reader)):
                    writer.write_batch(reader[np.arange(len(reader))[part]])
        return path

    def round_trip(self, source: Path, folder: Path, *, ways: tuple[bool, ...] = (False, True)) -> None:
        """Check that ``.mmds -> store -> .mmds`` gives the same bytes, in batches and sample by sample."""
        folder.mkdir(exist_ok=True)
        for singly in ways:
            path = self.copy(source, folder / f"{singly}{self.suffix}", singly=singly)
            back = self.copy(path, folder / f"{singly}.mmds", singly=singly)
            assert back.read_bytes() == source.read_bytes(), f"{source.name}: other bytes, singly={singly}"

    def refuses(self, name: str, field: str, source: Path, folder: Path) -> None:
        """Check that the samples of `source` are refused in words that name `field`, and that nothing is left."""
        folder.mkdir(exist_ok=True)
        with pytest.raises(SchemaError) as caught:
            self.copy(source, folder / f"a{self.suffix}")
        assert field in str(caught.value), f"{name}: '{caught.value}' does not name the field"
        assert list(folder.iterdir()) == []

    @pytest.fixture(scope="class")
    @classmethod
    def pair(cls, tmp_path_factory: pytest.TempPathFactory) -> Pair:
        """Return a dataset of many kinds, to be read only."""
        folder = tmp_path_factory.mktemp(cls.format)
        source = store_cases.write_every(folder / "every.mmds", cls.refused, step=cls.step)
        return Pair(source, cls().copy(source, folder / f"every{cls.suffix}"))
