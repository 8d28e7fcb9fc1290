"""The contract that every store keeps, as a class to subclass: samples that come back, from any process, and clean failure.

    class TestHDF5(StoreContract):
        format = "hdf5"
        suffix = ".h5"

A package that registers a store of its own runs the same tests. What a store cannot hold it lists in `refused`; that it
refuses exactly this, by a `SchemaError` that names the field, is part of the contract.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.errors import ExistsError, FormatError, SampleError
from tests import store_cases
from tests.store_reading import Reading
from tests.store_roundtrips import RoundTrips
from tests.store_under_test import Pair, probe, state


class StoreContract(RoundTrips, Reading):
    """All tests of a store."""

    def fill(self, path: Path, value: int, count: int = 3, **options: Any) -> None:
        """Write a small dataset."""
        with self.store().writer(path, {"x": mmds.Scalar("int16"), "t": mmds.Text()}, **options) as writer:
            writer.extend({"x": value, "t": str(value)} for _ in range(count))

    def test_an_exception_leaves_nothing(self, tmp_path: Path) -> None:
        for count in (0, 3, 3000):
            with pytest.raises(KeyError, match="mine"), self.store().writer(tmp_path / f"a{self.suffix}") as writer:
                writer.extend({"x": k} for k in range(count))
                raise KeyError("mine")
            assert list(tmp_path.iterdir()) == []

    def test_what_exists_is_replaced_only_on_request(self, tmp_path: Path) -> None:
        path = tmp_path / f"a{self.suffix}"
        self.fill(path, 1)
        first, before = mmds.open(path).content_id, state(path)
        assert mmds.open(path).content_id == first
        with pytest.raises(ExistsError, match="overwrite"):
            self.fill(path, 2)
        assert state(path) == before
        self.fill(path, 3, overwrite=True)
        assert list(tmp_path.iterdir()) == [path]
        assert mmds.open(path)[-1] == {"x": 3, "t": "3"} and mmds.open(path).content_id != first
        with pytest.raises(KeyError), self.store().writer(path, overwrite=True) as writer:
            writer.write({"x": 4})
            raise KeyError
        assert mmds.open(path)[0]["x"] == 3 and list(tmp_path.iterdir()) == [path]

    def test_what_a_killed_writer_left_is_reclaimed(self, tmp_path: Path) -> None:
        path = tmp_path / f"a{self.suffix}"
        assert probe("kill", self.format, path).returncode == -9
        assert not path.exists() and len(list(tmp_path.iterdir())) == 1
        self.fill(path, 1)
        assert list(tmp_path.iterdir()) == [path] and mmds.open(path)[0] == {"x": 1, "t": "1"}

    def test_a_bad_sample_leaves_the_writer_usable(self, tmp_path: Path) -> None:
        path = tmp_path / f"a{self.suffix}"
        with self.store().writer(path, {"x": mmds.Scalar("int16"), "t": mmds.Text()}) as writer:
            writer.write({"x": 1, "t": "one"})
            with pytest.raises(SampleError, match="sample 1, field 'x': expected a scalar of int16, got str 'two'"):
                writer.write({"x": "two", "t": "two"})
            writer.write_batch({"x": np.array([2, 3], "i2"), "t": ["two", "three"]})
            with pytest.raises(SampleError, match="sample 4, field 't'"):
                writer.write_batch({"x": [4, 5], "t": ["four", 5]})
            writer.write({"x": 6, "t": "six"})
        assert list(mmds.open(path)) == [
            {"x": x, "t": t} for x, t in ((1, "one"), (2, "two"), (3, "three"), (6, "six"))
        ]

    def test_an_array_may_be_filled_again_for_the_next_sample(self, tmp_path: Path) -> None:
        path = tmp_path / f"a{self.suffix}"
        array, data = np.zeros((20, 5), "f4"), bytearray(8)
        with self.store().writer(path, {"x": mmds.Array("float32", (20, 5)), "b": mmds.Bytes()}) as writer:
            for number in range(9):
                array[:], data[:] = number, bytes([number]) * 8
                writer.write({"x": array, "b": data})
        for number, sample in enumerate(mmds.open(path)):
            assert (sample["x"] == number).all() and sample["b"] == bytes([number]) * 8

    def test_a_missing_package_is_named_with_the_command(self, pair: Pair) -> None:
        store = self.store()
        if not store.extra:
            assert store.package == "numpy"  # without which there is no mmds either
            return
        done = probe("without", self.format, pair.path)
        wanted = f'{self.format} needs {store.package}, which is not installed. Run: pip install "mmds[{store.extra}]"'
        assert done.stdout.splitlines() == [f"reading {wanted}", f"writing {wanted}"], done.stderr

    def test_what_is_no_such_store(self, tmp_path: Path) -> None:
        path = tmp_path / f"a{self.suffix}"
        with pytest.raises(FileNotFoundError):
            mmds.open(path)
        path.write_bytes(b"not a dataset" * 1000)
        with pytest.raises(FormatError, match=path.name):
            mmds.open(path)
        path.write_bytes(b"")
        with pytest.raises(FormatError, match=path.name):
            mmds.open(path)
        path.unlink()
        path.mkdir()
        with pytest.raises(FormatError, match=path.name):
            mmds.open(path)
        assert list(path.iterdir()) == []

    def damaged(self, tmp_path: Path, seed: int, cuts: int, flips: int) -> None:
        """Check that cut and flipped copies are read or refused, without any other exception and without a crash."""
        names = [name for name in store_cases.EVERY if name not in self.refused][::6]
        source = store_cases.write(tmp_path / "a.mmds", *store_cases.dataset(names, 6))
        path = self.copy(source, tmp_path / f"a{self.suffix}")
        (tmp_path / "copies").mkdir()
        done = probe("damage", self.format, path, tmp_path / "copies", seed, cuts, flips)
        lines = done.stdout.splitlines()
        assert done.returncode == 0, f"{done.returncode} after {lines[-1:]}: {done.stderr[-2000:]}"
        assert [line for line in lines if line.startswith("BAD")] == [], done.stdout[-4000:]

    def test_damage_is_read_or_refused(self, tmp_path: Path) -> None:
        self.damaged(tmp_path, 0, 10, self.flips)

    @pytest.mark.stress
    @pytest.mark.parametrize("seed", range(1, 6))
    def test_much_damage_is_read_or_refused(self, tmp_path: Path, seed: int) -> None:
        self.damaged(tmp_path, seed, 100, 10 * self.flips)
