"""Damaged and unfinished files: what is whole is saved as a writer would have written it, the rest is listed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.blocks import block_hash
from mmds.errors import ExistsError, FormatError, SourceError, StorageError
from mmds.format import BLOCK
from mmds.writer import CHECKPOINT
from tests.likeness import assert_alike
from tests.resealing import put, resealed
from tests.samples import EVERY_KIND, sample
from tests.test_integrity import flip, write_ragged
from tests.test_positioned import write_blocks


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_samples_outside_of_a_damaged_block_are_saved(tmp_path: Path) -> None:
    path = write_blocks(tmp_path / "a.mmds")
    want = list(mmds.open(path))
    flip(path, 4096 + 25 * 100_032, 3)
    found = mmds.repair(path, tmp_path / "b.mmds")
    kept = [*range(20), *range(32, 40)]
    assert (found.samples, found.samples_lost) == (28, 12)
    assert_alike(list(mmds.open(tmp_path / "b.mmds")), [want[k] for k in kept])
    assert mmds.verify(tmp_path / "b.mmds")
    assert found.report == tmp_path / "b.mmds.lost.jsonl"
    assert lines(found.report) == [{"samples": [20, 32], "fields": ["x"], "reason": "in a damaged block"}]


def test_what_is_in_no_damaged_block_is_saved_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.mmds"
    with mmds.Writer(path, EVERY_KIND) as writer:
        writer.extend(sample(k % 100) for k in range(2000))
    whole = list(mmds.open(path))
    size = path.stat().st_size
    for number, offset in enumerate(range(4097, size - 2000, size // 9)):
        flip(path, offset)
        damaged = mmds.verify(path)
        found = mmds.repair(path, tmp_path / f"{number}.mmds")
        lost = {k for damage in found.lost for k in range(*damage.samples)}  # type: ignore[misc]
        kept = [k for k in range(2000) if k not in lost]
        named = {k for damage in damaged.damages for k in range(*(damage.samples or (0, 0)))}
        assert lost and lost <= named, "more than what verify says"
        with mmds.Writer(tmp_path / "want.mmds", mmds.open(path).fields, overwrite=True) as writer:
            writer.extend(whole[k] for k in kept)
        assert (tmp_path / f"{number}.mmds").read_bytes() == (tmp_path / "want.mmds").read_bytes()
        flip(path, offset)


@pytest.mark.parametrize("where", ["header", "trailer", "section", "padding", "first end"])
def test_what_follows_from_the_footer_is_made_again(where: str, tmp_path: Path) -> None:
    path = write_ragged(tmp_path / "a.mmds", 100)
    want, reader = path.read_bytes(), mmds.open(path)
    ends, size = reader.footer.section("ends"), path.stat().st_size
    offset, length = {
        "header": (0, 4096),
        "trailer": (size - 64, 64),
        "section": (ends.offset, 128),
        "padding": (reader.footer.sections[1].end, 32),
        "first end": (ends.data, 8),
    }[where]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(os.urandom(length))
    with pytest.raises(FormatError):
        mmds.open(path)
    found = mmds.repair(path, tmp_path / "b.mmds")
    assert found.lost == () and found.report is None
    assert (tmp_path / "b.mmds").read_bytes() == want


def test_without_a_footer_nothing_can_be_saved(tmp_path: Path) -> None:
    path = write_ragged(tmp_path / "a.mmds", 100)
    for length in (path.stat().st_size - 100, path.stat().st_size // 2, 5000, 100):
        os.truncate(path, length)
        with pytest.raises(FormatError, match="footer"):
            mmds.repair(path, tmp_path / "b.mmds")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.mmds"]


def test_damaged_hashes_lose_only_what_cannot_be_checked(tmp_path: Path) -> None:
    path = write_blocks(tmp_path / "a.mmds")
    flip(path, mmds.open(path).footer.sections[-1].data + 8, 0)  # of block 1
    found = mmds.repair(path, tmp_path / "b.mmds")
    assert [damage.samples for damage in found.lost] == [(10, 21)]


def test_doubtful_samples_are_kept_if_wanted(tmp_path: Path) -> None:
    path = tmp_path / "a.mmds"
    with mmds.Writer(path) as writer:
        writer.extend({"text": f"text {k}", "x": k} for k in range(1000))
    with path.open("r+b") as file:
        at = path.read_bytes().index(b"text 500")
        file.seek(at)
        file.write(b"\xff")  # no UTF-8
    assert mmds.repair(path, tmp_path / "b.mmds").samples == 0  # all is one block
    found = mmds.repair(path, tmp_path / "b.mmds", doubtful=True, overwrite=True)
    assert [each["x"] for each in mmds.open(tmp_path / "b.mmds")] == [k for k in range(1000) if k != 500]
    assert [(damage.reason, damage.samples) for damage in found.lost] == [
        ("in a damaged block, kept", (0, 500)),
        ("in a damaged block", (500, 501)),
        ("in a damaged block, kept", (501, 1000)),
    ]
    assert found.samples_lost == 1


def test_a_value_that_breaks_a_rule_is_not_saved(tmp_path: Path) -> None:
    """As somebody else's writer may have written it: all hashes agree."""
    path = tmp_path / "a.mmds"
    with mmds.Writer(path, {"text": mmds.Text(), "key": mmds.Text(key=True)}) as writer:
        writer.extend({"text": f"text {k}", "key": f"{k}"} for k in range(10))
    data = bytearray(path.read_bytes())
    at, hashes = data.index(b"text 5"), mmds.open(path).footer.sections[-1]
    data[at] = 0xFF
    hashed = block_hash(bytes(data[: hashes.offset])).to_bytes(8, "little")
    path.write_bytes(
        resealed(bytes(data), put("blocks", "root", sha256(hashed).hexdigest()), patch={hashes.data: hashed})
    )
    found = mmds.repair(path, tmp_path / "b.mmds")
    assert [each["text"] for each in mmds.open(tmp_path / "b.mmds")] == [f"text {k}" for k in range(10) if k != 5]
    assert [(damage.reason, damage.samples) for damage in found.lost] == [("not valid text", (5, 6))]
    assert mmds.verify(tmp_path / "b.mmds") and found.samples_lost == 1


def test_a_folder_of_shards(tmp_path: Path) -> None:
    folder = tmp_path / "a.mmds"
    mmds.convert([{"x": np.full(9000, k)} for k in range(30)], folder, shard_size=200_000)
    shards = sorted(folder.glob("*.mmds"))
    counts = [len(mmds.open(shard)) for shard in shards]
    flip(shards[0], 5000)
    shards[2].unlink()
    found = mmds.repair(folder, tmp_path / "b.mmds")
    lost = {*range(counts[0]), *range(sum(counts[:2]), sum(counts[:3]))}
    assert [each["x"][0] for each in mmds.open(tmp_path / "b.mmds")] == [k for k in range(30) if k not in lost]
    assert found.samples_lost == len(lost) and shards[2].name in found.lost[1].reason
    mmds.convert([{"x": k} for k in range(3)], tmp_path / "c.mmds", shard_size=100_000)
    mmds.add_column(tmp_path / "c.mmds", "y", [1, 2, 3])
    with pytest.raises(SourceError, match="columns that were added later"):
        mmds.repair(tmp_path / "c.mmds", tmp_path / "d.mmds")


def test_the_destination_is_kept(tmp_path: Path) -> None:
    path = write_blocks(tmp_path / "a.mmds")
    (tmp_path / "b.mmds").write_text("mine")
    with pytest.raises(ExistsError):
        mmds.repair(path, tmp_path / "b.mmds")
    assert (tmp_path / "b.mmds").read_text() == "mine"


def test_the_command(tmp_path: Path) -> None:
    path = write_blocks(tmp_path / "a.mmds")
    flip(path, 4096 + 25 * 100_032, 3)
    command = [sys.executable, "-m", "mmds", "verify", str(path), "--repair", str(tmp_path / "b.mmds")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"saved: 28 samples, in {tmp_path}/b.mmds",
        f"lost: 12 samples, listed in {tmp_path}/b.mmds.lost.jsonl",
    ]
    assert "block 2 (bytes 2097152 to 3145728) differs from its hash: samples 20 to 31, field x" in done.stderr
    again = subprocess.run([*command, "--json", "--overwrite"], capture_output=True, text=True, check=False)
    assert json.loads(again.stdout)["repair"]["samples"] == 28
    os.truncate(path, 10_000)
    done = subprocess.run([*command, "--overwrite"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "its footer is damaged or missing" in done.stderr


# Unfinished files

WRITE = """if True:
    import os, signal, sys, mmds, mmds.writer
    from tests.test_repairing import FIELDS, large
    mmds.writer.CHECKPOINT = int(sys.argv[4])
    writer = mmds.Writer(sys.argv[1], FIELDS, metadata={"of": "mine"}, compression=sys.argv[3] or None)
    for k in range(int(sys.argv[2])):
        writer.write(large(k))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def large(k: int) -> dict[str, Any]:
    """Return a sample of about 300 KB with every part of the index."""
    chance = np.random.default_rng(k)
    return {
        "key": f"key {k}",
        "x": chance.integers(0, 256, (100 + k % 7, 1000 + k % 3), "uint8"),
        "maybe": None if k % 5 == 0 else "x" * (k % 100),
        "image": chance.bytes(200_000),
        "n": k,
        "table": np.full((300, 300 + k % 2), k % 256, "uint8"),
    }


FIELDS = {
    "key": mmds.Text(key=True),
    "x": mmds.Array("uint8", (None, None)),
    "maybe": mmds.Text(nullable=True, column=True),
    "image": mmds.Bytes(),
    "n": mmds.Scalar("int64"),
    "table": mmds.Array("uint8", (300, None)),
}


def write_and_kill(folder: Path, count: int, compression: str = "", blocks: int = 4) -> tuple[Path, Path]:
    """Return the unfinished file and the log that a writer left that was killed after so many samples.

    It has flushed the index every so many blocks.
    """
    command = [sys.executable, "-c", WRITE, str(folder / "a.mmds"), str(count), compression, str(blocks)]
    done = subprocess.run(command, check=False, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    log, left = sorted(folder.iterdir(), key=lambda path: path.suffix)
    assert (left.suffix, log.suffix) == (".tmp", ".log")
    return left, log


@pytest.mark.parametrize("compression", ["", "zstd", "zstd:dict"])
def test_what_a_killed_writer_has_flushed_is_saved(compression: str, tmp_path: Path) -> None:
    is_saved(tmp_path, 60, compression, 4)


@pytest.mark.stress
def test_what_a_killed_writer_has_flushed_every_64_mib_is_saved(tmp_path: Path) -> None:
    is_saved(tmp_path, 500, "", CHECKPOINT)


def is_saved(tmp_path: Path, count: int, compression: str, blocks: int) -> None:
    left, log = write_and_kill(tmp_path, count, compression, blocks)
    found = mmds.repair(left, tmp_path / "b.mmds")
    assert count // 2 < found.samples < count
    reader = mmds.open(tmp_path / "b.mmds")
    for k in (0, 1, found.samples // 2, found.samples - 1):
        assert_alike(reader[k], large(k))
    assert reader.row_of(f"key {found.samples - 1}") == found.samples - 1 and reader.metadata == {"of": "mine"}
    assert mmds.verify(tmp_path / "b.mmds")
    if not compression:  # whose dictionary was trained on more samples than were saved
        with mmds.Writer(tmp_path / "want.mmds", FIELDS, metadata={"of": "mine"}) as writer:
            writer.extend(large(k) for k in range(found.samples))
        assert (tmp_path / "b.mmds").read_bytes() == (tmp_path / "want.mmds").read_bytes()
    mmds.Writer(tmp_path / "a.mmds", FIELDS).abort()
    assert not left.exists() and not log.exists()


def test_of_an_unfinished_file_no_more_is_saved_than_is_whole(tmp_path: Path) -> None:
    left, log = write_and_kill(tmp_path, 120)
    data, index = left.read_bytes(), log.read_bytes()
    most = mmds.repair(left, tmp_path / "b.mmds").samples
    for change in ("data cut", "data zero", "log cut", "log flipped"):
        left.write_bytes(data[: 15 * BLOCK + 77] if change == "data cut" else data)
        log.write_bytes(index[: len(index) * 2 // 3] if change == "log cut" else index)
        if change == "data zero":  # what a power cut leaves of blocks that were not written yet
            with left.open("r+b") as file:
                file.seek(12 * BLOCK)
                file.write(bytes(BLOCK))
        if change == "log flipped":
            flip(log, len(index) - 10)
        found = mmds.repair(left, tmp_path / "b.mmds", overwrite=True)
        assert 0 < found.samples < most or (change.startswith("log") and 0 < found.samples <= most)
        assert mmds.verify(tmp_path / "b.mmds")
        assert_alike(mmds.open(tmp_path / "b.mmds")[-1], large(found.samples - 1))


def test_an_unfinished_file_that_nothing_is_known_of(tmp_path: Path) -> None:
    left, log = write_and_kill(tmp_path, 40)
    whole = log.read_bytes()
    log.write_bytes(whole[:10])
    with pytest.raises(FormatError, match="does not say which fields there are"):
        mmds.repair(left, tmp_path / "b.mmds")
    log.unlink()
    with pytest.raises(FormatError, match="is not beside it"):
        mmds.repair(left, tmp_path / "b.mmds")
    log.write_bytes(whole)
    left.write_bytes(write_ragged(tmp_path / "other").read_bytes()[:-64])
    with pytest.raises(FormatError, match="not the file that"):
        mmds.repair(left, tmp_path / "b.mmds")


def test_a_file_that_is_being_written_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmds.writer.CHECKPOINT", 4)
    with mmds.Writer(tmp_path / "a.mmds", FIELDS) as writer:
        writer.extend(large(k) for k in range(40))
        _, left = sorted(tmp_path.iterdir(), key=lambda path: path.suffix)
        with pytest.raises(StorageError, match="still being written"):
            mmds.repair(left, tmp_path / "b.mmds")
    assert mmds.verify(tmp_path / "a.mmds") and sorted(tmp_path.iterdir()) == [tmp_path / "a.mmds"]


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "a.mmds"
    mmds.convert([{"x": np.full(9000, k)} for k in range(30)], folder, shard_size=1_000_000)
    first, second, *_ = sorted(folder.glob("*.mmds"))
    second.rename(tmp_path / "elsewhere.mmds")
    second.symlink_to(tmp_path / "elsewhere.mmds")
    found = mmds.repair(folder, tmp_path / "b.mmds")
    assert found.samples == 30 - found.samples_lost and len(mmds.open(first)) <= found.samples
    (lost,) = found.lost
    assert "leads out of the folder" in lost.reason


def test_a_shard_that_the_folder_does_not_list_is_not_saved(tmp_path: Path) -> None:
    """Whole, and of the same fields, but other samples."""
    folder = tmp_path / "a.mmds"
    mmds.convert([{"x": np.full(9000, k)} for k in range(30)], folder, shard_size=1_000_000)
    first, *_ = sorted(folder.glob("*.mmds"))
    count = len(mmds.open(first))
    with mmds.Writer(first, overwrite=True) as writer:
        writer.extend({"x": np.full(9000, -k)} for k in range(count))
    found = mmds.repair(folder, tmp_path / "b.mmds")
    assert [each["x"][0] for each in mmds.open(tmp_path / "b.mmds")] == list(range(count, 30))
    (lost,) = found.lost
    assert lost.samples == (0, count) and "not the file that dataset.json lists" in lost.reason


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mmds")
    with pytest.raises(FormatError, match="not a regular file"):
        mmds.repair(tmp_path / "a.mmds", tmp_path / "b.mmds")


def test_progress_comes_to_an_end_whatever_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "a.mmds"
    mmds.convert([{"x": np.full(9000, k)} for k in range(30)], folder, shard_size=1_000_000)
    _, second, *_ = sorted(folder.glob("*.mmds"))
    second.unlink()
    told: list[tuple[int, int]] = []
    mmds.repair(folder, tmp_path / "b.mmds", progress=lambda done, total: told.append((done, total)))
    done, total = told[-1]
    assert 0.9 * total < done <= total
