"""ArrayRecord, with Grain as its loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.base import NdArray, Peer
from benchmarks.suite_workloads import Samples


class ArrayRecord(Peer):
    name, module, packages = "array_record", "array_record", ("array_record", "grain")
    install = "pip install array_record grain"
    how = "group_size:1; ArrayRecordDataSource[i], __getitems__; grain.MapDataset with 2 reading threads as its loader"

    @classmethod
    def prepare(cls) -> None:
        import array_record.python.array_record_data_source  # noqa: F401
        import grain  # noqa: F401

    def write(self, folder: Path, samples: Samples) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(folder / "all.array_record"), "group_size:1")
        for sample in samples.all():
            writer.write(sample.tobytes())
        writer.close()

    def open(self, folder: Path) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.source = ArrayRecordDataSource(str(folder / "all.array_record"))

    def single(self, i: int) -> Any:
        return self.array(self.source[i])

    def batch(self, indices: NdArray) -> Any:
        return [self.array(record) for record in self.source.__getitems__(indices.tolist())]

    def loader(self, batch_size: int, threads: int, seed: int) -> Any:
        import grain

        data = grain.MapDataset.source(self.source).shuffle(seed).map(self.sample)
        return data.batch(batch_size, batch_fn=self.collated).to_iter_dataset(grain.ReadOptions(num_threads=threads))

    def sample(self, record: bytes) -> Any:
        return self.loaded(record if self.workload.encoded else self.array(record))

    def array(self, record: bytes) -> NdArray:
        return np.frombuffer(record, self.workload.dtype).reshape(self.workload.shape or -1)
