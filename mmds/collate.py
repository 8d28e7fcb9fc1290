"""How a plain `DataLoader` gathers a whole batch at once: a batch that knows what `default_collate` would make of it.

A DataLoader hands what `__getitems__` returns to its collate function. A `Batch` is a sequence of samples for any collate
function, and reads them one by one only if asked. PyTorch's `default_collate` looks up the type of the first sample in a
registry that is open to extension (`default_collate_fn_map`); the first sample of a batch has a type of its own there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate
from torch.utils.data._utils.collate import default_collate_fn_map

from mmds.leaves import Leaf
from mmds.schema import Schema

NdArray = np.ndarray[Any, Any]


class SampleDict(dict[str, Any]):
    """The first sample of a batch of dicts."""


class SampleTuple(tuple[Any, ...]):
    """The first sample of a batch of tuples."""

    __slots__ = ()


class SampleTensor(torch.Tensor):
    """The first sample of a batch of tensors; what is computed from it is a plain tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class Batch(Sequence[Any]):
    """The samples of a batch, read one by one by whoever iterates, or all at once by `default_collate`."""

    def __init__(self, leaves: list[Leaf], schema: Schema, rows: NdArray) -> None:
        self._leaves, self._schema, self._rows = leaves, schema, rows
        self._get = schema.assembler([leaf.get for leaf in leaves])
        self._first: list[Any] = [None] * len(leaves)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._get(row) for row in self._rows[index].tolist()]
        row = self._rows.item(index)
        if index != 0:
            return self._get(row)
        self._first = [leaf.get(row) for leaf in self._leaves]  # kept for `collate`: some may have been decoded
        sample = self._schema.assembler([_constant(value) for value in self._first])(None)
        return SampleDict(sample) if isinstance(sample, dict) else SampleTuple(sample)

    def __iter__(self) -> Iterator[Any]:
        return map(self._get, self._rows.tolist())

    def collate(self) -> Any:
        """Return what `default_collate` returns for a list of these samples."""
        return self._collate(self._schema.tree, list)

    def _collate(self, node: Any, container: type) -> Any:
        if isinstance(node, int):
            return self._leaves[node].collate(self._rows, self._first[node], container)
        if isinstance(node, tuple):
            return [self._collate(child, tuple) for child in node]  # a list, as default_collate has it
        return {key: self._collate(child, list) for key, child in node.items()}


class TensorBatch(list[torch.Tensor]):
    """The samples of a batch of tensors: a list of the rows of one tensor, which is the collated batch already."""

    def __init__(self, batch: torch.Tensor) -> None:
        super().__init__(batch.unbind(0))
        self._batch = batch
        if self:
            self[0] = self[0].as_subclass(SampleTensor)

    def collate(self) -> torch.Tensor:
        """Return the rows as one tensor."""
        return self._batch


def _constant(value: Any) -> Any:
    return lambda _: value


def _plain(sample: Any) -> Any:
    if isinstance(sample, SampleTensor):
        return sample.as_subclass(torch.Tensor)
    return dict(sample) if isinstance(sample, SampleDict) else tuple(sample)


def _collate_samples(batch: Any, *, collate_fn_map: Any = None) -> Any:
    if isinstance(batch, (Batch, TensorBatch)):
        return batch.collate()
    own = (SampleDict, SampleTuple, SampleTensor)  # somebody has put our samples into a list of their own
    return default_collate([_plain(sample) if isinstance(sample, own) else sample for sample in batch])


_collate_arrays = default_collate_fn_map[np.ndarray]


def _collate_views(batch: Any, *, collate_fn_map: Any = None) -> Any:
    """Collate arrays as PyTorch does, which warns of read-only ones although it copies them anyway."""
    writable = [array if array.flags.writeable else array.copy() for array in batch]
    return _collate_arrays(writable, collate_fn_map=collate_fn_map)


default_collate_fn_map.update(dict.fromkeys((SampleDict, SampleTuple, SampleTensor), _collate_samples))
default_collate_fn_map[np.ndarray] = _collate_views
