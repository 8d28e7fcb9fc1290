"""Writing: any way of handing samples over gives the same bytes, and a bad sample changes nothing."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds import Array, Bytes, Json, Label, Scalar, Text, Writer
from mmds.errors import ClosedError, ExistsError, MmdsError, SampleError, SchemaError
from mmds.fields import Fixed
from tests import independent_reader
from tests.likeness import assert_alike
from tests.make_golden import GOLDEN

Write = Callable[..., Path]


def stacked(schema: mmds.Schema, samples: list[Any], arrays: bool) -> Any:
    """Return samples as one batch: a sample whose leaves are lists, or arrays where that is possible."""
    leaves = zip(*map(schema.leaves, samples), strict=True)
    columns: list[Any] = []
    for field, column in zip(schema, map(list, leaves), strict=True):
        kind = field.kind
        if arrays and isinstance(kind, Fixed) and not kind.unknown and not kind.nullable:
            columns.append(np.array(column, kind.stored))
        else:
            columns.append(column)
    return schema.assembler([partial(_constant, column) for column in columns])(None)


def _constant(column: Any, _: None) -> Any:
    return column


@pytest.mark.parametrize("name", [name for name in GOLDEN if GOLDEN[name].samples])
@pytest.mark.parametrize("arrays", [False, True])
def test_every_way_of_writing_gives_the_same_bytes(name: str, arrays: bool, tmp_path: Path, write: Write) -> None:
    fields, samples, metadata, compression = GOLDEN[name]
    schema = mmds.Schema(fields)
    want = write(fields, samples, metadata=metadata, compression=compression).read_bytes()
    n = len(samples)
    for number, cuts in enumerate([(0, n), (0, 1, n), (0, 0, n - 1, n), (*range(n), n)]):
        path = tmp_path / f"cut{number}.mmds"
        with Writer(path, schema, metadata=metadata, compression=compression) as writer:
            for turn, (start, stop) in enumerate(itertools.pairwise(cuts)):
                if turn % 2:
                    writer.extend(samples[start:stop])
                elif stop > start:
                    writer.write_batch(stacked(schema, samples[start:stop], arrays))
        assert path.read_bytes() == want


def test_an_empty_batch_writes_nothing(write: Write, tmp_path: Path) -> None:
    fields = {"x": Array("float32", (100,)), "y": Scalar("int8"), "z": Text(), "r": Array("int8", (None,))}
    want = write(fields).read_bytes()
    for number, batch in enumerate(
        [
            {"x": [], "y": [], "z": [], "r": []},
            {"x": np.zeros((0, 100), "f4"), "y": np.zeros(0, "i1"), "z": [], "r": np.zeros((0, 5), "i1")},
        ]
    ):
        with Writer(tmp_path / f"empty{number}.mmds", fields) as writer:
            writer.write_batch(batch)
        assert (tmp_path / f"empty{number}.mmds").read_bytes() == want


def test_batches_of_tensors(tmp_path: Path) -> None:
    import torch

    fields = {
        "b": Array("bfloat16", (2,)),
        "y": Scalar("float32"),
        "l": Label(("a", "b")),
        "r": Array("int64", (None,)),
    }
    bits = torch.tensor([[1, 2], [3, 4]], dtype=torch.bfloat16)
    with Writer(tmp_path / "a.mmds", fields) as writer:
        writer.write_batch(
            {"b": bits, "y": torch.tensor([0.5, 1]), "l": torch.tensor([1, 0]), "r": torch.ones(2, 3).long()}
        )
    with Writer(tmp_path / "b.mmds", fields) as writer:
        for k in range(2):
            writer.write({"b": bits[k], "y": [0.5, 1][k], "l": 1 - k, "r": np.ones(3, int)})
    assert (tmp_path / "a.mmds").read_bytes() == (tmp_path / "b.mmds").read_bytes()


FIELDS = {"x": Array("float32", (100,)), "y": Label(("a", "b")), "t": (Text(column=True), Json(nullable=True))}
GOOD: list[dict[str, Any]] = [{"x": np.full(100, k, "f4"), "y": k % 2, "t": (str(k), [k])} for k in range(3)]
BAD: list[Any] = [
    {**GOOD[0], "x": np.zeros(99, "f4")},
    {**GOOD[0], "y": 300},
    {**GOOD[0], "t": (None, None)},
    {**GOOD[0], "t": ("", float("nan"))},
    {**GOOD[0], "t": ["", None]},
    {"x": GOOD[0]["x"]},
    None,
]


@pytest.mark.parametrize("fields", [FIELDS, None])
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_sample_leaves_the_writer_as_it_was(bad: Any, fields: Any, tmp_path: Path, write: Write) -> None:
    good = GOOD if fields else [{**sample, "y": np.int8(sample["y"])} for sample in GOOD]
    want = write(fields, good).read_bytes()
    with Writer(tmp_path / "again.mmds", fields) as writer:
        for k, sample in enumerate(good):
            if k or fields:
                with pytest.raises(SampleError):
                    writer.write(bad)
                batch = [sample, bad] if isinstance(bad, dict) and "t" in bad and "y" in bad else None
                if batch and isinstance(bad["t"], tuple):
                    with pytest.raises(SampleError, match=f"sample {k + 1}, "):
                        writer.write_batch(stacked(mmds.Schema(FIELDS), batch, False))
            assert len(writer) == k
            writer.write(sample)
    assert (tmp_path / "again.mmds").read_bytes() == want


@pytest.mark.parametrize("bad", [{"x": 2**64}, {"t": "\ud800", "x": 1}, {"x": None}, {"x": -(2**63) - 1}, object()])
def test_a_bad_first_sample_does_not_decide_the_fields(bad: Any, tmp_path: Path) -> None:
    with Writer(tmp_path / "first.mmds") as writer:
        with pytest.raises(SampleError, match="sample 0"):
            writer.write(bad)
        assert writer.fields is None
        writer.write({"x": 0.5})
    assert list(mmds.open(tmp_path / "first.mmds")) == [{"x": 0.5}]


@pytest.mark.parametrize(
    "bad", [{"x": [1, "a"]}, {"x": [1, 2], "y": [1]}, {"x": []}, {}, {"x": 5}, {"x": np.array(5)}, {"x": None}]
)
def test_a_bad_first_batch_does_not_decide_the_fields(bad: Any, tmp_path: Path) -> None:
    with Writer(tmp_path / "first.mmds") as writer:
        with pytest.raises(SampleError):
            writer.write_batch(bad)
        assert writer.fields is None
        writer.write({"x": 0.5})
    assert list(mmds.open(tmp_path / "first.mmds")) == [{"x": 0.5}]


@pytest.mark.parametrize(
    "bad",
    [{"x": 5, "y": [1]}, {"x": np.float32(5), "y": [1]}, {"x": [1, 2], "y": [1]}, {"x": None, "y": [1]}, {"x": [1]}],
)
def test_a_batch_that_is_none(bad: Any, tmp_path: Path) -> None:
    with Writer(tmp_path / "a.mmds", {"x": Scalar("int64"), "y": Scalar("int64")}) as writer:
        with pytest.raises(SampleError, match=r"a\.mmds: "):
            writer.write_batch(bad)
        writer.write({"x": 1, "y": 2})
    assert list(mmds.open(tmp_path / "a.mmds")) == [{"x": 1, "y": 2}]


@pytest.mark.parametrize("values", [[0, 2], [-1], np.array([0, 2**63 + 1], "u8"), np.array([1.0]), ["a"]])
def test_labels_of_a_batch_are_checked(values: Any, tmp_path: Path) -> None:
    with Writer(tmp_path / "labels.mmds", Label(("a", "b"))) as writer:
        with pytest.raises(SampleError, match=rf"sample {len(values) - 1}, field 'value': expected a class index"):
            writer.write_batch(values)
        writer.write_batch(np.array([1, 0], ">i2"))
    assert list(mmds.open(tmp_path / "labels.mmds")) == [1, 0]


def test_the_message_names_file_sample_field_expected_and_got(tmp_path: Path) -> None:
    with pytest.raises(SampleError) as caught, Writer(tmp_path / "a.mmds", FIELDS) as writer:
        writer.extend([*GOOD, {**GOOD[0], "t": (5, None)}])
    assert str(caught.value) == f"{tmp_path}/a.mmds: sample 3, field 't.0': expected text, got int 5"


@pytest.mark.parametrize("name", GOLDEN)
def test_spilling_the_index_changes_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, write: Write, tmp_path: Path
) -> None:
    want = write(*GOLDEN[name][:2], metadata=GOLDEN[name].metadata).read_bytes()
    monkeypatch.setattr("mmds.spool.MEMORY", 20)
    assert write(*GOLDEN[name][:2], metadata=GOLDEN[name].metadata).read_bytes() == want
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("batch_bytes", [1, 1000])
def test_rows_are_padded_in_pieces(
    batch_bytes: int, monkeypatch: pytest.MonkeyPatch, write: Write, tmp_path: Path
) -> None:
    fields, samples, *_ = GOLDEN["constant_stride"]
    monkeypatch.setattr("mmds.writer.BATCH_BYTES", batch_bytes)
    with Writer(tmp_path / "batch.mmds", fields) as writer:
        writer.write_batch(stacked(mmds.Schema(fields), samples, True))
    assert (tmp_path / "batch.mmds").read_bytes() == write(fields, samples).read_bytes()


def test_4096_fields(write: Write) -> None:
    fields = {f"f{k}": (Scalar("int16"), Text(column=True), Bytes(), Json(nullable=True))[k % 4] for k in range(4096)}
    sample = {f"f{k}": (k, str(k), b"x" * (k % 7), None)[k % 4] for k in range(4096)}
    path = write(fields, [sample, sample])
    assert_alike(list(mmds.open(path)), [sample, sample])
    assert_alike(independent_reader.read(path.read_bytes()), [sample, sample])


@pytest.mark.stress
def test_memory_stays_flat_however_many_samples(tmp_path: Path) -> None:
    script = """if True:
        import sys, numpy, resource, mmds
        batch = {"x": numpy.arange(50_000, dtype="u1"), "t": ["ab"] * 50_000, "p": [b"c"] * 50_000}
        with mmds.Writer(sys.argv[1], {"x": mmds.Scalar("uint8"), "t": mmds.Text(column=True), "p": mmds.Bytes()}) as w:
            w.write_batch(batch)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for _ in range(59):
                w.write_batch(batch)
            w.close()
        print(len(mmds.open(sys.argv[1])), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    command = [sys.executable, "-c", script, str(tmp_path / "large.mmds")]
    n, growth = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert n == 3_000_000
    assert growth < 60 * 2**10  # KiB; the index alone has 57 MB


@pytest.mark.parametrize("metadata", [{}, {"a": [1, 2.5, None, {"ü": True}]}, {"": ""}, {"deep": [[[[[[[[0]]]]]]]]}])
def test_metadata(metadata: Mapping[str, Any], write: Write) -> None:
    assert_alike(dict(mmds.open(write(Scalar("int8"), metadata=metadata)).metadata), metadata)


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    "metadata", [{"a": object()}, {1: 2}, {"a": float("nan")}, {"a": 2**53}, {"a": "\ud800"}, {"a": nested(31)},
                 {"a": nested(32)}, {"a": nested(5000)}, {"a": "x" * 2**24}],
)  # fmt: skip
def test_metadata_that_cannot_be_written_is_refused_at_once(metadata: Any, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="metadata cannot be written as JSON"):
        Writer(tmp_path / "a.mmds", Scalar("int8"), metadata=metadata)
    assert list(tmp_path.iterdir()) == []


def test_metadata_may_change_until_the_end(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.mmds", Scalar("int8")) as writer:
        writer.metadata["n"] = 1
    assert mmds.open(tmp_path / "a.mmds").metadata == {"n": 1}
    with pytest.raises(SchemaError), Writer(tmp_path / "b.mmds", Scalar("int8")) as writer:
        writer.metadata["n"] = object()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mmds"]


def test_a_footer_that_grows_too_large_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MmdsError), Writer(tmp_path / "a.mmds", Label(("x" * 2**23,)), metadata={"y": "y" * 2**23}):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    for error in (KeyError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), Writer(tmp_path / "a.mmds", Scalar("int8")) as writer:
            writer.write(1)
            raise error
    with Writer(tmp_path / "a.mmds", Scalar("int8")) as writer:
        writer.write(1)
        writer.abort()
        writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_has_ended(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "a.mmds", Scalar("int8"))
    writer.close()
    writer.close()
    writer.abort()
    calls: list[Callable[[], None]] = [
        lambda: writer.write(1), lambda: writer.extend([1]), lambda: writer.write_batch([1])
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ClosedError, match="this Writer is closed"):
            call()
    assert len(mmds.open(tmp_path / "a.mmds")) == 0
    aborted = Writer(tmp_path / "b.mmds", Scalar("int8"))
    aborted.abort()
    for call in (aborted.close, lambda: aborted.write(1)):
        with pytest.raises(ClosedError, match="this Writer is aborted"):
            call()


def test_a_forgotten_writer_warns_and_leaves_nothing(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "a.mmds", Scalar("int8"))
    with pytest.warns(ResourceWarning, match="never closed; nothing was published"):
        del writer
        gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_no_fields_and_no_samples(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="pass fields= to write an empty dataset"), Writer(tmp_path / "a.mmds"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_left_as_it_is(write: Write) -> None:
    path = write(Scalar("int8"), [1])
    with pytest.raises(ExistsError, match="exists already; pass overwrite=True"):
        Writer(path, Scalar("int8"))
    with Writer(path, Scalar("int8"), overwrite=True) as writer:
        writer.write(2)
    assert list(mmds.open(path)) == [2]


def test_fields_of_another_dataset(write: Write) -> None:
    first = mmds.open(write(FIELDS, GOOD))
    again = write(first.fields, first)
    assert mmds.open(again).content_id == first.content_id


def test_the_time_and_the_place_leave_no_trace(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "a.mmds", tmp_path / "folder" / "b.mmds"):
        with Writer(path) as writer:
            writer.extend(GOOD)
    assert (tmp_path / "a.mmds").read_bytes() == (tmp_path / "folder" / "b.mmds").read_bytes()


@pytest.mark.parametrize("limit", [1, 100, 2**22])
def test_pieces_of_a_batch_are_the_same_joined_or_not(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {
        "file": mmds.Bytes(nullable=True),
        "mask": mmds.Array("uint8", (None, None)),
        "x": mmds.Array("int32", (None,)),
    }
    files = [None if i % 3 == 1 else bytes(i * 37) for i in range(30)]
    masks = [np.full((i % 4, i % 5), i, "uint8") for i in range(30)]
    arrays = [np.arange(i % 7, dtype="int32") for i in range(30)]
    with mmds.Writer(tmp_path / "one.mmds", fields) as writer:
        writer.extend({"file": f, "mask": m, "x": x} for f, m, x in zip(files, masks, arrays, strict=True))
    monkeypatch.setattr("mmds.writer.BATCH_BYTES", limit)
    with mmds.Writer(tmp_path / "all.mmds", fields) as writer:
        writer.write_batch({"file": files, "mask": masks, "x": arrays})
    assert (tmp_path / "one.mmds").read_bytes() == (tmp_path / "all.mmds").read_bytes()
