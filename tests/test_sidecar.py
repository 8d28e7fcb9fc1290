"""A folder of shards and its manifest as one dataset."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.utils.data import DataLoader

import mmds
from mmds.cli import main
from mmds.errors import ChangedError, FormatError, SchemaError, SourceError
from mmds.manifest import Manifest, Shard, describe_shard, publish_manifest, read_manifest
from mmds.mapped import MappedFile
from tests.shard_folders import plain_sample, write_folder, write_shards
from tests.test_shards import BATCHES, COUNTS, SCHEMA, TOTAL, assert_equal, sample, write


def test_a_folder_is_one_dataset(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "out.mmds", COUNTS, sample, SCHEMA)
    one = mmds.open(write(tmp_path / "whole.mmds", range(TOTAL)))
    for reader in (mmds.open(folder), mmds.open(str(folder), format="mmds"), mmds.open(folder, in_memory=True)):
        assert (
            len(reader) == TOTAL and reader.path == folder and repr(reader).startswith(f"<Reader {folder}: 50 samples")
        )
        assert_equal([reader[i] for i in (0, 7, 49, -1)], [one[i] for i in (0, 7, 49, 49)])
        assert_equal(reader.gather(BATCHES["scattered"], "jagged"), one.gather(BATCHES["scattered"], "jagged"))
    with pytest.raises(IndexError, match=r"out\.mmds: index 50 is out of range for 50 samples"):
        reader[50]
    assert reader.content_id == read_manifest(folder).content_id
    assert reader.to_arrow(["key", "label"]).to_pylist() == one.to_arrow(["key", "label"]).to_pylist()


def test_any_name_will_do_and_other_files_do_not_matter(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "train", [2, 3])
    np.save(folder / "notes.npy", np.zeros(3))
    (folder / "data.mdb").write_bytes(b"")
    assert len(mmds.open(folder)) == 5


def count_openings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    opened: list[str] = []
    original = MappedFile.__init__

    def open_file(file: MappedFile, path: str, **options: Any) -> None:
        opened.append(Path(path).name)
        original(file, path, **options)

    monkeypatch.setattr(MappedFile, "__init__", open_file)
    return opened


def test_shards_are_opened_when_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "out.mmds", [3] * 20)
    opened = count_openings(monkeypatch)
    reader = mmds.open(folder)
    assert len(reader) == 60 and opened == ["00000.mmds"]
    assert reader[59]["number"] == 59
    assert reader[[3, 1]]["number"].tolist() == [3, 1]
    assert opened == ["00000.mmds", "00019.mmds", "00001.mmds"]


def test_one_shard_is_read_without_copies(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "out.mmds", [300])
    column = mmds.open(folder).column("number")
    assert not column.flags.owndata and not column.flags.writeable and column.tolist() == list(range(300))


FEW_DESCRIPTORS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
import numpy, mmds
reader = mmds.open(sys.argv[1])
rows = numpy.random.default_rng(0).permutation(len(reader))[:2000]
assert (reader[rows]["x"] == rows % 32).all()
assert [reader[i]["x"] for i in range(len(reader))] == [i % 32 for i in range(len(reader))]
print(len(reader))
"""


@pytest.mark.stress
def test_5000_shards_with_256_descriptors(tmp_path: Path) -> None:
    folder = tmp_path / "out.mmds"
    found = write_shards(folder, [2] * 16, lambda i: {"x": i})
    shards = []
    for number in range(5000):  # links to 16 different files
        path = folder / f"s{number}.mmds"
        path.hardlink_to(folder / found.shards[number % 16].path)
        entry = found.shards[number % 16]
        shards.append(Shard(path.name, entry.n, entry.bytes, entry.content_id))
    publish_manifest(folder, Manifest(found.schema_id, tuple(shards)), overwrite=False)
    done = subprocess.run([sys.executable, "-c", FEW_DESCRIPTORS, str(folder)], capture_output=True, text=True)
    assert done.stdout == "10000\n", done.stderr


def test_an_unfinished_folder_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "out.mmds"
    write_shards(folder, [2, 3])
    with pytest.raises(FormatError, match=r"without dataset\.json, so an unfinished dataset.*--resume.*/\*\.mmds"):
        mmds.open(folder)
    (tmp_path / "empty.mmds").mkdir()
    with pytest.raises(FormatError, match=r"empty\.mmds: a folder without dataset\.json, so not a dataset"):
        mmds.open(tmp_path / "empty.mmds")


def test_several_folders_are_refused(tmp_path: Path) -> None:
    folders = [write_folder(tmp_path / f"{name}.mmds", [2]) for name in "ab"]
    for source in (folders, tmp_path / "?.mmds"):
        with pytest.raises(SourceError, match=r"a\.mmds: a folder cannot be one of several files"):
            mmds.open(source)


def test_shards_that_are_not_those_of_the_manifest(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "out.mmds", [2, 3, 4])
    with mmds.Writer(folder / "00001.mmds", overwrite=True) as writer:
        writer.extend(plain_sample(10 + i) for i in range(3))
    (folder / "00002.mmds").unlink()
    reader = mmds.open(folder)
    assert reader[1]["number"] == 1
    with pytest.raises(
        FormatError, match=r"00001\.mmds: not the file that dataset\.json lists: content id .*, expected"
    ):
        reader[2]
    with pytest.raises(FormatError, match=r"00002\.mmds: missing, but dataset\.json lists it"):
        reader[5]
    with pytest.raises(FormatError, match=r"00001\.mmds: not the file"):
        reader[[0, 4]]


def test_shards_of_other_fields(tmp_path: Path) -> None:
    folder = tmp_path / "out.mmds"
    manifest = write_shards(folder, [2])
    with mmds.Writer(folder / "b.mmds") as writer:
        writer.write({"number": "one"})
    shards = (*manifest.shards, describe_shard(folder / "b.mmds", "b.mmds"))
    publish_manifest(folder, Manifest(manifest.schema_id, shards), overwrite=False)
    with pytest.raises(SchemaError, match=r"b\.mmds: has other fields than .*00000\.mmds"):
        mmds.open(folder)[2]
    publish_manifest(folder, Manifest("0" * 32, manifest.shards), overwrite=True)
    with pytest.raises(FormatError, match=r"00000\.mmds: has other fields than dataset\.json says"):
        mmds.open(folder)


def test_a_longer_dataset_and_the_view_that_was_open(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "out.mmds", [2, 3])
    dataset = mmds.MemoryMappedDataset(folder, fields="number")
    assert dataset.path == folder and len(dataset) == 5
    data = pickle.dumps(dataset)
    assert len(data) < 1000
    manifest = read_manifest(folder)
    with mmds.Writer(folder / "00002.mmds") as writer:
        writer.write(plain_sample(5))
    more = describe_shard(folder / "00002.mmds", "00002.mmds")
    publish_manifest(folder, Manifest(manifest.schema_id, (*manifest.shards, more)), overwrite=True)
    assert [dataset[i] for i in range(len(dataset))] == [0, 1, 2, 3, 4]
    with pytest.raises(ChangedError, match=r"out\.mmds was replaced since this dataset was opened"):
        pickle.loads(data)[0]
    assert len(mmds.MemoryMappedDataset(folder)) == 6


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_a_folder(tmp_path: Path, method: str) -> None:
    folder = write_folder(tmp_path / "out.mmds", [5, 0, 8])
    dataset = mmds.MemoryMappedDataset(folder)
    assert dataset[12]["number"] == 12  # opened before the workers start
    context = multiprocessing.get_context(method)
    loader = DataLoader(dataset, 4, num_workers=2, multiprocessing_context=context)
    batches = list(loader)
    assert torch.cat([batch["number"] for batch in batches]).tolist() == list(range(13))
    assert batches[-1]["text"] == ["sample 12"]


def test_a_manifest_of_a_folder_that_moved(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "out.mmds", [2, 3])
    before = mmds.open(folder).content_id
    os.rename(folder, tmp_path / "moved.mmds")  # noqa: PTH104
    assert mmds.open(tmp_path / "moved.mmds").content_id == before


def test_info_of_a_folder(tmp_path: Path) -> None:
    from mmds.summary import summarize

    folder = write_folder(tmp_path / "out.mmds", [2, 0, 300])
    found = summarize(mmds.open(folder))
    sizes = [path.stat().st_size for path in sorted(folder.glob("0*.mmds"))]
    assert found["samples"] == 302 and found["format"] == "mmds 1.0, 3 files"
    assert found["shards"] == {"count": 3, "smallest": sizes[1], "largest": sizes[2]} and found["sidecars"] == 0
    assert found["file_bytes"] == sum(sizes) == found["data_bytes"] + found["index_bytes"] + 3 * 4096


def test_commands_of_a_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "out.mmds", [2, 3])
    mmds.add_column(folder, "label", [0, 1, 0, 1, 0], kind=mmds.Label(("cat", "dog")))

    def run(*arguments: Any) -> str:
        result = CliRunner().invoke(main, [str(each) for each in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    info = run("info", folder)
    assert "5 samples" in info and "shards: 2, of " in info and "; sidecars: 1" in info
    assert "label\tlabel\t2 classes\tsidecar" in info
    assert run("ls", folder, "--start", "3").splitlines() == ["3\t3\tdog", "4\t4\tcat"]
    assert "sample 3" in run("show", folder, "3")
    assert run("verify", folder).startswith("undamaged: 5 samples")
    (folder / "notes.txt").write_text("mine")
    assert "dataset.json does not list it: notes.txt" in run("verify", folder)
