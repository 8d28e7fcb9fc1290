"""`mmds.ray` on a cluster of two nodes: rows in order, each once, whatever dies."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.data

import mmds
import mmds.ray
from mmds import Array, Bytes, Label, Scalar, Text
from mmds.errors import ChangedError, ExistsError, SampleError, SchemaError, StorageError
from mmds.ray import MmdsDatasink, MmdsDatasource, read_mmds, write_mmds
from tests.likeness import assert_alike
from tests.raycluster import RayCluster, killing, ray_cluster
from tests.samples import write_fixed
from tests.shard_folders import write_folder

# Ray warns itself of what it does not do any more, and leaves processes to their end.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster() as cluster:
        yield cluster


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


FIELDS = {
    "number": Scalar("int64"), "label": Label(("even", "odd")), "picture": Array("uint8", (12, 10)),
    "boxes": Array("float32", (None, 4)), "text": Text(nullable=True), "raw": Bytes(column=True),
}  # fmt: skip


def sample(i: int) -> dict[str, Any]:
    return {
        "number": i, "label": i % 2, "picture": np.full((12, 10), i % 251, "uint8"),
        "boxes": np.full((i % 3, 4), i, "float32"), "text": None if i % 5 == 0 else f"sample {i}",
        "raw": bytes([i % 256]) * (i % 7),
    }  # fmt: skip


@pytest.mark.stress
def test_rows_come_back_in_order(cluster: RayCluster, tmp_path: Path) -> None:
    """Read, changed, written, as on one machine; nothing is left beside."""
    with mmds.Writer(tmp_path / "a.mmds", FIELDS, metadata={"a": 1}) as writer:
        writer.extend(map(sample, range(200)))

    def invert(batch: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.02 * (batch["number"][0] == 0))  # the first is done last
        return {**batch, "picture": 255 - batch["picture"]}

    dataset = read_mmds(tmp_path / "a.mmds", override_num_blocks=9)
    options = dataset.context.execution_options
    write_mmds(dataset.map_batches(invert), tmp_path / "b.mmds", fields=FIELDS, metadata={"b": [2]}, compression="zstd")
    assert dataset.context.execution_options is options and not options.preserve_order
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mmds", "b.mmds"]
    reader = mmds.open(tmp_path / "b.mmds")
    assert reader.metadata == {"b": [2]} and reader.fields[3].is_compressed and mmds.verify(tmp_path / "b.mmds")
    assert len(reader.store.manifest.shards) == 9  # type: ignore[attr-defined]
    assert_alike(list(reader), [{**sample(i), "picture": 255 - sample(i)["picture"]} for i in range(200)])


@pytest.mark.stress
def test_fields_of_the_first_row(cluster: RayCluster, tmp_path: Path) -> None:
    """For rows of numpy arrays, strings, lists and dicts; many of the tasks have none."""

    def rows(row: dict[str, Any]) -> dict[str, Any]:
        i = int(row["id"])
        return {"i": i, "x": np.full((2, 3), i, "float32"), "tokens": [i] * (i % 4 + 1), "of": {"name": f"{i}"}}

    def some(batch: dict[str, Any]) -> dict[str, Any]:
        return {"id": batch["id"][(batch["id"] >= 20) & (batch["id"] < 31)]}

    dataset = ray.data.range(60, override_num_blocks=6).map_batches(some).map(rows)
    write_mmds(dataset, tmp_path / "a")
    reader = mmds.open(tmp_path / "a")
    assert reader.fields.structure == {
        "i": Scalar("int64"), "x": Array("float32", (2, 3)), "tokens": Array("int64", (None,)), "of": {"name": Text()}
    }  # fmt: skip
    assert [shard.n for shard in reader.store.manifest.shards] == [10, 1]  # type: ignore[attr-defined]
    want = [{**rows({"id": i}), "tokens": np.array([i] * (i % 4 + 1))} for i in range(20, 31)]
    assert_alike(list(reader), want)


@pytest.mark.stress
def test_without_rows(cluster: RayCluster, tmp_path: Path) -> None:
    none = ray.data.range(4).map_batches(lambda batch: {"id": batch["id"][:0]})
    with pytest.raises(SchemaError, match="no samples and no fields"):
        write_mmds(none, tmp_path / "a.mmds")
    assert not list(tmp_path.iterdir())
    write_mmds(none, tmp_path / "a.mmds", fields={"id": Scalar("int64"), "x": Array("int8", (None,))})
    assert len(mmds.open(tmp_path / "a.mmds")) == 0
    empty = read_mmds(tmp_path / "a.mmds")
    assert empty.count() == 0 and empty.schema().names == ["id", "x"]


@pytest.mark.stress
def test_failures_leave_what_was_there(cluster: RayCluster, tmp_path: Path) -> None:
    path = write_fixed(tmp_path / "a.mmds", 6, (2, 2))
    before = path.read_bytes()
    dataset = read_mmds(path, override_num_blocks=3)

    def fail(row: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("of the map")

    with pytest.raises(ExistsError, match="overwrite=True"):
        write_mmds(dataset, path)
    with pytest.raises(Exception, match="of the map"):
        write_mmds(dataset.map(fail), path, fields={"x": Scalar("int8")}, overwrite=True)
    names = dataset.schema().names
    with pytest.raises(SchemaError, match=r"the dataset has the columns .* and the fields need \['id'\]"):
        write_mmds(dataset, path, fields={"id": Scalar("int8")}, overwrite=True)
    with pytest.raises(SampleError, match=r"sample 0, field 'x': expected array of int8 \(3,\)"):
        wrong = dataset.map(lambda row: {"x": row[names[0]]})
        write_mmds(wrong, tmp_path / "b.mmds", fields={"x": Array("int8", (3,))})
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["a.mmds"]
    write_mmds(dataset, path, overwrite=True)
    assert path.is_dir() and len(mmds.open(path)) == 6 and [each.name for each in tmp_path.iterdir()] == ["a.mmds"]
    with pytest.raises(ChangedError, match="replaced since read_mmds was called"):
        raise_own(dataset)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ExistsError, match="other things in it"):
        write_mmds(dataset, tmp_path / "other", overwrite=True)
    with pytest.raises(StorageError, match="file system that all nodes share"):
        write_mmds(dataset, "s3://bucket/a.mmds")


def raise_own(dataset: Any) -> None:
    """Read a dataset, and raise what a task has raised as itself."""
    with mmds.ray._own_errors():
        dataset.take_all()


@pytest.mark.stress
def test_the_page(cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with mmds.Writer("photos.mmds", {"image": Array("uint8", (20, 30, 3)), "label": Label(("cat",))}) as writer:
        writer.extend({"image": np.full((20, 30, 3), i, "uint8"), "label": 0} for i in range(12))
    page = (Path(__file__).parent.parent / "docs" / "ray.md").read_text()
    (block,) = [each for each in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "read_mmds" in each]
    exec(compile(block, "ray.md", "exec"), {"__name__": "__main__"})  # whose functions travel by value
    dark = mmds.open("dark.mmds")
    assert [row["image"][0, 0, 0] for row in dark] == [i // 2 for i in range(12)] and dark.fields[1].kind.names == (
        "cat",
    )


@pytest.mark.stress
@pytest.mark.parametrize("kills", [1, 10])
def test_each_row_once_whatever_dies(cluster: RayCluster, tmp_path: Path, kills: int) -> None:
    """The same bytes as without kills, of workers and, from the fifth on, of a node."""
    count, blocks = (400, 8) if kills == 1 else (20_000, 100)

    def slow(batch: dict[str, Any]) -> dict[str, Any]:
        if seconds := float((tmp_path / "seconds").read_text()):
            time.sleep(seconds)
        return {"n": batch["id"], "square": batch["id"] ** 2, "row": np.repeat(batch["id"][:, None], 50, 1)}

    for name, seconds in (("whole", 0), ("killed", 0.2 if kills == 1 else 1.5)):
        (tmp_path / "seconds").write_text(str(seconds))
        dataset = ray.data.range(count, override_num_blocks=blocks).map_batches(slow, batch_size=None)
        with killing(cluster, kills if seconds else 0, 0.4 if kills == 1 else 1.0, seed=8) as killed:
            write_mmds(
                dataset,
                tmp_path / name,
                fields={"n": Scalar("int64"), "square": Scalar("int64"), "row": Array("int64", (50,))},
            )
    assert killed.count("worker") >= kills * 4 // 5 and killed.count("node") == kills // 5
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")
    assert mmds.open(tmp_path / "killed").column("n").tolist() == list(range(count))
    assert len(list(tmp_path.iterdir())) == 3


# Without a cluster

N = mmds.Schema({"n": Scalar("int64")}).to_json()


def task(number: int) -> Any:
    return SimpleNamespace(task_idx=number)


def blocks(*numbers: int) -> list[Any]:
    return [pa.table({"n": list(numbers)})]


def test_an_attempt_that_ray_gave_up_damages_nothing(tmp_path: Path) -> None:
    """It still writes while the next one does, and after all has been published."""
    (tmp_path / "attempts").mkdir()
    sink = MmdsDatasink(tmp_path / "attempts", N, {}, None)

    def zombie() -> Iterator[Any]:
        yield from blocks(7, 8)
        retried.append(sink.write(blocks(7, 8, 9), task(0)))
        yield from blocks(9)

    retried: list[Any] = []
    first = sink.write(zombie(), task(0))
    (second,) = retried
    assert first[1] is not None and first[1].path != second[1].path and first[1].content_id == second[1].content_id
    assert sorted(path.name for path in sink.folder.iterdir()) == sorted([first[1].path, second[1].path])

    def late() -> Iterator[Any]:
        yield from blocks(7)
        shutil.rmtree(sink.folder)
        yield from blocks(8)

    with pytest.raises(StorageError):
        sink.write(late(), task(0))
    assert not list(tmp_path.iterdir())


def test_a_node_that_does_not_see_the_folder(tmp_path: Path) -> None:
    sink = MmdsDatasink(tmp_path / "elsewhere", N, {}, None)
    with pytest.raises(StorageError, match=r"not there on the node .* expected a path on a file system that all nodes"):
        sink.write(blocks(1), task(0))
    assert sink.write([], task(1)) == (1, None) and sink.write(blocks()[0:0], task(2)) == (2, None)
    path = write_fixed(tmp_path / "a.mmds", 4)
    (read,) = MmdsDatasource(path).get_read_tasks(1)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"on the node .* the same path"):
        list(read())


def test_what_ray_is_told_before_anything_is_read(tmp_path: Path) -> None:
    """Sizes and columns, of a file and of a folder."""
    path = write_fixed(tmp_path / "a.mmds", 10, (3, 4, 4))
    kinds: list[Any] = [field.kind for field in mmds.open(path).fields.fields]
    source = MmdsDatasource(path)
    assert source.estimate_inmemory_data_size() == 10 * sum(kind.nbytes for kind in kinds)
    tasks = source.get_read_tasks(4)
    assert [each.metadata.num_rows for each in tasks] == [2, 3, 2, 3]
    assert sum(each.metadata.size_bytes or 0 for each in tasks) == source.bytes
    assert [[len(block) for block in each()] for each in tasks] == [[2], [3], [2], [3]]
    assert all(block.schema.equals(each.schema) for each in tasks for block in each())
    folder = write_folder(tmp_path / "folder", [3, 0, 5, 2], lambda i: {"t": "x" * i})
    source = MmdsDatasource(folder)
    assert source.estimate_inmemory_data_size() == sum(each.stat().st_size for each in folder.glob("*.mmds"))
    texts = [text for each in source.get_read_tasks(3) for block in each() for text in block["t"].to_pylist()]
    assert texts == ["x" * i for i in range(10)]
    (read,) = MmdsDatasource(folder, fields={"text": "t"}).get_read_tasks(1)
    assert [block.column_names for block in read()] == [["text"]] * 3  # a block for each shard that has samples


def test_blocks_have_no_more_bytes_than_ray_wants(tmp_path: Path) -> None:
    path = write_fixed(tmp_path / "a.mmds", 10, (3, 16, 16))
    row_bytes = MmdsDatasource(path).bytes // 10
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 3 * row_bytes
    (read,) = MmdsDatasource(path).get_read_tasks(1, data_context=context)
    assert [len(block) for block in read()] == [3, 3, 3, 1]


def test_ray_is_not_installed() -> None:
    code = (
        "import sys; sys.modules['ray'] = None; import mmds\ntry: mmds.ray\nexcept ImportError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == 'mmds.ray needs ray[data], which is not installed. Run: pip install "mmds[ray]"\n'
