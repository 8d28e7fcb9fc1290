"""Values of different length in one batch: one buffer of all of them, and where each begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmds.errors import SampleError
from mmds.gather import empty

NdArray = np.ndarray[Any, Any]

FREE_PADDING, MAX_PADDING = 2**20, 256  # bytes, times the largest value: what an array is padded to at most
MAX_ARRAY = 2**63  # what numpy's sizes are below


class Jagged(Sequence[Any]):
    """B values of different length, one after the other.

    `values` has shape (total, ...) and `offsets` is int64 of shape (B + 1,): value i is ``values[offsets[i]:offsets[i+1]]``.
    Both are numpy arrays, or both are torch tensors.
    """

    def __init__(self, values: Any, offsets: Any, packed: Any = None) -> None:
        self.values, self.offsets = values, offsets
        self._packed = packed  # a tensor of the bytes of both, offsets first: what travels between processes

    def __reduce__(self) -> Any:
        if self._packed is None:
            return Jagged, (self.values, self.offsets)
        return unpack, (self._packed, len(self.offsets), self.values.dtype, tuple(self.values.shape))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def __repr__(self) -> str:
        return f"Jagged({len(self)} values, {self.values.dtype} {tuple(self.values.shape)})"

    @property
    def lengths(self) -> Any:
        """How long each value is: int64 of shape (B,)."""
        return self.offsets[1:] - self.offsets[:-1]

    def padded(self, fill: Any = 0) -> Any:
        """Return a copy of shape (B, longest, ...), filled up with `fill`."""
        lengths = np.asarray(self.lengths)
        longest = int(lengths.max(initial=0))
        inside = np.arange(longest) < lengths[:, None]
        shape = (len(self), longest, *self.values.shape[1:])
        if isinstance(self.values, np.ndarray):
            batch: Any = empty(shape, self.values.dtype)
        else:
            import torch

            batch, inside = torch.empty(shape, dtype=self.values.dtype), torch.from_numpy(inside)  # type: ignore[assignment]
        batch[...] = fill
        batch[inside] = self.values
        return batch

    def torch(self) -> Jagged:
        """Return the same with tensors over the same memory."""
        import torch

        return Jagged(torch.from_numpy(self.values), torch.from_numpy(self.offsets))

    def nested(self) -> Any:
        """Return a `torch.nested` tensor of the jagged layout over the same memory. Needs tensors, and PyTorch 2.4."""
        import torch

        return torch.nested.nested_tensor_from_jagged(self.values, self.offsets)

    # What torch's DataLoader, mmds.Loader and training loops call

    def pin_memory(self, device: Any = None) -> Jagged:
        """Return a copy in page-locked memory."""
        return Jagged(self.values.pin_memory(), self.offsets.pin_memory())

    def to(self, *arguments: Any, **options: Any) -> Jagged:
        """Return a copy on another device, as `torch.Tensor.to` makes it. A dtype would change the offsets, too."""
        return Jagged(self.values.to(*arguments, **options), self.offsets.to(*arguments, **options))


def unpack(packed: Any, count: int, dtype: Any, shape: tuple[int, ...]) -> Jagged:
    """Return the batch whose `count` offsets and whose values, of a torch dtype and shape, are in one uint8 tensor.

    Values begin at a multiple of 64 bytes. Every tensor that a worker process sends costs as much as hundreds of samples.
    """
    import torch

    start = -(-8 * count // 64) * 64
    return Jagged(packed[start:].view(dtype).view(shape), packed[: 8 * count].view(torch.int64), packed)


def join(values: Sequence[NdArray]) -> Jagged:
    """Return arrays that differ in their first dimension alone, at least one, as one batch: a copy."""
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    batch = empty((int(offsets[-1]), *values[0].shape[1:]), values[0].dtype)
    return Jagged(np.concatenate(values, out=batch), offsets)


def pad(values: Sequence[NdArray], fill: Any = 0) -> NdArray:
    """Return arrays of one rank, at least one, as one array of the largest size in every dimension, filled with `fill`.

    `SampleError` where that is next to nothing but filling: (1, 1000000) and (1000000, 1) would take a terabyte each.
    """
    largest = tuple(max(sizes) for sizes in zip(*(value.shape for value in values), strict=True))
    stored, itemsize = max(value.nbytes for value in values), values[0].itemsize
    if math.prod(largest) * itemsize > max(FREE_PADDING, stored * MAX_PADDING) or (
        math.prod(size or 1 for size in largest) * itemsize * len(values) >= MAX_ARRAY
    ):
        raise SampleError(
            f"{len(values)} arrays of at most {stored} bytes would be padded to the shape {largest} each; "
            "expected shapes that resemble each other. Read them as a list"
        )
    batch = empty((len(values), *largest), values[0].dtype)
    batch[...] = fill
    for row, value in zip(batch, values, strict=True):
        row[tuple(map(slice, value.shape))] = value
    return batch
