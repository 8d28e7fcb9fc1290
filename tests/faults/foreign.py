"""Small valid files of every format that mmds reads and did not write, to be damaged: see `foreign_mutations`.

A subject is a file or a folder that a generator makes, the same bytes each time as far as its library allows. Formats that
wrap others (gzip, checksums) also say how to get at what is wrapped, so that damage reaches the parser behind them.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import mmds
from mmds import decode
from tests.samples import EVERY_KIND, jpeg, sample

GOLDEN = Path(__file__).parents[1] / "golden"
Layer = tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]  # from the file to what it wraps, and back


@dataclass(frozen=True)
class Subject:
    """A dataset to be damaged. `build` writes it to a path; `layers` are for files whose names end so."""

    build: Callable[[Path], None]
    suffix: str  # of the path
    source: str | None = None  # the format of a source; None for a store
    options: dict[str, Any] = field(default_factory=dict)  # of the conversion
    layers: dict[str, Layer] = field(default_factory=dict)
    unchecked: str = ""  # the library that reads it without checks of its own, and may end the process


def _with_mmds(*names: str) -> Callable[[Path], None]:
    """Return the function that writes a store of ours with the fields of these names."""

    def build(path: Path) -> None:
        from mmds.converters.stores import find_store

        store = find_store(path)
        assert store is not None
        fields = {name: EVERY_KIND[name] for name in names}
        with store.writer(path, fields, metadata={"made": "here"}) as writer:
            for number in range(6):
                whole = sample(number)
                writer.write({name: whole[name] for name in names})

    return build


def _foreign_hdf5(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:  # the oldest layout, which has no checksums
        file.create_dataset("x", data=np.arange(240, dtype="<i4").reshape(12, 20), chunks=(4, 20), compression="gzip")
        file.create_dataset("y", data=np.linspace(0, 1, 12), chunks=(3,), shuffle=True, fletcher32=True)
        file.create_dataset("in/text", data=[f"text {k}" for k in range(12)])
        ragged = file.create_dataset("in/ragged", (12,), h5py.vlen_dtype(np.int16))
        for row in range(12):
            ragged[row] = np.arange(row)
        file.attrs["about"] = "a file from elsewhere"


def _foreign_zarr(path: Path) -> None:
    import zarr

    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    for name, values in (("x", np.arange(120).reshape(12, 10)), ("y", np.linspace(0, 1, 12))):
        group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=(5, *values.shape[1:]))[:] = values


def _foreign_npz(path: Path) -> None:
    np.savez_compressed(path, x=np.arange(60).reshape(12, 5), y=np.linspace(0, 1, 12))


def _foreign_npy(path: Path) -> None:
    np.save(path, np.arange(60, dtype="<f4").reshape(12, 5))


def _foreign_lmdb(path: Path) -> None:
    import lmdb

    with lmdb.open(str(path), map_size=2**20, lock=False) as environment, environment.begin(write=True) as transaction:
        for number in range(12):
            transaction.put(f"key {number}".encode(), bytes([number]) * (number * 700))


def _foreign_columns() -> Any:
    import pyarrow as pa

    rows = range(12)
    return pa.table(
        {
            "number": pa.array(rows, pa.int32()),
            "text": pa.array([f"text {k}" if k % 3 else None for k in rows]),
            "list": pa.array([[k, k + 1] for k in rows]),
            "ragged": pa.array([list(range(k)) for k in rows], pa.list_(pa.float32())),
            "code": pa.array([f"class {k % 3}" for k in rows]).dictionary_encode(),
            "struct": pa.array([{"a": k, "b": bytes([k])} for k in rows]),
            "flag": pa.array([k % 2 == 0 for k in rows]),
        }
    )


def _foreign_arrow(path: Path) -> None:
    import pyarrow as pa

    table = _foreign_columns()
    with pa.ipc.new_file(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as file:
        file.write_table(table, max_chunksize=5)


def _stream(path: Path) -> None:
    import pyarrow as pa

    table = _foreign_columns()
    with pa.ipc.new_stream(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=5)


def _saved_dataset(path: Path) -> None:
    path.mkdir()
    _stream(path / "data-00000-of-00001.arrow")
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (path / "dataset_info.json").write_text("{}")


def _foreign_parquet(path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(_foreign_columns(), str(path), row_group_size=5, compression="snappy")


def _tar(path: Path, mode: Any = "w") -> None:
    array = io.BytesIO()
    np.save(array, np.arange(6, dtype="<i2").reshape(2, 3))
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as archive:
        for number in range(3):
            members = {
                "jpg": jpeg(number, (8, 8)),
                "cls": b"%d" % number,
                "json": b'{"a": [1, 2]}',
                "npy": array.getvalue(),
                "txt": b"text",
            }
            for extension, data in members.items():
                name = f"{number:03}" if number else "größe/" + "x" * 120
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def _gzipped_tar(path: Path) -> None:
    _tar(path, "w:gz")


def _tfrecord(path: Path) -> None:
    from tests.test_tfrecord import frame, record

    path.write_bytes(frame(*map(record, range(8))))


def unframed(data: bytes) -> bytes:
    """Return TFRecords without their checksums."""
    records, position = b"", 0
    while position < len(data):
        (size,) = struct.unpack_from("<Q", data, position)
        records += data[position : position + 8] + data[position + 12 : position + 12 + size]
        position += 16 + size
    return records


def framed(records: bytes) -> bytes:
    """Return TFRecords with right checksums, whatever their lengths say."""
    from mmds.converters.tfrecord import masked_crc

    data, position = b"", 0
    while position < len(records):
        head = records[position : position + 8]
        size = int.from_bytes(head, "little")
        content = records[position + 8 : position + 8 + size]
        data += head + struct.pack("<I", masked_crc(head)) + content + struct.pack("<I", masked_crc(content))
        position += 8 + size
    return data


def _mds(name: str) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        path.mkdir()
        index = json.loads((GOLDEN / "mds" / name / "index.json").read_text())
        for entry in index["shards"]:
            for part in ("raw_data", "zip_data"):
                if entry.get(part):
                    entry[part]["hashes"] = {}  # or every damage would be found by them
        (path / "index.json").write_text(json.dumps(index))
        for file in (GOLDEN / "mds" / name).glob("shard.*"):
            (path / file.name).write_bytes(file.read_bytes())

    return build


def _megatron(path: Path) -> None:
    from tests.test_megatron import REAL_INDEX, REAL_TOKENS

    path.with_suffix(".bin").write_bytes(REAL_TOKENS)
    path.write_bytes(REAL_INDEX)


def _csv(path: Path) -> None:
    rows = ["name,number,score,flag,text"] + [f'n{k},{k},{k / 3},{k % 2 == 0},"a, ""b""\n{k}"' for k in range(20)]
    path.write_text("\n".join(rows) + "\n")


def _jsonl(path: Path) -> None:
    rows = [{"id": k, "text": f"té{k}", "list": [k, None, {"a": 1.5}], "maybe": k or None} for k in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _text(path: Path) -> None:
    path.mkdir()
    for number in range(4):
        (path / f"{number}.txt").write_text(f"line\n\nother ü {number}\r\n" * 5, newline="")


def _class_folder(suffix: str, content: Callable[[int], bytes]) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        for number in range(4):
            (path / f"class {number % 2}").mkdir(parents=True, exist_ok=True)
            (path / f"class {number % 2}" / f"{number}{suffix}").write_bytes(content(number))

    return build


def _npy_bytes(number: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.full((2, 3 + number), number, "<f4"))
    return file.getvalue()


def _picture(format: str) -> Callable[[int], bytes]:
    def content(number: int) -> bytes:
        from PIL import Image

        file = io.BytesIO()
        Image.open(io.BytesIO(jpeg(number, (24, 16)))).save(file, format)
        return file.getvalue()

    return content


def _sound(suffix: str) -> Callable[[int], bytes]:
    def content(number: int) -> bytes:
        from tests.test_audiofolder import sound

        return sound(number, suffix, 0.1)

    return content


def _film(suffix: str) -> Callable[[int], bytes]:
    def content(number: int) -> bytes:
        from tests.test_videofolder import film

        return film(number, suffix)

    return content


GZIP: Layer = (gzip.decompress, lambda data: gzip.compress(data, 1, mtime=0))
CHECKED = {"check": "decode"}
FEW = ("small", "ragged", "label", "maybe")  # of libraries that keep an array, or a file, of each
SUBJECTS: dict[str, Subject] = {
    "hdf5": Subject(_with_mmds(*FEW), ".h5", unchecked="HDF5"),
    "hdf5 from elsewhere": Subject(_foreign_hdf5, ".h5", unchecked="HDF5"),
    "zarr": Subject(_with_mmds(*FEW), ".zarr"),
    "zarr from elsewhere": Subject(_foreign_zarr, ".zarr", unchecked="Blosc"),
    "tiledb": Subject(_with_mmds(*FEW), ".tiledb", unchecked="TileDB"),
    "npyd": Subject(_with_mmds(*EVERY_KIND), ".npyd"),
    "npz": Subject(_with_mmds(*EVERY_KIND), ".npz"),
    "npz from elsewhere": Subject(_foreign_npz, ".npz"),
    "npy": Subject(_foreign_npy, ".npy"),
    "lmdb": Subject(_with_mmds(*EVERY_KIND), ".lmdb", unchecked="LMDB"),
    "lmdb from elsewhere": Subject(_foreign_lmdb, ".lmdb", unchecked="LMDB"),
    "arrow": Subject(_with_mmds(*EVERY_KIND), ".arrow"),
    "arrow from elsewhere": Subject(_foreign_arrow, ".arrow"),
    "arrow stream": Subject(_stream, ".arrow"),
    "arrow folder": Subject(_saved_dataset, ""),
    "parquet": Subject(_with_mmds(*EVERY_KIND), ".parquet", unchecked="pyarrow"),
    "parquet from elsewhere": Subject(_foreign_parquet, ".parquet", unchecked="pyarrow"),
    "tar": Subject(_tar, ".tar", "webdataset"),
    "tar.gz": Subject(_gzipped_tar, ".tar.gz", "webdataset", layers={".tar.gz": GZIP}),
    "tfrecord": Subject(_tfrecord, ".tfrecord", "tfrecord", layers={".tfrecord": (unframed, framed)}),
    "mds": Subject(_mds("plain"), "", "mds"),
    "mds zstd": Subject(_mds("zstd"), "", "mds"),
    "megatron": Subject(_megatron, ".idx", "megatron"),
    "csv": Subject(_csv, ".csv", "csv"),
    "jsonl": Subject(_jsonl, ".jsonl", "jsonl"),
    "text": Subject(_text, "", "text", {"per": "paragraph"}),
    "npyfolder": Subject(_class_folder(".npy", _npy_bytes), "", "npyfolder"),
    "jpeg": Subject(_class_folder(".jpg", lambda number: jpeg(number, (24, 16))), "", "imagefolder", CHECKED),
    **{
        name: Subject(_class_folder(f".{name}", _picture(name.upper())), "", "imagefolder", CHECKED)
        for name in ("png", "webp", "bmp", "tiff")
    },
    **{
        name: Subject(_class_folder(f".{name}", _sound(f".{name}")), "", "audiofolder", CHECKED)
        for name in ("wav", "flac", "ogg", "mp3", "m4a")
    },
    **{
        name: Subject(_class_folder(f".{name}", _film(f".{name}")), "", "videofolder", CHECKED)
        for name in ("mp4", "mkv", "avi")
    },
}


def build(name: str, folder: Path) -> Path:
    """Write a subject into an empty folder, and return the path to open."""
    subject = SUBJECTS[name]
    path = folder / f"dataset{subject.suffix}"
    subject.build(path)
    return path


def read_tree(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder by their relative paths."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


DECODERS: dict[str, Callable[[bytes], Any]] = {
    "imagefolder": lambda data: decode.picture(data, "RGB"),
    "audiofolder": decode.sound,
    "videofolder": decode.film,
}


def _decode(source: str, folder: Path) -> None:
    """Decode all files of a folder, as a dataset does whose samples were not looked at before."""
    for data in read_tree(folder).values() if source in DECODERS else ():
        with contextlib.suppress(ValueError, OSError):  # which are named with their sample by whoever asked
            DECODERS[source](data)


def use(name: str, path: Path, scratch: Path) -> bool:
    """Read some samples of a store, or convert a source; return whether all that was there could be used."""
    subject = SUBJECTS[name]
    if subject.source is not None:
        found = mmds.convert(
            path,
            scratch / "out.mmds",
            source_format=subject.source,
            on_error="skip",
            overwrite=True,
            num_workers=1,
            **subject.options,
        )
        _decode(subject.source, path)
        return not found.errors
    reader = mmds.open(path)
    n = len(reader)
    for index in sorted({0, n // 2, n - 1}) if n else ():
        reader[index]
    reader[list(range(min(n, 8)))]
    dict(reader.metadata)
    return True
