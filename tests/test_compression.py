"""Compressed fields: every kind comes back, alone and in batches, in any thread and process, and the same bytes are written."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import mmds
from mmds import Array, Bytes, Json, Scalar, Schema, Text, compression
from mmds.compression import Compression, compressed, compressor
from mmds.errors import FormatError, MissingDependencyError, SampleError, SchemaError
from tests.conftest import Write
from tests.likeness import alike, assert_alike
from tests.samples import EVERY_KIND, sample
from tests.test_integrity import flip, reseal

ZSTD: dict[str, Any] = {"compression": "zstd"}
KINDS = {
    "fixed": Array("float32", (10, 10)),
    "ragged": Array("int64", (None, 2)),
    "free": Array("uint8", (None, 3, None)),
    "bits": Array("bfloat16", (None,), nullable=True),
    "bytes": Bytes(align=64),
    "text": Text(nullable=True),
    "json": Json(),
    "plain": Array("int16", (200,)),
    "id": Text(key=True),
}


def made(number: int) -> dict[str, Any]:
    """Return sample `number` of the fields in `KINDS`."""
    return {
        "fixed": np.full((10, 10), number, "float32"),
        "ragged": np.arange(2 * (number % 5), dtype="int64").reshape(-1, 2),
        "free": np.full((number % 3, 3, 7), number % 256, "uint8"),
        "bits": None if number % 4 == 0 else np.arange(number % 50, dtype="uint16"),
        "bytes": bytes([number % 256]) * (number % 7),
        "text": None if number % 5 == 0 else f"text {number} " * (number % 4),
        "json": {"number": number, "list": [None, number % 3]},
        "plain": np.full(200, number, "int16"),
        "id": f"sample {number}",
    }


def columns(samples: list[Any]) -> dict[str, Any]:
    """Return samples as a batch: arrays where all have one shape and type, else lists."""
    found: dict[str, Any] = {name: [sample[name] for sample in samples] for name in KINDS}
    return found | {name: np.stack(found[name]) for name in ("fixed", "plain") if samples}


@pytest.mark.parametrize(
    ("text", "level", "dictionary"),
    [("zstd", 3, False), ("zstd:19", 19, False), ("zstd:1:dict", 1, True), ("zstd:dict", 3, True)],
)
def test_the_text_of_an_option(text: str, level: int, dictionary: bool) -> None:
    assert Compression.parse(text) == Compression(level, dictionary)


@pytest.mark.parametrize(
    "text", ["", "lz4", "zstd:", "zstd:0", "zstd:23", "zstd:-1", "zstd:3:", "zstd:3:dict:1", "zstd:dict:3"]
)
def test_the_text_of_no_option(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 'zstd', 'zstd:LEVEL' or 'zstd:LEVEL:dict'"):
        mmds.Writer(tmp_path / "a.mmds", KINDS, compression=text)
    assert not list(tmp_path.iterdir())


def test_everything_but_columns_and_encoded_files_is_compressed(write: Write) -> None:
    path = write(EVERY_KIND, map(sample, range(10)), compression="zstd")
    reader = mmds.open(path)
    assert {field.name for field in reader.fields if field.is_compressed} == {
        "array", "ragged", "nested.0", "nested.1.raw", "json",
    }  # fmt: skip
    assert_alike(list(reader), [sample(number) for number in range(10)])
    assert mmds.verify(path)
    again = write(reader.fields, map(sample, range(10)))  # the fields are enough
    assert again.read_bytes() == path.read_bytes()


def test_fields_that_are_inferred_are_compressed(write: Write) -> None:
    path = write(None, [{"x": np.arange(1000), "n": 1}], compression="zstd")
    assert mmds.open(path).fields == Schema({"x": Array("int64", (1000,), **ZSTD), "n": Scalar("int64")})
    assert_alike(mmds.open(path)[0], {"x": np.arange(1000), "n": 1})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Text(column=True, **ZSTD),
        lambda: Text(key=True, **ZSTD),
        lambda: Bytes(column=True, **ZSTD),
        lambda: Array("uint8", (256,), **ZSTD),
        lambda: Bytes(compression="gzip"),
        lambda: mmds.Image(compression="zlib"),
    ],
)
def test_what_cannot_be_compressed_says_so(make: Any) -> None:
    with pytest.raises(SchemaError, match="compression="):
        make()


def test_arrays_are_read_only_and_nobody_elses(write: Write) -> None:
    reader = mmds.open(write({"x": Array("float64", (50,), **ZSTD)}, [{"x": np.arange(50.0)}] * 2))
    one, other = reader[0]["x"], reader[0]["x"]
    assert not one.flags.writeable and not np.shares_memory(one, other) and one.flags.aligned
    with pytest.raises(ValueError, match="WRITEABLE"):
        one.setflags(write=True)
    batch = reader[[1, 0]]["x"]
    assert batch.shape == (2, 50) and batch.flags.writeable


PARTS = st.lists(st.integers(0, 9), max_size=6)


@pytest.mark.parametrize("option", ["zstd", "zstd:1:dict"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=PARTS, batches=st.lists(st.booleans(), min_size=6, max_size=6), held=st.integers(1, 40))
def test_however_samples_are_written_the_bytes_are_the_same(
    tmp_path: Path, option: str, parts: list[int], batches: list[bool], held: int
) -> None:
    count = sum(parts)
    samples = [made(number) for number in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "HELD_SAMPLES", held)
        with mmds.Writer(tmp_path / "one.mmds", KINDS, compression=option, overwrite=True) as writer:
            writer.extend(samples)
        with mmds.Writer(tmp_path / "many.mmds", KINDS, compression=option, overwrite=True) as writer:
            start = 0
            for size, batch in zip(parts, batches, strict=False):
                part = samples[start : start + size]
                writer.write_batch(columns(part)) if batch else writer.extend(part)
                start += size
    assert (tmp_path / "one.mmds").read_bytes() == (tmp_path / "many.mmds").read_bytes()
    reader = mmds.open(tmp_path / "one.mmds")
    assert_alike(list(reader), samples)
    assert mmds.verify(tmp_path / "one.mmds")
    for number in range(count):
        assert_alike(reader.get(f"sample {number}"), samples[number])


def test_a_dictionary_is_trained_on_the_first_samples_and_used_for_all(write: Write) -> None:
    texts = [
        f"sample {number} of a dataset of many samples that are all alike, {number * 7919 % 1000}"
        for number in range(3000)
    ]
    plain, trained = (
        write({"t": Text()}, [{"t": text} for text in texts], compression=f"zstd:3{d}") for d in ("", ":dict")
    )
    reader = mmds.open(trained)
    assert [sample["t"] for sample in reader] == texts
    assert reader.footer.section("dictionary", 0).nbytes > 1000
    ends = [mmds.open(path).footer.data_end - 4096 for path in (plain, trained)]
    assert ends[1] < ends[0] / 2
    first = np.frombuffer(reader.store.view, "<u8", 2, reader.footer.section("ends").data)  # type: ignore[attr-defined]
    assert first[1] - first[0] < len(texts[0]) / 2  # the first one, too


@pytest.mark.parametrize("samples", [[], ["one"], [""] * 20, ["x" * 5000] * 3])
def test_too_little_for_a_dictionary_is_written_without_one(write: Write, samples: list[str]) -> None:
    path = write(Text(), samples, compression="zstd:3:dict")
    assert list(mmds.open(path)) == samples and mmds.open(path).footer.section("dictionary", 0).nbytes == 0


def test_samples_that_are_held_back_are_copies_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "HELD_BYTES", 20_000)
    array = np.zeros(500, "int64")
    with mmds.Writer(tmp_path / "a.mmds", {"x": Array("int64", (500,))}, compression="zstd:3:dict") as writer:
        for number in range(20):
            array[:] = number
            writer.write({"x": array})
            assert (writer._held is None) == (number >= 4)
            if number == 2:
                with pytest.raises(SampleError):
                    writer.write({"x": array[:3]})
    assert [sample["x"].tolist() for sample in mmds.open(tmp_path / "a.mmds")] == [[k] * 500 for k in range(20)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Three compressed files of the fields in `KINDS`, the second with a dictionary, and one that is not compressed."""
    folder = tmp_path_factory.mktemp("files")
    for number, option in enumerate(("zstd", "zstd:5:dict", "zstd:19", None)):
        with mmds.Writer(folder / f"{number}.mmds", KINDS, compression=option) as writer:
            writer.extend(map(made, range(100 * number % 300, 100 * number % 300 + 100)))
    yield [folder / f"{number}.mmds" for number in range(4)]


@pytest.mark.parametrize("ragged", ["list", "jagged", "padded"])
@pytest.mark.parametrize("count", [1, 3])
def test_batches_are_those_of_files_that_are_not_compressed(
    files: list[Path], tmp_path: Path, ragged: Any, count: int
) -> None:
    with mmds.Writer(tmp_path / "plain.mmds", KINDS) as writer:
        writer.extend(map(made, range(100 * count)))
    fields = ["fixed", "ragged", "free", "bytes", "text", "json", "bits"][: 4 if ragged == "padded" else 7]
    reader = mmds.open([os.fspath(path) for path in files[:count]] if count > 1 else files[0], fields=fields)
    plain = mmds.open(tmp_path / "plain.mmds", fields=fields)
    for rows in (np.arange(100 * count)[::7], np.arange(10), np.array([5, 5, 0]), np.array([], int)):
        got, want = reader.gather(rows, ragged), plain.gather(rows, ragged)
        for name in fields:
            one, other = got[name], want[name]
            if isinstance(other, mmds.Jagged):
                assert alike(one.values, other.values) and alike(one.offsets, other.offsets), name
            else:
                assert_alike(one, other)
    reader.prefetch(np.arange(10))
    assert_alike(list(reader[3:9]), list(plain[3:9]))


def test_columns_of_payload_are_refused_and_tables_are_copied_if_named(files: list[Path]) -> None:
    pytest.importorskip("pyarrow")
    reader, plain = mmds.open(files[0], fields=["bytes", "id"]), mmds.open(files[3], fields=["bytes", "id"])
    with pytest.raises(SchemaError, match="field 'bytes' is not contiguous"):
        reader.to_arrow()
    assert reader.to_arrow(["bytes", "id"]).to_pylist() == plain.to_arrow(["bytes", "id"]).to_pylist()
    alone = mmds.open(files[0], fields="text")
    with pytest.raises(SchemaError, match="not contiguous"):
        alone.to_arrow()
    with pytest.raises(SchemaError, match="is no column"):
        mmds.open(files[0]).column("fixed")


def epoch(path: Path, **options: Any) -> list[Any]:
    dataset = mmds.MemoryMappedDataset(path, fields=["fixed", "plain", "id"])
    return list(DataLoader(dataset, batch_size=16, **options))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_worker_processes(files: list[Path], start: str) -> None:
    want = epoch(files[1])
    got = epoch(files[1], num_workers=2, multiprocessing_context=start)
    assert len(got) == len(want) == 7
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one["fixed"], other["fixed"]) and one["id"] == other["id"]
    assert want[0]["fixed"].dtype == torch.float32 and want[0]["fixed"][3, 0, 0] == 103


def test_ragged_batches_of_worker_processes(files: list[Path]) -> None:
    dataset = mmds.MemoryMappedDataset(files[1], fields=["ragged", "bytes"], ragged="jagged")
    one, other = (list(DataLoader(dataset, batch_size=30, num_workers=workers)) for workers in (0, 2))
    for got, want in zip(other, one, strict=True):
        for name in ("ragged", "bytes"):
            assert torch.equal(got[name].values, want[name].values) and torch.equal(
                got[name].offsets, want[name].offsets
            )


def test_many_threads_read_at_once(files: list[Path]) -> None:
    reader = mmds.open([os.fspath(path) for path in files[:3]])
    with ThreadPoolExecutor(8) as pool:
        rows = [int(row) for row in np.random.default_rng(0).permutation(300)] * 3
        for row, got in zip(rows, pool.map(reader.__getitem__, rows), strict=True):
            assert_alike(got, made(row))


def _read_in_child(reader: Any, answers: Any) -> None:
    answers.put(all(alike(reader[row], made(100 + row)) for row in range(100)))


def test_a_fork_goes_on_reading(files: list[Path]) -> None:
    reader = mmds.open(files[1])
    assert_alike(reader[0], made(100))
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_read_in_child, args=(reader, answers))
    child.start()
    assert answers.get(timeout=60) and all(alike(reader[row], made(100 + row)) for row in range(100))
    child.join()


def test_without_the_library(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    compression._zstandard.cache_clear()
    reader = mmds.open(files[0])
    assert reader.column("id")[3] == "sample 3"
    assert mmds.open(files[0], fields="id").get("sample 7") == "sample 7"
    with pytest.raises(MissingDependencyError, match=r'pip install "mmds\[zstd\]"'):
        reader[1]
    with pytest.raises(MissingDependencyError, match=r'pip install "mmds\[zstd\]"'):
        mmds.Writer(tmp_path / "a.mmds", KINDS, compression="zstd")
    assert not list(tmp_path.iterdir())


def test_another_store_and_back(files: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    mmds.convert(files[0], tmp_path / "a.lmdb")
    assert_alike(list(mmds.open(tmp_path / "a.lmdb")), list(mmds.open(files[0])))
    mmds.convert(tmp_path / "a.lmdb", tmp_path / "b.mmds")
    assert (tmp_path / "b.mmds").read_bytes() == files[0].read_bytes()


def test_a_damaged_frame_is_an_error_that_names_the_sample(files: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "a.mmds"
    path.write_bytes(files[0].read_bytes())
    reader = mmds.open(path)
    start = reader.items[0].span(5)[0]  # type: ignore[attr-defined]
    del reader
    flip(path, start)  # of the frame's magic number
    for index in (5, [5]):
        with pytest.raises(FormatError, match="sample 5, field 'fixed': not a zstd frame; run mmds verify"):
            mmds.open(path)[index]
    assert "differs from its hash" in str(mmds.verify(path).damages[0])
    reseal(path)
    assert [str(damage) for damage in mmds.verify(path).damages] == ["not valid array: sample 5, field fixed"]


def test_a_damaged_dictionary_is_named(files: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "a.mmds"
    path.write_bytes(files[1].read_bytes())
    position = mmds.open(path).fields.index("fixed")
    flip(path, mmds.open(path).footer.section("dictionary", position).data)
    damages = [str(damage) for damage in mmds.verify(path).damages]
    assert any("in the dictionary: samples 0 to 99, field fixed" in damage for damage in damages)
    with pytest.raises(FormatError, match="field 'fixed': a damaged zstd frame"):
        mmds.open(path)[0]


def test_a_dictionary_that_is_none_cannot_be_written_with() -> None:
    with pytest.raises(FormatError, match="a dictionary that zstd cannot use"):
        compressor(3, b"no dictionary, but bytes that might be one")


def test_compressing_a_schema_twice_changes_nothing() -> None:
    once = compressed(Schema(KINDS))
    assert compressed(once) == once != Schema(KINDS)
    assert Schema.from_json(once.to_json()) == once
