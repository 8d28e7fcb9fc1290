"""Samples and batches of a store are those of the ``.mmds`` file, by any index, in every thread and process."""

from __future__ import annotations

import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

import mmds
from mmds.errors import FormatError, SchemaError
from tests import store_cases
from tests.likeness import alike
from tests.store_probe import digest, digests
from tests.store_under_test import Pair, StoreUnderTest, assert_same, probe, state

collate: Any = default_collate  # which is annotated for lists alone
TIMEOUT = 300  # seconds without a batch before a DataLoader is taken to hang
PICKS: dict[str, Any] = {
    "unsorted": [7, 1, 22, 0],
    "duplicates": [3, 3, 20, 3, 0, 20],
    "negative": [-1, 0, -23, 5, -1],
    "array": np.array([9, 8, 7, 6, 5], "int32"),
    "bools": np.arange(23) % 3 == 1,
    "one": [4],
    "none": [],
    "all, backwards": np.arange(23)[::-1],
}


def tensors_as_arrays(node: Any) -> Any:
    """Return a sample or a batch with tensors replaced by (dtype, shape, bits)."""
    if isinstance(node, torch.Tensor):
        flat = node.detach().contiguous().reshape(-1)
        bits = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        return "tensor", str(node.dtype), tuple(node.shape), bits
    if isinstance(node, dict):
        return {key: tensors_as_arrays(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(tensors_as_arrays(value) for value in node)
    return node


class Reading(StoreUnderTest):
    """Tests of a store: what is read."""

    def test_samples_and_batches_are_those_of_the_mmds_file(self, pair: Pair) -> None:
        want, got = mmds.open(pair.source), mmds.open(pair.path)
        assert len(got) == len(want) == store_cases.COUNT
        assert got.fields.to_json() == want.fields.to_json() and got.metadata == want.metadata
        index: Any
        for index in (0, 22, -1, -23, 11, np.int64(5), np.uint8(6)):
            assert_same(got[index], want[index])
        for index in (23, -24, 10**12):
            with pytest.raises(IndexError, match=f"index {index} is out of range for 23 samples"):
                got[index]
        with pytest.raises(IndexError):
            got[[0, 23]]
        for part in (slice(2, 9), slice(None, None, -3), slice(-4, None), slice(9, 2), slice(1, 22, 5)):
            assert_same(list(got[part]), list(want[part]))
            assert_same(got[part][[0, -1]] if len(got[part]) else 0, want[part][[0, -1]] if len(want[part]) else 0)
        for name, picks in PICKS.items():
            assert alike(got[picks], want[picks]), name

    def test_fields_can_be_selected(self, pair: Pair) -> None:
        names = [name for name in mmds.open(pair.source).fields.names if name.startswith("flat.")][-3:]
        for chosen in (names, tuple(names), names[0], {"a": names[1], "b": (names[0], names[2])}):
            want, got = mmds.open(pair.source, fields=chosen), mmds.open(pair.path, fields=chosen)
            assert_same(list(got), list(want))
            assert_same(got[[5, 2, 5]], want[[5, 2, 5]])
        with pytest.raises(SchemaError, match="no field 'nothing'"):
            mmds.open(pair.path, fields=["nothing"])

    @pytest.mark.parametrize("format", ["torch", "numpy", "raw"])
    def test_the_dataset_collates_as_that_of_the_mmds_file(self, pair: Pair, format: str) -> None:
        rows = [3, 1, 4, 1, 5, 9, 2, 6]
        names = []
        for name in mmds.open(pair.source).fields.names:
            try:
                dataset = mmds.MemoryMappedDataset(pair.source, fields=[name], format=format)
                collate(dataset.__getitems__(rows))
            except Exception:  # noqa: BLE001 (what this format, or collation, cannot do is not the store's affair)
                continue
            names.append(name)
        assert len(names) > 4
        for chosen in (names[::2], tuple(names[1::2])):
            want, got = (
                mmds.MemoryMappedDataset(path, fields=chosen, format=format) for path in (pair.source, pair.path)
            )
            assert len(got) == len(want)
            batches = [collate(dataset.__getitems__(rows)) for dataset in (got, want)]
            assert_same(*map(tensors_as_arrays, batches))
            for row in (7, -1):
                assert_same(tensors_as_arrays(got[row]), tensors_as_arrays(want[row]))
            assert_same(tensors_as_arrays([*got[3:6]]), tensors_as_arrays([*want[3:6]]))

    def test_recognised_whatever_it_is_called(self, pair: Pair, tmp_path: Path) -> None:
        plain = tmp_path / "plain"
        plain.symlink_to(pair.path)
        assert self.suffix in self.store().suffixes
        assert_same(mmds.open(pair.path, format=self.format)[3], mmds.open(pair.path)[3])
        if self.recognised:
            assert_same(mmds.open(plain)[3], mmds.open(pair.path)[3])
        else:
            with pytest.raises(FormatError):
                mmds.open(plain)

    def test_threads_share_a_reader(self, pair: Pair) -> None:
        names = mmds.open(pair.source).fields.names[::4]
        source, reader = mmds.open(pair.source, fields=names), mmds.open(pair.path, fields=names)
        want = [digest(sample) for sample in source]
        rows = np.random.default_rng(0).integers(0, len(want), 80).tolist()

        def read(row: int) -> bool:
            if row % 5 == 0:
                return alike(reader[[row, 0, row]], source[[row, 0, row]])
            return digest(reader[row]) == want[row]

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(read, rows))

    def test_a_dropped_reader_frees_its_store(self, pair: Pair) -> None:
        """A reference cycle would keep the library's files open until the garbage collector comes by."""
        gc.collect()
        gc.disable()
        try:
            reader = mmds.open(pair.path)
            digest([reader[3], reader[[1, 2]]])
            store = weakref.ref(reader.store)
            del reader
            assert store() is None
        finally:
            gc.enable()

    def test_reading_changes_nothing_and_creates_nothing(self, pair: Pair) -> None:
        before = state(pair.path.parent)
        done = probe("scribble", pair.path)
        assert done.returncode == 0, done.stderr
        dataset = mmds.MemoryMappedDataset(pair.path, format="numpy", decode=False)
        digests(dataset[:5])
        mmds.open(pair.path)[[3, 4]]
        del dataset
        assert state(pair.path.parent) == before

    def workers(self, pair: Pair, method: str, number: int, step: int = 1) -> None:
        """Check that the workers of a DataLoader read what an ``.mmds`` file holds, after this process has read.

        Of the fields, every one or one in `step`.
        """
        names = mmds.open(pair.source).fields.names[::step]
        want = list(map(digest, mmds.open(pair.source, fields=names)))
        dataset = mmds.MemoryMappedDataset(pair.path, format="raw", fields=names)
        assert digests([dataset[3], *dataset.__getitems__([1, 2])]) == [want[k] for k in (3, 1, 2)]
        loader = DataLoader(
            dataset, 3, num_workers=number, multiprocessing_context=method, collate_fn=digests, timeout=TIMEOUT
        )
        assert [found for batch in loader for found in batch] == want
        assert digest(dataset[5]) == want[5]

    @pytest.mark.fault(24)
    def test_forked_workers(self, pair: Pair) -> None:
        self.workers(pair, "fork", 2, step=4)

    @pytest.mark.fault(24)
    @pytest.mark.stress
    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    @pytest.mark.filterwarnings("ignore:This DataLoader will create 16 worker processes")
    def test_sixteen_workers(self, pair: Pair, method: str) -> None:
        self.workers(pair, method, 16)

    def test_a_dataset_pickles_to_its_path(self, pair: Pair, tmp_path: Path) -> None:
        names = mmds.open(pair.source).fields.names[:3]
        dataset = mmds.MemoryMappedDataset(pair.path, format="raw", fields=names)
        _ = dataset[3]
        data = pickle.dumps(dataset)
        assert len(data) < 1024 and digest(pickle.loads(data)[4]) == digest(dataset[4])
        with pytest.raises(TypeError):
            pickle.dumps(mmds.open(pair.path))
