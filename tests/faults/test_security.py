"""What a dataset from the internet cannot do: run code, reach other files or the network, make a reader wait for ever."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import mmds
from mmds import decode
from mmds.errors import FormatError, SourceError
from tests.conftest import Cases
from tests.faults import foreign
from tests.faults.machine import IS_ROOT, STRACE, needs_strace, run_script
from tests.samples import jpeg

ROOT = Path(__file__).parents[2]


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
