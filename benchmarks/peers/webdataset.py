"""WebDataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.base import Peer
from benchmarks.suite_workloads import Samples

SHARD, SHUFFLED = 2**24, 1000  # bytes of a tar file; samples in the shuffle buffer


class WebDataset(Peer):
    name, module, packages = "webdataset", "webdataset", ("webdataset",)
    install = "pip install webdataset"
    how = "ShardWriter of 16 MB; WebDataset(shardshuffle).shuffle(1000).batched in a WebLoader with 2 processes"
    lacks = dict.fromkeys(("single", "batch", "cold", "epoch", "pickle"), "webdataset reads in sequence only")

    def write(self, folder: Path, samples: Samples) -> None:
        import webdataset

        pattern = str(folder / "%05d.tar")
        with webdataset.ShardWriter(pattern, maxcount=10**9, maxsize=SHARD, verbose=0) as writer:
            for i, sample in enumerate(samples.all()):
                writer.write({"__key__": f"{i:08}", "x": sample.tobytes()})

    def open(self, folder: Path) -> None:
        self.shards = sorted(map(str, folder.glob("*.tar")))

    def loader(self, batch_size: int, threads: int, seed: int) -> Any:
        import webdataset

        data = (
            webdataset.WebDataset(self.shards, shardshuffle=100, seed=seed, empty_check=False)
            .shuffle(SHUFFLED)
            .map(self.sample)
            .batched(batch_size, collation_fn=self.collated)
        )
        return webdataset.WebLoader(data, batch_size=None, num_workers=threads, persistent_workers=True)

    def sample(self, record: dict[str, Any]) -> Any:
        value = np.frombuffer(record["x"], self.workload.dtype)
        return self.loaded(record["x"]) if self.workload.encoded else value.reshape(self.workload.shape or -1)
