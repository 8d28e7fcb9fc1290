"""What a dataset from the internet cannot do: run code, reach other files or the network, make a reader wait for ever."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import socket
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds import decode
from mmds.converters.npz import write_archive
from mmds.errors import FormatError, MmdsError, SourceError
from tests.conftest import Cases
from tests.faults import foreign
from tests.faults.machine import IS_ROOT, STRACE, needs_strace, run_script
from tests.samples import jpeg

ROOT = Path(__file__).parents[2]


class Evil:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


# Pickles: each function writes a dataset in which one lies where some library has once unpickled it.


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
    import json

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
    import json

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


# Other files, other programs, the network


PLAYLISTS = {
    "a list of files": b"ffconcat version 1.0\nfile 'secret.mp4'\n",
    "an HLS playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    "a description of a stream": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    b"a=rtpmap:96 H264/90000\n",
}
DECODE_ALL = """
import sys
from mmds import decode
for path in sys.argv[1:]:
    for function in (decode.film, decode.sound):
        try:
            function(open(path, "rb").read())
            print("decoded")
        except (ValueError, OSError):
            print("refused")
"""


@needs_strace
@pytest.mark.fault(32)
def test_32_a_film_that_names_other_files_or_hosts_reaches_none(tmp_path: Path, cases: Cases) -> None:
    from tests.test_videofolder import film

    (tmp_path / "secret.mp4").write_bytes(film(0, ".mp4"))
    paths = []
    for number, text in enumerate(PLAYLISTS.values()):
        (tmp_path / f"{number}.mp4").write_bytes(text)
        paths.append(tmp_path / f"{number}.mp4")
    (tmp_path / "x.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + PLAYLISTS["a list of files"])
    log = tmp_path / "log"
    assert STRACE is not None
    command = [STRACE, "-f", "-o", str(log), "-e", "trace=open,openat,socket,connect,execve", sys.executable, "-c"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, DECODE_ALL, *map(str, [*paths, tmp_path / "x.m4a"])],
        capture_output=True, text=True, check=True, cwd=tmp_path, env=environment, timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == ["refused"] * 2 * (len(paths) + 1)
    calls = log.read_text()
    assert str(paths[0]) in calls
    assert "secret.mp4" not in calls and "AF_INET" not in calls
    cases(2 * (len(paths) + 1))


@pytest.mark.fault(32)
def test_32_a_film_that_is_one_can_be_decoded_and_a_list_of_them_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_videofolder import film

    monkeypatch.chdir(tmp_path)
    Path("secret.mp4").write_bytes(film(0, ".mp4"))
    assert decode.film(Path("secret.mp4").read_bytes()).shape == (10, 48, 64, 3)
    for text in PLAYLISTS.values():
        with pytest.raises(ValueError):
            decode.film(text)


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 10 10
%%EndComments
%%BeginProlog
showpage
%%EOF
"""
OPEN_PICTURE = """
import io, sys
from PIL import Image
from mmds import decode
from mmds.converters.pictures import check
data = open(sys.argv[1], "rb").read()
for function in (lambda: decode.picture(data, "RGB"), lambda: check(data), lambda: check(data, decode=True)):
    try:
        function()
        print("decoded")
    except ValueError as error:
        print(error)
if sys.argv[2:]:
    try:
        Image.open(io.BytesIO(data)).load()
    except Exception:
        pass
"""


@pytest.mark.fault(32)
def test_32_a_picture_in_postscript_runs_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\nmkdir -p {tmp_path}/ran\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (tmp_path / "x.jpg").write_bytes(EPS)
    done = run_script(OPEN_PICTURE, tmp_path / "x.jpg")
    assert done.stdout.splitlines() == ["EPS is not decoded, as that would run another program"] * 3, done.stderr
    assert not (tmp_path / "ran").exists()
    run_script(OPEN_PICTURE, tmp_path / "x.jpg", "and as Pillow does")
    assert (tmp_path / "ran").exists()  # so the picture would have run it


SPOILED = """
import os, sys
from pathlib import Path
import mmds
from mmds.errors import MmdsError

path, way, elsewhere = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
files = sorted(file for file in path.rglob("*") if file.is_file())
list(mmds.open(path))
refused = 0
for number, file in enumerate(files):
    moved = elsewhere / f"{number}"
    file.rename(moved)
    file.symlink_to(moved) if way == "out" else os.mkfifo(file)
    try:
        list(mmds.open(path))
    except (MmdsError, FileNotFoundError):
        refused += 1
    file.unlink()
    moved.rename(file)
print(refused, len(files), flush=True)
os._exit(0)  # a thread of a library may still wait for a FIFO
"""


@pytest.mark.fault(31)
@pytest.mark.parametrize("name", ["zarr", "zarr from elsewhere", "tiledb", "npyd", "lmdb", "arrow folder"])
@pytest.mark.parametrize("way", ["out", "fifo"])
def test_31_a_folder_of_a_library_holds_no_link_out_and_no_fifo(
    tmp_path: Path, name: str, way: str, cases: Cases
) -> None:
    """Each file in turn is moved out of the folder and linked to, or is a FIFO, which nobody writes to."""
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    path = foreign.build(name, tmp_path / "in")
    done = run_script(SPOILED, path, way, tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr[-2000:]
    refused, files = map(int, done.stdout.split())
    unread = 1 if name == "arrow folder" else 0  # dataset_info.json, which nobody reads
    assert refused >= files - unread
    cases(files)


SPECIAL = """
import sys
import mmds
from mmds.errors import MmdsError
from mmds.converters import FORMATS
from mmds.converters.stores import STORES
path = sys.argv[1]
for format in [*(store.name for store in STORES), *FORMATS]:
    for use in (lambda: mmds.open(path, format=format), lambda: mmds.convert(path, sys.argv[2], source_format=format)):
        try:
            use()
            print(format, "accepted")
        except (MmdsError, FileNotFoundError, NotADirectoryError) as error:
            print(format, "refused")
"""


@pytest.mark.fault(31, 33)
@pytest.mark.parametrize("kind", ["fifo", "device", "socket", "loop"])
def test_31_what_is_no_file_is_refused_by_every_format(tmp_path: Path, kind: str, cases: Cases) -> None:
    path = tmp_path / "dataset"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        if not IS_ROOT:
            pytest.skip("only root can make a device")
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero: as long as one reads
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to(path.name)
    done = run_script(SPECIAL, path, tmp_path / "out.mmds")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * 18 and all(line.endswith("refused") for line in lines), lines
    cases(len(lines))


@pytest.mark.fault(31)
def test_31_the_tokens_beside_an_index_are_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = foreign.build("megatron", tmp_path / "in")
    tokens = path.with_suffix(".bin")
    tokens.rename(tmp_path / "elsewhere.bin")
    tokens.symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(SourceError, match=r"dataset\.bin: a symbolic link out of the tree"):
        mmds.convert(path, tmp_path / "out.mmds")
    (tmp_path / "both.idx").symlink_to(path)  # the user's own links, to both
    (tmp_path / "both.bin").symlink_to(path.with_name("real.bin"))
    tokens.unlink()
    (tmp_path / "elsewhere.bin").rename(path.with_name("real.bin"))
    assert mmds.convert(tmp_path / "both.idx", tmp_path / "out.mmds").samples == 3


@pytest.mark.fault(31)
def test_31_a_picture_outside_of_an_arrow_file_is_not_read(tmp_path: Path) -> None:
    import pyarrow as pa

    from tests.test_arrow import write_file

    (tmp_path / "secret.jpg").write_bytes(jpeg(1))
    pictures = pa.array([{"bytes": None, "path": str(tmp_path / "secret.jpg")}, {"bytes": jpeg(0), "path": None}])
    features = b'{"info": {"features": {"image": {"_type": "Image"}}}}'
    table = pa.table({"image": pictures}).replace_schema_metadata({b"huggingface": features})
    reader = mmds.open(write_file(tmp_path / "a.arrow", table))
    assert reader[1]["image"] == jpeg(0)
    with pytest.raises(FormatError, match="not in the dataset but in the file"):
        reader[0]


def test_every_promise_of_the_page_names_a_test() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", page)
    assert len(named) > 20
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), (file, name)
