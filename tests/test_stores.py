"""Every store of the table keeps the contract of `tests/store_contract.py`, and no entry of the table is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.data import ConcatDataset, DataLoader

import mmds
from mmds.converters.stores import STORES
from tests import store_cases
from tests.store_contract import StoreContract
from tests.store_probe import digest, digests
from tests.store_reading import TIMEOUT


class TestHDF5(StoreContract):
    format = "hdf5"
    suffix = ".h5"


class TestZarr(StoreContract):
    format = "zarr"
    suffix = ".zarr"


class TestTileDB(StoreContract):
    format = "tiledb"
    suffix = ".tiledb"
    step = 3  # an array takes a millisecond to open, to read and to close


class TestNpy(StoreContract):
    format = "npy"
    suffix = ".npyd"


class TestLMDB(StoreContract):
    format = "lmdb"
    suffix = ".lmdb"


class TestArrow(StoreContract):
    format = "arrow"
    suffix = ".arrow"


class TestParquet(StoreContract):
    format = "parquet"
    suffix = ".parquet"


CONTRACTS = (TestHDF5, TestZarr, TestTileDB, TestNpy, TestLMDB, TestArrow, TestParquet)


def test_every_store_of_the_table_keeps_the_contract() -> None:
    assert {contract.format for contract in CONTRACTS} == {store.name for store in STORES}
    assert all(contract.suffix in contract.store().suffixes for contract in CONTRACTS)
    known = {*store_cases.EVERY}
    assert all(contract.refused <= known for contract in CONTRACTS)


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
