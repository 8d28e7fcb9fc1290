"""Functions of samples in conversions of real sources: what comes out, with any number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

import mmds
from mmds.errors import OptionError, SourceError
from mmds.work import Steps, own
from tests import steps
from tests.samples import jpeg

FIELDS = {
    "image": mmds.Image(),
    "label": mmds.Label(("cat", "dog")),
    "n": mmds.Scalar("int32"),
    "x": mmds.Array("float32", (3,)),
    "maybe": mmds.Scalar("int8", nullable=True),
}


def sample(n: int) -> dict[str, Any]:
    return {"image": jpeg(n), "label": n % 2, "n": n, "x": np.full(3, n, np.float32), "maybe": None if n < 5 else n}


def write_samples(path: Path) -> Path:
    with mmds.Writer(path, FIELDS, metadata={"made": 1}) as writer:
        writer.extend(map(sample, range(20)))
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("steps") / "in.mmds")


def convert(source: Any, path: Path, **options: Any) -> mmds.Reader:
    mmds.convert(source, path, overwrite=True, **options)
    return mmds.open(path)


# What steps do


def test_a_filter_keeps_fields_and_metadata_as_they_are(dataset: Path, tmp_path: Path) -> None:
    reader = convert(dataset, tmp_path / "out.mmds", filter=steps.even)
    assert [each["n"] for each in reader] == list(range(0, 20, 2))
    assert reader.fields == mmds.open(dataset).fields and dict(reader.metadata) == {"made": 1}
    assert reader[2]["maybe"] is None and reader[3]["maybe"] == 6


def test_a_map_keeps_the_kinds_of_what_it_leaves(dataset: Path, tmp_path: Path) -> None:
    reader = convert(
        dataset, tmp_path / "out.mmds", map=lambda each: {"label": each["label"], "image": each["image"], "new": 0.5}
    )
    assert reader.fields.structure == {
        "label": FIELDS["label"], "image": FIELDS["image"], "new": mmds.Scalar("float64"),
    }  # fmt: skip
    given = {"n": mmds.Scalar("uint8")}
    reader = convert(dataset, tmp_path / "out.mmds", map=lambda each: {"n": each["n"]}, output_fields=given)
    assert reader.fields.structure == given


def test_fields_and_rename_come_first(dataset: Path, tmp_path: Path) -> None:
    def check(each: dict[str, Any]) -> bool:
        assert list(each) == ["class", "n"]
        return bool(each["class"])

    options: dict[str, Any] = {"fields": ["n", "label"], "rename": {"label": "class"}}
    reader = convert(dataset, tmp_path / "out.mmds", filter=check, **options)
    assert reader.fields.structure == {"class": FIELDS["label"], "n": FIELDS["n"]} and len(reader) == 10
    plain = convert(dataset, tmp_path / "plain.mmds", **options)  # between stores, as columns
    assert plain.fields == reader.fields and list(plain)[1::2] == list(reader)
    with pytest.raises(OptionError, match="output_fields= are the kinds of what functions return"):
        mmds.convert(dataset, tmp_path / "no.mmds", output_fields=FIELDS)


def test_steps_on_a_folder_of_pictures(tmp_path: Path) -> None:
    for n in range(6):
        path = tmp_path / "photos" / ("cat" if n < 2 else "dog") / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(n))
    reader = convert(
        tmp_path / "photos", tmp_path / "out.mmds", rename={"image": "jpg"}, filter=lambda each: each["label"] == 1
    )
    assert [each["jpg"] for each in reader] == [jpeg(n) for n in range(2, 6)]
    assert reader.fields[0].kind == mmds.Image() and mmds.MemoryMappedDataset(reader.path).classes == ["cat", "dog"]


def test_many_outputs_then_batches_across_them(dataset: Path, tmp_path: Path) -> None:
    """Batches are of what so many samples of the source gave; a generator may fill one array again for each."""

    def three(each: dict[str, Any]) -> Iterator[dict[str, Any]]:
        array = np.empty(4)
        for k in range(3):
            array[:] = 10 * each["n"] + k
            yield {"a": array}

    sizes: list[int] = []

    def batch(many: list[dict[str, Any]]) -> list[dict[str, Any]]:
        sizes.append(len(many))
        return many

    reader = convert(dataset, tmp_path / "out.mmds", map=three, batch_map=batch, batch_size=8)
    assert sizes == [8] * 7 + [4]
    assert [each["a"][0] for each in reader] == [10 * n + k for n in range(20) for k in range(3)]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_function_changes_in_place_nobody_else_sees(dataset: Path, tmp_path: Path, workers: int) -> None:
    """Neither the file, nor the caller's objects, nor the next sample, even if all of them share one array."""
    before = dataset.read_bytes()
    want = [[2.0 * n] * 3 for n in range(20)]
    assert [
        list(each["x"]) for each in convert(dataset, tmp_path / "a.mmds", map=steps.double, num_workers=workers)
    ] == want
    assert dataset.read_bytes() == before
    shared: dict[str, Any] = {"n": 1, "x": np.ones(3)}
    reader = convert([shared] * 40, tmp_path / "b.mmds", map=steps.double, num_workers=workers)
    assert [list(each["x"]) for each in reader] == [[2.0] * 3] * 40 and shared["x"].tolist() == [1.0] * 3
    windows = np.arange(12.0)
    overlapping = [{"n": n, "x": windows[n : n + 3]} for n in range(10)]
    reader = convert(overlapping, tmp_path / "c.mmds", map=steps.double, num_workers=workers)
    assert [each["x"][0] for each in reader] == [2.0 * n for n in range(10)] and windows.sum() == 66


@pytest.mark.parametrize(
    "options", [{"num_workers": 1}, {"num_workers": 2}, {"batch_map": list, "batch_size": 7}], ids=str
)
def test_an_iterable_may_fill_one_array_again_for_each_sample(tmp_path: Path, options: dict[str, Any]) -> None:
    def samples() -> Iterator[dict[str, Any]]:
        array, tensor, data = np.empty(5), torch.empty(2), bytearray(3)
        for n in range(30):
            array[:], data[:] = n, bytes([n] * 3)
            tensor.fill_(n)
            yield {"a": array, "t": tensor, "b": data, "nested": (array[:2], {"deep": array})}

    reader = convert(samples(), tmp_path / "out.mmds", **options)
    assert [each["a"][0] for each in reader] == [each["t"][0] for each in reader] == list(range(30))
    assert all(each["b"] == bytes([n] * 3) and each["nested"][1]["deep"][4] == n for n, each in enumerate(reader))


def test_own_copies_what_can_change_and_nothing_else() -> None:
    base = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    given: dict[str, Any] = {
        "a": base,
        "b": b"bytes",
        "t": torch.ones(2),
        "l": [base, (base[0],)],
        "m": memoryview(b"view"),
    }
    got = own(given)
    assert list(got) == list(given) and got["b"] is given["b"] and got["m"] == b"view"
    assert got["a"].flags.f_contiguous and not np.shares_memory(got["a"], base)
    assert not np.shares_memory(got["l"][1][0], base) and type(got["l"][1]) is tuple
    assert got["t"].data_ptr() != given["t"].data_ptr()


# Sources


class Stream(IterableDataset[Any]):
    """Says how long it is, and has inherited a `__getitem__` that only raises."""

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[Any]:
        return ({"n": n, "x": torch.full((3,), n)} for n in range(8))


def test_python_objects_and_readers_as_sources(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mmds"
    assert [each["n"] for each in convert(Stream(), out, filter=steps.even)] == [0, 2, 4, 6]
    assert [each["n"] for each in convert(iter(steps.Slow(9)[n] for n in range(9)), out, limit=4)] == [0, 1, 2, 3]
    reader = convert(mmds.open(dataset)[4:10], out, map=steps.double)
    assert [each["x"][0] for each in reader] == [8, 10, 12, 14, 16, 18] and reader.fields == mmds.open(dataset).fields
    trained = mmds.MemoryMappedDataset(dataset, fields=("x", "label"))
    assert [(int(x[0]), label) for x, label in convert(trained, out)] == [(n, n % 2) for n in range(20)]
    with pytest.raises(OptionError, match="a Reader belongs to one process; pass on its path"):
        mmds.convert(mmds.open(dataset), tmp_path / "no.mmds", map=steps.double, num_workers=2)


def test_tensors_of_a_dataset_reach_every_worker(tmp_path: Path) -> None:
    """Not by the file descriptors that torch has multiprocessing send, each of which one process can take."""
    source = TensorDataset(torch.arange(60_000.0).reshape(6, 10_000), torch.arange(6))
    reader = convert(source, tmp_path / "out.mmds", num_workers=2)
    assert [(int(x[1]), int(y)) for x, y in reader] == [(10_000 * n + 1, n) for n in range(6)]


def test_datasets_of_hugging_face_are_the_same_with_a_function_as_without(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "n": datasets.Value("int64"), "l": datasets.ClassLabel(2)})
    given = datasets.Dataset.from_dict(
        {"image": [{"bytes": jpeg(n), "path": None} for n in range(5)], "n": range(5), "l": [0, 1, 0, 1, 0]}, features
    )
    plain, kept = convert(given, tmp_path / "a.mmds"), convert(given, tmp_path / "b.mmds", filter=lambda each: True)
    assert plain.content_id == kept.content_id and [each["image"] for each in kept] == [jpeg(n) for n in range(5)]
    stream = convert(given.remove_columns("image").to_iterable_dataset(), tmp_path / "c.mmds", filter=steps.even)
    assert [each["n"] for each in stream] == [0, 2, 4]


# Nothing left


def test_nothing_left_is_an_empty_dataset_if_its_fields_are_known(dataset: Path, tmp_path: Path) -> None:
    given = {"n": mmds.Scalar("int8")}
    cases: list[tuple[Any, dict[str, Any]]] = [
        (dataset, {"filter": lambda each: False}),
        (dataset, {"map": lambda each: None, "output_fields": given}),
        ([], {"output_fields": given}),
        (iter(()), {"output_fields": given, "shard_size": 5}),
    ]
    for source, options in cases:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.mmds"
        assert mmds.convert(source, path, **options).samples == 0 and len(mmds.open(path)) == 0
    for shard_size in (None, 100):
        with pytest.raises(SourceError, match=r"in\.mmds: no sample is left; an empty dataset needs output_fields="):
            mmds.convert(dataset, tmp_path / "no.mmds", map=lambda each: None, shard_size=shard_size)
        assert not (tmp_path / "no.mmds").exists()
    with pytest.raises(SourceError, match="<list>: no samples found"):
        mmds.convert([], tmp_path / "no.mmds")


# What is resumed, what is replaced


def test_a_dataset_that_is_complete_stays_as_it_is(tmp_path: Path) -> None:
    """Also where the source does not know its length."""
    path = tmp_path / "out.mmds"
    options: dict[str, Any] = {"shard_size": 2000, "resume": True}
    mmds.convert((steps.Slow(99)[n] for n in range(99)), path, **options)
    before = {each.name: each.read_bytes() for each in path.iterdir()}
    assert len(before) > 2
    assert mmds.convert((steps.Slow(99)[n] for n in range(99)), path, **options).samples == 99
    assert {each.name: each.read_bytes() for each in path.iterdir()} == before


def test_arguments_of_a_partial_function_count(tmp_path: Path) -> None:
    def names(given: Any) -> Any:
        return Steps(map=given).to_json()["map"]

    assert names(partial(steps.add, amount=5)) == 'tests.steps:add [[], {"amount": 5}]'
    assert names(partial(steps.add, cast(Any, object()))) == 'tests.steps:add [["object"], {}]'  # not its address
    source, path = steps.Slow(99), tmp_path / "out.mmds"
    with pytest.raises(SourceError, match="Whole shards are kept"):
        mmds.convert(source, path, shard_size=2000, map=partial(steps.add, amount=5, fail_at=60))
    with pytest.raises(OptionError, match="begun differently: steps was"):
        mmds.convert(source, path, shard_size=2000, resume=True, map=partial(steps.add, amount=6))


def test_a_source_that_was_replaced_is_not_gone_on_with(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, *_: Any) -> None:
        if done == 20:
            raise KeyboardInterrupt

    source, path = tmp_path / "in.mmds", tmp_path / "out.mmds"
    source.write_bytes(dataset.read_bytes())
    monkeypatch.setattr("mmds.conversion.PROGRESS_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        mmds.convert(source, path, shard_size=1, progress=stop)
    convert((sample(n + 1) for n in range(20)), source, output_fields=FIELDS)
    with pytest.raises(OptionError, match=r"content was '[0-9a-f]{32}', and is"):
        mmds.convert(source, path, shard_size=1, resume=True)


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home" / "thesis").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="is a folder with other things in it, which stay"):
        mmds.convert(steps.Slow(3), tmp_path / "home", shard_size=100, overwrite=True)
    assert (tmp_path / "home" / "thesis").exists() and [each.name for each in tmp_path.iterdir()] == ["home"]
