"""How a plain `DataLoader` gathers a whole batch at once: a batch that knows what `default_collate` would make of it.

A DataLoader hands what `__getitems__` returns to its collate function. A `Batch` is a sequence of samples for any collate
function, and reads them one by one only if asked. PyTorch's `default_collate` looks up the type of the first sample in a
registry that is open to extension (`default_collate_fn_map`); the first sample of a batch has a type of its own there.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, MutableSequence, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data._utils.collate import default_collate_fn_map

from mmds.fields import Misfit
from mmds.leaves import Leaf
from mmds.schema import Schema
from mmds.sending import collate_to_send

NdArray = np.ndarray[Any, Any]


class SampleDict(dict[str, Any]):
    """The first sample of a batch of dicts."""


class SampleTuple(tuple[Any, ...]):
    """The first sample of a batch of tuples."""

    __slots__ = ()


class SampleTensor(torch.Tensor):
    """The first sample of a batch of tensors; what is computed from it is a plain tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class SampleBytes(bytes):
    """The first sample of a ragged batch of bytes."""


class SampleArray(np.ndarray[Any, Any]):
    """The first sample of a ragged batch of arrays."""


class Batch(MutableSequence[Any]):
    """The samples of a batch: a list for whoever looks at them, one gather for `default_collate`.

    The samples are read when somebody iterates, and kept, so that a collate function may change them or their order
    before it hands them to `default_collate`, as it could with a list.
    """

    def __init__(self, leaves: list[Leaf], schema: Schema, rows: NdArray) -> None:
        self._leaves, self._schema, self._rows = leaves, schema, rows
        self._first: list[Any] = []  # the leaves of the first sample, once default_collate has looked at its type
        self._peeked: Any = None  # that sample
        self._samples: list[Any] | None = None

    def __len__(self) -> int:
        return len(self._rows) if self._samples is None else len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        if index != 0 or self._samples is not None:
            return self._list()[index]
        if self._peeked is None:
            row = self._rows.item(0)
            self._first = [leaf.get(row) for leaf in self._leaves]
            sample = self._schema.assembler([_constant(value) for value in self._first])(None)
            self._peeked = _marked(sample)
        return self._peeked

    def __setitem__(self, index: Any, value: Any) -> None:
        self._list()[index] = value

    def __delitem__(self, index: Any) -> None:
        del self._list()[index]

    def insert(self, index: int, value: Any) -> None:
        """Insert a sample, as in a list."""
        self._list().insert(index, value)

    def sort(self, *, key: Any = None, reverse: bool = False) -> None:
        """Sort the samples in place, as a list."""
        self._list().sort(key=key, reverse=reverse)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._list())

    def __reduce__(self) -> Any:
        return list, ([_plain(sample) for sample in self._list()],)  # a collate function has returned it as it is

    def _list(self) -> list[Any]:
        if self._samples is None:
            get = self._schema.assembler([leaf.get for leaf in self._leaves])
            self._samples = list(map(get, self._rows.tolist()))
            if self._peeked is not None:
                self._samples[0] = self._peeked  # it may have been changed
        return self._samples

    def collate(self) -> Any:
        """Return what `default_collate` returns for a list of these samples."""
        if self._samples is None and not self._peeked_at_is_unchanged():
            self._list()
        if self._samples is not None:
            return collate_to_send([_plain(sample) for sample in self._samples])
        return collate_rows(self._leaves, self._schema, self._rows, self._first)

    def _peeked_at_is_unchanged(self) -> bool:
        if isinstance(self._peeked, SampleTensor):
            return self._peeked._version == 0
        if isinstance(self._peeked, (SampleBytes, SampleArray)):
            return True  # both cannot be changed
        try:
            return all(map(operator.is_, self._schema.leaves(_plain(self._peeked)), self._first))
        except Misfit:  # somebody has added or removed keys
            return False


def collate_rows(leaves: Sequence[Any], schema: Schema, rows: NdArray, first: Sequence[Any] | None = None) -> Any:
    """Return what `default_collate` returns for the samples `rows`; `first` are the leaves of the first, if known."""

    def collate(node: Any, container: type) -> Any:
        if isinstance(node, int):
            return leaves[node].collate(rows, None if first is None else first[node], container)
        if isinstance(node, tuple):
            return [collate(child, tuple) for child in node]  # a list, as default_collate has it
        return {key: collate(child, list) for key, child in node.items()}

    return collate(schema.tree, list)


class TensorBatch(list[torch.Tensor]):
    """The samples of a batch of tensors: a list of the rows of one tensor, which is the collated batch already."""

    def __init__(self, batch: torch.Tensor) -> None:
        super().__init__(batch.unbind(0))
        self._batch = batch
        if self:
            self[0] = self[0].as_subclass(SampleTensor)
        self._rows = tuple(self)

    def collate(self) -> torch.Tensor:
        """Return the rows as one tensor: without a copy, unless somebody has changed the list."""
        if len(self) == len(self._rows) and all(map(operator.is_, self, self._rows)):
            return self._batch
        return torch.stack(list(map(_plain, self)))

    def __reduce__(self) -> Any:
        return list, (list(map(_plain, self)),)


class Samples(list[Any]):
    """The samples of a batch as a transform has made them: a list, which is collated as any other."""

    def __init__(self, samples: list[Any]) -> None:
        super().__init__(samples)
        if self and type(self[0]) in (dict, tuple, torch.Tensor):
            self[0] = _marked(self[0])

    def collate(self) -> Any:
        """Return what `default_collate` returns for a list of these samples."""
        return collate_to_send(list(map(_plain, self)))

    def __reduce__(self) -> Any:
        return list, (list(map(_plain, self)),)


def _constant(value: Any) -> Any:
    return lambda _: value


def _marked(sample: Any) -> Any:
    """Return `sample` as a type that `default_collate` knows to be ours."""
    if isinstance(sample, dict):
        return SampleDict(sample)
    if isinstance(sample, tuple):
        return SampleTuple(sample)
    if isinstance(sample, torch.Tensor):
        return sample.as_subclass(SampleTensor)
    if isinstance(sample, np.ndarray):
        array = sample.view(SampleArray)
        array.flags.writeable = False  # a change would not reach the batch, so it is refused
        return array
    return SampleBytes(sample)


def _plain(sample: Any) -> Any:
    if isinstance(sample, SampleTensor):
        return sample.as_subclass(torch.Tensor)
    if isinstance(sample, SampleDict):
        return dict(sample)
    if isinstance(sample, SampleArray):
        return sample.view(np.ndarray)
    if isinstance(sample, SampleBytes):
        return bytes(sample)
    return tuple(sample) if isinstance(sample, SampleTuple) else sample


def _collate_samples(batch: Any, *, collate_fn_map: Any = None) -> Any:
    if isinstance(batch, (Batch, Samples, TensorBatch)):
        return batch.collate()
    return collate_to_send(list(map(_plain, batch)))  # somebody has put our samples into a list of their own


_collate_arrays = default_collate_fn_map[np.ndarray]


def _collate_views(batch: Any, *, collate_fn_map: Any = None) -> Any:
    """Collate arrays as PyTorch does, which warns of read-only ones although it copies them anyway."""
    writable = [array if array.flags.writeable else array.copy() for array in batch]
    return _collate_arrays(writable, collate_fn_map=collate_fn_map)


default_collate_fn_map.update(
    dict.fromkeys((SampleDict, SampleTuple, SampleTensor, SampleBytes, SampleArray), _collate_samples)
)
default_collate_fn_map[np.ndarray] = _collate_views
