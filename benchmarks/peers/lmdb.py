"""LMDB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.base import NdArray, Peer
from benchmarks.suite_workloads import Samples


class Lmdb(Peer):
    name, module, packages = "lmdb", "lmdb", ("lmdb",)
    install = "pip install lmdb"
    how = "keys of 8 bytes, appended; one read transaction with buffers, cursor.getmulti for a batch"

    def write(self, folder: Path, samples: Samples) -> None:
        import lmdb

        size = 2 * samples.values.nbytes + 4096 * samples.count + 2**24
        with lmdb.open(str(folder), map_size=size, meminit=False) as environment, environment.begin(write=True) as txn:
            for i, sample in enumerate(samples.all()):
                txn.put(i.to_bytes(8, "big"), sample.tobytes(), append=True)

    def open(self, folder: Path) -> None:
        import lmdb

        self.environment = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False)
        self.transaction = self.environment.begin(buffers=True)
        self.cursor = self.transaction.cursor()

    def single(self, i: int) -> Any:
        return np.array(self.array(self.transaction.get(i.to_bytes(8, "big"))))

    def batch(self, indices: NdArray) -> Any:
        found = self.cursor.getmulti([i.to_bytes(8, "big") for i in indices.tolist()])
        arrays = [self.array(value) for _, value in found]
        return np.stack(arrays) if self.workload.shape else [array.copy() for array in arrays]

    def array(self, value: Any) -> NdArray:
        return np.frombuffer(value, self.workload.dtype).reshape(self.workload.shape or -1)
