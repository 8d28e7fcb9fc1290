"""tensordict: memory-mapped tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.arrays import pieces
from benchmarks.peers.base import NdArray, Peer
from benchmarks.suite_workloads import Samples


class TensorDicts(Peer):
    name, module, packages = "tensordict", "tensordict", ("tensordict",)
    install = "pip install tensordict"
    how = "MemoryMappedTensor.from_tensor and from_filename, tensor[i], tensor[indices]; offsets in a second one"
    lazy = False

    def write(self, folder: Path, samples: Samples) -> None:
        import torch
        from tensordict import MemoryMappedTensor

        for name, array in (("x", samples.values), ("offsets", samples.offsets)):
            if array is not None:
                MemoryMappedTensor.from_tensor(torch.from_numpy(array), filename=folder / name)
                (folder / f"{name}.shape").write_text(",".join(map(str, array.shape)))

    def open(self, folder: Path) -> None:
        import torch

        self.x = self.mapped(folder / "x", getattr(torch, self.workload.dtype))
        self.offsets = None if self.workload.shape else self.mapped(folder / "offsets", torch.int64).numpy()

    def mapped(self, path: Path, dtype: Any) -> Any:
        import torch
        from tensordict import MemoryMappedTensor

        shape = torch.Size(map(int, path.with_suffix(".shape").read_text().split(",")))
        return MemoryMappedTensor.from_filename(path, dtype, shape)

    def single(self, i: int) -> Any:
        if self.offsets is None:
            return self.x[i].clone()
        return self.x[int(self.offsets[i]) : int(self.offsets[i + 1])].clone()

    def batch(self, indices: NdArray) -> Any:
        import torch

        if self.offsets is None:
            return self.x[torch.from_numpy(np.asarray(indices))]
        return pieces(self.x.numpy(), self.offsets, indices)
