"""Reading: a sequence of samples over the mapped file, whose slices are readers again."""

from __future__ import annotations

import concurrent.futures
import errno
import gc
import json
import os
import pickle
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import mmds
from mmds import Array, Bytes, Json, Scalar, Text
from mmds.errors import FormatError, SchemaError
from mmds.format import layout, pack_end, pack_header
from tests.likeness import assert_alike
from tests.make_golden import FOLDER, GOLDEN, PNG

Write = Callable[..., Path]
N = 7
FIELDS = {"x": Array("float32", (100,)), "c": Array("int16", (2,)), "y": Scalar("int8", nullable=True)}
SAMPLES: list[dict[str, Any]] = [
    {"x": np.full(100, k, "f4"), "c": np.array([k, -k], "i2"), "y": k if k % 3 else None} for k in range(N)
]


@pytest.fixture
def reader(write: Write) -> mmds.Reader:
    return mmds.open(write(FIELDS, SAMPLES))


def test_a_reader_is_a_sequence(write: Write) -> None:
    assert issubclass(mmds.Reader, Sequence)
    numbers: Any = mmds.open(write(Scalar("int8"), [5, 6, 5, 7]))
    assert (len(numbers), list(numbers), list(reversed(numbers))) == (4, [5, 6, 5, 7], [7, 5, 6, 5])
    assert (7 in numbers, 8 in numbers, numbers.index(5, 1), numbers.count(5)) == (True, False, 2, 2)
    assert (numbers[np.int64(-1)], numbers[np.array(1)], numbers[True]) == (7, 6, 6)
    assert repr(numbers).endswith(": 4 samples of value>")


def test_slices_of_slices_are_readers(reader: mmds.Reader) -> None:
    part = reader[1:6][::-2]
    assert isinstance(part, mmds.Reader)
    assert_alike(list(part), SAMPLES[1:6][::-2])
    assert_alike(part[1], SAMPLES[3])
    assert_alike(part[[-1, 0]]["y"], [SAMPLES[1]["y"], SAMPLES[5]["y"]])
    assert part.column("c").tolist() == [[5, -5], [3, -3], [1, -1]]
    assert part.valid("y").tolist() == [True, False, True]
    for stop in (0, 1, N, N + 5):
        for step in (-1, -3, 2):
            assert reader[:stop:step].column("x")[:, 0].tolist() == list(range(N))[:stop:step]
            assert reader[stop::step].column("x")[:, 0].tolist() == list(range(N))[stop::step]


@pytest.mark.parametrize(
    "index",
    [[], [2, 0, -1], (1, 1), range(6, 0, -2), np.array([3, -7]), np.array([3], ">u2"), np.array([6], np.uint64),
     [np.int8(-1)], np.arange(N) % 2 == 0, [True] * 3 + [False] * 4],
    ids=str,
)  # fmt: skip
def test_index_arrays(index: Any, reader: mmds.Reader) -> None:
    rows = np.arange(N)[np.asarray(index, bool if len(index) == N else int)]
    batch = reader[index]
    assert batch["x"].tolist() == [[row] * 100 for row in rows]
    assert batch["c"].dtype == np.dtype("int16")
    assert batch["y"] == [SAMPLES[row]["y"] for row in rows]
    assert reader[::-1][index]["c"][:, 0].tolist() == [N - 1 - row for row in rows]
    batch["x"][...] = -1  # a batch belongs to whoever asked for it
    assert_alike(list(reader), SAMPLES)


def test_a_tensor_is_an_index_array(reader: Any) -> None:
    import torch

    assert reader[torch.tensor([2, 0])]["c"][:, 0].tolist() == [2, 0]
    assert reader[torch.tensor([2])]["c"][:, 0].tolist() == [2]
    assert_alike(reader[torch.tensor(2)], SAMPLES[2])


@pytest.mark.parametrize(
    "index", [N, -N - 1, 2**70, [N], [0, -N - 1], np.array([2**64 - 1], np.uint64), np.array([2**63])]
)
def test_out_of_range(index: Any, reader: mmds.Reader) -> None:
    number = np.ravel(index).tolist()[-1]
    with pytest.raises(IndexError) as caught:
        reader[index]
    assert str(caught.value) == f"{reader.path}: index {number} is out of range for 7 samples"
    with pytest.raises(IndexError, match="out of range for 3 samples"):
        reader[2:5][3]
    with pytest.raises(IndexError, match="out of range for 0 samples"):
        reader[5:2][[0]]


@pytest.mark.parametrize("index", ["x", 1.0, None, [0.5], np.zeros((2, 2), int), ["a"], [True] * 3, [None], {1}])
def test_what_is_no_index(index: Any, reader: mmds.Reader) -> None:
    with pytest.raises(TypeError):
        reader[index]


def test_columns(write: Write) -> None:
    fields = {
        "y": Scalar("int8"),
        "k": Text(column=True),
        "b": Bytes(column=True, nullable=True),
        "t": Text(),
        "j": Json(),
    }
    samples = [{"y": k, "k": f"ü{k}", "b": None if k == 1 else b"x" * k, "t": "t", "j": k} for k in range(4)]
    reader = mmds.open(write(fields, samples))
    assert reader.column("y").tolist() == [0, 1, 2, 3]
    keys = reader.column("k")
    assert (len(keys), list(keys), keys[-1], list(keys[1:][::-2])) == (4, ["ü0", "ü1", "ü2", "ü3"], "ü3", ["ü3", "ü1"])
    assert repr(keys[:2]) == "<2 strings>"
    with pytest.raises(IndexError):
        keys[4]
    assert list(reader[::-1].column("b")) == [b"xxx", b"xx", b"", b""]
    assert reader.valid("b").tolist() == [True, False, True, True]
    assert reader[1:2].valid("b").tolist() == [False]
    assert reader.valid("t").tolist() == [True] * 4
    for name in ("t", "j"):
        with pytest.raises(SchemaError, match="is no column; its values differ in size"):
            reader.column(name)
    with pytest.raises(SchemaError, match="no field 'z'; there are: y, k, b, t, j"):
        reader.column("z")


def test_a_column_is_no_copy(write: Write) -> None:
    reader = mmds.open(
        write({"x": Array("float32", (100,)), "y": Scalar("int8")}, [{"x": np.ones(100, "f4"), "y": 1}] * 3)
    )
    for name in ("x", "y"):
        column = reader.column(name)
        assert np.shares_memory(column, reader[1:].column(name))
        assert not column.flags.owndata


@pytest.mark.parametrize(
    "name", ["columns", "column_ranks", "constant_stride", "tokens", "mixed_alignment", "ragged", "nullable", "bits"]
)
def test_arrays_cannot_be_written_to(name: str) -> None:
    reader = mmds.open(FOLDER / f"{name}.mmds")
    arrays = [leaf for sample in reader for leaf in reader.fields.leaves(sample) if isinstance(leaf, np.ndarray)]
    arrays += [
        reader.column(field.name) for field in reader.fields if isinstance(field.kind, Array) and not field.is_payload
    ]
    if name in ("constant_stride", "tokens"):
        arrays += [reader.column(field.name) for field in reader.fields]
    assert arrays
    for array in arrays:
        views: tuple[Any, ...] = (array, array[...], array.view(), np.asarray(array), array.T)
        for view in views:
            assert not view.flags.writeable
            with pytest.raises(ValueError, match="cannot set WRITEABLE flag"):
                view.setflags(write=True)
            base = view.base
            while isinstance(base, np.ndarray):
                assert not base.flags.writeable
                base = base.base
            assert memoryview(view).readonly


@pytest.mark.parametrize("fields", [["y"], ("y", "c"), {"new": "c"}, "c"])
def test_some_of_the_fields(fields: Any, write: Write) -> None:
    path = write(FIELDS, SAMPLES)
    every: dict[str, list[Any]] = {
        "['y']": [{"y": s["y"]} for s in SAMPLES],
        "('y', 'c')": [(s["y"], s["c"]) for s in SAMPLES],
        "{'new': 'c'}": [{"new": s["c"]} for s in SAMPLES],
        "c": [s["c"] for s in SAMPLES],
    }
    want = every[str(fields)]
    assert_alike(list(mmds.open(path, fields=fields)), want)
    assert_alike(list(mmds.open(path, fields=fields)[::-1]), want[::-1])


def test_a_reader_cannot_be_pickled(reader: mmds.Reader) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="a Reader belongs to one process"):
            pickle.dumps(reader, protocol)


def test_views_outlive_the_reader(write: Write) -> None:
    path = write(FIELDS, SAMPLES)
    views = [sample["x"] for sample in mmds.open(path)]
    path.unlink()
    assert_alike(views, [sample["x"] for sample in SAMPLES])


def test_many_threads_read_one_reader(write: Write) -> None:
    samples = [{"x": np.full(1000, k, "u2"), "t": str(k)} for k in range(1000)]
    reader = mmds.open(write({"x": Array("uint16", (1000,)), "t": Text()}, samples))
    orders = [np.random.default_rng(seed).permutation(1000) for seed in range(16)]

    def total(order: Any) -> int:
        batches = [reader[part] for part in np.array_split(order, 5)]  # large enough to be recycled
        assert [value for batch in batches for value in batch["t"]] == [str(k) for k in order]
        assert all((batch["x"] == batch["x"][:, :1]).all() for batch in batches)
        return sum(int(batch["x"][:, 0].astype(int).sum()) for batch in batches)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(total, orders)) == [sum(range(1000))] * 16


def test_a_fork_reads_on(write: Write) -> None:
    script = """if True:
        import os, sys, mmds
        reader = mmds.open(sys.argv[1])
        first = [bytes(reader[i]["x"]) for i in range(len(reader))]
        if os.fork() == 0:
            os._exit([bytes(reader[i]["x"]) for i in range(len(reader))] != first)
        assert os.wait()[1] == 0
    """
    subprocess.run([sys.executable, "-c", script, write(FIELDS, SAMPLES)], check=True)


@pytest.mark.fault(22)
def test_a_billion_samples_cost_nothing_to_open(tmp_path: Path) -> None:
    n, path = 10**9, tmp_path / "huge.mmds"
    schema = mmds.Schema({"tokens": Array("uint16", (256,), align=2), "y": Scalar("int32"), "key": Text(column=True)})
    data_end = 4096 + 512 * n
    sections = layout(schema, n, data_end, {2: 0})
    with path.open("wb") as file:
        file.write(pack_header(schema))
        for section in sections:
            file.seek(section.offset)
            file.write(section.npy_header())
            if section.role == "ends":
                file.write((4096).to_bytes(8, "little"))
                file.seek(section.end - 8)
                file.write(data_end.to_bytes(8, "little"))
        for k in (0, n // 2, n - 1):
            file.seek(4096 + 512 * k)
            file.write(k.to_bytes(8, "little"))
        file.seek(-(-sections[-1].end // 64) * 64)
        file.write(pack_end(schema, n, data_end, sections, "0" * 64, {}))
    script = """if True:
        import json, sys, numpy, mmds
        from pathlib import Path

        def private():
            lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
            return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Anonymous", "Swap:")))

        mmds.open(sys.argv[2])[0], mmds.open(sys.argv[2])[[0]]  # loads what is loaded on first use
        before = private()
        reader = mmds.open(sys.argv[1])
        n = len(reader)
        found = [int(reader[k]["tokens"][:4].view("u8")[0]) for k in (0, n // 2, -1)]
        found += reader[[0, n // 2, n - 1]]["tokens"][:, :4].copy().view("u8")[:, 0].tolist()
        assert reader[n - 1]["key"] == "" and len(reader[n // 2 :].column("y")) == n // 2
        print(json.dumps([n, found, private() - before]))
    """
    small = FOLDER / "constant_stride.mmds"
    done = subprocess.run([sys.executable, "-c", script, path, small], capture_output=True, text=True, check=True)
    count, found, growth = json.loads(done.stdout)
    assert (count, found) == (n, [0, n // 2, n - 1] * 2)
    assert growth < 2 * 1024  # KiB; private pages are counted twice, as dirty and as anonymous


def test_opening_and_dropping_leaves_nothing_behind(write: Write) -> None:
    path, process = write(FIELDS, SAMPLES), psutil.Process()
    counts: list[tuple[int, int]] = []
    for _ in range(3):
        for _ in range(400):
            assert len(mmds.open(path)[0]["x"]) == 100
        gc.collect()
        counts.append((process.num_fds(), Path("/proc/self/maps").read_text().count(str(path))))
    assert counts[1] == counts[2]
    assert counts[2][1] == 0


@pytest.mark.parametrize("name", GOLDEN)
def test_reading_changes_no_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mmds"
    path.write_bytes((FOLDER / f"{name}.mmds").read_bytes())
    path.chmod(0o444)
    before = (path.stat().st_mtime_ns, path.read_bytes())
    list(mmds.open(path))
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    assert [found.name for found in tmp_path.iterdir()] == ["a.mmds"]


# What is no mmds file


def test_a_folder_and_special_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FormatError, match=r"a folder without dataset\.json"):
        mmds.open(tmp_path / "folder")
    for path in (tmp_path / "fifo", Path("/dev/null"), Path("/dev/zero")):
        with pytest.raises(FormatError, match="not a regular file, so not an mmds file"):
            mmds.open(path)


def test_paths_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("missing")
    for name, number in {"loop": errno.ELOOP, "dangling": errno.ENOENT, "missing": errno.ENOENT}.items():
        with pytest.raises(OSError, match=name) as caught:
            mmds.open(tmp_path / name)
        assert caught.value.errno == number
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        with pytest.raises(FormatError, match="not a regular file, so not an mmds file"):
            mmds.open(tmp_path / "socket")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "loop", "socket"]


def test_a_link_is_followed(write: Write, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(write(Scalar("int8"), [1]))
    assert list(mmds.open(str(tmp_path / "link"))) == [1]


def test_other_formats_are_refused_with_what_they_begin_with(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(10_000))
    (tmp_path / "a.png").write_bytes(PNG * 100)
    (tmp_path / "text.txt").write_text("hello, world")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("x", bytes(10_000))
    for name, magic in {"a.png": "89 50", "text.txt": "68 65", "a.zip": "50 4b"}.items():
        with pytest.raises(FormatError, match=f"{name}: not an mmds file: it begins with {magic}"):
            mmds.open(tmp_path / name)
    (tmp_path / "empty").touch()
    with pytest.raises(FormatError, match="empty: an empty file, so not an mmds file"):
        mmds.open(tmp_path / "empty")


def test_a_name_cannot_forge_the_message(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2J\n\u202e.mmds"
    path.write_bytes(bytes(9000))
    with pytest.raises(FormatError) as caught:
        mmds.open(path)
    assert r"a\x1b[2J\n\u202e.mmds: not an mmds file" in str(caught.value)


def test_opening_costs_the_same_for_each_of_many_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []

    def align(field: mmds.Field) -> int:
        looks.append(field.name)
        return 64

    names = [f"f{number}" for number in range(200)]
    with mmds.Writer(tmp_path / "a.mmds", {name: Array("float32", (100,)) for name in names}) as writer:
        writer.write({name: np.full(100, k, "float32") for k, name in enumerate(names)})
    monkeypatch.setattr(mmds.Field, "align", property(align))
    assert mmds.open(tmp_path / "a.mmds")[0]["f199"].max() == 199
    assert 0 < len(looks) <= 10 * len(names)  # not once per pair of fields: 4,096 of them took 20 seconds
