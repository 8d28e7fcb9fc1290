"""`MemoryMappedDataset`: a map-style torch Dataset that all DataLoader workers read from the same pages."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mmds.errors import ChangedError, SchemaError, missing, printable

try:
    from torch.utils.data import Dataset, default_collate
except ImportError:
    raise missing("torch", "torch", "MemoryMappedDataset") from None

from mmds.cachedshards import CacheOptions
from mmds.collate import Batch, Samples, TensorBatch, collate_rows
from mmds.fields import Array, Label
from mmds.leaves import FORMATS, Leaf, MadeLeaf
from mmds.lookahead import SAMPLES, looking_ahead
from mmds.openfile import reading_of
from mmds.opening import Source, located
from mmds.opening import open as open_reader
from mmds.ragged import Ragged, check_ragged
from mmds.reader import Reader, is_many
from mmds.schema import Schema
from mmds.shardcache import cache_path

NdArray = np.ndarray[Any, Any]
T = TypeVar("T")


class _Handle:
    """What one process holds of an open dataset."""

    def __init__(self, dataset: MemoryMappedDataset) -> None:
        self.pid = os.getpid()
        self.reader: Reader = open_reader(dataset._source, fields=dataset._fields, **dataset._reading)
        self.rows = range(len(self.reader)) if dataset._rows is None else dataset._rows
        self.writable = dataset._transforms
        self.leaves = [
            Leaf(self.reader, position, dataset.format, dataset.decode, self.writable, dataset.ragged)
            for position in range(len(self.reader.fields))
        ]
        self.get = self.reader.fields.assembler([leaf.get for leaf in self.leaves])


class MemoryMappedDataset(Dataset[Any]):
    """An ``.mmds`` file as a torch Dataset. It holds a path; each process maps the file when it first reads.

    Args:
        path: the file, folder of shards, or store; a list of ``.mmds`` files, or a pattern such as ``train-*.mmds``, are
            read as one.
        fields: which fields, and in which structure: a list of names keeps the structure that was written, a tuple of
            names gives tuples such as ``("image", "label")``, a name alone gives single values.
        transform, target_transform: functions of a sample. As in torchvision, a sample that is a pair is taken for
            (input, target), and `transform` gets the input; any other sample goes to `transform` whole.
            `target_transform` gets the target of a pair. They may change what they get.
        decode: whether images, audio and video are decoded. Without, they are their encoded bytes.
        format: what arrays and pictures are.
            "torch": tensors, images uint8 (channels, height, width);
            "numpy": arrays, read-only views of the page cache unless there is a transform, images uint8
            (height, width, channels), bfloat16 and 8-bit floats as their bits;
            "pil": like "torch", but images are PIL images;
            "raw": like "numpy" with ``decode=False``.
        ragged: what default collation makes of arrays that differ in their first dimension, and of bytes and files that
            are not decoded: "list" (arrays of different shapes cannot be collated then), "jagged": a `Jagged` of all
            values in one buffer, "padded": a tensor (B, longest, ...) filled up with zeros.

        in_memory: whether each process reads the whole file into memory of its own instead of mapping it. For hunting leaks:
            what a process takes is then all its own, and nothing else changes. Only ``.mmds`` files.
        verify: "read" compares every block of 1 MiB to its hash when a process first reads from it; damage, a failing disk and
            a file that is cut short are errors then, never a signal. docs/reliability.md has what it costs. Only ``.mmds``
            files.
        cache_dir: a folder on a local disk, made if it is not there. Files of a dataset at a URL are downloaded into it when
            they are first needed, and mapped; all processes of the computer share it. Without, a URL is read by ranges.
        cache_size: how many bytes it may have, or text such as "200GB": what was opened longest ago is removed, but nothing
            that is mapped. docs/object-storage.md says which order suits a cache that is smaller than the dataset.

    The transforms may be assigned later; `decode`, `format` and `ragged` may not.

    Scalars and labels are Python numbers. Default collation makes of a batch what it would make of its samples, but with
    one gather per field of fixed shape. Raises `ChangedError` when a process reopens a file that was replaced.

    Without ``verify="read"``, the file must not be truncated while it is in use: the kernel answers that with SIGBUS.
    Replacing it by rename, as mmds does, is safe.
    """

    def __init__(
        self,
        path: Source,
        *,
        fields: Any = None,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        decode: bool = True,
        format: str = "torch",
        ragged: Ragged = "list",
        in_memory: bool = False,
        verify: str = "off",
        cache_dir: str | os.PathLike[str] | None = None,
        cache_size: int | str | None = None,
    ) -> None:
        check_ragged(ragged)
        reading_of(in_memory, verify)
        if format not in FORMATS:
            raise ValueError(f"format={format!r}: expected one of {', '.join(FORMATS)}")
        CacheOptions(cache_dir, cache_size).check(path)
        self._source = located(path)
        self.transform = transform
        self.target_transform = target_transform
        self._decode = decode
        self._format = format
        self._ragged = ragged
        self._reading: dict[str, Any] = {"in_memory": in_memory, "verify": verify}
        if cache_dir is not None:  # absolute: a worker may be in another folder
            self._reading |= {"cache_dir": cache_path(cache_dir), "cache_size": cache_size}
        self._fields = fields
        self._rows: range | None = None  # of a slice
        self._content_id: str | None = None
        self._handle: _Handle | None = None

    # Reading

    def __len__(self) -> int:
        return len(self._open().rows)

    def __getitem__(self, index: Any) -> Any:
        """Return a sample, a dataset of a slice, or a collated batch for a list or array of indices."""
        handle = self._handle
        if handle is None or handle.pid != os.getpid():
            handle = self._open()
        if type(index) is not int and (isinstance(index, slice) or is_many(index)):
            return self._getmany(index)
        try:
            row = handle.rows[index]
        except IndexError:
            raise handle.reader.out_of_range(index, handle.rows) from None
        sample = handle.get(row)
        if self.transform is None and self.target_transform is None:
            return sample
        if not handle.writable:  # a transform was set after the first read
            sample = self._open().get(row)
        return self._transformed(sample)

    def get(self, key: str | bytes) -> Any:
        """Return the sample with this key, the first one if there are several; `KeyError` if there is none.

        The dataset needs one field ``Text(key=True)`` or ``Bytes(key=True)`` (`SchemaError`), whether it is read or not.
        """
        handle = self._open()
        return self[handle.rows.index(handle.reader.find_row(key, handle.rows))]

    def __getitems__(self, indices: Sequence[int] | NdArray) -> Sequence[Any]:
        """Return the samples of a batch, as a sequence that `default_collate` turns into a batch in one gather."""
        handle = self._open()
        if type(self).__getitem__ is not MemoryMappedDataset.__getitem__:  # a subclass has its own idea of a sample
            rows = handle.reader.resolve(indices, range(len(handle.rows)))
            return [self[row] for row in rows.tolist()]
        rows = handle.reader.resolve(indices, handle.rows)
        handle.reader.expect(rows)
        if self._transforms:
            return Samples([self._transformed_row(handle, row) for row in rows.tolist()])
        if not isinstance(handle.reader.fields.tree, int) or handle.leaves[0].is_ragged:
            return Batch(handle.leaves, handle.reader.fields, rows)
        if handle.leaves[0].gathers and isinstance(handle.leaves[0].kind, Array) and self.format in ("torch", "pil"):
            return TensorBatch(handle.leaves[0].collate(rows))
        return [handle.get(row) for row in rows.tolist()]

    @property
    def is_plain(self) -> bool:
        """Whether samples are what the file holds: no transform, and no subclass that reads them in its own way."""
        own = MemoryMappedDataset
        return not self._transforms and (type(self).__getitem__, type(self).__getitems__) == (
            own.__getitem__,
            own.__getitems__,
        )

    def collate(
        self, indices: Sequence[int] | NdArray, images: Mapping[str, Callable[[list[bytes]], Any]] | None = None
    ) -> Any:
        """Return what `default_collate` makes of the samples of a plain dataset, without a look at any of them.

        `images` are functions that make the batch of a field from its encoded files.
        """
        handle = self._open()
        fields = handle.reader.fields
        leaves: list[Leaf | MadeLeaf] = list(handle.leaves)
        for name, make in (images or {}).items():
            leaves[fields.index(name)] = MadeLeaf(handle.leaves[fields.index(name)], make)
        return collate_rows(leaves, fields, handle.reader.resolve(indices, handle.rows))

    def expect(self, indices: Sequence[int] | NdArray) -> None:
        """Ask the kernel for all samples of a batch that is about to be read, if the disk has been read from recently."""
        handle = self._open()
        handle.reader.expect(handle.reader.resolve(indices, handle.rows))

    def release(self, indices: Sequence[int] | NdArray) -> None:
        """Take the pages of samples that have been read out of this process; they stay in the page cache."""
        handle = self._open()
        handle.reader.release(handle.reader.resolve(indices, handle.rows))

    def looking_ahead(
        self, batches: Iterable[T], indices_of: Callable[[T], Any], samples: int = SAMPLES, in_flight: int | None = None
    ) -> Iterator[T]:
        """Yield `batches`; if there is a cache, the shards that the next `samples` samples need are downloaded meanwhile.

        The last `in_flight` batches that were yielded are taken for being read. None: it is not known how many.
        """
        handle = self._open()

        def rows_of(batch: T) -> NdArray:
            return handle.reader.resolve(indices_of(batch), handle.rows)

        return looking_ahead(batches, rows_of, handle.reader.store, samples, in_flight)

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    # What is in it

    @property
    def path(self) -> str | Path | list[Path]:
        """The absolute path or paths that were given, or the URL."""
        return self._source

    @property
    def decode(self) -> bool:
        """Whether images, audio and video are decoded."""
        return self._decode

    @decode.setter
    def decode(self, value: bool) -> None:
        raise self._constant("decode", value)

    @property
    def format(self) -> str:
        """What arrays and pictures are."""
        return self._format

    @format.setter
    def format(self, value: str) -> None:
        raise self._constant("format", value)

    @property
    def ragged(self) -> Ragged:
        """What default collation makes of values that differ in length."""
        return self._ragged

    @ragged.setter
    def ragged(self, value: Ragged) -> None:
        raise self._constant("ragged", value)

    @property
    def reader(self) -> Reader:
        """This process's `Reader` of the file: columns, metadata, batches as numpy arrays. Not cut by slicing."""
        return self._open().reader

    @property
    def fields(self) -> Schema:
        """The fields of a sample."""
        return self._open().reader.fields

    @property
    def classes(self) -> list[str]:
        """The class names of the first label field."""
        return list(self._label()[1].names)

    @property
    def class_to_idx(self) -> dict[str, int]:
        """The class index of each class name."""
        return {name: index for index, name in enumerate(self._label()[1].names)}

    @property
    def targets(self) -> NdArray:
        """The class index of every sample: int64 of shape (len(self),), a read-only view of the page cache.

        If labels can be null, it is a copy with -1 for null.
        """
        name, kind = self._label()
        part = self.reader.rows(self._open().rows)
        column: NdArray = part.column(name)
        return np.where(part.valid(name), column, -1) if kind.nullable else column

    def __repr__(self) -> str:
        return f"MemoryMappedDataset('{printable(self.path)}', format={self.format!r}, fields={self._fields!r})"

    # Inside

    def _constant(self, name: str, value: object) -> AttributeError:
        return AttributeError(
            f"{name} cannot be changed, since what is open already would not follow; "
            f"make a new MemoryMappedDataset(..., {name}={printable(repr(value))})"
        )

    @property
    def _transforms(self) -> bool:
        """Whether samples go to a transform, which must get its own copy of them."""
        return self.transform is not None or self.target_transform is not None

    def _open(self) -> _Handle:
        handle = self._handle
        if handle is None or handle.pid != os.getpid() or (self._transforms and not handle.writable):
            handle = _Handle(self)
            found = handle.reader.content_id
            if self._content_id not in (None, found):
                raise ChangedError(
                    f"{printable(self.path)} was replaced since this dataset was opened: content id {found}, "
                    f"expected {self._content_id}. Make a new MemoryMappedDataset to read the new file"
                )
            self._content_id, self._handle = found, handle
        return handle

    def _getmany(self, index: Any) -> Any:
        if isinstance(index, slice):
            part = self.__class__.__new__(self.__class__)
            part.__dict__.update(self.__dict__)
            part._rows, part._handle = self._open().rows[index], None
            return part
        return default_collate(self.__getitems__(index))  # type: ignore[arg-type]

    def _transformed(self, sample: Any) -> Any:
        pair = isinstance(sample, tuple) and len(sample) == 2
        if not pair:
            if self.target_transform is not None:
                raise SchemaError('target_transform needs pairs; select them, e.g. fields=("image", "label")')
            return sample if self.transform is None else self.transform(sample)
        source, target = sample
        return (
            source if self.transform is None else self.transform(source),
            target if self.target_transform is None else self.target_transform(target),
        )

    def _transformed_row(self, handle: _Handle, row: int) -> Any:
        try:
            return self._transformed(handle.get(row))
        except Exception as error:
            error.add_note(f"{printable(handle.reader.store.path)}: sample {row}")
            raise

    def _label(self) -> tuple[str, Label]:
        for field in self.fields:
            if isinstance(field.kind, Label):
                return field.name, field.kind
        raise AttributeError(
            f"{printable(self.path)} has no label field; its fields are {printable(', '.join(self.fields.names))}"
        )

    def __getstate__(self) -> dict[str, Any]:
        self._open()  # so that whoever unpickles it can tell whether the file is still the same
        return {**self.__dict__, "_handle": None}
