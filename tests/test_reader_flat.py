"""The values of a ragged field as one array over the mapped file, whatever the number of samples, and when there is none."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.errors import FormatError, SchemaError
from tests.conftest import Write
from tests.resealing import resealed

TOKENS = mmds.Array("uint16", (None,), align=2)
LENGTHS = [3, 0, 70, 1, 0, 5, 2]


def documents() -> list[dict[str, Any]]:
    generator = np.random.default_rng(5)
    return [
        {"tokens": generator.integers(0, 2**16, length, "uint16"), "path": "x" * length, "part": k}
        for k, length in enumerate(LENGTHS)
    ]


@pytest.fixture
def path(write: Write) -> Path:
    return write({"tokens": TOKENS, "path": mmds.Text(column=True), "part": mmds.Scalar("int64")}, documents())


def test_it_is_all_values_one_after_the_other_without_a_copy(path: Path) -> None:
    reader = mmds.open(path)
    values = reader.flat("tokens")
    assert values.dtype == "<u2" and values.tolist() == np.concatenate([d["tokens"] for d in documents()]).tolist()
    assert not values.flags.writeable
    start = reader.footer.section("ends").data  # where the index begins
    view = np.frombuffer(reader.store.view, "u1")  # type: ignore[attr-defined]
    assert view.ctypes.data < values.ctypes.data and values.ctypes.data + values.nbytes <= view.ctypes.data + start
    del reader, view
    gc.collect()
    assert values.sum() == sum(int(d["tokens"].sum()) for d in documents())  # the map lives on


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (2, 5), (3, 99), (5, 2), (7, 7), (-2, None), (1, 2)])
def test_a_slice_has_its_own_values(path: Path, start: int, stop: int | None) -> None:
    part = mmds.open(path)[start:stop]
    assert part.flat("tokens").tolist() == [token for sample in part for token in sample["tokens"].tolist()]
    assert mmds.open(path, fields=["tokens"])[start:stop].flat("tokens").tolist() == part.flat("tokens").tolist()


def test_rows_of_several_numbers(write: Write) -> None:
    samples = [np.arange(3 * 4 * k, dtype="float32").reshape(k, 3, 4) for k in (2, 0, 5)]
    values = mmds.open(write(mmds.Array("float32", (None, 3, 4), align=4), samples)).flat("value")
    assert values.shape == (7, 3, 4) and np.array_equal(values, np.concatenate(samples))


def test_bytes_nulls_and_columns(write: Write) -> None:
    assert bytes(mmds.open(write(mmds.Bytes(), [b"ab", b"", b"cde"])).flat("value")) == b"abcde"
    nullable = {"x": mmds.Array("int64", (None,), align=8, nullable=True), "id": mmds.Bytes(column=True)}
    samples = [{"x": None if k % 2 else np.full(k, k), "id": b"%d" % k} for k in range(5)]
    reader = mmds.open(write(nullable, samples))
    assert reader.flat("x").tolist() == [2, 2, 4, 4, 4, 4] and bytes(reader.flat("id")) == b"01234"


def test_no_samples_and_no_values(write: Write) -> None:
    assert mmds.open(write({"tokens": TOKENS}, [])).flat("tokens").shape == (0,)
    none = mmds.open(write({"tokens": TOKENS}, [{"tokens": np.zeros(0, "uint16")}] * 3))
    assert none.flat("tokens").shape == (0,) and none.flat("tokens").dtype == "uint16"


def test_it_costs_the_same_for_any_number_of_samples(write: Write) -> None:
    def cost(count: int) -> int:
        reader = mmds.open(write({"tokens": TOKENS}, [{"tokens": np.zeros(2, "uint16")}] * count))
        reader.flat("tokens")
        tracemalloc.start()
        assert len(reader.flat("tokens")) == 2 * count
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert cost(20_000) < cost(10) + 2000  # the ends alone are 160,000 bytes


@pytest.mark.parametrize(
    ("fields", "sample"),
    [
        (mmds.Array("uint16", (None,)), np.zeros(3, "uint16")),  # padded to 64 bytes
        (mmds.Array("uint16", (None,), align=2, compression="zstd"), np.zeros(3, "uint16")),
        (mmds.Array("uint16", (None, None), align=2), np.zeros((3, 2), "uint16")),
        (mmds.Array("uint16", (2, None), align=2), np.zeros((2, 3), "uint16")),
        (mmds.Array("uint16", (3,)), np.zeros(3, "uint16")),
        (mmds.Text(), "abc"),
    ],
)
def test_what_is_not_one_array_is_refused(write: Write, fields: Any, sample: Any) -> None:
    reader = mmds.open(write(fields, [sample] * 3))
    with pytest.raises(SchemaError, match="field 'value' is not one array of values in one file; expected a ragged"):
        reader.flat("value")


def test_other_payload_steps_and_other_names_are_refused(path: Path, write: Write) -> None:
    two = mmds.open(write({"tokens": TOKENS, "text": mmds.Text()}, [{"tokens": np.zeros(2, "uint16"), "text": "a"}]))
    for reader in (two, mmds.open(path)[::2], mmds.open(path)[::-1]):
        with pytest.raises(SchemaError, match="'tokens' is not one array"):
            reader.flat("tokens")
    with pytest.raises(SchemaError, match="no field 'words'; there are: tokens"):
        mmds.open(path).flat("words")


def test_several_files_have_one_array_each(write: Write, tmp_path: Path) -> None:
    path = write({"tokens": TOKENS}, [{"tokens": sample["tokens"]} for sample in documents() * 9])
    mmds.convert(path, tmp_path / "shards.mmds", shard_size=100)
    reader = mmds.open(tmp_path / "shards.mmds")
    with pytest.raises(SchemaError, match=r"each of reader.parts\(\) is one"):
        reader.flat("tokens")
    parts = [part.flat("tokens") for part in reader.parts()]
    assert len(parts) > 1 and np.array_equal(np.concatenate(parts), mmds.open(path).flat("tokens"))


@pytest.mark.parametrize("end", [0, 4099, 2**63, 2**64 - 2])
def test_ends_outside_the_file_are_an_error(path: Path, end: int) -> None:
    """The last end is checked when a file is opened, one in the middle when a slice ends there."""
    at = mmds.open(path).footer.section("ends").data + 2 * 8
    path.write_bytes(resealed(path.read_bytes(), patch={at: end.to_bytes(8, "little")}))
    with pytest.raises(FormatError, match=f"field 'tokens': bytes 4096 to {end} of .*run mmds verify"):
        mmds.open(path)[:2].flat("tokens")
