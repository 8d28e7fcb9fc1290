"""Several files as one dataset: everything that one file can do, with the samples of all."""

from __future__ import annotations

import gc
import pickle
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import mmds
from mmds.errors import ChangedError, FormatError, SchemaError, SourceError
from mmds.mapped import MappedFile
from mmds.readahead import Readahead
from mmds.shards import Shards

COUNTS = (7, 1, 0, 30, 12)
TOTAL = sum(COUNTS)
SCHEMA = {
    "large": mmds.Array("uint8", (3, 50, 50)),
    "small": mmds.Array("float32", (4,)),
    "number": mmds.Array("int16", ()),
    "tokens": mmds.Array("uint16", (None, 2), align=2),
    "brain": mmds.Array("uint8", (None, None)),
    "file": mmds.Bytes(),
    "caption": mmds.Text(nullable=True),
    "maybe": mmds.Scalar("float64", nullable=True),
    "key": mmds.Text(column=True),
    "label": mmds.Label(("cat", "dog")),
}


def sample(i: int) -> dict[str, Any]:
    generator = np.random.default_rng(i)
    return {
        "large": generator.integers(0, 256, (3, 50, 50), "uint8"),
        "small": generator.random(4, "float32"),
        "number": np.array(i, "int16"),
        "tokens": generator.integers(0, 60000, (i % 9, 2), "uint16"),
        "brain": generator.integers(0, 256, (i % 4, i % 3), "uint8"),
        "file": generator.bytes(i * 3),
        "caption": None if i % 3 else f"caption {i}",
        "maybe": None if i % 4 == 1 else i / 2,
        "key": f"key {i}",
        "label": i % 2,
    }


def write(path: Path, rows: range, schema: Any = None) -> Path:
    with mmds.Writer(path, schema or SCHEMA, metadata={"from": str(rows.start)}) as writer:
        for i in rows:
            full = sample(i)
            writer.write({name: full[name] for name in schema or SCHEMA})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    start = 0
    for number, count in enumerate(COUNTS):
        write(folder / f"s-{number}.mmds", range(start, start + count))
        start += count
    write(folder / "whole.mmds", range(TOTAL))
    return folder


@pytest.fixture
def several(folder: Path) -> mmds.Reader:
    return mmds.open(folder / "s-*.mmds")


@pytest.fixture
def one(folder: Path) -> mmds.Reader:
    return mmds.open(folder / "whole.mmds")


BATCHES = {
    "scattered": np.random.default_rng(3).integers(0, TOTAL, 40),
    "in one file": np.array([20, 9, 9, 30]),
    "neighbours across files": np.arange(5, 12),
    "none": np.arange(0),
    "all": np.arange(TOTAL),
}


def assert_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_equal(a, b)
    elif isinstance(expected, mmds.Jagged):
        assert_equal(found.values, expected.values)
        assert_equal(found.offsets, expected.offsets)
    elif isinstance(expected, (np.ndarray, torch.Tensor)):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert (found == expected).all()
    else:
        assert found == expected


def test_samples_are_those_of_all_files(several: mmds.Reader, one: mmds.Reader) -> None:
    assert len(several) == TOTAL
    assert several.fields.to_json() == one.fields.to_json()
    assert several.metadata == {"from": "0"}
    for i in range(-TOTAL, TOTAL):
        assert_equal(several[i], one[i])
    assert_equal(list(several[5:30:4]), list(one[5:30:4]))
    with pytest.raises(IndexError, match=r"s-0\.mmds and 4 more: index 50 is out of range for 50 samples"):
        several[TOTAL]


@pytest.mark.parametrize("ragged", ["list", "jagged", "padded"])
@pytest.mark.parametrize("batch", BATCHES)
def test_batches_are_those_of_one_file(several: mmds.Reader, one: mmds.Reader, batch: str, ragged: Any) -> None:
    assert_equal(several.gather(BATCHES[batch], ragged), one.gather(BATCHES[batch], ragged))
    part = several[3:].gather(BATCHES["in one file"], ragged)
    assert_equal(part, one[3:].gather(BATCHES["in one file"], ragged))


def test_a_large_jagged_batch_is_written_into_one_buffer(tmp_path: Path) -> None:
    schema = {"x": mmds.Array("uint8", (None,), align=1)}
    for number in range(2):
        with mmds.Writer(tmp_path / f"{number}.mmds", schema) as writer:
            writer.extend({"x": np.full(100_000 + i, 10 * number + i, "u1")} for i in range(3))
    jagged = mmds.open(tmp_path / "?.mmds").gather([5, 0, 4, 1], "jagged")["x"]
    assert jagged.lengths.tolist() == [100_002, 100_000, 100_001, 100_001]
    assert [set(value.tolist()) for value in jagged] == [{12}, {0}, {11}, {1}]


@pytest.mark.parametrize("rows", [slice(None), slice(3, 20), slice(40, 5, -3), slice(8, 8)])
def test_columns(several: mmds.Reader, one: mmds.Reader, rows: slice) -> None:
    for name in ("label", "maybe", "number", "small"):
        try:
            expected = one[rows].column(name)
        except SchemaError:  # payload between values of other sizes is a column of neither
            expected = one[rows].gather(np.arange(len(one[rows])))[name]
        assert_equal(several[rows].column(name), expected)
        assert several[rows].valid(name).tolist() == one[rows].valid(name).tolist()
    assert list(several[rows].column("key")) == list(one[rows].column("key"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ragged", ["list", "jagged"])
def test_training_from_several_files(folder: Path, workers: int, ragged: Any) -> None:
    fields = ["large", "small", "number", "label", "key"] + (["tokens", "file"] if ragged == "jagged" else [])
    batches = []
    for source in (sorted(folder.glob("s-*.mmds")), folder / "s-*.mmds", folder / "whole.mmds"):
        dataset = mmds.MemoryMappedDataset(source, fields=fields, ragged=ragged)
        dataset[0]  # opened before the workers are forked
        torch.manual_seed(0)
        loader = DataLoader(dataset, 8, shuffle=True, num_workers=workers)
        batches.append(list(loader))
        shuffled = mmds.Loader(dataset, 8, shuffle=True)
        batches[-1] += list(shuffled)
    assert len(batches[0]) == 14
    assert_equal(batches[0], batches[2])
    assert_equal(batches[1], batches[2])


def test_a_dataset_is_pickled_as_paths_and_knows_its_files(folder: Path, tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"{number}.mmds", range(number, 5))
    dataset = mmds.MemoryMappedDataset(str(tmp_path / "?.mmds"))
    assert dataset.path == tmp_path / "?.mmds"
    data = pickle.dumps(dataset)
    assert len(data) < 1000
    assert pickle.loads(data)[6]["key"] == "key 2"
    write(tmp_path / "2.mmds", range(3))
    with pytest.raises(ChangedError, match="was replaced since this dataset was opened"):
        pickle.loads(data)[0]


@pytest.mark.fault(19)
def test_a_file_that_is_replaced_while_it_is_not_open(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{number}.mmds", range(2)) for number in range(2)]
    shards = Shards(paths)
    shards._files.file.cache_clear()
    with mmds.Writer(paths[1], SCHEMA, overwrite=True) as writer:
        writer.write(sample(5))
    assert shards.items[-1].get(1) == 1
    with pytest.raises(ChangedError, match=r"1\.mmds was replaced"):
        shards.items[-1].get(2)


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield 256
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.fault(20)
def test_more_files_than_may_be_open(tmp_path: Path, few_descriptors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    for number in range(400):
        with mmds.Writer(tmp_path / f"{number:03}.mmds", {"x": mmds.Scalar("int64")}) as writer:
            writer.extend({"x": 3 * number + i} for i in range(3))
    original = MappedFile.__init__

    def open_file(file: MappedFile, path: str, **options: Any) -> None:
        opened.append(path)
        original(file, path, **options)

    monkeypatch.setattr(MappedFile, "__init__", open_file)
    reader = mmds.open(tmp_path / "*.mmds")
    assert len(opened) == 400
    rows = np.random.default_rng(0).permutation(1200)
    assert (reader[rows]["x"] == rows).all()
    assert len(opened) <= 400 + 2 * 400  # once to ask the kernel for the batch, once to gather it
    assert [reader[i]["x"] for i in range(1200)] == list(range(1200))
    before = len(opened)
    assert reader[[1198, 1196, 1199]]["x"].tolist() == [1198, 1196, 1199]
    assert len(opened) == before  # those were read last, and are open


def test_files_with_other_fields_are_refused(folder: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "b.mmds", range(3), {"label": mmds.Label(("dog", "cat"))})
    write(tmp_path / "a.mmds", range(3), {"label": mmds.Label(("cat", "dog"))})
    with pytest.raises(SchemaError, match=r"b\.mmds: has other fields than .*a\.mmds: label: .*'dog', 'cat'.*expected"):
        mmds.open([tmp_path / "a.mmds", other])


def test_what_there_is_not(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no dataset at .*x-"):
        mmds.MemoryMappedDataset(tmp_path / "x-*.mmds")
    with pytest.raises(FileNotFoundError):
        mmds.open(tmp_path / "x-*.mmds")
    with pytest.raises(FileNotFoundError, match=r"no dataset at .*missing"):
        mmds.MemoryMappedDataset([folder / "whole.mmds", tmp_path / "missing.mmds"])
    with pytest.raises(ValueError, match="an empty list of files"):
        mmds.open([])
    with pytest.raises(SourceError, match=r"several files can be read as one if they are .mmds files"):
        mmds.open(folder / "s-*.mmds", format="lmdb")
    (tmp_path / "no.mmds").write_text("no")
    with pytest.raises(FormatError, match=r"no\.mmds"):
        mmds.open([folder / "whole.mmds", tmp_path / "no.mmds"])


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    write(tmp_path / "a[1].mmds", range(4))
    assert len(mmds.open(tmp_path / "a[1].mmds")) == 4
    assert len(mmds.MemoryMappedDataset(tmp_path / "a[1].mmds")) == 4


def test_each_file_is_asked_for_its_own_rows(several: mmds.Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    released: list[int] = []
    monkeypatch.setattr(Readahead, "ask", lambda self, starts, stops: asked.append(len(starts)))
    monkeypatch.setattr(Readahead, "release", lambda self, starts, stops: released.append(len(starts)))
    monkeypatch.setattr(several.store, "wanted", lambda samples: True)
    several[[0, 45, 1, 46, 47]]
    assert sorted(set(asked)) == [2, 3]
    several.release(np.array([0, 45]))
    assert set(released) == {1}


def test_released_pages_leave_this_process(folder: Path) -> None:
    with_release = mmds.Loader(mmds.MemoryMappedDataset(folder / "s-*.mmds", fields=["large"]), 8, release=True)
    plain = mmds.Loader(mmds.MemoryMappedDataset(folder / "whole.mmds", fields=["large"]), 8)
    assert_equal(list(with_release), list(plain))


def test_arrow_tables_of_several_files(several: mmds.Reader, one: mmds.Reader) -> None:
    fields = ["key", "maybe", "label", "small"]
    assert several.to_arrow(fields).to_pylist() == one.to_arrow(fields).to_pylist()
    assert several[5:40].to_arrow(fields).to_pylist() == one[5:40].to_arrow(fields).to_pylist()
    assert several[5:5].to_arrow(fields).num_rows == 0
    with pytest.raises(ValueError, match="expected neighbours"):
        several[::2].to_arrow(fields)


def test_several_files_are_converted_to_one(folder: Path, tmp_path: Path) -> None:
    mmds.convert(folder / "s-*.mmds", tmp_path / "out.mmds")
    assert_equal(list(mmds.open(tmp_path / "out.mmds")), list(mmds.open(folder / "whole.mmds")))


def test_info_of_several_files(folder: Path, several: mmds.Reader) -> None:
    from mmds.summary import summarize

    found = summarize(several)
    assert found["samples"] == TOTAL
    assert found["format"] == "mmds 1.0, 5 files"
    assert found["fields"][-1]["classes"] == {"cat": 25, "dog": 25}


def test_dropping_a_dataset_closes_its_files_at_once(tmp_path: Path) -> None:
    mmds.convert([{"x": k, "t": "x" * k} for k in range(200)], tmp_path / "a.mmds", shard_size=500)
    gc.collect()
    gc.disable()
    try:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            assert mmds.open(tmp_path / "a.mmds")[np.arange(0, 200, 3)]["x"][-1] == 198
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        gc.enable()
