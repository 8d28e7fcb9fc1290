"""How a writer begins and ends, whatever store it writes to."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds import Array, Scalar, Writer
from mmds.errors import ClosedError, StorageError
from mmds.samplewriter import SampleWriter
from tests.faults.machine import files_of_at_most
from tests.likeness import assert_alike

LARGE = 8 * 2**20  # more than a writer keeps back


def test_a_writer_that_lacks_a_step_is_none() -> None:
    class Incomplete(SampleWriter):
        def _begin(self, schema: mmds.Schema) -> None: ...

    with pytest.raises(TypeError, match="_append"):
        Incomplete("x", None, None)  # type: ignore[abstract]


def test_the_fields_are_those_of_the_first_sample(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.mmds") as writer:
        assert writer.fields is None
        writer.write({"x": np.float32(1)})
        assert writer.fields == mmds.Schema({"x": Scalar("float32")})


@pytest.mark.parametrize(
    ("columns", "samples"),
    [
        ({"x": np.arange(2, dtype="int16"), "y": ["a", "b"]}, [{"x": 0, "y": "a"}, {"x": 1, "y": "b"}]),
        ((np.zeros((2, 3), "uint8"), [b"x", b""]), [(np.zeros(3, "uint8"), b"x"), (np.zeros(3, "uint8"), b"")]),
        ({"in": {"x": (np.ones(2, bool),)}}, [{"in": {"x": (True,)}}] * 2),
        (np.arange(2.0), [0.0, 1.0]),
        ([3, 4], [3, 4]),
    ],
    ids=["a dict", "a tuple", "nested", "an array", "a list"],
)
def test_the_fields_are_those_of_the_first_batch(columns: Any, samples: list[Any], tmp_path: Path) -> None:
    with Writer(tmp_path / "a.mmds") as writer:
        writer.write_batch(columns)
        assert len(writer) == 2
    assert_alike(list(mmds.open(tmp_path / "a.mmds")), samples)


def test_a_batch_of_bfloat16_is_inferred_from_its_tensor(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.ones(2, 3).bfloat16()
    with Writer(tmp_path / "a.mmds") as writer:
        writer.write_batch({"x": tensor, "y": tensor[:, 0]})
        assert writer.fields == mmds.Schema({"x": Array("bfloat16", (3,)), "y": Array("bfloat16", ())})
    assert mmds.open(tmp_path / "a.mmds")[0]["x"].tolist() == [0x3F80] * 3


FIELDS = Array("uint8", (LARGE,))
STEPS: dict[str, Callable[[Writer], None]] = {
    "write": lambda writer: writer.write(np.zeros(LARGE, "uint8")),
    "write_batch": lambda writer: writer.write_batch(np.zeros((1, LARGE), "uint8")),
    "extend": lambda writer: writer.extend([np.zeros(LARGE, "uint8")]),
    "close": lambda writer: writer.close(),
}


@pytest.mark.parametrize("step", STEPS)
def test_what_the_system_refuses_ends_the_writer(step: str, tmp_path: Path) -> None:
    writer = Writer(tmp_path / "a.mmds", FIELDS)
    with files_of_at_most(1000), pytest.raises(StorageError, match=r"cannot write .*a\.mmds: File too large") as caught:
        STEPS[step](writer)
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())
    for other in STEPS.values():
        with pytest.raises(ClosedError, match="this Writer is unusable after an error"):
            other(writer)
    writer.abort()  # nothing is left to do
    with pytest.raises(ClosedError), writer:
        pass


@pytest.mark.parametrize("step", ["write", "write_batch"])
def test_a_first_sample_that_cannot_begin_the_file_ends_the_writer(step: str, tmp_path: Path) -> None:
    writer = Writer(tmp_path / "a.mmds")
    with files_of_at_most(1000), pytest.raises(StorageError):
        STEPS[step](writer)
    with pytest.raises(ClosedError, match="unusable after an error"):
        writer.close()
    assert not list(tmp_path.iterdir())


class Interrupted(Exception):
    """What a user's program may raise."""


@pytest.mark.parametrize("how", [Interrupted, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exception_of_any_kind_publishes_nothing(how: type[BaseException], tmp_path: Path) -> None:
    def samples() -> Iterator[int]:
        yield 1
        raise how

    for broken in (lambda w: w.extend(samples()), lambda w: [w.write(sample) for sample in samples()]):
        with pytest.raises(how), Writer(tmp_path / "a.mmds", Scalar("int8")) as writer:
            broken(writer)
        with pytest.raises(ClosedError, match="this Writer is aborted"):
            writer.write(1)
        assert not list(tmp_path.iterdir())


def test_closing_inside_of_the_block_is_enough(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.mmds", Scalar("int8")) as writer:
        writer.write(1)
        writer.close()
        writer.close()
        writer.abort()
    assert list(mmds.open(tmp_path / "a.mmds")) == [1]


def test_aborting_inside_of_the_block_is_no_error(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.mmds", Scalar("int8")) as writer:
        writer.write(1)
        writer.abort()
    assert not list(tmp_path.iterdir())


def test_metadata_that_cannot_be_written_may_be_mended(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "a.mmds", Scalar("int8"))
    writer.write(1)
    writer.metadata["x"] = object()
    with pytest.raises(mmds.errors.SchemaError, match="metadata cannot be written as JSON"):
        writer.close()
    writer.metadata["x"] = 1
    writer.close()
    assert dict(mmds.open(tmp_path / "a.mmds").metadata) == {"x": 1}
