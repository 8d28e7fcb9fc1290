"""`verify` names the blocks, samples and fields that are damaged, and never fails on a bad file."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.format import BLOCK
from mmds.manifest import read_manifest
from tests.samples import write_every_kind, write_fixed
from tests.shard_folders import plain_sample, write_folder


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def write_ragged(path: Path, count: int = 400) -> Path:
    """Write two ragged fields of about 5 MB in all, whose sizes differ from sample to sample."""
    with mmds.Writer(path, {"a": mmds.Bytes(), "b": mmds.Array("uint8", (None,)), "n": mmds.Scalar("int64")}) as writer:
        for number in range(count):
            writer.write(
                {
                    "a": bytes([number % 256]) * (number * 17 % 9001),
                    "b": np.full(8000, number % 256, "uint8"),
                    "n": number,
                }
            )
    return path


def test_an_undamaged_file(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    found = mmds.verify(write_ragged(tmp_path / "a.mmds"), progress=lambda done, total: steps.append((done, total)))
    assert (
        found and found.samples == 400 and found.bytes == (tmp_path / "a.mmds").stat().st_size and found.damages == ()
    )
    assert steps and steps[-1][0] == steps[-1][1]
    assert mmds.verify(write_every_kind(tmp_path / "b.mmds"))
    assert mmds.verify(write_fixed(tmp_path / "c.mmds", count=0))


@pytest.mark.parametrize("write", [write_ragged, write_fixed])
def test_every_flipped_payload_bit_is_found_and_its_sample_and_field_named(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "a.mmds", 400)
    reader = mmds.open(path)
    end, payload = reader.footer.data_end, [field.name for field in reader.fields if field.is_payload]
    ends = np.frombuffer(path.read_bytes(), "<u8", 400 * len(payload) + 1, reader.footer.section("ends").data)
    chance = random.Random(0)
    for _ in range(60):
        offset = chance.randrange(4096, end)
        flip(path, offset, bit := chance.randrange(8))
        found = mmds.verify(path, num_workers=1)
        item = int(np.searchsorted(ends, offset, "right")) - 1
        hits = [d for d in found.damages if d.samples and d.samples[0] <= item // len(payload) < d.samples[1]]
        assert any(payload[item % len(payload)] in hit.fields for hit in hits), (offset, found)
        if end > 2 * BLOCK and offset < end - BLOCK:  # data and index lie in different blocks
            assert len(found.damages) == 1 and f"block {offset // BLOCK} " in found.damages[0].reason
            assert (
                found.damages[0].samples is not None and found.damages[0].samples[1] - found.damages[0].samples[0] < 200
            )
        flip(path, offset, bit)
    assert mmds.verify(path)


def test_a_damaged_index_names_its_field(tmp_path: Path) -> None:
    path = write_fixed(tmp_path / "a.mmds", 30, (64, 64, 64))
    section = mmds.open(path).footer.section("column", 1)
    flip(path, section.data + 8 * 7)
    found = mmds.verify(path)
    assert any(damage.fields == ("label",) and damage.samples == (0, 30) for damage in found.damages)
    assert "in the index" in str(found.damages[-1])


def test_damaged_hashes_and_damaged_ends(tmp_path: Path) -> None:
    path = write_fixed(tmp_path / "a.mmds")
    blocks = mmds.open(path).footer.sections[-1]
    flip(path, blocks.data)
    assert "the block hashes differ" in mmds.verify(path).damages[0].reason
    flip(path, blocks.data)
    size = path.stat().st_size
    flip(path, size - 1)
    assert "no trailer at the end" in mmds.verify(path).damages[0].reason
    os.truncate(path, 1000)
    assert not mmds.verify(path)
    with pytest.raises(FileNotFoundError):
        mmds.verify(tmp_path / "missing.mmds")


def test_a_disk_that_cannot_be_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_ragged(tmp_path / "a.mmds")
    read = os.pread

    def failing(fd: int, length: int, offset: int) -> bytes:
        if offset == 2 * BLOCK:
            raise OSError(5, "Input/output error")
        return read(fd, length, offset)

    monkeypatch.setattr(os, "pread", failing)
    (damage,) = mmds.verify(path).damages
    assert "block 2 (bytes 2097152 to 3145728) cannot be read (Input/output error): samples " in str(damage)


# Rules that only a writer with a bug, or an enemy, breaks: the hashes are right


def reseal(path: Path) -> None:
    """Compute the block hashes of a file again, with mmds's own functions, so that only a rule is broken."""
    import hashlib

    from mmds.blocks import block_hash
    from mmds.format import align_up, pack_end

    footer = mmds.open(path).footer
    content = path.read_bytes()
    covers = footer.sections[-1].offset
    hashes = b"".join(
        block_hash(content[start : min(start + BLOCK, covers)]).to_bytes(8, "little")
        for start in range(0, covers, BLOCK)
    )
    body = content[: footer.sections[-1].data] + hashes
    body += bytes(align_up(len(body), 64) - len(body))
    root = hashlib.sha256(hashes).hexdigest()
    path.write_bytes(
        body + pack_end(footer.schema, footer.n, footer.data_end, footer.sections, root, dict(footer.metadata))
    )


def break_rule(path: Path, role: str, field: str | None, row: int, value: int, size: int) -> list[str]:
    """Overwrite one row of a section, reseal the file, and return what `verify` finds."""
    reader = mmds.open(path)
    section = reader.footer.section(role, None if field is None else reader.fields.index(field))
    with path.open("r+b") as file:
        file.seek(section.data + row * size)
        file.write(value.to_bytes(size, "little"))
    reseal(path)
    return [str(damage) for damage in mmds.verify(path).damages]


@pytest.mark.parametrize(
    ("role", "field", "row", "value", "size", "found"),
    [
        ("column", "label", 5, 3, 8, "the label is not one of 3 classes: sample 5, field label"),
        ("column", "flag", 6, 2, 1, "a bool is neither 0 nor 1: sample 6, field flag"),
        ("valid", "maybe", 7, 2, 1, "the validity byte is neither 0 nor 1: sample 7, field maybe"),
        ("column", "maybe", 9, 1, 4, "a null value is not zero: sample 9, field maybe"),
        ("value_ends", "nested.1.key", 5, 2**40, 8, "the ends in the index decrease: sample 4, field nested.1.key"),
        ("ends", None, 12, 2**40, 8, "the ends in the index decrease: sample 1, field json"),
        ("values", "nested.1.key", 3, 0xFF, 1, "not valid text: sample 0, field nested.1.key"),
    ],
)
def test_rules(tmp_path: Path, role: str, field: str | None, row: int, value: int, size: int, found: str) -> None:
    assert found in break_rule(write_every_kind(tmp_path / "a.mmds"), role, field, row, value, size)


@pytest.mark.parametrize(
    ("role", "row", "value", "found"),
    [
        ("key_rows", 1, 10**6, "the index of keys leads to sample 1000000: sample 3, field id"),
        ("key_hashes", 1, 0, "the index of keys is not in order"),
        ("key_hashes", 2, 2**64 - 1, "the index of keys has another hash"),
        ("key_rows", 1, 1, "the index of keys has another hash: sample 1, field id"),
    ],
)
def test_rules_of_the_index_of_keys(tmp_path: Path, role: str, row: int, value: int, found: str) -> None:
    with mmds.Writer(tmp_path / "a.mmds", {"id": mmds.Text(key=True)}) as writer:
        writer.write_batch({"id": ["b", "d", "c", "a"]})
    assert mmds.verify(tmp_path / "a.mmds")
    assert any(found in damage for damage in break_rule(tmp_path / "a.mmds", role, "id", row, value, 8))


def test_a_damaged_index_of_keys_is_named(tmp_path: Path) -> None:
    with mmds.Writer(tmp_path / "a.mmds", {"id": mmds.Text(key=True)}) as writer:
        writer.write_batch({"id": ["a", "b"]})
    flip(tmp_path / "a.mmds", mmds.open(tmp_path / "a.mmds").footer.section("key_rows", 0).data)
    damages = [str(damage) for damage in mmds.verify(tmp_path / "a.mmds").damages]
    assert any("differs from its hash in the index of keys: samples 0 to 1, field id" in damage for damage in damages)


def test_rules_of_the_payload(tmp_path: Path) -> None:
    path = tmp_path / "a.mmds"
    fields = {"r": mmds.Array("int32", (None, None)), "j": mmds.Json(), "x": mmds.Array("int32", (None, 2))}
    with mmds.Writer(path, fields) as writer:
        writer.extend({"r": np.zeros((2, 3), "int32"), "j": [i], "x": np.zeros((1, 2), "int32")} for i in range(9))
    shape = mmds.open(path).footer.section("shape", 0)
    content = bytearray(path.read_bytes())
    content[shape.data] = 3  # (3, 3) instead of (2, 3)
    content[4096 + 24] = ord("x")  # the first json
    content[4096 + 24 + 3] = 1  # the padding behind it
    path.write_bytes(content)
    reseal(path)
    assert [str(damage) for damage in mmds.verify(path).damages] == [
        "the size does not fit the shape: sample 0, field r",
        "not valid json: sample 0, field j",
        "the padding before the value is not zero: sample 0, field x",
    ]


def test_names_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "a.mmds"
    with mmds.Writer(path) as writer:
        writer.write({"\x1b[2Jname": np.zeros(1000)})
    flip(path, 5000)
    assert "\\x1b[2Jname" in str(mmds.verify(path).damages[0]) and "\x1b" not in str(mmds.verify(path).damages[0])


# Several files


def test_an_undamaged_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a.mmds", [3, 0, 5])
    mmds.add_column(folder, "x", range(8))
    steps: list[tuple[int, int]] = []
    found = mmds.verify(folder, progress=lambda done, total: steps.append((done, total)))
    files = [*folder.glob("*.mmds"), *folder.glob("columns/*")]
    assert found and found.samples == 8 and found.path == str(folder) and found.notes == ()
    assert found.bytes == sum(path.stat().st_size for path in files)
    assert steps == sorted(steps) and steps[-1] == (found.bytes, found.bytes)


def test_what_is_damaged_in_a_folder_is_named_by_its_number_in_the_dataset(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a.mmds", [3, 4, 5, 2, 2])
    mmds.add_column(folder, "x", np.zeros((16, 100), "f4"))
    flip(folder / "00001.mmds", 4096)  # the first byte of the first text
    flip(folder / "00002.mmds", (folder / "00002.mmds").stat().st_size - 10)  # the trailer
    (folder / "00003.mmds").unlink()
    with mmds.Writer(folder / "00004.mmds", overwrite=True) as writer:
        writer.extend(plain_sample(i) for i in range(100, 102))
    flip(folder / "columns" / "x-0.mmds", 4096 + 448 * 9)
    (folder / "notes\x1b.txt").write_text("mine")
    found = mmds.verify(folder)
    assert not found and found.samples == 16
    reasons = {damage.reason.partition(": ")[0].removeprefix(f"{folder}/"): damage for damage in found.damages}
    samples = {name: damage.samples for name, damage in reasons.items()}
    assert samples == {
        "00001.mmds": (3, 7),
        "00002.mmds": (7, 12),
        "00003.mmds": (12, 14),
        "00004.mmds": (14, 16),
        "columns/x-0.mmds": (0, 16),
    }
    assert "differs from its hash" in reasons["00001.mmds"].reason
    assert "trailer" in reasons["00002.mmds"].reason
    assert "missing, but dataset.json lists it" in reasons["00003.mmds"].reason
    assert "not the file that dataset.json lists" in reasons["00004.mmds"].reason
    assert reasons["columns/x-0.mmds"].fields == ("x",)
    assert found.notes == (r"no part of the dataset, for dataset.json does not list it: notes\x1b.txt",)


def test_a_manifest_that_is_none(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a.mmds", [3])
    (folder / "dataset.json").write_text("{}")
    assert "not a manifest" in str(mmds.verify(folder).damages[0])
    (folder / "dataset.json").unlink()
    assert "an unfinished dataset" in str(mmds.verify(folder).damages[0])


def test_a_manifest_of_other_fields(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a.mmds", [3, 1])
    text, found = (folder / "dataset.json").read_bytes(), read_manifest(folder)
    (folder / "dataset.json").write_bytes(text.replace(found.schema_id.encode(), b"0" * 32))
    damages = mmds.verify(folder).damages
    assert [damage.samples for damage in damages] == [(0, 3), (3, 4)]
    assert all("has other fields than dataset.json says" in damage.reason for damage in damages)


def test_a_list_and_a_pattern(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a.mmds", [3, 4, 5])
    paths = sorted(folder.glob("*.mmds"))
    for source in (paths, folder / "*.mmds"):
        found = mmds.verify(source)
        assert found and found.samples == 12 and found.path == f"{paths[0]} and 2 more"
        assert found.bytes == sum(path.stat().st_size for path in paths)
    flip(paths[2], 4096)
    for damage in mmds.verify(paths).damages:
        assert damage.reason.startswith(f"{paths[2]}: block 0") and damage.samples == (7, 12)
    flip(paths[1], 20)
    first, second, *_ = mmds.verify(paths).damages
    assert first.reason.startswith(f"{paths[1]}: header")
    assert second.reason.startswith(f"{paths[2]}, counted from its start: block 0") and second.samples == (0, 5)
    with mmds.Writer(paths[1], overwrite=True) as writer:
        writer.write({"other": 1})
    assert [str(damage) for damage in mmds.verify(paths[:2]).damages] == [
        f"{paths[1]}: has other fields than the first file"
    ]
    with pytest.raises(FileNotFoundError):
        mmds.verify([paths[0], tmp_path / "missing.mmds"])
