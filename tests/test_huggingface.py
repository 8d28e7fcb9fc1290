"""Hugging Face `datasets`: its objects, its folders, and its reading of our files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.converters import arrow, huggingface
from mmds.errors import FormatError, SourceError
from mmds.reader import Reader
from tests.likeness import assert_alike
from tests.samples import jpeg
from tests.test_arrow import write_stream


@pytest.fixture
def hf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return datasets


def hf_dataset(datasets: Any, count: int = 7) -> Any:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "grid": datasets.Array2D((2, 3), "float32"),
            "tokens": datasets.Sequence(datasets.Value("int32")),
            "boxes": datasets.Sequence(datasets.Sequence(datasets.Value("float32"), length=4)),
            "meta": {"id": datasets.Value("string"), "words": datasets.Sequence(datasets.Value("string"))},
        }
    )
    rows = {
        "image": [{"bytes": jpeg(k), "path": f"{k}.jpg"} for k in range(count)],
        "label": [k % 2 for k in range(count)],
        "grid": [np.full((2, 3), k, "float32") for k in range(count)],
        "tokens": [list(range(k)) for k in range(count)],
        "boxes": [[[float(k)] * 4] * (k % 3) for k in range(count)],
        "meta": [{"id": f"id{k}", "words": ["w"] * k} for k in range(count)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def hf_sample(k: int) -> dict[str, Any]:
    return {
        "image": jpeg(k),
        "label": k % 2,
        "grid": np.full((2, 3), k, "float32"),
        "tokens": np.arange(k, dtype="int32"),
        "boxes": np.full((k % 3, 4), k, "float32"),
        "meta": {"id": f"id{k}", "words": ["w"] * k},
    }


HF_FIELDS = {
    "image": mmds.Image(),
    "label": mmds.Label(("cat", "dog")),
    "grid": mmds.Array("float32", (2, 3)),
    "tokens": mmds.Array("int32", (None,)),
    "boxes": mmds.Array("float32", (None, 4)),
    "meta": {"id": mmds.Text(), "words": mmds.Json()},
}


def test_a_folder_of_save_to_disk(hf: Any, tmp_path: Path) -> None:
    hf_dataset(hf).save_to_disk(tmp_path / "saved", num_shards=2)
    reader = mmds.open(tmp_path / "saved", format="arrow")
    assert reader.fields == mmds.Schema(HF_FIELDS)
    assert_alike(list(reader), [hf_sample(k) for k in range(7)])
    assert reader[[6, 0]]["grid"].shape == (2, 2, 3)
    hf.DatasetDict({"train": hf_dataset(hf)}).save_to_disk(tmp_path / "splits")
    with pytest.raises(FormatError, match=r"open one of its splits.*train"):
        mmds.open(tmp_path / "splits", format="arrow")


def test_dataset_objects(hf: Any) -> None:
    dataset = hf_dataset(hf)
    store = huggingface.as_store(dataset)
    assert store.schema == mmds.Schema(HF_FIELDS) and store.n == 7
    chosen = huggingface.as_store(dataset.select([5, 0, 5, 3]))
    reader = Reader(chosen, range(chosen.n))
    assert_alike(list(reader), [hf_sample(k) for k in (5, 0, 5, 3)])
    batch = reader[[0, -1]]
    assert batch["label"].tolist() == [1, 1] and batch["grid"][:, 0, 0].tolist() == [5.0, 3.0]
    assert store.content_id != chosen.content_id
    with pytest.raises(SourceError, match="one of its splits: train"):
        huggingface.as_store(hf.DatasetDict({"train": dataset}))
    with pytest.raises(SourceError, match=r"expected a datasets\.Dataset"):
        huggingface.as_store(iter([]))


def test_pictures_that_are_only_paths(hf: Any, tmp_path: Path) -> None:
    (tmp_path / "p.jpg").write_bytes(jpeg(1))
    features = hf.Features({"image": hf.Image()})
    dataset = hf.Dataset.from_dict({"image": [str(tmp_path / "p.jpg"), None]}, features=features)
    store = huggingface.as_store(dataset)
    assert [store.items[0].get(k) for k in range(2)] == [jpeg(1), None]
    path = write_stream(
        tmp_path / "a.arrow", dataset.data.table.replace_schema_metadata(features.arrow_schema.metadata)
    )
    with pytest.raises(FormatError, match="not in the dataset but in the file"):  # a file must not make us read others
        mmds.open(path)[0]


def test_a_state_that_leads_elsewhere(tmp_path: Path) -> None:
    for state in ('{"_data_files":[{"filename":"../a.arrow"}]}', '{"_data_files":[]}', "{}", "[", '{"_data_files":5}'):
        (tmp_path / "state.json").write_text(state)
        with pytest.raises(FormatError, match=r"state\.json: cannot be read"):
            mmds.open(tmp_path, format="arrow")


def test_load_dataset_reads_our_file(hf: Any, tmp_path: Path) -> None:
    with arrow.Writer(tmp_path / "a.arrow", {"x": mmds.Array("int16", (2, 2)), "l": mmds.Label(("a", "b"))}) as writer:
        writer.write({"x": np.array([[1, 2], [3, 4]], "int16"), "l": 1})
    loaded = hf.load_dataset(
        "arrow", data_files=str(tmp_path / "a.arrow"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert loaded[0] == {"x": [[1, 2], [3, 4]], "l": "b"}
