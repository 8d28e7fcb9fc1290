"""What a training process sees of each field: one value for a sample, one collated value for a batch.

A `Leaf` knows how to turn its field's stored values into what `format=` asks for (`get`), and how to turn a batch of
them into what `torch.utils.data.default_collate` would make of the single values (`collate`). Where values have a fixed
shape, `collate` is one gather into the batch tensor, and no object per sample exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from mmds import decode
from mmds.dtypes import LOGICAL
from mmds.errors import FormatError, printable
from mmds.fields import Array, Image, Kind
from mmds.gather import empty
from mmds.jagged import Jagged, unpack
from mmds.ragged import Ragged, gather_ragged, is_ragged
from mmds.reader import Reader
from mmds.sending import collate_to_send, tensor_to_send, to_send
from mmds.store import ArrayItems, Items

NdArray = np.ndarray[Any, Any]

FORMATS = ("torch", "numpy", "pil", "raw")


class Leaf:
    """One field of a dataset: `get(row)` gives a sample's value, `collate(rows)` a batch's."""

    def __init__(
        self, reader: Reader, position: int, format: str, decoded: bool, writable: bool, ragged: Ragged
    ) -> None:
        field = reader.fields[position]
        self.kind: Kind = field.kind
        self._name = reader.stored_names[position]
        self._path = reader.store.path
        self.items: Items = reader.items[position]
        logical = format in ("torch", "pil") and getattr(self.kind, "dtype", None) in LOGICAL
        self._view_as: torch.dtype | None = getattr(torch, self.kind.dtype) if logical else None
        self.get = self._getter(format, decoded, writable)
        decodes = decoded and format != "raw" and decode.decoder(self.kind) is not None
        self._ragged: Ragged = ragged if is_ragged(self.kind, ragged) and not decodes else "list"

    @property
    def gathers(self) -> bool:
        """Whether a batch is one array: fixed shape, never null, and a number type that collation keeps."""
        return isinstance(self.items, ArrayItems) and (
            isinstance(self.kind, Array) or self.items.dtype.kind in "bif" or self.items.dtype.itemsize < 8
        )

    @property
    def is_ragged(self) -> bool:
        """Whether a batch of values of different length is made into one array."""
        return self._ragged != "list"

    def error(self, row: int, reason: str) -> FormatError:
        """Return the error for the value of sample `row`."""
        return FormatError(f"{printable(self._path)}: sample {row}, field '{printable(self._name)}': {reason}")

    def collate(self, rows: NdArray, first: Any = None, container: type = list) -> Any:
        """Return the values of samples `rows` as default collation would.

        `first` is the first one, if known already. Default collation returns strings in the kind of sequence that it
        has made of them, which is `container`.
        """
        if self.gathers:
            assert isinstance(self.items, ArrayItems)
            return self._gather(self.items, rows)
        if self.is_ragged:
            return self._gather_ragged(rows)
        values = [self.get(row) for row in rows.tolist()[first is not None :]]
        try:
            return collate_to_send(container(values if first is None else [first, *values]))
        except (TypeError, RuntimeError) as error:
            error.add_note(
                f"{printable(self._path)}: field '{printable(self._name)}': give the DataLoader a collate_fn for it"
            )
            raise

    def _gather(self, items: ArrayItems, rows: NdArray) -> torch.Tensor:
        if not isinstance(self.kind, Array):  # default collation of Python numbers
            wide = {"b": np.bool_, "i": np.int64, "u": np.int64, "f": np.float64}[items.dtype.kind]
            return to_send(torch.from_numpy(items.gather(rows).astype(wide, copy=False)))
        if get_worker_info() is None:
            batch = torch.from_numpy(items.gather(rows))
        else:  # straight into the memory in which the batch travels to the main process
            batch = tensor_to_send((len(rows), *items.shape), torch.from_numpy(np.empty(0, items.dtype)).dtype)
            items.gather(rows, out=batch.numpy())
        return to_send(batch if self._view_as is None else batch.view(self._view_as))

    def _gather_ragged(self, rows: NdArray) -> Jagged | torch.Tensor:
        shared: list[torch.Tensor] = []
        start = -(-8 * (len(rows) + 1) // 64) * 64  # of the values, behind the offsets: see `unpack`

        def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NdArray:
            shared.append(tensor_to_send((start + math.prod(shape) * dtype.itemsize,), torch.uint8))
            memory: NdArray = shared[0].numpy()[start:]
            return memory.view(dtype).reshape(shape)

        in_worker = get_worker_info() is not None
        batch = gather_ragged(self.items, self.kind, rows, self._ragged, allocate if in_worker else empty)
        values = torch.from_numpy(batch.values if isinstance(batch, Jagged) else batch)
        if self._view_as is not None:
            values = values.view(self._view_as)
        if not isinstance(batch, Jagged):
            return to_send(values)
        if not shared:
            return Jagged(to_send(values), to_send(torch.from_numpy(batch.offsets)))
        shared[0].numpy()[: batch.offsets.nbytes] = batch.offsets.view(np.uint8)
        return unpack(to_send(shared[0]), len(batch.offsets), values.dtype, tuple(values.shape))

    def _getter(self, format: str, decoded: bool, writable: bool) -> Callable[[int], Any]:
        get = self.items.get
        decoder = decode.decoder(self.kind) if decoded and format != "raw" else None
        if decoder is not None:
            finish = _finisher(self.kind, format)
            if format == "pil" and isinstance(self.kind, Image):
                mode = self.kind.mode
                decoder = lambda data: decode.pil(data, mode)  # noqa: E731
            return self._decoding(get, decoder, finish)
        if not isinstance(self.kind, Array):
            return get
        if format in ("torch", "pil"):
            view_as = self._view_as
            if view_as is None:
                return self._converting(get, lambda array: torch.from_numpy(array.copy()))
            return self._converting(get, lambda array: torch.from_numpy(array.copy()).view(view_as))
        return self._converting(get, np.ndarray.copy) if writable else get

    def _converting(self, get: Callable[[int], Any], convert: Callable[[NdArray], Any]) -> Callable[[int], Any]:
        if not self.kind.nullable:
            return lambda row: convert(get(row))
        return lambda row: None if (value := get(row)) is None else convert(value)

    def _decoding(self, get: Callable[[int], bytes], decoder: Any, finish: Any) -> Callable[[int], Any]:
        def decoding(row: int) -> Any:
            data = get(row)
            if data is None:
                return None
            try:
                return finish(decoder(data))
            except (OSError, ValueError, RuntimeError, SyntaxError) as error:  # what the decoders raise on bad files
                reason = f"cannot be decoded: {printable(error)}; use decode=False for its bytes"
                raise self.error(row, reason) from error

        return decoding


class MadeLeaf:
    """One field of encoded files, of which `make` makes a batch at once."""

    def __init__(self, leaf: Leaf, make: Callable[[list[bytes]], Any]) -> None:
        self._leaf, self._make = leaf, make

    def collate(self, rows: NdArray, first: Any = None, container: type = list) -> Any:
        """Return what `make` makes of the files of samples `rows`; `FormatError` where one is null."""
        files = self._leaf.items.gather(rows)
        if None in files:
            raise self._leaf.error(rows.item(files.index(None)), "null, so that no batch can be made of it")
        return self._make(files)


def _finisher(kind: Kind, format: str) -> Callable[[NdArray], Any]:
    """Return the function from a decoder's channels-last array to what `format` asks for."""
    if format == "numpy" or (format == "pil" and isinstance(kind, Image)):
        return lambda array: array
    if kind.name == "audio":
        return torch.from_numpy
    return lambda array: torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, -3)))
