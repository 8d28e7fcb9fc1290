"""Pickles: each function writes a dataset in which one lies where some library has once unpickled it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.converters.npz import write_archive
from mmds.errors import MmdsError
from tests.conftest import Cases


class Evil:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def _object_array(path: Path, evil: bytes) -> None:
    head = str({"descr": "|O", "fortran_order": False, "shape": (1,)}).encode() + b"\n"
    path.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + evil)


def _object_arrays(path: Path, evil: bytes) -> None:
    path.mkdir()
    _object_array(path / "x.npy", evil)


def _archive(path: Path, evil: bytes) -> None:
    parts = path.with_name("parts")
    _object_arrays(parts, evil)
    write_archive(parts, path)


def _compressed_archive(path: Path, evil: bytes) -> None:
    _object_array(path.with_name("x.npy"), evil)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path.with_name("x.npy"), "x.npy")


def _class_folder(path: Path, evil: bytes) -> None:
    (path / "class").mkdir(parents=True)
    _object_array(path / "class" / "x.npy", evil)
    np.save(path / "class" / "y.npy", np.zeros(3))


def _hdf5(path: Path, evil: bytes) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("opaque", data=np.array([np.void(evil)]))
        file.create_dataset("vlen", (1,), h5py.vlen_dtype(np.uint8))[0] = np.frombuffer(evil, np.uint8)
        file.attrs["pickle"] = np.void(evil)


def _zarr(path: Path, evil: bytes) -> None:
    import zarr

    zarr.create_array(str(path), data=np.zeros(1), zarr_format=2, compressors=None)
    said = json.loads((path / ".zarray").read_text())
    said |= {"dtype": "|O", "fill_value": None, "filters": [{"id": "pickle", "protocol": 5}]}
    (path / ".zarray").write_text(json.dumps(said))
    (path / "0").write_bytes(evil)


def _lmdb(path: Path, evil: bytes) -> None:
    import lmdb

    with lmdb.open(str(path), lock=False) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"key", evil)


def _parquet(path: Path, evil: bytes) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # The extension type whose metadata pyarrow before 14 unpickled when it saw the schema.
    extension = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": evil}
    columns = pa.schema([pa.field("x", pa.binary(), metadata=extension)])
    pq.write_table(pa.table({"x": [evil]}, schema=columns), str(path))


def _tar(path: Path, evil: bytes) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("0.pyd", "0.pkl", "0.pth", "0.pt", "0.pickle", "0.x.pyd"):
            info = tarfile.TarInfo(name)
            info.size = len(evil)
            archive.addfile(info, io.BytesIO(evil))


def _tfrecord(path: Path, evil: bytes) -> None:
    from tests.test_tfrecord import example, frame

    path.write_bytes(frame(example({"x": [evil]})))


def _mds(path: Path, evil: bytes) -> None:
    path.mkdir()
    data = struct.pack("<III", 1, 12, 16 + len(evil)) + struct.pack("<I", len(evil)) + evil
    entry = {"format": "mds", "version": 2, "samples": 1, "column_names": ["x"], "column_encodings": ["pkl"]}
    entry |= {"column_sizes": [None], "raw_data": {"basename": "0.mds", "bytes": len(data)}}
    (path / "index.json").write_text(json.dumps({"version": 2, "shards": [entry]}))
    (path / "0.mds").write_bytes(data)


def _torch(path: Path, evil: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", evil)
        archive.writestr("archive/version", "3")


def _mmds(path: Path, evil: bytes) -> None:
    with mmds.Writer(path, {"x": mmds.Bytes(), "y": mmds.Bytes(column=True)}) as writer:
        writer.write({"x": evil, "y": evil})


PICKLES: dict[str, Callable[[Path, bytes], None]] = {
    "a.npy": _object_array,
    "a.npyd": _object_arrays,
    "a.npz": _archive,
    "b.npz": _compressed_archive,
    "npyfolder": _class_folder,
    "a.h5": _hdf5,
    "a.zarr": _zarr,
    "a.lmdb": _lmdb,
    "a.parquet": _parquet,
    "a.tar": _tar,
    "a.tfrecord": _tfrecord,
    "mds": _mds,
    "a.pt": _torch,
    "a.pkl": lambda path, evil: (path.write_bytes(evil), None)[1],
    "a.mmds": _mmds,
}


@pytest.mark.fault(31)
@pytest.mark.filterwarnings("ignore")
def test_31_no_pickle_is_ever_read(tmp_path: Path, cases: Cases) -> None:
    place = tmp_path / "unpickled"
    evil = pickle.dumps(Evil(place))
    pickle.loads(evil)  # it does what it is said to do
    assert place.is_dir()
    place.rmdir()
    values = []
    for name, write in PICKLES.items():
        (tmp_path / "in" / name).mkdir(parents=True)
        path = tmp_path / "in" / name / name
        write(path, evil)
        for limit, check in enumerate((_read, _convert)):
            with contextlib.suppress(MmdsError):
                values.append((name, check(path, tmp_path / f"{limit}-{name}.mmds")))
            assert not place.exists(), (name, check)
    found = {name for name, value in values if evil in repr(value).encode() or repr(evil) in repr(value)}
    assert {"a.lmdb", "a.tar", "a.tfrecord", "a.mmds"} <= found  # as bytes, which are the user's business
    cases(2 * len(PICKLES))


def _read(path: Path, _: Path) -> Any:
    return list(mmds.open(path))


def _convert(path: Path, destination: Path) -> Any:
    mmds.convert(path, destination, on_error="skip", num_workers=1)
    return list(mmds.open(destination))
