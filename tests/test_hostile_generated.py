"""Whole files around random fields, consistent in all that is checked at open and nonsense otherwise."""

from __future__ import annotations

import contextlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmds.dtypes import NATIVE, STORED
from mmds.errors import MmdsError
from mmds.format import DATA_START, constant_layout, layout, pack_end, pack_header
from mmds.schema import Schema
from tests.conftest import Cases
from tests.resealing import little, read_all

EXAMPLES = 150
LARGEST = 2**20
BIG = 2**32 - 1
shapes = st.one_of(
    st.lists(st.sampled_from((0, 1, 2, 3, 255, 257, 2**20, BIG)), max_size=4),
    st.builds(lambda shape, at: [*shape[:at], 0, *shape[at:]], st.lists(st.just(BIG), max_size=8), st.integers(0, 8)),
    st.lists(st.sampled_from((None, 1, 2, 2**20)), max_size=5),
)
kinds = st.one_of(
    st.fixed_dictionaries({"kind": st.just("scalar"), "dtype": st.sampled_from(sorted(NATIVE))}),
    st.fixed_dictionaries({"kind": st.just("label"), "names": st.just(["a", "b"])}),
    st.fixed_dictionaries(
        {
            "kind": st.just("array"),
            "dtype": st.sampled_from(sorted(STORED)),
            "shape": shapes,
            "align": st.sampled_from((16, 64, 4096)),
        }
    ),
    st.fixed_dictionaries({"kind": st.just("bytes"), "column": st.booleans(), "align": st.sampled_from((1, 4096))}),
    st.fixed_dictionaries(
        {"kind": st.just("bytes"), "column": st.just(True), "align": st.just(1), "key": st.just(True)}
    ),
    st.fixed_dictionaries({"kind": st.sampled_from(("json", "audio")), "compression": st.just("zstd")}),
    st.fixed_dictionaries(
        {
            "kind": st.just("array"),
            "dtype": st.sampled_from(("uint8", "float32")),
            "shape": st.sampled_from(([300], [None, 2], [None, None])),
            "align": st.just(64),
            "compression": st.just("zstd"),
        }
    ),
    st.fixed_dictionaries({"kind": st.just("text"), "column": st.booleans()}),
    st.fixed_dictionaries({"kind": st.sampled_from(("json", "audio", "video"))}),
)
fields = st.lists(st.tuples(kinds, st.booleans()), min_size=1, max_size=3)
counts = st.one_of(st.integers(0, 3), st.sampled_from((255, 2**31, 2**53 - 1)))


def built(fields: list[dict[str, Any]], n: int, content: bytes) -> bytes:
    """Return a file whose data and index are `content` over and over, apart from what is checked at open."""
    schema = Schema.from_json(fields)
    constant = constant_layout(schema)
    length = max(n - 1, 0) * constant[0] + constant[2] * (n > 0) if constant else len(content) * (n > 0)
    data_end = DATA_START + (length if schema.payload else 0)
    sections = layout(schema, n, data_end, dict.fromkeys(range(len(schema)), len(content)))
    if sections[-1].end > LARGEST:
        return b""
    data = bytearray(pack_header(schema))
    for section in sections:
        if len(data) == DATA_START:
            data += (content * (data_end // len(content)))[: data_end - DATA_START]
        data += bytes(section.offset - len(data)) + section.npy_header()
        array = bytearray((content * (section.nbytes // len(content) + 1))[: section.nbytes])
        if section.role == "ends":
            array[:8], array[-8:] = little(DATA_START), little(data_end)
        elif section.role == "value_ends":
            array[-8:], array[:8] = little(len(content)), little(0)
        data += array
    data += bytes(-len(data) % 64)
    return bytes(data) + pack_end(schema, n, data_end, sections, "0" * 64, {})


def read_generated(content: bytes) -> None:
    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(fields, counts)
    def search(fields: list[tuple[dict[str, Any], bool]], n: int) -> None:
        listed = [{"path": [str(k)], "nullable": null, **kind} for k, (kind, null) in enumerate(fields)]
        with contextlib.suppress(MmdsError):
            data = built(listed, n, content)
            if data:
                read_all(data, limit=5)

    search()


@pytest.mark.parametrize("content", [bytes(8), little(DATA_START), little(DATA_START + 1) + b"\xff" * 8], ids=range(3))
@pytest.mark.fault(13)
def test_13_generated_files_raise_nothing_but_errors_of_mmds(content: bytes, cases: Cases) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:  # a signal breaks the pool
        pool.submit(read_generated, content).result()
    cases(EXAMPLES)


def test_a_generated_file_can_be_read() -> None:
    data = built([{"path": [], "kind": "text", "nullable": False, "column": True}], 1, b"hello")
    assert read_all(data) == ["hello"]
