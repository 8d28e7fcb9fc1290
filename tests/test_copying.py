"""Copies are, byte for byte, what a Writer makes of the same samples; and what a damaged or changing source does to them."""

from __future__ import annotations

import dataclasses
import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmds
from mmds import blocks, stored
from mmds.blocks import BlockStream
from mmds.copying import GAP, Copier, arrange
from mmds.errors import ChangedError, FormatError, MmdsError, SourceError, StorageError
from mmds.fields import Kind
from mmds.format import BLOCK
from mmds.publish import Draft
from mmds.stored import StoredDataset
from tests.conftest import Write
from tests.resealing import little, resealed
from tests.samples import EVERY_KIND, sample, write_every_kind
from tests.shard_folders import write_folder

Values = Callable[[np.random.Generator], Any]


def some_bytes(most: int) -> Values:
    return lambda rng: rng.bytes(int(rng.integers(0, most)))


def array_of(dtype: str, *most: int) -> Values:
    """Return arrays whose sizes are random up to each of `most`, or exactly minus one of them."""
    return lambda rng: rng.integers(0, 100, [-m if m < 0 else rng.integers(0, m) for m in most]).astype(dtype)


def words(rng: np.random.Generator) -> str:
    return "äb€c"[: int(rng.integers(0, 5))] * int(rng.integers(0, 4))


KINDS: list[tuple[Kind, Values]] = [
    (mmds.Array("float32", (3, 30)), array_of("float32", -3, -30)),
    (mmds.Array("uint8", (300,), align=1), array_of("uint8", -300)),
    (mmds.Array("int64", (50,), align=4096), array_of("int64", -50)),
    (mmds.Array("uint8", (2, 0, 900)), lambda rng: np.zeros((2, 0, 900), "u1")),
    (mmds.Array("int16", (None,), align=2), array_of("int16", 70)),
    (mmds.Array("int16", (None, 3, None)), array_of("int16", 9, -3, 7)),
    (mmds.Array("float64", (None, None, None, None), align=512), array_of("float64", 3, 3, 3, 3)),
    (mmds.Array("int16", (2, 2)), array_of("int16", -2, -2)),
    (mmds.Array("bfloat16", ()), lambda rng: np.array(rng.integers(0, 60000), "uint16")),
    (mmds.Scalar("uint8"), lambda rng: int(rng.integers(0, 256))),
    (mmds.Scalar("bool"), lambda rng: bool(rng.integers(0, 2))),
    (mmds.Label(("a", "b", "c")), lambda rng: int(rng.integers(0, 3))),
    (mmds.Bytes(), some_bytes(3000)),
    (mmds.Bytes(align=256), some_bytes(500)),
    (mmds.Bytes(column=True), some_bytes(90)),
    (mmds.Text(), words),
    (mmds.Text(column=True), words),
    (mmds.Text(key=True), words),
    (mmds.Json(), lambda rng: [None, {"a": int(rng.integers(0, 10**6))}]),
    (mmds.Image(), some_bytes(200)),
    (mmds.Audio(), some_bytes(200)),
]


def nullable(kind: Kind, values: Values) -> tuple[Kind, Values]:
    if getattr(kind, "key", False):
        return kind, values
    return dataclasses.replace(kind, nullable=True), lambda rng: None if rng.random() < 0.4 else values(rng)


@st.composite
def datasets(draw: st.DrawFn) -> tuple[dict[str, Kind], list[dict[str, Any]]]:
    chosen = draw(st.lists(st.tuples(st.sampled_from(KINDS), st.booleans()), min_size=1, max_size=6))
    fields = [nullable(*pair) if null else pair for pair, null in chosen]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(0, 12))
    samples = [{f"f{k}": values(rng) for k, (_, values) in enumerate(fields)} for _ in range(n)]
    return {f"f{k}": kind for k, (kind, _) in enumerate(fields)}, samples


def write(path: Path, fields: Any, samples: list[Any], **options: Any) -> bytes:
    with mmds.Writer(path, fields, overwrite=True, metadata={"made": "here"}, **options) as writer:
        writer.extend(samples)
    return path.read_bytes()


def check_copies(data: st.DataObject, dataset: tuple[dict[str, Kind], list[dict[str, Any]]]) -> None:
    fields, samples = dataset
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cut = data.draw(st.integers(0, len(samples)), "where the second file begins")
        write(folder / "0.mmds", fields, samples[:cut])
        write(folder / "1.mmds", fields, samples[cut:])
        indices: list[int] = []
        for _ in range(data.draw(st.integers(0, 4), "runs") if samples else 0):
            start = data.draw(st.integers(0, len(samples) - 1))
            indices += range(start, data.draw(st.integers(start, len(samples))))
        mmds.select([folder / "0.mmds", folder / "1.mmds"], folder / "copy.mmds", indices)
        assert (folder / "copy.mmds").read_bytes() == write(folder / "same.mmds", fields, [samples[k] for k in indices])
        mmds.merge([folder / "1.mmds", folder / "0.mmds"], folder / "all.mmds")
        assert (folder / "all.mmds").read_bytes() == write(folder / "same.mmds", fields, samples[cut:] + samples[:cut])


@settings(max_examples=120, deadline=None)
@given(st.data(), datasets())
def test_a_copy_is_what_a_writer_makes(
    data: st.DataObject, dataset: tuple[dict[str, Kind], list[dict[str, Any]]]
) -> None:
    check_copies(data, dataset)


@pytest.mark.stress
@settings(max_examples=5000, deadline=None)
@given(st.data(), datasets())
def test_many_copies_are_what_a_writer_makes(
    data: st.DataObject, dataset: tuple[dict[str, Kind], list[dict[str, Any]]]
) -> None:
    check_copies(data, dataset)


@pytest.mark.parametrize("rows_at_once", [1, 7, 100])
def test_pieces_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int) -> None:
    monkeypatch.setattr(stored, "MAX_ROWS", rows_at_once)
    monkeypatch.setattr(stored, "WINDOW", 32)
    monkeypatch.setattr(stored, "PIECE", 50)
    source = write_every_kind(tmp_path / "a.mmds")
    order = np.random.default_rng(1).integers(0, 40, 60).tolist()
    mmds.select(source, tmp_path / "b.mmds", order)
    with mmds.Writer(tmp_path / "c.mmds", EVERY_KIND, metadata={"made": "by a test"}) as writer:
        writer.extend(map(sample, order))
    assert (tmp_path / "b.mmds").read_bytes() == (tmp_path / "c.mmds").read_bytes()


def test_large_values_cross_blocks(write: Write, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = [{"x": rng.bytes(size), "y": rng.bytes(3)} for size in (BLOCK - 4096, 5, 3 * BLOCK + 1, 0, BLOCK, 100)]
    source = write(None, samples)
    order = [2, 3, 0, 1, 2, 4, 5]
    mmds.select(source, tmp_path / "copy.mmds", order)
    assert (tmp_path / "copy.mmds").read_bytes() == write(None, [samples[k] for k in order]).read_bytes()


def lengths_copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list that the length of everything that is copied to a stream is added to."""
    lengths: list[int] = []
    copy = BlockStream.copy

    def noting(stream: BlockStream, fd: int, offset: int, length: int) -> None:
        lengths.append(length)
        copy(stream, fd, offset, length)

    monkeypatch.setattr(BlockStream, "copy", noting)
    return lengths


@pytest.mark.parametrize("align", [1, 64])
def test_neighbours_are_copied_together(
    write: Write, tmp_path: Path, align: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"x": mmds.Bytes(align=align), "y": mmds.Array("uint8", (GAP,), align=align)}
    source = write(fields, [{"x": bytes(k), "y": np.full(GAP, k, "u1")} for k in range(100)])
    moves = lengths_copied(monkeypatch)
    mmds.select(source, tmp_path / "copy.mmds", [5, *range(20, 80), *range(7, 9)])
    assert len(moves) == 3
    mmds.merge([source, source], tmp_path / "twice.mmds")
    assert len(moves) == 5


def test_values_near_each_other_are_read_together(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [{"x": bytes([k]) * (300 + k)} for k in range(100)]
    source = write({"x": mmds.Bytes(align=8)}, samples)
    want = write({"x": mmds.Bytes(align=8)}, samples[::2])
    moves = lengths_copied(monkeypatch)
    reads: list[int] = []
    read = stored.RawFile.read

    def noting(file: stored.RawFile, offset: int, length: int) -> bytes:
        reads.append(length)
        return read(file, offset, length)

    monkeypatch.setattr(stored.RawFile, "read", noting)
    mmds.select(source, tmp_path / "copy.mmds", slice(None, None, 2))
    assert (tmp_path / "copy.mmds").read_bytes() == want.read_bytes()
    assert moves == [] and len([length for length in reads if length > 30_000]) == 1


def test_where_values_begin() -> None:
    lengths = np.array([[3, 5, 0], [1, 0, 9], [8, 8, 8]])
    for aligns in ([1, 8, 2], [8, 8, 8], [64, 2, 8], [1, 1, 1]):
        for position in (4096, 4099):
            end, expected = position, []
            for length, align in zip(lengths.reshape(-1).tolist(), aligns * 3, strict=True):
                expected.append(-(-end // align) * align)
                end = expected[-1] + length
            assert arrange(position, lengths, aligns).reshape(-1).tolist() == expected


# Folders, columns added later, other stores, compression


def test_columns_from_other_files(tmp_path: Path) -> None:
    samples = [{"x": bytes([k]) * k, "y": k} for k in range(10)]
    folder = write_folder(tmp_path / "folder.mmds", (4, 0, 5, 1), samples.__getitem__)
    mmds.add_column(folder, "name", [f"n{k}" for k in range(10)])
    mmds.add_column(folder, "z", [np.arange(k) for k in range(10)], kind=mmds.Array("int64", (None,)))
    reader = mmds.open(folder)
    order = [9, 2, 3, 4, 0]
    mmds.select(folder, tmp_path / "copy.mmds", order)
    with mmds.Writer(tmp_path / "same.mmds", reader.fields, metadata=reader.metadata) as writer:
        writer.extend({**samples[k], "name": f"n{k}", "z": np.arange(k)} for k in order)
    assert (tmp_path / "copy.mmds").read_bytes() == (tmp_path / "same.mmds").read_bytes()
    mmds.select(folder, tmp_path / "few.mmds", order, where="name != 'n9'", fields=("z", "x"))
    assert [x for _, x in mmds.open(tmp_path / "few.mmds")] == [samples[k]["x"] for k in order[1:]]


def test_other_stores_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    mmds.convert(write_every_kind(tmp_path / "a.mmds", 3), tmp_path / "a.h5")
    with pytest.raises(SourceError, match=r"not an .mmds dataset.*mmds convert"):
        mmds.select(tmp_path / "a.h5", tmp_path / "b.mmds")
    assert not (tmp_path / "b.mmds").exists()


def test_compressed_values_are_copied_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zstandard")
    samples = [{"text": f"sample number {k} " * 9, "array": np.full((20, 20), k), "label": k} for k in range(60)]
    for name, part, compression in (
        ("a", samples, "zstd:1"),
        ("b", samples[::-1], "zstd:9:dict"),
        ("c", samples, "zstd:3:dict"),
    ):
        with mmds.Writer(tmp_path / f"{name}.mmds", compression=compression) as writer:
            writer.extend(part)
    decompressed: list[int] = []
    write_batch = Copier.write_batch

    def noting(copier: Copier, batch: Any) -> None:
        decompressed.append(len(batch["label"]))
        write_batch(copier, batch)

    monkeypatch.setattr(Copier, "write_batch", noting)

    def check(result: Path, expected: list[Any]) -> None:
        assert mmds.verify(result)
        for found, wanted in zip(mmds.open(result), expected, strict=True):
            assert found["text"] == wanted["text"] and found["label"] == wanted["label"]
            np.testing.assert_array_equal(found["array"], wanted["array"])

    mmds.select(tmp_path / "a.mmds", tmp_path / "a2.mmds")
    assert (tmp_path / "a2.mmds").read_bytes() == (tmp_path / "a.mmds").read_bytes()
    mmds.select(tmp_path / "b.mmds", tmp_path / "b2.mmds")
    assert (tmp_path / "b2.mmds").read_bytes() == (tmp_path / "b.mmds").read_bytes()
    mmds.select(tmp_path / "b.mmds", tmp_path / "b3.mmds", [7, 3])
    check(tmp_path / "b3.mmds", [samples[-8], samples[-4]])
    assert not decompressed
    mmds.merge([tmp_path / "b.mmds", tmp_path / "c.mmds", tmp_path / "b.mmds"], tmp_path / "m.mmds")
    check(tmp_path / "m.mmds", samples[::-1] + samples + samples[::-1])
    assert sum(decompressed) == len(samples)


# What is wrong with a source


def damaged(tmp_path: Path, role: str, row: int, value: int) -> Path:
    """Return a dataset of which one number in a section is another one."""
    path = tmp_path / "damaged.mmds"
    with mmds.Writer(path, {"x": mmds.Bytes(), "y": mmds.Text(column=True), "z": mmds.Array("u1", (300,))}) as writer:
        writer.extend({"x": bytes(100), "y": "abc", "z": np.zeros(300, "u1")} for _ in range(10))
    reader = mmds.open(path)
    section = next(each for each in reader.footer.sections if each.role == role)
    path.write_bytes(resealed(path.read_bytes(), patch={section.data + 8 * row: little(value)}))
    return path


@pytest.mark.parametrize("value", [0, 4095, 10**6, 2**53, 2**63, 2**64 - 1])
@pytest.mark.parametrize("where", ["ends", "value_ends"])
def test_ends_that_cannot_be_right(tmp_path: Path, where: str, value: int) -> None:
    path = damaged(tmp_path, where, 5, value)
    sample, field = ("[123]", "[xz]") if where == "ends" else ("[45]", "y")
    with pytest.raises(FormatError, match=rf"damaged.mmds: sample {sample}, field '{field}': bytes .*mmds verify"):
        mmds.select(path, tmp_path / "copy.mmds")
    assert list(tmp_path.iterdir()) == [path]
    mmds.select(path, tmp_path / "copy.mmds", [0, 8, 7])  # these are undamaged


def test_an_item_of_another_length(tmp_path: Path) -> None:
    path = damaged(tmp_path, "ends", 2, 4096 + 128 + 299)  # the end of z of the first sample
    with pytest.raises(FormatError, match="sample 0, field 'z': bytes 4224 to 4523 "):
        mmds.select(path, tmp_path / "copy.mmds", [0])


def test_an_item_at_another_place_than_its_stride_says(write: Write, tmp_path: Path) -> None:
    path = write({"z": mmds.Array("u1", (300,))}, [{"z": np.zeros(300, "u1")}] * 5)
    ends = mmds.open(path).footer.sections[0].data
    path.write_bytes(
        resealed(path.read_bytes(), patch={ends + 8: little(4096 + 364), ends + 16: little(4096 + 300 + 448)})
    )
    with pytest.raises(FormatError, match="sample 0, field 'z'"):
        mmds.select(path, tmp_path / "copy.mmds")


@pytest.mark.parametrize("length", [0, 4096, 5000, -1])
def test_a_file_that_becomes_shorter(
    write: Write, tmp_path: Path, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(None, [{"x": bytes(5000), "y": "abc" * k} for k in range(30)])
    dataset = StoredDataset(mmds.open(source))
    copier = Copier(tmp_path / "copy.mmds", mmds.open(source).fields)
    copier.copy(dataset, np.arange(3))  # opens it
    os.truncate(source, length if length >= 0 else source.stat().st_size + length)
    with pytest.raises(ChangedError, match="has become shorter") if length >= 0 else pytest.raises(MmdsError):
        for _ in range(30):
            copier.copy(dataset, np.arange(30))
            os.truncate(source, 0)
    copier.abort()
    assert not (tmp_path / "copy.mmds").exists()


def test_a_file_that_is_replaced(write: Write, tmp_path: Path) -> None:
    source, other = write(None, [{"x": b"a"}]), write(None, [{"x": b"b"}])
    dataset = StoredDataset(mmds.open(source))
    other.replace(source)
    with Copier(tmp_path / "copy.mmds", dataset.schema) as copier:
        with pytest.raises(ChangedError, match="was replaced"):
            copier.copy(dataset, np.arange(1))
        source.unlink()
        with pytest.raises(ChangedError, match="was removed"):
            copier.copy(dataset, np.arange(1))


def test_a_disk_that_fails(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(None, [{"x": bytes(100)}] * 10)

    def fails(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    with pytest.raises(StorageError, match=r"cannot read .*Input/output error"):
        mmds.select(source, tmp_path / "copy.mmds")
    assert not list(tmp_path.glob(".*"))


def test_short_reads_go_on(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(None, [{"x": bytes([k]) * 1000, "y": "y" * k} for k in range(10)])
    preadv, pread = os.preadv, os.pread
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: preadv(fd, (views[0][:77],), offset))
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, 77), offset))
    mmds.select(source, tmp_path / "copy.mmds")
    assert (tmp_path / "copy.mmds").read_bytes() == source.read_bytes()


def test_a_stream_copies_into_blocks(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(3 * BLOCK)
    (tmp_path / "in").write_bytes(content)
    draft = Draft(tmp_path / "out")
    stream = BlockStream(draft)
    with open(tmp_path / "in", "rb") as file:
        stream.write(b"abc")
        stream.copy(file.fileno(), 7, 2 * BLOCK)
        stream.copy(file.fileno(), 5, 0)
        with pytest.raises(EOFError):
            stream.copy(file.fileno(), len(content), 1)
    assert stream.position == 3 + 2 * BLOCK
    hashes = stream.hashes()
    stream.flush()
    draft.publish()
    written = (tmp_path / "out").read_bytes()
    assert written == b"abc" + content[7 : 7 + 2 * BLOCK]
    parts = [written[k : k + BLOCK] for k in range(0, len(written), BLOCK)]
    assert hashes == b"".join(blocks.block_hash(part).to_bytes(8, "little") for part in parts)


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "OPEN_FILES", 2)
    paths = []
    for k in range(8):
        paths.append(tmp_path / f"{k}.mmds")
        with mmds.Writer(paths[-1]) as writer:
            writer.extend({"x": bytes([k, j])} for j in range(4))
    descriptors: list[int] = []
    copy = BlockStream.copy

    def counting(stream: BlockStream, fd: int, offset: int, length: int) -> None:
        descriptors.append(len(list(Path("/proc/self/fd").iterdir())))
        copy(stream, fd, offset, length)

    monkeypatch.setattr(BlockStream, "copy", counting)
    order = np.random.default_rng(0).permutation(32)
    mmds.select(paths, tmp_path / "out.mmds", order)
    assert [s["x"] for s in mmds.open(tmp_path / "out.mmds")] == [bytes([k // 4, k % 4]) for k in order.tolist()]
    assert max(descriptors) - min(descriptors) <= 2


def test_nothing_of_the_source_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source.mmds"
    with mmds.Writer(source, {"x": mmds.Bytes(), "column": mmds.Array("u1", (256,))}) as writer:
        writer.write_batch({"x": [bytes(300)] * 100_000, "column": np.zeros((100_000, 256), "u1")})

    def mapped() -> int:
        """Return how many bytes of files are in this process."""
        status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return 1024 * int(status["RssFile"].split()[0])

    mmds.select(source, tmp_path / "some.mmds", [1])  # loads modules
    before = mapped()
    reader = mmds.open(source)
    dataset = StoredDataset(reader)
    with Copier(tmp_path / "copy.mmds", reader.fields) as copier:
        for rows in np.split(np.random.default_rng(0).permutation(100_000), 50):
            copier.copy(dataset, rows)
        assert mapped() - before < 2**20  # of 55 MB
