"""Small files that unfold to more than memory holds: an error, in a process that has 512 MiB."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.faults.machine import run_script

# Each function writes a file of a few megabytes at most that unfolds to 1 GiB or more, and returns what reads it. It is
# called in two processes: one that writes the file, and one that reads it.
SCRIPT = '''
import gzip, io, json, os, resource, struct, sys, warnings, zipfile, zlib
from pathlib import Path

import numpy as np

import mmds
from mmds import decode
from mmds.converters import sources
from mmds.errors import MmdsError

warnings.simplefilter("ignore")
PIECE = bytes(2**24)
GIGABYTE = 2**30


def once(path, content):
    """Write a file, unless it is there."""
    if not path.exists():
        path.write_bytes(content())


def zeros(wbits):
    """Return 1 GiB of zeros, compressed."""
    packer = zlib.compressobj(1, zlib.DEFLATED, wbits)
    return b"".join(packer.compress(PIECE) for _ in range(64)) + packer.flush()


def png(width, height, mode):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, {"L": 0, "RGB": 2}[mode], 0, 0, 0)
    return b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zeros(15)) + chunk(b"IEND", b"")


def picture(folder, *size):
    once(folder / "a.png", lambda: png(*size))
    return lambda: decode.picture((folder / "a.png").read_bytes(), "RGB")


def flac(samples):
    """Return a FLAC file that says how long it is, and has no sound."""
    info = struct.pack(">HH", 4096, 4096) + bytes(6) + (44100 << 44 | 1 << 41 | 15 << 36 | samples).to_bytes(8, "big")
    return b"fLaC" + bytes([0x80, 0, 0, 34]) + info + bytes(16)


def wave(size):
    """Return a WAV file that says how long it is, and has no sound."""
    return b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 8, 8000, 2**17, 16, 16) + (
        b"data" + struct.pack("<I", size)
    )


def convert(path, **options):
    return lambda: [sources(path, **options)[0].load(item) for item in sources(path, **options)[0].items()]


def read(path):
    return lambda: mmds.open(path)[0]


def tar(folder):
    path = folder / "a.tar"
    import tarfile
    head = tarfile.TarInfo("0.bin")
    head.size = 64 * GIGABYTE
    member = gzip.compress(PIECE, 1)
    once(path, lambda: gzip.compress(head.tobuf()) + member * 64)
    return convert(path)


def mds(folder, compression):
    import zstandard
    if (folder / "index.json").exists():
        return convert(folder)
    packed = zeros(31) if compression == "gz" else zstandard.ZstdCompressor().compress(bytes(GIGABYTE))
    entry = {"format": "mds", "version": 2, "samples": 1, "column_names": ["x"], "column_encodings": ["bytes"],
             "column_sizes": [None], "compression": compression, "raw_data": {"basename": "0.mds", "bytes": 2**20},
             "zip_data": {"basename": "0.mds.z", "bytes": len(packed)}}
    folder.mkdir(exist_ok=True)
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": [entry]}))
    (folder / "0.mds.z").write_bytes(packed)
    return convert(folder)


def npz(folder):
    if (folder / "a.npz").exists():
        return read(folder / "a.npz")
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (64, 2**24)})
            for _ in range(64):
                file.write(PIECE)
    return read(folder / "a.npz")


def hdf5(folder):
    import h5py
    if (folder / "a.h5").exists():
        return read(folder / "a.h5")
    with h5py.File(folder / "a.h5", "w") as file:
        array = file.create_dataset("x", (8, 2**13), "u1", chunks=(8, 2**13), compression="gzip")
        array.id.write_direct_chunk((0, 0), zeros(15))
    return read(folder / "a.h5")


def zarr(folder, codec, pack):
    import zarr
    if (folder / "a.zarr").exists():
        return read(folder / "a.zarr")
    zarr.create_array(folder / "a.zarr", data=np.ones((8, 2**13), "u1"), zarr_format=2, compressors=None)
    said = json.loads((folder / "a.zarr" / ".zarray").read_text())
    (folder / "a.zarr" / ".zarray").write_text(json.dumps(said | {"compressor": codec}))
    (folder / "a.zarr" / "0.0").write_bytes(pack())
    return read(folder / "a.zarr")


def zarr_zstd(folder):
    import zstandard
    return zarr(folder, {"id": "zstd", "level": 1}, lambda: zstandard.ZstdCompressor().compress(bytes(GIGABYTE)))


def arrow(folder):
    import pyarrow as pa
    if (folder / "a.arrow").exists():
        return read(folder / "a.arrow")
    size = 2**30 - 64
    column = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), 1, [None, pa.py_buffer(struct.pack("<QQ", 0, size)), pa.py_buffer(bytes(size))]
    )
    table = pa.table({"x": column})
    with pa.ipc.new_file(str(folder / "a.arrow"), table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        file.write_table(table)
    return read(folder / "a.arrow")


def parquet(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq
    if (folder / "a.parquet").exists():
        return read(folder / "a.parquet")
    table = pa.table({"x": np.zeros(2**27, np.int64)})
    options = {"use_dictionary": False, "write_statistics": False, "row_group_size": 2**27}
    pq.write_table(table, str(folder / "a.parquet"), compression="zstd", **options)
    return read(folder / "a.parquet")


def long_line(folder, name):
    with open(folder / name, "wb") as file:  # mostly a hole
        file.write(b"a,b\\n1,2\\n" if name.endswith("csv") else b'{"a": 1}\\n')
        file.truncate(GIGABYTE)
    return convert(folder / name)


def film(folder):
    """Twenty-four grey pictures of 4096 x 4096: 1.2 GB."""
    import av
    if not (folder / "a.mp4").exists():
        with av.open(str(folder / "a.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width = stream.height = 4096
            stream.pix_fmt = "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.full((6144, 4096), 128, np.uint8), format="yuv420p")
            for number in range(24):
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return lambda: decode.film((folder / "a.mp4").read_bytes())


BOMBS = {
    "tar": tar,
    "mds gz": lambda folder: mds(folder, "gz"),
    "mds zstd": lambda folder: mds(folder, "zstd"),
    "npz": npz,
    "hdf5": hdf5,
    "zarr gzip": lambda folder: zarr(folder, {"id": "gzip", "level": 1}, lambda: zeros(31)),
    "zarr zstd": zarr_zstd,
    "arrow": arrow,
    "parquet": parquet,
    "csv": lambda folder: long_line(folder, "a.csv"),
    "jsonl": lambda folder: long_line(folder, "a.jsonl"),
    "text": lambda folder: long_line(folder, "a.txt"),
    "png": lambda folder: picture(folder, 13000, 13000, "RGB"),
    "larger png": lambda folder: picture(folder, 2**15, 2**15, "L"),
    "flac": lambda folder: lambda: decode.sound(flac(2**36 - 1)),
    "wave": lambda folder: lambda: decode.sound(wave(2**31)),
    "film": film,
}


def main(name, folder):
    run = BOMBS[name](folder)
    if not sys.argv[3:]:
        return
    import av, h5py, PIL.Image, pyarrow.parquet, soundfile, zarr as library

    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
    try:
        run()
        said = "read"
    except (MmdsError, ValueError, OSError) as error:
        said = f"{type(error).__name__}: {str(error)[:500]}"
    print(said)


main(sys.argv[1], Path(sys.argv[2]))
'''
QUICK = ("tar", "mds gz", "flac", "png", "wave")
REASONS = {
    "tar": "read",  # it ends within a member, which is left out and named
    "mds gz": "SourceError: decompressed to 1048577 bytes or more; the index says 1048576",
    "mds zstd": "SourceError: decompressed to 1048577 bytes or more; the index says 1048576",
    "npz": "FormatError: .*more memory than there is",
    "hdf5": "FormatError: .*rows 0 to 1 of the array x",
    "zarr gzip": "FormatError: .*rows 0 to 1 of the array",
    "zarr zstd": "FormatError: .*rows 0 to 1 of the array",
    "arrow": "FormatError: .*(malloc|memory|realloc)",
    "parquet": "FormatError: .*(malloc|memory|realloc)",
    "csv": "SourceError: .*a row of more than 16777216 bytes",
    "jsonl": "SourceError: .*a line of more than 16777216 bytes",
    "text": "SourceError: a text of 1073741[0-9]* bytes; the limit is 67108864",
    "png": "ValueError: decoding it takes more memory than there is",
    "larger png": "ValueError: .*(decompression bomb|are not decoded)",
    "flac": "ValueError: a sound of 137438953470 numbers; more than 1073741824 are not decoded",
    "wave": "read",  # there are no samples, whatever it says
    "film": "ValueError: decoding it takes more memory than there is",
}


def check(name: str, folder: Path) -> None:
    made = run_script(SCRIPT, name, folder)
    assert made.returncode == 0, made.stderr[-2000:]
    read = run_script(SCRIPT, name, folder, "read")
    assert read.returncode == 0, read.stderr[-2000:]
    assert re.match(REASONS[name], read.stdout), read.stdout


@pytest.mark.fault(32)
@pytest.mark.parametrize("name", [name for name in REASONS if name in QUICK])
def test_32_a_bomb_is_an_error_in_512_mib(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.stress
@pytest.mark.fault(32)
@pytest.mark.parametrize("name", REASONS)
def test_32_every_bomb_is_an_error_in_512_mib(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)
