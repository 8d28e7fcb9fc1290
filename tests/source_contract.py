"""What every source has to pass: a test class per format derives from `SourceContract` and gives the three things below."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

import mmds
from mmds.converters import Source, sources
from mmds.errors import SourceError
from tests.likeness import assert_alike


def tree_state(path: Path) -> dict[str, tuple[str, int]]:
    """Return the hash and the time of change of every file at or below `path`."""
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return {
        str(each.relative_to(path.parent)): (hashlib.sha256(each.read_bytes()).hexdigest(), each.stat().st_mtime_ns)
        for each in files
    }


class SourceContract:
    """Tests of one source format."""

    format: str
    options: dict[str, Any] = {}  # noqa: RUF012 (tests replace it, and do not change it)

    def make(self, folder: Path) -> Path:
        """Make a source of at least 40 samples in `folder` and return its path."""
        raise NotImplementedError

    def samples(self) -> list[Any]:
        """Return the samples that `mmds.open` of its conversion shall give, in order."""
        raise NotImplementedError

    def spoil(self, path: Path) -> str | None:
        """Damage one sample of the source at `path` and return a part of its name; None if the format cannot tell."""
        raise NotImplementedError

    def convert(self, path: Path, destination: Path, **options: Any) -> mmds.Conversion:
        return mmds.convert(path, destination, source_format=self.format, **self.options, **options)

    def opened(self, path: Path) -> Source:
        (source,) = sources(path, self.format, **self.options)
        return source

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        (tmp_path / "in").mkdir()
        return self.make(tmp_path / "in")

    def test_samples(self, source: Path, tmp_path: Path) -> None:
        want = self.samples()
        assert len(want) >= 40
        result = self.convert(source, tmp_path / "out.mmds")
        assert result.samples == len(want)
        assert not result.errors
        for got, each in zip(mmds.open(tmp_path / "out.mmds"), want, strict=True):
            assert_alike(got, each)

    def test_is_recognised(self, source: Path, tmp_path: Path) -> None:
        self.convert(source, tmp_path / "named.mmds")
        mmds.convert(source, tmp_path / "recognised.mmds", **self.options)
        assert (tmp_path / "recognised.mmds").read_bytes() == (tmp_path / "named.mmds").read_bytes()

    def test_bytes_depend_on_neither_workers_nor_place(self, source: Path, tmp_path: Path) -> None:
        self.convert(source, tmp_path / "one.mmds", num_workers=1)
        (tmp_path / "elsewhere").mkdir()
        moved = tmp_path / "elsewhere" / source.name
        shutil.move(source, moved)
        self.convert(moved, tmp_path / "two.mmds", num_workers=2)
        assert (tmp_path / "one.mmds").read_bytes() == (tmp_path / "two.mmds").read_bytes()

    def test_source_is_left_as_it_is(self, source: Path, tmp_path: Path) -> None:
        before = tree_state(source)
        self.convert(source, tmp_path / "out.mmds")
        assert tree_state(source) == before

    def test_items_and_loader_pickle(self, source: Path) -> None:
        opened = self.opened(source)
        items = list(opened.items())
        assert len(items) == len(opened) == len(self.samples())
        assert items == list(opened.items())
        assert all(isinstance(item[0], str) for item in items)
        load, item = pickle.loads(pickle.dumps((opened.load, items[7])))
        assert_alike(load(item), opened.load(items[7]))
        assert len(pickle.dumps(opened.load)) < 2000

    def test_limit(self, source: Path, tmp_path: Path) -> None:
        self.convert(source, tmp_path / "out.mmds", limit=3)
        for got, each in zip(mmds.open(tmp_path / "out.mmds"), self.samples()[:3], strict=True):
            assert_alike(got, each)

    def test_a_bad_sample_is_named(self, source: Path, tmp_path: Path) -> None:
        name = self.spoil(source)
        if name is None:
            return
        with pytest.raises(SourceError) as raised:
            self.convert(source, tmp_path / "out.mmds")
        assert name in str(raised.value)
        assert not (tmp_path / "out.mmds").exists()
        result = self.convert(source, tmp_path / "out.mmds", on_error="skip")
        assert len(result.errors) >= 1
        assert name in result.errors[0][0]
        assert 0 < result.samples < len(self.samples())

    def test_no_descriptor_stays_open(self, source: Path, tmp_path: Path) -> None:
        self.convert(source, tmp_path / "warm.mmds")
        before = len(list(Path("/proc/self/fd").iterdir()))
        self.convert(source, tmp_path / "out.mmds")
        assert len(list(Path("/proc/self/fd").iterdir())) <= before

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            self.convert(tmp_path / "missing", tmp_path / "out.mmds")
