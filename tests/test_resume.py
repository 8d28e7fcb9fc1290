"""Conversions into shards that are ended, and go on: the same bytes as one that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.errors import ExistsError, FormatError, MmdsError, OptionError, SchemaError, SourceError, StorageError
from mmds.manifest import publish_manifest, read_manifest
from mmds.sharded import ShardedWriter
from tests import steps
from tests.conftest import Cases

COUNT = 300
SIZE = 20_000


def samples(count: int = COUNT) -> Iterator[dict[str, Any]]:
    for n in range(count):
        yield {"n": n, "x": bytes([n % 256]) * (200 + 4 * (n % 90)), "key": f"key {n}"}


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class EndsAt:
    """Samples that end in the middle, as if the process had."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error = at, error

    def __len__(self) -> int:
        return COUNT

    def __iter__(self) -> Iterator[Any]:
        for n, sample in enumerate(samples()):
            if n == self.at:
                raise self.error
            yield sample


class Whole(EndsAt):
    """The same, of the same name, to the end."""

    def __init__(self) -> None:
        super().__init__(-1, KeyboardInterrupt())


Whole.__name__ = Whole.__qualname__ = EndsAt.__name__
Whole.__module__ = EndsAt.__module__


def run(source: Any, path: Path, **options: Any) -> mmds.Conversion:
    return mmds.convert(source, path, **{"shard_size": SIZE, **options})


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    run(Whole(), tmp_path / "whole.mmds")
    return state(tmp_path / "whole.mmds")


def test_shards_hold_the_samples_in_order_and_are_of_the_size(tmp_path: Path, whole: dict[str, bytes]) -> None:
    assert list(whole)[-1] == "dataset.json" and len(whole) == 9
    reader = mmds.open(tmp_path / "whole.mmds")
    assert [sample["n"] for sample in reader] == list(range(COUNT))
    assert all(SIZE <= len(data) < 2 * SIZE for data in list(whole.values())[:-2])
    assert mmds.verify(tmp_path / "whole.mmds")


@pytest.mark.fault(8)
@pytest.mark.parametrize("at", [1, -1, 0, 150, 299])
def test_what_was_interrupted_goes_on(tmp_path: Path, whole: dict[str, bytes], at: int) -> None:
    first: int = json.loads(whole["dataset.json"])["shards"][0]["n"]
    at = first + at if at < 1 else at
    path = tmp_path / "out.mmds"
    with pytest.raises(KeyboardInterrupt):
        run(EndsAt(at, KeyboardInterrupt()), path)
    kept = [name for name in state(path) if name.endswith(".mmds")] if path.exists() else []
    assert bool(kept) == (at >= first)
    if kept:
        with pytest.raises(FormatError, match="unfinished"):
            mmds.open(path)
        with pytest.raises(ExistsError, match="holds an unfinished conversion; pass resume=True"):
            run(Whole(), path)
    done: list[int] = []
    result = run(Whole(), path, resume=True, progress=lambda count, *_: done.append(count))
    assert state(path) == whole and result.samples == COUNT and done[-1] == COUNT
    assert run(Whole(), path, resume=True).samples == COUNT  # there is nothing left to do
    assert state(path) == whole


@pytest.mark.parametrize(
    "options",
    [
        {"map": steps.as_often_as_n, "shard_size": 300_000},
        {"batch_map": steps.sum_of, "batch_size": 7, "shard_size": 900},
        {"map": steps.refuse_fives, "on_error": "skip"},
        {"filter": steps.even, "compression": "zstd", "shard_size": 8000},
    ],
    ids=["many", "batches", "errors", "compressed"],
)
def test_it_goes_on_in_the_middle_of_an_item(tmp_path: Path, options: dict[str, Any]) -> None:
    first = run(Whole(), tmp_path / "whole.mmds", **options)
    want = state(tmp_path / "whole.mmds")
    path = tmp_path / "out.mmds"
    for at in range(50, COUNT, 100):
        with pytest.raises(KeyboardInterrupt):
            run(EndsAt(at, KeyboardInterrupt()), path, resume=True, **options)
    found = run(Whole(), path, resume=True, **options)
    assert state(path) == want and len(want) > 3
    assert found.samples == first.samples and found.errors == first.errors


def test_a_bad_sample_may_be_skipped_when_it_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "out.mmds"
    with pytest.raises(SourceError, match=r"sample 5: map failed: ValueError.*Whole shards are kept, for resume=True"):
        run(Whole(), path, map=steps.refuse_fives, resume=True)
    assert not path.exists()  # there was none
    found = run(Whole(), path, map=steps.refuse_fives, resume=True, on_error="skip")
    assert len(found.errors) == COUNT // 10


def test_nothing_else_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "out.mmds"
    with pytest.raises(KeyboardInterrupt):
        run(EndsAt(150, KeyboardInterrupt()), path)
    before = state(path)
    for options, message in (
        ({"limit": 200}, "limit was None, and is 200"),
        ({"map": steps.double}, "steps was .* and is .*tests.steps:double"),
        ({"shard_size": SIZE + 1}, "shard_size was 20000, and is 20001"),
        ({"fields": ["n"]}, "fields was 'None', and is"),
    ):
        with pytest.raises(OptionError, match=message):
            run(Whole(), path, resume=True, **options)
    with pytest.raises(OptionError, match="source was '<EndsAt>', and is '<list>'"):
        run(list(samples()), path, resume=True)
    assert state(path) == before
    (path / "00001.mmds").unlink()
    with pytest.raises(FormatError, match=r"00001\.mmds: missing"):
        run(Whole(), path, resume=True)


def test_what_a_crash_left_beside_is_written_anew(tmp_path: Path, whole: dict[str, bytes]) -> None:
    path = tmp_path / "out.mmds"
    with pytest.raises(KeyboardInterrupt):
        run(EndsAt(150, KeyboardInterrupt()), path)
    count = len([name for name in state(path) if name.endswith(".mmds")])
    (path / f"{count:05d}.mmds").write_bytes(b"published in the last moment, not in the journal")
    journal = path / "unfinished.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"shard": {"path": "000')  # and the line about it was cut
    run(Whole(), path, resume=True)
    assert state(path) == whole


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    path = tmp_path / "out.mmds"
    with pytest.raises(KeyboardInterrupt):
        run(EndsAt(150, KeyboardInterrupt()), path)
    journal = path / "unfinished.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"shard": 7}\n')
    with pytest.raises(FormatError, match=r"unfinished\.jsonl: damaged"):
        run(Whole(), path, resume=True)
    run(Whole(), path, overwrite=True)
    assert len(mmds.open(path)) == COUNT


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    path = tmp_path / "out.mmds"
    for options, message in (
        ({"shard_size": None, "resume": True}, "it needs shard_size="),
        ({"overwrite": True, "resume": True}, "expected one of them"),
        ({"overwrite": True, "append": True}, "expected one of them"),
        ({"destination_format": "hdf5"}, "is hdf5: shards and compression are for .mmds files"),
    ):
        with pytest.raises(OptionError, match=message):
            run(Whole(), path, **options)
    with pytest.raises(ValueError, match="at least 1"):
        run(Whole(), path, shard_size=0)
    with pytest.raises(FormatError, match="nothing to append to"):
        run(Whole(), path, append=True)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays_until_the_new_one_is_whole(tmp_path: Path, whole: dict[str, bytes]) -> None:
    path = tmp_path / "whole.mmds"
    with pytest.raises(ExistsError, match="exists already; pass append=True"):
        run(Whole(), path)
    with pytest.raises(KeyboardInterrupt):
        run(EndsAt(150, KeyboardInterrupt()), path, overwrite=True)
    assert state(path) == whole and list(tmp_path.iterdir()) == [path]
    run(list(samples(10)), path, overwrite=True)
    assert len(mmds.open(path)) == 10 and list(tmp_path.iterdir()) == [path]
    other = tmp_path / "folder.mmds"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(ExistsError, match="a folder with other things in it"):
        run(Whole(), other)
    assert [each.name for each in other.iterdir()] == ["notes.txt"]


def test_shards_are_added(tmp_path: Path, whole: dict[str, bytes]) -> None:
    path = tmp_path / "whole.mmds"
    old = mmds.open(path)
    result = run(list(samples(100)), path, append=True)
    assert result.samples == 100
    assert [sample["n"] for sample in mmds.open(path)] == [*range(COUNT), *range(100)]
    assert [sample["n"] for sample in old] == list(range(COUNT))  # a reader that was open sees what it saw
    assert {name: data for name, data in state(path).items() if name in whole and name != "dataset.json"} == {
        name: data for name, data in whole.items() if name != "dataset.json"
    }
    with pytest.raises(SourceError, match="field 'x'"):
        run([{"n": 1, "x": 2.5, "key": "k"}], path, append=True)
    with pytest.raises(SchemaError, match="has the fields"):
        mmds.convert(_file(tmp_path), path, append=True)
    assert len(mmds.open(path)) == COUNT + 100 and "unfinished.jsonl" not in state(path)


def _file(folder: Path) -> Path:
    with mmds.Writer(folder / "other.mmds", {"n": mmds.Scalar("int8")}) as writer:
        writer.write({"n": 1})
    return folder / "other.mmds"


def test_shards_of_any_name_are_kept(tmp_path: Path) -> None:
    """A manifest that another program wrote: the next number is the name of a shard that it lists."""
    path = tmp_path / "a.mmds"
    run(list(samples(200)), path)
    found = read_manifest(path)
    last = found.shards[-1]
    taken = f"{len(found.shards):05d}.mmds"
    (path / last.path).rename(path / taken)
    publish_manifest(path, replace(found, shards=(*found.shards[:-1], replace(last, path=taken))), overwrite=True)
    for _ in range(2):
        run(list(samples(100)), path, append=True)
    assert [sample["n"] for sample in mmds.open(path)] == [*range(200), *range(100), *range(100)]
    assert mmds.verify(path)


def test_adding_goes_on_as_well(tmp_path: Path, whole: dict[str, bytes]) -> None:
    path, other = tmp_path / "whole.mmds", tmp_path / "other.mmds"
    run(Whole(), other)
    run(Whole(), other, append=True)
    with pytest.raises(KeyboardInterrupt):
        run(EndsAt(150, KeyboardInterrupt()), path, append=True)
    assert [sample["n"] for sample in mmds.open(path)] == list(range(COUNT))  # until it is whole
    with pytest.raises(ExistsError, match="unfinished"):
        run(Whole(), path, append=True)
    journal = (path / "unfinished.jsonl").read_bytes()
    run(Whole(), path, append=True, resume=True)
    assert state(path) == state(other)
    lines = [json.loads(line) for line in journal.splitlines()]
    assert lines[0]["added_to"] == 8 and lines[1]["shard"]["path"] == "00008.mmds"


def test_it_may_end_between_the_manifest_and_the_end(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "whole.mmds"
    with monkeypatch.context() as patch:
        patch.setattr("mmds.journal.Journal.remove", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(Whole(), tmp_path / "out.mmds")
        with pytest.raises(KeyboardInterrupt):
            run(Whole(), path, append=True)
    assert run(Whole(), tmp_path / "out.mmds", resume=True).samples == COUNT
    assert state(tmp_path / "out.mmds") == whole
    assert run(Whole(), path, append=True, resume=True).samples == COUNT
    assert len(mmds.open(path)) == 2 * COUNT and "unfinished.jsonl" not in state(path)


def _interrupt(_: Any) -> None:
    raise KeyboardInterrupt


def test_added_columns_forbid_more_samples(tmp_path: Path, whole: dict[str, bytes]) -> None:
    path = tmp_path / "whole.mmds"
    mmds.add_column(path, "score", np.zeros(COUNT))
    with pytest.raises(SchemaError, match="columns that were added"):
        run(Whole(), path, append=True)


@pytest.mark.fault(7)
def test_two_at_once(tmp_path: Path) -> None:
    options: dict[str, Any] = {"shard_size": SIZE, "conversion": {}, "resume": True}
    with ShardedWriter(tmp_path / "out.mmds", **options) as writer:
        with pytest.raises(StorageError, match="being changed by another process"):
            ShardedWriter(tmp_path / "out.mmds", **options)
        writer.write({"n": 1})
        writer.end(1)
    assert len(mmds.open(tmp_path / "out.mmds")) == 1


def test_a_store_is_cut_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between stores, samples travel in batches; shards end at the same sample wherever it was begun."""
    source = tmp_path / "source.mmds"
    with mmds.Writer(source) as writer:
        writer.extend(samples(3000))
    run(source, tmp_path / "whole.mmds", shard_size=200_000)
    want = state(tmp_path / "whole.mmds")
    assert len(want) > 4
    assert [sample["n"] for sample in mmds.open(tmp_path / "whole.mmds")] == list(range(3000))
    path = tmp_path / "out.mmds"

    def stop(done: int, *_: Any) -> None:
        if done > 1500:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mmds.conversion.PROGRESS_SECONDS", 0)
        with pytest.raises(KeyboardInterrupt):
            run(source, path, shard_size=200_000, progress=stop)
    assert 1 < len(state(path)) < len(want)
    run(source, path, shard_size=200_000, resume=True)
    assert state(path) == want


def test_no_samples_are_a_dataset_too(tmp_path: Path) -> None:
    source = tmp_path / "source.mmds"
    with mmds.Writer(source, {"n": mmds.Scalar("int8")}):
        pass
    run(source, tmp_path / "out.mmds")
    assert len(mmds.open(tmp_path / "out.mmds")) == 0 and mmds.open(tmp_path / "out.mmds").fields.names == ("n",)


def test_splits_give_a_folder_each(tmp_path: Path) -> None:
    from tests.test_imagefolder import fill

    root = fill(tmp_path / "set", "train/a/1.png train/a/2.png train/b/3.png val/a/4.png val/b/5.png")
    run(root, tmp_path / "out.mmds", shard_size=1)
    assert sorted(state(tmp_path / "out-train.mmds")) == ["00000.mmds", "00001.mmds", "00002.mmds", "dataset.json"]
    assert len(mmds.open(tmp_path / "out-val.mmds")) == 2
    with pytest.raises(MmdsError, match="exists already"):
        run(root, tmp_path / "out.mmds", shard_size=1)


def command(source: Path, path: Path) -> list[str]:
    chosen = ["--map", "tests.steps:slow_change", "--shard-size", "1MB", "-j2", "--no-progress"]
    return [sys.executable, "-m", "mmds", "convert", str(source), str(path), *chosen, "--resume"]


def children(pid: int) -> list[int]:
    """Return the workers of a process."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(each) for each in found if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def kill_and_resume(tmp_path: Path, count: int, kills: int, seed: int) -> None:
    """Kill workers and their parent at random, until so many were killed, then let it end; compare."""
    chance = random.Random(seed)
    source = tmp_path / "source.mmds"
    values = np.random.default_rng(seed)
    with mmds.Writer(source, {"n": mmds.Scalar("int64"), "x": mmds.Array("uint8", (None,))}) as writer:
        for n in range(count):
            writer.write({"n": n, "x": values.integers(0, 256, int(values.integers(1, 4000)), np.uint8)})
    subprocess.run(command(source, tmp_path / "want.mmds"), check=True, capture_output=True)
    killed = {"parent": 0, "worker": 0}
    while True:
        process = subprocess.Popen(
            command(source, tmp_path / "out.mmds"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        end = time.monotonic() + chance.uniform(0, 3)
        while process.poll() is None and sum(killed.values()) < kills:
            time.sleep(chance.uniform(0.05, 0.5))
            workers = children(process.pid)
            what = "parent" if time.monotonic() > end else "worker"
            victim = process.pid if what == "parent" else chance.choice([*workers, 0])
            if victim and process.poll() is None:
                os.kill(victim, signal.SIGKILL)
                killed[what] += 1
        errors = process.communicate()[1]
        assert process.returncode in (0, -9) or "2 times" in errors, errors
        if process.returncode == 0:
            break
    assert sum(killed.values()) == kills, killed
    assert kills < 20 or killed["worker"] > kills / 4 < 2 * killed["parent"], killed
    assert state(tmp_path / "out.mmds") == state(tmp_path / "want.mmds")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mmds", "source.mmds", "want.mmds"]


@pytest.mark.stress
@pytest.mark.fault(9)
def test_what_was_killed_goes_on(tmp_path: Path, cases: Cases) -> None:
    kill_and_resume(tmp_path, 1500, 5, 1)
    cases(5)


@pytest.mark.stress
@pytest.mark.fault(9)
def test_200_kills(tmp_path: Path, cases: Cases) -> None:
    kill_and_resume(tmp_path, 20_000, 200, 2)
    cases(200)
