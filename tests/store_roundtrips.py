"""``.mmds -> store -> .mmds`` gives the same bytes, for every kind of field, and what a store cannot hold is refused."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

import mmds
from mmds.errors import SchemaError, printable
from tests import make_golden, store_cases
from tests.store_under_test import Pair, StoreUnderTest, assert_same


class RoundTrips(StoreUnderTest):
    """Tests of a store: what is written comes back."""

    def test_every_kind_at_once_comes_back_byte_for_byte(self, tmp_path: Path) -> None:
        source = store_cases.write_every(tmp_path / "every.mmds", self.refused)
        path = self.copy(source, tmp_path / f"a{self.suffix}")
        assert self.copy(path, tmp_path / "back.mmds").read_bytes() == source.read_bytes()

    def test_samples_written_one_by_one_are_the_same(self, pair: Pair, tmp_path: Path) -> None:
        path = self.copy(pair.source, tmp_path / f"a{self.suffix}", singly=True)
        every = np.arange(store_cases.COUNT)
        assert_same(mmds.open(path)[every], mmds.open(pair.source)[every])

    def test_values_outlive_their_reader(self, pair: Pair) -> None:
        want = [mmds.open(pair.source)[3], mmds.open(pair.source)[[5, 0, 5]]]
        got = [mmds.open(pair.path)[3], mmds.open(pair.path)[[5, 0, 5]]]
        gc.collect()  # some stores have cycles
        assert_same(got, want)

    # Whether to train dictionaries is an option of writing, which no store keeps.
    @pytest.mark.parametrize("name", [name for name in make_golden.GOLDEN if name != "dictionaries"])
    def test_golden_files_come_back_byte_for_byte(self, name: str, tmp_path: Path) -> None:
        source = make_golden.FOLDER / f"{name}.mmds"
        if name in self.refused_golden:
            self.refuses(name, "", source, tmp_path / "refused")
        else:
            self.round_trip(source, tmp_path / "round", ways=(False,))

    @pytest.mark.parametrize("name", store_cases.ALONE)
    def test_a_field_alone(self, name: str, tmp_path: Path) -> None:
        self.alone(name, tmp_path)

    @pytest.mark.stress
    @pytest.mark.parametrize("name", sorted({*store_cases.EVERY} - {*store_cases.ALONE}))
    def test_every_other_field_alone(self, name: str, tmp_path: Path) -> None:
        self.alone(name, tmp_path)

    def alone(self, name: str, tmp_path: Path) -> None:
        """Check a kind as the only field, and as a single value that is no dict."""
        kind, values = store_cases.EVERY[name]
        fields, samples = store_cases.dataset([name], 7)
        inside = store_cases.write(tmp_path / "inside.mmds", fields, samples)
        if name in self.refused:
            self.refuses(name, name, inside, tmp_path / "refused")
            return
        self.round_trip(inside, tmp_path / "inside", ways=(True,))
        single = store_cases.write(tmp_path / "single.mmds", kind, [values[k % len(values)] for k in range(7)])
        self.round_trip(single, tmp_path / "single", ways=(False,))

    def test_no_samples(self, tmp_path: Path) -> None:
        source = store_cases.write_every(tmp_path / "a.mmds", self.refused, count=0)
        self.round_trip(source, tmp_path / "round", ways=(False,))
        reader = mmds.open(tmp_path / "round" / f"False{self.suffix}")
        assert len(reader) == 0 and list(reader) == [] and len(reader[:5]) == 0
        assert_same(reader[np.arange(0)], mmds.open(source)[np.arange(0)])
        with pytest.raises(IndexError, match="index 0 is out of range for 0 samples"):
            reader[0]

    def test_odd_names(self, tmp_path: Path) -> None:
        names = store_cases.ODD_NAMES
        fields = {name: mmds.Scalar("int8") if k % 2 else mmds.Text(nullable=True) for k, name in enumerate(names)}
        samples = [{name: k + j if k % 2 else "t" * j for k, name in enumerate(names)} for j in range(3)]
        self.round_trip(store_cases.write(tmp_path / "flat.mmds", fields, samples), tmp_path / "flat")
        deep = [{"a": {name: k + j for k, name in enumerate(names)}, "b": (j,)} for j in range(3)]
        self.round_trip(store_cases.write(tmp_path / "deep.mmds", None, deep), tmp_path / "deep")

    def test_names_of_its_own_come_back_or_are_refused(self, tmp_path: Path) -> None:
        for k, name in enumerate(store_cases.RESERVED_NAMES):
            fields = {name: mmds.Scalar("int8", nullable=True), "text": mmds.Text(nullable=True)}
            source = store_cases.write(tmp_path / f"{k}.mmds", fields, [{name: 1, "text": None}])
            try:
                self.round_trip(source, tmp_path / f"{k}", ways=(False,))
            except SchemaError as error:
                assert printable(name)[:50] in str(error)
                assert list((tmp_path / f"{k}").iterdir()) == []

    def test_thousands_of_samples(self, tmp_path: Path) -> None:
        count, chance = 2500, np.random.default_rng(0)
        fields = {
            "x": mmds.Array("uint8", (600,)),
            "t": mmds.Array("uint16", (None,)),
            "k": mmds.Text(),
            "n": mmds.Json(),
        }
        samples = [
            {"x": chance.integers(0, 256, 600, "u1"), "t": np.arange(k % 50, dtype="u2"), "k": f"k{k}", "n": [k]}
            for k in range(count)
        ]
        source = store_cases.write(tmp_path / "a.mmds", fields, samples)
        path = self.copy(source, tmp_path / f"a{self.suffix}", singly=True)
        want, got = mmds.open(source), mmds.open(path)
        for size in (1, 10, 300, 2500):
            rows = chance.integers(-count, count, size)
            assert_same(got[rows], want[rows])
        assert self.copy(path, tmp_path / "b.mmds").read_bytes() == source.read_bytes()
