"""Columns that are added to a folder of shards."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.utils.data import DataLoader

import mmds
from mmds import addcolumn, sidecar
from mmds.cli import main
from mmds.errors import ChangedError, FormatError, SampleError, SchemaError, SourceError, StorageError
from mmds.manifest import Manifest, describe_shard, locked, publish_manifest, read_manifest
from mmds.readahead import Readahead
from mmds.sidecar import Joined
from tests.shard_folders import plain_sample, write_folder, write_shards

COUNTS = (4, 0, 7, 2)
N = sum(COUNTS)
VECTORS = np.random.default_rng(0).random((N, 3), "float32")
LARGE = np.random.default_rng(1).integers(0, 255, (N, 20, 30), "uint8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "out.mmds", COUNTS)


def columns_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "columns").iterdir())


def test_a_column_of_arrays(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.glob("*.mmds")}
    mmds.add_column(folder, "vector", VECTORS)
    reader = mmds.open(folder)
    assert list(reader[5]) == ["number", "text", "vector"]
    assert reader[5]["number"] == 5 and reader[5]["text"] == "sample 5" and (reader[5]["vector"] == VECTORS[5]).all()
    assert reader.fields.names == ("number", "text", "vector")
    rows = [12, 0, 5, 5, -1]
    batch = reader[rows]
    assert (batch["vector"] == VECTORS[rows]).all() and batch["number"].tolist() == [12, 0, 5, 5, 12]
    assert (reader[3:9].column("vector") == VECTORS[3:9]).all()
    assert {path: path.read_bytes() for path in folder.glob("*.mmds")} == before
    assert mmds.verify(folder) and not mmds.verify(folder).notes


def test_a_column_of_one_sidecar_is_read_without_a_copy(folder: Path) -> None:
    for name, values in (("vector", VECTORS), ("large", LARGE)):
        mmds.add_column(folder, name, values)
        column = mmds.open(folder).column(name)
        assert not column.flags.owndata and not column.flags.writeable and (column == values).all()


KINDS: dict[str, tuple[Any, Any, Any]] = {  # values, kind=, the kind that comes of it
    "numbers": (range(N), None, mmds.Scalar("int64")),
    "numbers of an array": (np.arange(N, dtype=">u2"), None, mmds.Scalar("uint16")),
    "numbers of a tensor": (torch.arange(N) > 4, None, mmds.Scalar("bool")),
    "bfloat16": (torch.ones(N, 2, dtype=torch.bfloat16), None, mmds.Array("bfloat16", (2,))),
    "numbers, some null": ([None if i % 3 else i / 2 for i in range(N)], None, mmds.Scalar("float64", nullable=True)),
    "labels": (np.arange(N) % 2, mmds.Label(("cat", "dog")), mmds.Label(("cat", "dog"))),
    "labels, some null": (
        [None, *range(N - 1)],
        mmds.Label(tuple(map(str, range(N))), nullable=True),
        mmds.Label(tuple(map(str, range(N))), nullable=True),
    ),
    "texts": ([f"text {i}" for i in range(N)], None, mmds.Text(column=True)),
    "texts of an array": (np.array([f"text {i}" for i in range(N)]), None, mmds.Text(column=True)),
    "texts, some null": ([f"{i}" if i % 2 else None for i in range(N)], None, mmds.Text(column=True, nullable=True)),
    "bytes": ([bytes([i]) * i for i in range(N)], None, mmds.Bytes(column=True)),
    "JSON": ([{"boxes": [i, [1.5]]} for i in range(N)], None, mmds.Json()),
    "an iterator": (iter([f"{i}" for i in range(N)]), None, mmds.Text(column=True)),
    "different lengths": (
        [np.arange(i % 4, dtype="u1") for i in range(N)],
        mmds.Array("uint8", (None,)),
        mmds.Array("uint8", (None,)),
    ),
}


@pytest.mark.parametrize("case", KINDS)
def test_kinds(folder: Path, case: str) -> None:
    values, kind, expected = KINDS[case]
    kept = list(values) if not isinstance(values, Iterator) else [f"{i}" for i in range(N)]
    mmds.add_column(folder, "new", iter(kept) if isinstance(values, Iterator) else values, kind=kind)
    reader = mmds.open(folder)
    assert reader.fields[-1].kind == expected
    stored: list[Any] = [
        value.view(torch.uint16) if isinstance(value, torch.Tensor) and value.ndim else value for value in kept
    ]
    for i in range(N):
        assert np.array_equal(reader[i]["new"], stored[i])
    batch = reader[np.arange(N)]["new"]
    assert all(np.array_equal(a, b) for a, b in zip(batch, stored, strict=True))
    valid = reader.valid("new").tolist()
    assert valid == [value is not None for value in kept]


def test_training_with_a_column(folder: Path) -> None:
    mmds.add_column(folder, "label", np.arange(N) % 3, kind=mmds.Label(("a", "b", "c")))
    mmds.add_column(folder, "vector", VECTORS)
    dataset = mmds.MemoryMappedDataset(folder, fields=("vector", "label"))
    assert dataset.classes == ["a", "b", "c"] and dataset.targets.tolist() == [i % 3 for i in range(N)]
    vectors, labels = next(iter(DataLoader(dataset, N)))
    assert torch.equal(vectors, torch.from_numpy(VECTORS)) and labels.tolist() == [i % 3 for i in range(N)]
    for batch in (list(mmds.Loader(dataset, 4)), list(mmds.Loader(dataset, 4, release=True))):
        assert torch.equal(torch.cat([part[0] for part in batch]), torch.from_numpy(VECTORS))
    assert dataset[4:][0][1] == 1
    mixed = mmds.MemoryMappedDataset(folder, fields=["label", "number"], ragged="jagged")
    assert mixed[[12, 3]]["number"].tolist() == [12, 3]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_columns(folder: Path, method: str) -> None:
    mmds.add_column(folder, "vector", VECTORS)
    dataset = mmds.MemoryMappedDataset(folder)
    assert dataset[3]["number"] == 3
    loader = DataLoader(dataset, 5, num_workers=2, multiprocessing_context=multiprocessing.get_context(method))
    batches = list(loader)
    assert torch.equal(torch.cat([batch["vector"] for batch in batches]), torch.from_numpy(VECTORS))
    assert torch.cat([batch["number"] for batch in batches]).tolist() == list(range(N))


def test_the_kernel_is_asked_for_columns_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mmds.add_column(folder, "large", LARGE)
    reader = mmds.open(folder, fields=["large"])
    asked: list[int] = []
    released: list[int] = []
    monkeypatch.setattr(Readahead, "ask", lambda self, starts, stops: asked.append(len(starts)))
    monkeypatch.setattr(Readahead, "release", lambda self, starts, stops: released.append(len(starts)))
    reader.prefetch([12, 0, 5])
    reader.release(np.array([1, 2]))
    assert asked == [3] and released == [2]  # the sidecar alone: no shard has this field
    both = mmds.open(folder, fields=["large", "number"])
    both.prefetch([12, 0, 5])
    assert sorted(asked[1:]) == [1, 1, 1, 3]


def test_replacing(folder: Path) -> None:
    with pytest.raises(SchemaError, match="there is a key 'number' already; replace=True"):
        mmds.add_column(folder, "number", VECTORS)
    mmds.add_column(folder, "number", range(100, 100 + N), replace=True)
    mmds.add_column(folder, "extra", range(N))
    with pytest.raises(SchemaError, match="there is a key 'extra' already"):
        mmds.add_column(folder, "extra", range(N))
    assert mmds.open(folder)[4] == {"number": 104, "text": "sample 4", "extra": 4}
    mmds.add_column(folder, "number", [f"{i}" for i in range(N)], replace=True)
    assert mmds.open(folder)[4] == {"number": "4", "text": "sample 4", "extra": 4}
    assert columns_in(folder) == ["extra-0.mmds", "number-1.mmds"]  # what is not listed any more is gone
    assert mmds.verify(folder) and mmds.open(folder).to_arrow(["number", "extra"])["number"].to_pylist()[3] == "3"


def test_dropping(folder: Path) -> None:
    empty = read_manifest(folder)
    mmds.add_column(folder, "number", range(100, 100 + N), replace=True)
    mmds.add_column(folder, "extra", range(N))
    mmds.drop_column(folder, "number")
    assert mmds.open(folder)[4] == {"number": 4, "text": "sample 4", "extra": 4}
    for name in ("number", "text", "other"):
        with pytest.raises(SchemaError, match=f"no column '{name}' was added to it"):
            mmds.drop_column(folder, name)
    mmds.drop_column(folder, "extra")
    assert read_manifest(folder) == empty and columns_in(folder) == []


def test_nested_samples_and_strange_names(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", [2, 1], lambda i: {"meta": {"id": i, "pair": (i, -i)}})
    mmds.add_column(folder, "../x/\x1b[2J" * 20, range(3))
    mmds.add_column(folder, "größe", range(3))
    mmds.add_column(folder, "gr__e", range(3))
    assert len(columns_in(folder)) == 3 and all(name.isascii() and len(name) < 60 for name in columns_in(folder))
    assert mmds.open(folder)[2] == {"meta": {"id": 2, "pair": (2, -2)}, "../x/\x1b[2J" * 20: 2, "größe": 2, "gr__e": 2}
    mmds.add_column(folder, "meta", ["a", "b", "c"], replace=True)  # with all that is below it
    assert mmds.open(folder)[2]["meta"] == "c" and mmds.open(folder).fields.names[0] == "meta"
    with pytest.raises(SchemaError, match="2 fields are named"):
        other = write_folder(tmp_path / "b", [1], lambda i: {"meta": {"id": i}})
        mmds.add_column(other, "meta.id", [1])


@pytest.mark.parametrize("make", [lambda i: (i, f"{i}"), lambda i: i], ids=["tuples", "values"])
def test_samples_that_are_no_dicts(tmp_path: Path, make: Callable[[int], Any]) -> None:
    folder = write_folder(tmp_path / "a", [2, 1], make)
    with pytest.raises(FormatError, match="samples that are no dicts have no place for more columns"):
        mmds.add_column(folder, "x", range(3))
    assert mmds.open(folder)[2] == make(2) and not (folder / "columns").exists()


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "one more": (range(N + 1), SampleError, "14 values for 13 samples"),
    "one less": (VECTORS[1:], SampleError, "12 values for 13 samples"),
    "an iterator of more": (iter(range(10_000)), SampleError, "1024 or more values for 13 samples"),
    "an iterator of less": (iter(range(5)), SampleError, "5 values for 13 samples"),
    "an iterator of nothing": (iter(()), SampleError, "no value that is not None; say what the values are with kind="),
    "nulls": ([None] * N, SampleError, "no value that is not None"),
    "a text": ("thirteen char", SampleError, "expected one value for each sample, got str"),
    "a dict": (dict.fromkeys(range(N)), SampleError, "expected one value for each sample, got dict"),
    "one number": (np.array(3), SampleError, "expected one value for each sample, got ndarray"),
    "different kinds": ([1] * (N - 1) + ["x"], SampleError, "sample 12, field 'new': expected a scalar of int64"),
    "different shapes": ([np.zeros(1)] * 12 + [np.zeros(2)], SampleError, "sample 12, .*sizes that vary are None"),
    "a late null": (iter([1] * 12 + [None]), SampleError, "sample 12, field 'new'"),
    "objects": (np.array([object()] * N), SampleError, "kind= says what other values are"),
    "times": (np.zeros(N, "M8[s]"), SampleError, "kind= says what other values are"),
}


@pytest.mark.parametrize("case", WRONG)
def test_values_that_do_not_fit(folder: Path, case: str) -> None:
    values, error, message = WRONG[case]
    before = read_manifest(folder)
    with pytest.raises(error, match=message):
        mmds.add_column(folder, "new", values)
    assert read_manifest(folder) == before and not list(folder.glob("columns/*"))


def test_what_is_no_folder_of_shards(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    write_shards(folder, [2])
    message = (
        r"only a folder of shards can get a column, and this is one file.*mmds convert .*00000\.mmds .*--shard-size"
    )
    with pytest.raises(SourceError, match=message):
        mmds.add_column(folder / "00000.mmds", "x", range(2))
    with pytest.raises(FormatError, match=r"without dataset\.json, so an unfinished dataset"):
        mmds.add_column(folder, "x", range(2))
    with pytest.raises(FileNotFoundError):
        mmds.add_column(tmp_path / "missing", "x", range(2))


def test_only_one_changes_a_folder(folder: Path) -> None:
    with locked(folder), pytest.raises(StorageError, match="is being changed by another process"):
        mmds.add_column(folder, "x", range(N))


def test_a_folder_that_leads_elsewhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / "columns").symlink_to(tmp_path / "elsewhere")
    before = read_manifest(folder)
    with pytest.raises(FormatError, match="leads out of the folder"):
        mmds.add_column(folder, "x", range(N))
    assert read_manifest(folder) == before


def test_readers_keep_what_they_opened(folder: Path) -> None:
    mmds.add_column(folder, "x", range(N))
    reader, dataset = mmds.open(folder), mmds.MemoryMappedDataset(folder)
    data = pickle.dumps(dataset)
    mmds.add_column(folder, "x", range(50, 50 + N), replace=True)
    mmds.add_column(folder, "y", range(N))
    assert reader[[3, 12]]["x"].tolist() == [3, 12] and dataset[12] == {**plain_sample(12), "x": 12}
    with pytest.raises(ChangedError, match="was replaced since this dataset was opened"):
        pickle.loads(data)[0]


def test_a_manifest_that_is_replaced_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mmds.add_column(folder, "x", range(N))
    seen: list[Manifest] = []

    def read_and_replace(path: Path) -> Manifest:
        seen.append(read_manifest(path))
        if len(seen) == 1:
            with monkeypatch.context() as patch:
                patch.setattr(sidecar, "read_manifest", read_manifest)
                mmds.add_column(folder, "x", range(50, 50 + N), replace=True)
        return seen[-1]

    monkeypatch.setattr(sidecar, "read_manifest", read_and_replace)
    assert mmds.open(folder)[3]["x"] == 53
    (folder / "columns" / "x-1.mmds").unlink()
    with pytest.raises(FormatError, match=r"x-1\.mmds: missing, but dataset\.json lists it"):
        mmds.open(folder)


def test_what_a_crash_leaves_is_no_part_of_the_dataset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(addcolumn, "publish_manifest", crash)
        patch.setattr(
            addcolumn, "_removed_on_error", lambda *_: contextlib.nullcontext()
        )  # for which a crash leaves no time
        for name in ("x", "y"):
            with pytest.raises(KeyboardInterrupt):
                mmds.add_column(folder, name, range(N))
    assert columns_in(folder) == ["x-0.mmds", "y-0.mmds"] and mmds.open(folder).fields.names == ("number", "text")
    found = mmds.verify(folder)
    assert found and found.notes == (
        "no part of the dataset, for dataset.json does not list it: columns/x-0.mmds, columns/y-0.mmds",
    )
    mmds.add_column(folder, "x", [f"{i}" for i in range(N)])
    assert columns_in(folder) == ["x-0.mmds"] and mmds.open(folder)[7]["x"] == "7"


def test_sidecars_that_do_not_go_together(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    manifest = write_shards(folder, [2])
    for name in ("one", "two"):
        with mmds.Writer(folder / f"{name}.mmds") as writer:
            writer.extend([{"x": 1, "y": 2}] * 2)
    sidecars = [describe_shard(folder / f"{name}.mmds", f"{name}.mmds") for name in ("one", "two")]
    publish_manifest(folder, Manifest(manifest.schema_id, manifest.shards, tuple(sidecars)), overwrite=False)
    with pytest.raises(FormatError, match="two sidecars have the key 'x'"):
        mmds.open(folder)
    assert [str(damage) for damage in mmds.verify(folder).damages] == [f"{folder}: two sidecars have the key 'x'"]
    publish_manifest(folder, Manifest(manifest.schema_id, manifest.shards, tuple(sidecars[:1])), overwrite=True)
    assert mmds.open(folder)[1] == {**plain_sample(1), "x": 1, "y": 2}
    with pytest.raises(SchemaError, match=r"is in one file with other columns: .*one\.mmds"):
        mmds.add_column(folder, "x", range(2), replace=True)


def test_keys_in_a_sidecar(folder: Path) -> None:
    mmds.add_column(folder, "name", [f"n{i % 7}" for i in range(N)], kind=mmds.Text(key=True))
    reader = mmds.open(folder)
    assert reader.get("n5")["number"] == 5 and reader.row_of("n6") == 6
    assert isinstance(reader.store, Joined)


def test_deterministic(tmp_path: Path) -> None:
    folders = [write_folder(tmp_path / name, COUNTS) for name in "ab"]
    mmds.add_column(folders[0], "vector", VECTORS)
    mmds.add_column(folders[1], "vector", iter(list(VECTORS)))
    assert mmds.open(folders[0]).content_id == mmds.open(folders[1]).content_id


def run(*arguments: Any) -> str:
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    return f"{result.exit_code}: {result.output}"


def test_the_command(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VECTORS)
    assert run("add-column", folder, "vector", tmp_path / "v.npy") == "0: 13 values\n"
    (tmp_path / "names.txt").write_text("cat\ndog\n" * 6 + "cat\n")
    assert run("add-column", folder, "label", tmp_path / "names.txt", "--classes", "cat,dog") == "0: 13 values\n"
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(None if i % 2 else f"{i}") + "\n" for i in range(N)))
    assert run("add-column", folder, "text", tmp_path / "v.jsonl", "--replace") == "0: 13 values\n"
    reader = mmds.open(folder)
    assert (reader[4]["vector"] == VECTORS[4]).all() and reader.fields[3].kind == mmds.Label(("cat", "dog"))
    assert (reader[4]["text"], reader[5]["text"], reader[5]["label"]) == ("4", None, 1)


def test_the_command_refuses(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n" * 6 + "cow\n")
    assert "line 13: str 'cow' is none of the classes" in run(
        "add-column", folder, "x", tmp_path / "names.txt", "--classes", "cat,dog"
    )
    (tmp_path / "v.jsonl").write_text("1\n{\n")
    assert "v.jsonl: line 2: " in run("add-column", folder, "x", tmp_path / "v.jsonl")
    (tmp_path / "v.csv").write_text("1\n")
    assert "values are read from .npy, .txt and .jsonl files" in run("add-column", folder, "x", tmp_path / "v.csv")
    np.save(tmp_path / "o.npy", np.array([object()] * N), allow_pickle=True)
    assert "1: Error: " in run("add-column", folder, "x", tmp_path / "o.npy")
    assert "there is a key 'text' already" in run("add-column", folder, "text", tmp_path / "names.txt")
