"""Reading through mmds, and with each library's own best loop: what somebody who knows the library would write.

`single(i)` and `batch(indices)` copy all bytes of the wanted samples: a fixed image into a buffer that is used again (in
batches too, where the library can do that; mmds has buffers of its own), files and tokens into new bytes and arrays. All
read what the mmds writer for that store has written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.store_workloads import BATCH, SHAPE

NdArray = np.ndarray[Any, Any]


class Loops(NamedTuple):
    """How one contender reads the samples of one workload."""

    single: Callable[[int], Any]
    batch: Callable[[NdArray], Any]


def _one() -> NdArray:
    """Return memory for one image, at the same place in a page for all: by chance, some would copy a third slower."""
    memory, size = np.empty(2**16, np.uint8), int(np.prod(SHAPE))
    start = -memory.ctypes.data % 4096 + 64
    return memory[start : start + size].reshape(SHAPE)


def through_mmds(name: str, path: Path) -> Loops:
    """`mmds.open`: `reader[i]`, `reader[indices]`."""
    import mmds

    reader = mmds.open(path)
    if name == "images":
        one = _one()

        def single(i: int) -> Any:
            sample = reader[i]
            np.copyto(one, sample["image"])
            return one, sample["label"]

        return Loops(single, lambda indices: reader[indices])
    if name == "tokens":
        return Loops(lambda i: reader[i]["tokens"].copy(), lambda indices: np.concatenate(reader[indices]["tokens"]))
    return Loops(lambda i: reader[i], lambda indices: reader[indices])


def _sliced(name: str, arrays: Any, selection: Callable[[Any, NdArray], NdArray]) -> Loops:
    """Arrays with a sample axis: a slice for one sample; `selection` of sorted rows for a batch of fixed ones."""
    if name == "images":
        images, labels = arrays["image"], arrays["label"]

        def batch(indices: NdArray) -> Any:
            rows, inverse = np.unique(indices, return_inverse=True)
            return selection(images, rows)[inverse], selection(labels, rows)[inverse]

        return Loops(lambda i: (images[i], labels[i]), batch)
    field = "tokens" if name == "tokens" else "image"
    values, offsets = arrays[f"{field}/values"], _whole(arrays[f"{field}/offsets"])  # offsets stay in memory

    def item(i: int) -> Any:
        return values[int(offsets[i]) : int(offsets[i + 1])]

    if name == "tokens":
        return Loops(item, lambda indices: np.concatenate([item(i) for i in indices]))
    labels = arrays["label"]
    all_labels = _whole(labels)
    return Loops(
        lambda i: (item(i).tobytes(), labels[i]),
        lambda indices: ([item(i).tobytes() for i in indices], all_labels[indices]),
    )


def _whole(array: Any) -> NdArray:
    """Return all of an array; TileDB's have endless domains, of which only a part holds anything."""
    if hasattr(array, "nonempty_domain"):
        return np.asarray(array[0 : int(array.nonempty_domain()[0][1]) + 1])
    return np.asarray(array[:])


def hdf5(name: str, path: Path) -> Loops:
    """h5py: `dataset[i]`, `dataset[sorted rows]`."""
    import h5py

    return _sliced(name, h5py.File(path, "r"), lambda array, rows: array[rows])


def zarr(name: str, path: Path) -> Loops:
    """zarr-python: `array[i]`, `array.oindex[sorted rows]`."""
    import zarr

    return _sliced(name, zarr.open_group(path, mode="r"), lambda array, rows: array.oindex[rows])


def npy(name: str, path: Path) -> Loops:
    """numpy: `np.load(mmap_mode="r")`, and `np.take` of the rows."""
    if name != "images":
        raise NotImplementedError("no .npy file holds values of different sizes")
    images, labels = (np.load(path / f"{field}.npy", mmap_mode="r") for field in ("image", "label"))
    one, many = _one(), np.empty((BATCH, *SHAPE), np.uint8)

    def single(i: int) -> Any:
        np.copyto(one, images[i])
        return one, labels[i]

    def batch(indices: NdArray) -> Any:
        return np.take(images, indices, axis=0, out=many[: len(indices)], mode="clip"), labels[indices]

    return Loops(single, batch)


def lmdb(name: str, path: Path) -> Loops:
    """py-lmdb: one transaction, `get` of a buffer, msgpack for the record."""
    import lmdb
    import msgspec

    environment = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
    transaction = environment.begin(buffers=True)
    record_type: Any = tuple[memoryview] if name == "tokens" else tuple[memoryview, int]
    decode = msgspec.msgpack.Decoder(record_type).decode
    one, many = _one(), np.empty((BATCH, *SHAPE), np.uint8)

    def record(i: int) -> Any:
        value: Any = transaction.get(int(i).to_bytes(8, "big"))
        return decode(value)

    if name == "images":

        def single(i: int) -> Any:
            data, label = record(i)
            np.copyto(one, np.frombuffer(data, np.uint8).reshape(SHAPE))
            return one, label

        def batch(indices: NdArray) -> Any:
            labels = np.empty(len(indices), np.int64)
            for k, i in enumerate(indices):
                data, labels[k] = record(i)
                many[k] = np.frombuffer(data, np.uint8).reshape(SHAPE)
            return many, labels

        return Loops(single, batch)
    if name == "tokens":

        def tokens(i: int) -> NdArray:
            return np.frombuffer(record(i)[0], np.uint16)

        return Loops(lambda i: tokens(i).copy(), lambda indices: np.concatenate([tokens(i) for i in indices]))

    def file(i: int) -> Any:
        data, label = record(i)
        return bytes(data), label

    return Loops(file, lambda indices: [file(i) for i in indices])


def tiledb(name: str, path: Path) -> Loops:
    """TileDB-Py: `array[i]`, `array.multi_index[rows]`."""
    import tiledb

    class Arrays(dict[str, Any]):
        def __missing__(self, field: str) -> Any:
            return tiledb.open(str(path / field))

    def multi(array: Any, rows: NdArray) -> NdArray:
        found = array.multi_index[[int(row) for row in rows]]
        return np.asarray(next(value for key, value in found.items() if len(value) == len(rows)))

    return _sliced(name, Arrays(), multi)


def arrow(name: str, path: Path) -> Loops:
    """pyarrow: a mapped table; values of one sample as buffers, `take` for a batch."""
    import pyarrow as pa

    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    column = table["tokens" if name == "tokens" else "image"]
    if name == "images":
        labels = table["label"]
        flat = [_flat(chunk) for chunk in column.chunks]
        bounds = np.cumsum([0, *map(len, flat)])
        one, many = _one(), np.empty((BATCH, *SHAPE), np.uint8)

        def single(i: int) -> Any:
            chunk = int(np.searchsorted(bounds, i, "right")) - 1
            np.copyto(one, flat[chunk][i - bounds[chunk]])
            return one, labels[i].as_py()

        def batch(indices: NdArray) -> Any:
            chunks = np.searchsorted(bounds, indices, "right") - 1
            for k, (i, chunk) in enumerate(zip(indices, chunks, strict=True)):
                many[k] = flat[chunk][i - bounds[chunk]]
            return many, labels.take(indices).to_numpy()

        return Loops(single, batch)
    if name == "tokens":
        return Loops(
            lambda i: column[i].values.to_numpy().copy(),
            lambda indices: np.concatenate([column[i].values.to_numpy() for i in indices.tolist()]),
        )
    labels = table["label"]
    return Loops(
        lambda i: (column[i].as_py(), labels[i].as_py()),
        lambda indices: ([column[i].as_py() for i in indices.tolist()], labels.take(indices).to_numpy()),
    )


def _flat(array: Any) -> NdArray:
    """Return nested fixed-size lists as one array (rows, *SHAPE) over the mapped file."""
    rows = len(array)
    while hasattr(array, "flatten"):
        flatter = array.flatten()
        if flatter.type == array.type:
            break
        array = flatter
    return np.asarray(array.to_numpy(zero_copy_only=True).reshape(rows, *SHAPE))


WAYS = "mmds", "native"
NATIVE: dict[str, Callable[[str, Path], Loops]] = {
    "hdf5": hdf5,
    "lmdb": lmdb,
    "zarr": zarr,
    "tiledb": tiledb,
    "arrow": arrow,
    "npy": npy,
}
