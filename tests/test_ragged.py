"""Values of different length in one batch: jagged and padded, the same as what a list of them holds."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

import mmds
from mmds.errors import FormatError, SampleError
from mmds.jagged import Jagged, join, pad

SCHEMA = {
    "tokens": mmds.Array("uint16", (None,), align=2),
    "boxes": mmds.Array("float32", (None, 4), nullable=True),
    "mask": mmds.Array("uint8", (None, None)),
    "brain": mmds.Array("bfloat16", (None,)),
    "file": mmds.Bytes(),
    "caption": mmds.Text(),
    "label": mmds.Scalar("int64"),
}
PICK = [7, 7, 39, -1, 0, 12]


def samples(count: int = 40) -> list[dict[str, Any]]:
    generator = np.random.default_rng(3)
    return [
        {
            "tokens": generator.integers(0, 60000, i * 13 % 50, "uint16"),
            "boxes": None if i % 5 == 1 else generator.random((i % 4, 4), "float32"),
            "mask": generator.integers(0, 2, (1 + i % 3, 1 + i % 7), "uint8"),
            "brain": torch.arange(i % 6, dtype=torch.float32).to(torch.bfloat16),
            "file": generator.bytes(i * 7),
            "caption": "word " * (i % 3),
            "label": i,
        }
        for i in range(count)
    ]


@pytest.fixture(params=["mmds", "h5"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An mmds file, whose bytes are gathered in place, and another store, whose values are joined."""
    path = tmp_path / "a.mmds"
    with mmds.Writer(path, SCHEMA) as writer:
        writer.extend(samples())
    if request.param == "mmds":
        return path
    mmds.convert(path, tmp_path / "a.h5")
    return tmp_path / "a.h5"


def test_jagged_batches_hold_the_values_of_a_list(path: Path) -> None:
    reader = mmds.open(path)
    want, got = reader[PICK], reader.gather(PICK, ragged="jagged")
    for name in ("tokens", "boxes", "brain", "file"):
        jagged = got[name]
        assert isinstance(jagged, Jagged)
        assert jagged.offsets.dtype == np.int64
        assert len(jagged) == len(PICK)
        for one, other in zip(jagged, want[name], strict=True):
            if other is None:
                assert one.shape == (0, 4)
            elif name == "file":
                assert one.tobytes() == other
            else:
                assert one.dtype == other.dtype
                assert np.array_equal(one, other)
    assert got["tokens"].values.shape == (sum(len(one) for one in want["tokens"]),)
    assert got["boxes"].values.shape[1:] == (4,)
    assert isinstance(got["mask"], list)  # two unknown dimensions
    assert got["caption"] == want["caption"]
    assert np.array_equal(got["label"], want["label"])


def test_padded_batches_hold_the_values_of_a_list_and_zeros(path: Path) -> None:
    reader = mmds.open(path)
    want, got = reader[PICK], reader.gather(PICK, ragged="padded")
    for name in ("tokens", "boxes", "mask", "brain", "file"):
        values = [np.frombuffer(value, "u1") if name == "file" else value for value in want[name]]
        values = [np.empty((0, 4), "f4") if value is None else value for value in values]
        assert got[name].shape == (len(PICK), *np.max([value.shape for value in values], axis=0))
        for row, value in zip(got[name], values, strict=True):
            inside = tuple(map(slice, value.shape))
            assert np.array_equal(row[inside], value)
            row[inside] = 0
            assert not row.any()
    assert got["caption"] == want["caption"]


@pytest.mark.parametrize("ragged", ["list", "jagged", "padded"])
def test_a_batch_of_none(path: Path, ragged: Any) -> None:
    batch = mmds.open(path).gather([], ragged=ragged)
    assert {len(value) for value in batch.values()} == {0}


def test_neighbours_are_one_copy_and_equal(path: Path) -> None:
    reader = mmds.open(path, fields=["file"])
    batch = reader.gather(range(5, 20), ragged="jagged")["file"]
    assert batch.values.tobytes() == b"".join(reader[i]["file"] for i in range(5, 20))
    assert batch.lengths.tolist() == [i * 7 for i in range(5, 20)]


def test_a_slice_and_negative_indices(path: Path) -> None:
    reader = mmds.open(path)[10:]
    assert reader.gather([-1], ragged="jagged")["label"].tolist() == [39]
    with pytest.raises(IndexError):
        reader.gather([30], ragged="jagged")


def test_ends_that_lie_are_refused(tmp_path: Path) -> None:
    with mmds.Writer(tmp_path / "a.mmds", {"x": mmds.Array("uint16", (None,), align=2)}) as writer:
        writer.extend({"x": np.arange(i, dtype="u2")} for i in range(10))
    reader = mmds.open(tmp_path / "a.mmds")
    reader._mapped = None  # these ends are not in the map
    items: Any = reader.items[0]
    for bad in (0, 2**64 - 1, int(items._ends[5]) + 1):  # before its beginning, behind the file, half an element
        ends = items._ends.copy()
        ends[5 + 1] = bad
        items._ends, kept = ends, items._ends
        items._pairs = ends.view("u1").data
        with pytest.raises(FormatError, match=r"sample [56], field 'x'.*run mmds verify"):
            reader.gather([3, 5, 6], ragged="jagged")
        items._ends, items._pairs = kept, kept.view("u1").data


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ragged", ["jagged", "padded"])
def test_a_plain_dataloader_delivers_ragged_batches(path: Path, ragged: Any, workers: int) -> None:
    fields = ["tokens", "brain", "file", "caption", "label"]
    dataset = mmds.MemoryMappedDataset(path, fields=fields, ragged=ragged, decode=False)
    reader = mmds.open(path)
    row = 0
    for batch in DataLoader(dataset, batch_size=7, num_workers=workers):
        assert batch["brain"].dtype == torch.bfloat16 if ragged == "padded" else batch["brain"].values.dtype
        for k in range(len(batch["label"])):
            sample = reader[row]
            tokens, file = batch["tokens"][k], batch["file"][k]
            assert tokens[: len(sample["tokens"])].tolist() == sample["tokens"].tolist()
            assert bytes(file[: len(sample["file"])].tolist()) == sample["file"]
            assert batch["caption"][k] == sample["caption"]
            if ragged == "jagged":
                assert len(tokens) == len(sample["tokens"])
            row += 1
    assert row == 40


@pytest.mark.parametrize("format", ["torch", "numpy", "raw"])
@pytest.mark.parametrize("field", ["tokens", "file", "brain", "boxes"])
def test_a_field_alone(path: Path, field: str, format: str) -> None:
    dataset = mmds.MemoryMappedDataset(path, fields=field, ragged="jagged", format=format)
    lists = mmds.MemoryMappedDataset(path, fields=field, format=format)
    indices = [2, 9, 3]  # no nulls among them
    batch = next(iter(DataLoader(dataset, sampler=indices, batch_size=3)))
    assert isinstance(batch, mmds.Jagged)
    assert batch.values.dtype == next(iter(mmds.Loader(dataset, 3, sampler=indices))).values.dtype
    for got, index in zip(batch, indices, strict=True):
        want = lists[index]
        assert bytes(got.tolist()) == want if field == "file" else got.tolist() == want.tolist()
    samples = DataLoader(dataset, sampler=indices, batch_size=3, collate_fn=list)
    assert [type(sample) for sample in next(iter(samples))] == [type(lists[2])] * 3 or format == "torch"


def test_only_what_it_can_do_is_accepted(path: Path) -> None:
    with pytest.raises(ValueError, match=r"ragged='nested': expected one of list, padded, jagged"):
        mmds.MemoryMappedDataset(path, ragged="nested")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"ragged='x': expected"):
        mmds.open(path).gather([1], ragged="x")  # type: ignore[arg-type]


def test_jagged_as_tensors() -> None:
    jagged = join([np.arange(3.0), np.arange(0.0), np.arange(5.0)]).torch()
    nested = jagged.nested()
    assert [part.tolist() for part in nested.unbind()] == [[0, 1, 2], [], [0, 1, 2, 3, 4]]
    assert nested.values().data_ptr() == jagged.values.data_ptr()
    assert jagged.padded(fill=-1).tolist() == [[0, 1, 2, -1, -1], [-1] * 5, [0, 1, 2, 3, 4]]
    assert jagged.lengths.tolist() == [3, 0, 5]
    assert jagged[-1].tolist() == [0, 1, 2, 3, 4]
    assert [part.tolist() for part in jagged[1:]] == [[], [0, 1, 2, 3, 4]]
    assert jagged.to("meta").values.device.type == "meta"
    with pytest.raises(IndexError):
        jagged[3]
    assert repr(jagged) == "Jagged(3 values, torch.float64 (8,))"


def test_a_batch_from_a_worker_is_one_piece_of_memory(path: Path) -> None:
    dataset = mmds.MemoryMappedDataset(path, fields=["tokens"], ragged="jagged")
    [batch] = DataLoader(dataset, batch_size=40, num_workers=1)
    tokens = batch["tokens"]
    if path.suffix == ".mmds":
        assert tokens.values.untyped_storage().data_ptr() == tokens.offsets.untyped_storage().data_ptr()
        again = pickle.loads(pickle.dumps(tokens))
        assert torch.equal(again.values, tokens.values)
        assert torch.equal(again.offsets, tokens.offsets)


def test_padding_of_any_rank() -> None:
    padded = pad([np.ones((2, 1), "i1"), np.ones((1, 3), "i1")], fill=7)
    assert padded.tolist() == [[[1, 7, 7], [1, 7, 7]], [[1, 1, 1], [7, 7, 7]]]


def test_a_sample_that_is_looked_at_cannot_be_changed_unnoticed(path: Path) -> None:
    samples = mmds.MemoryMappedDataset(path, fields="tokens", ragged="jagged", format="numpy").__getitems__([2, 3])
    with pytest.raises(ValueError, match="read-only"):
        samples[0][0] = 7
    assert isinstance(default_collate(samples), mmds.Jagged)  # type: ignore[arg-type]


def test_padding_that_would_be_all_there_is_is_refused() -> None:
    wide, tall = np.ones((1, 10**6), "uint8"), np.ones((10**6, 1), "uint8")
    assert pad([wide, wide]).shape == (2, 1, 10**6)
    assert pad([wide[:, :100], tall[:100]]).shape == (2, 100, 100)
    with pytest.raises(
        SampleError, match=r"of at most 1000000 bytes would be padded to the shape \(1000000, 1000000\)"
    ):
        pad([wide, tall])
    nothing = [np.zeros((0, 2**32 - 1, 1), "uint8"), np.zeros((0, 1, 2**32 - 1), "uint8")]
    assert pad(nothing[:1]).shape == (1, 0, 2**32 - 1, 1)
    with pytest.raises(SampleError, match="2 arrays of at most 0 bytes"):
        pad(nothing)
