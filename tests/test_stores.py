"""Every store of the table keeps the contract of `tests/store_contract.py`, and no entry of the table is left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.data import ConcatDataset, DataLoader

import mmds
from mmds.converters.stores import STORES, all_stores, find_store
from tests import store_cases
from tests.store_contract import StoreContract
from tests.store_probe import digest, digests
from tests.store_reading import TIMEOUT
from tests.store_under_test import StoreUnderTest


class TestHDF5(StoreContract):
    format = "hdf5"
    suffix = ".h5"


class TestZarr(StoreContract):
    format = "zarr"
    suffix = ".zarr"


@pytest.mark.stress
class TestTileDB(StoreContract):
    format = "tiledb"
    suffix = ".tiledb"
    step = 3  # an array takes a millisecond to open, to read and to close


class TestNpy(StoreContract):
    format = "npy"
    suffix = ".npyd"


class TestNpz(StoreContract):
    format = "npy"
    suffix = ".npz"
    recognised = False  # a ZIP archive may be anything


class TestLMDB(StoreContract):
    format = "lmdb"
    suffix = ".lmdb"


class TestArrow(StoreContract):
    format = "arrow"
    suffix = ".arrow"


class TestParquet(StoreContract):
    format = "parquet"
    suffix = ".parquet"


CONTRACTS = (TestHDF5, TestZarr, TestTileDB, TestNpy, TestNpz, TestLMDB, TestArrow, TestParquet)


def test_every_store_of_the_table_keeps_the_contract() -> None:
    assert {contract.format for contract in CONTRACTS} == {store.name for store in STORES}
    assert all(contract.suffix in contract.store().suffixes for contract in CONTRACTS)
    known = {*store_cases.EVERY}
    assert all(contract.refused <= known for contract in CONTRACTS)


class Raw(StoreUnderTest):
    format = "raw"
    suffix = ".raw"


@pytest.fixture
def another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a package that registers `tests.raw_store` as CONTRIBUTING says, and something that is broken."""
    about = tmp_path / "site" / "another-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: another\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[mmds.stores]\nraw = tests.raw_store:FORMAT\nbad = tests.no_such:X\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    all_stores.cache_clear()
    yield
    all_stores.cache_clear()


def test_another_package_registers_a_store(tmp_path: Path, another_package: None) -> None:
    with pytest.warns(RuntimeWarning, match=r"the store 'bad' \(tests\.no_such:X\) cannot be loaded: No module"):
        assert "raw" in all_stores()
    source = store_cases.write_every(tmp_path / "a.mmds", frozenset())
    Raw().round_trip(source, tmp_path / "round")
    mmds.convert(source, tmp_path / "plain", destination_format="raw")
    found = find_store(tmp_path / "plain")
    assert found is not None and found.name == "raw"
    assert {"raw", *(store.name for store in STORES)} <= {*all_stores()}


def test_without_that_package_there_is_no_such_store(tmp_path: Path) -> None:
    assert find_store(tmp_path / "a.raw") is None


def test_what_contributing_says_of_a_store_is_so() -> None:
    root = Path(__file__).parent.parent
    said = (root / "CONTRIBUTING.md").read_text()
    assert 'raw = "tests.raw_store:FORMAT"' in said and "about 80 lines" in said
    assert len((root / "tests" / "raw_store.py").read_text().splitlines()) <= 80


@pytest.mark.fault(24)
@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.stress)])
def test_workers_that_inherit_nothing_read_every_store(tmp_path: Path, method: str) -> None:
    """One set of workers for all stores, because each takes seconds to start."""
    names = [name for name in store_cases.EVERY if not any(name in each.refused for each in CONTRACTS)]
    source = store_cases.write(tmp_path / "a.mmds", *store_cases.dataset(names[::4]))
    want = [digest(sample) for sample in mmds.open(source)]
    datasets = [
        mmds.MemoryMappedDataset(each().copy(source, tmp_path / f"a{each.suffix}"), format="raw") for each in CONTRACTS
    ]
    for dataset in datasets:
        assert digest(dataset[3]) == want[3]  # the parent has read before
    loader: DataLoader[object] = DataLoader(
        ConcatDataset(datasets), 5, num_workers=2, multiprocessing_context=method, collate_fn=digests, timeout=TIMEOUT
    )
    assert [found for batch in loader for found in batch] == want * len(CONTRACTS)
