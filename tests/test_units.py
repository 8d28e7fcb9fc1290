"""Conversions in units: the same bytes whoever does them, and what is said when ranks are missing, doubled, or too many."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

import mmds
from mmds.errors import ExistsError, FormatError, OptionError, SourceError, StorageError
from mmds.place import Folder
from mmds.remote import Remote
from tests.conftest import Cases
from tests.s3 import S3

SAMPLES = [{"x": np.full(10, k, "int32"), "text": f"text {k}"} for k in range(1000)]


def contents(folder: Path) -> dict[str, str]:
    """Return a digest of each file of a dataset; of one that is complete, after a look at every sample."""
    if (folder / "dataset.json").exists():
        assert mmds.verify(folder) and len(list(mmds.open(folder))) == len(mmds.open(folder))
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in folder.iterdir()}


def convert_in_ranks(path: Path, world_size: int, order: Any = None, source: Any = SAMPLES, **options: Any) -> None:
    for rank in order or range(world_size):
        mmds.convert(source, path, shard_items=128, rank=rank, world_size=world_size, **options)


def change(sample: Any) -> Any:
    return [{**sample, "copy": number} for number in range(int(sample["x"][0]) % 3)]


def odd(sample: Any) -> bool:
    return bool(sample["x"] % 2)


def only_small(sample: Any) -> Any:
    if Image.open(io.BytesIO(sample["image"])).width > 8:
        raise ValueError("too large")
    return sample


def pairs_of(samples: list[Any]) -> Iterator[Any]:
    for first, second in zip(samples[::2], samples[1::2], strict=False):
        yield {"first": first["text"], "second": second["text"], "of": len(samples)}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole.mmds"
    mmds.convert(SAMPLES, path, shard_items=128)
    return path


def test_shards_hold_so_many_items_each(whole: Path) -> None:
    assert [len(mmds.open(each)) for each in sorted(whole.glob("*.mmds"))] == [128] * 7 + [104]
    assert sorted(each.name for each in whole.iterdir()) == [*(f"{k:05d}.mmds" for k in range(8)), "dataset.json"]
    assert [sample["text"] for sample in mmds.open(whole)] == [f"text {k}" for k in range(1000)]


@pytest.mark.parametrize(("world_size", "order"), [(1, [0]), (3, [2, 0, 1]), (20, list(range(19, -1, -1)))])
def test_ranks_write_the_same_bytes(world_size: int, order: list[int], whole: Path, tmp_path: Path) -> None:
    convert_in_ranks(tmp_path / "a.mmds", world_size, order)
    done = mmds.commit(tmp_path / "a.mmds")
    assert contents(tmp_path / "a.mmds") == contents(whole)
    assert (done.samples, done.shards, done.content_id) == (1000, 8, mmds.open(whole).content_id)


def test_rows_of_a_store_are_copied_to_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    convert_in_ranks(tmp_path / "a.mmds", 3, source=whole)
    mmds.commit(tmp_path / "a.mmds")
    mmds.convert(whole, tmp_path / "b.mmds", shard_items=128)
    assert contents(tmp_path / "a.mmds") == contents(tmp_path / "b.mmds") == contents(whole)


def test_workers_make_no_difference(tmp_path: Path) -> None:
    for number in (1, 2):
        path = tmp_path / f"{number}.mmds"
        mmds.convert(SAMPLES, path, map=change, shard_items=100, num_workers=number)
    assert contents(tmp_path / "1.mmds") == contents(tmp_path / "2.mmds")


def test_batches_are_not_cut(tmp_path: Path) -> None:
    convert_in_ranks(tmp_path / "a.mmds", 3, batch_map=pairs_of, batch_size=32)
    mmds.commit(tmp_path / "a.mmds")
    mmds.convert(SAMPLES, tmp_path / "b.mmds", shard_items=128, batch_map=pairs_of, batch_size=32)
    assert contents(tmp_path / "a.mmds") == contents(tmp_path / "b.mmds")
    with pytest.raises(OptionError, match="expected a multiple of batch_size=48"):
        mmds.convert(SAMPLES, tmp_path / "c.mmds", shard_items=128, batch_map=pairs_of, batch_size=48)


def test_a_stream_of_unknown_length(whole: Path, tmp_path: Path) -> None:
    mmds.convert((sample for sample in SAMPLES), tmp_path / "a.mmds", shard_items=128)
    assert contents(tmp_path / "a.mmds") == contents(whole)


def test_an_array_that_is_filled_again_and_again(whole: Path, tmp_path: Path) -> None:
    def samples() -> Iterator[Any]:
        x = np.empty(10, "int32")
        for k in range(1000):
            x[:] = k
            yield {"x": x, "text": f"text {k}"}

    mmds.convert(samples(), tmp_path / "a.mmds", shard_items=128)
    assert contents(tmp_path / "a.mmds") == contents(whole)


def test_an_array_that_is_filled_again_where_the_first_samples_are_dropped(tmp_path: Path) -> None:
    def samples() -> Iterator[Any]:
        x = np.empty(10, "int32")
        for k in range(10):
            x[:] = k
            yield {"x": x, "k": k}

    mmds.convert(samples(), tmp_path / "a.mmds", shard_items=4, filter=lambda sample: sample["x"][0] >= 4)
    assert [(each["x"][0], each["k"]) for each in mmds.open(tmp_path / "a.mmds")] == [(k, k) for k in range(4, 10)]


@pytest.mark.parametrize("compression", ["zstd", "zstd:3:dict"])
def test_compressed_shards(compression: str, tmp_path: Path) -> None:
    convert_in_ranks(tmp_path / "a.mmds", 2, compression=compression)
    mmds.commit(tmp_path / "a.mmds")
    mmds.convert(SAMPLES, tmp_path / "b.mmds", shard_items=128, compression=compression)
    assert contents(tmp_path / "a.mmds") == contents(tmp_path / "b.mmds")
    assert [sample["text"] for sample in mmds.open(tmp_path / "a.mmds")] == [f"text {k}" for k in range(1000)]
    assert mmds.open(tmp_path / "a.mmds").fields.structure["text"].compression == "zstd"


def test_units_without_samples_have_empty_shards(tmp_path: Path) -> None:
    mmds.convert(SAMPLES, tmp_path / "a.mmds", shard_items=100, filter=lambda sample: 350 <= sample["x"][0] < 450)
    counts = [len(mmds.open(each)) for each in sorted((tmp_path / "a.mmds").glob("0*.mmds"))]
    assert counts == [0, 0, 0, 50, 50, 0, 0, 0, 0, 0]
    assert [sample["x"][0] for sample in mmds.open(tmp_path / "a.mmds")] == list(range(350, 450))


def test_an_empty_dataset(tmp_path: Path) -> None:
    mmds.convert([], tmp_path / "a.mmds", shard_items=10, output_fields={"x": mmds.Scalar("int32")})
    assert len(mmds.open(tmp_path / "a.mmds")) == 0
    with pytest.raises(SourceError, match="no sample is left"):
        mmds.convert(SAMPLES, tmp_path / "b.mmds", shard_items=100, filter=lambda sample: False)
    assert not (tmp_path / "b.mmds").exists()


def test_bad_samples_are_named_in_the_order_of_the_source(tmp_path: Path) -> None:
    bad: list[Any] = [{"x": 1}, {"y": 2}, *({"x": k} for k in range(10)), {"x": "no"}, {"x": 3}]
    found = mmds.convert(bad, tmp_path / "a.mmds", shard_items=4, on_error="quarantine")
    assert [name for name, _ in found.errors] == ["sample 1", "sample 12"]
    convert_in_ranks(tmp_path / "b.mmds", 2, source=bad, on_error="quarantine")
    done = mmds.commit(tmp_path / "b.mmds")
    assert [name for name, _ in done.errors] == ["sample 1", "sample 12"]
    lines = (tmp_path / "b.mmds.quarantine.jsonl").read_text()
    assert (tmp_path / "a.mmds.quarantine.jsonl").read_text() == lines
    assert [json.loads(line)["name"] for line in lines.splitlines()] == ["sample 1", "sample 12"]
    with pytest.raises(SourceError, match=r"sample 1: .*Whole shards are kept"):
        mmds.convert(bad, tmp_path / "c.mmds", shard_items=4)
    assert mmds.convert(bad, tmp_path / "c.mmds", shard_items=4, on_error="skip", resume=True).errors == found.errors
    assert contents(tmp_path / "c.mmds") == contents(tmp_path / "a.mmds")


def test_a_source_of_which_nothing_can_be_used(tmp_path: Path) -> None:
    def fail(sample: Any) -> Any:
        raise ValueError("never")

    with pytest.raises(SourceError, match=r"none of the 10 samples can be used; sample 0: .*never"):
        mmds.convert(SAMPLES[:10], tmp_path / "a.mmds", shard_items=4, map=fail, on_error="skip")


# Ranks


def test_a_rank_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mmds"
    with pytest.raises(FormatError, match="no unfinished conversion"):
        mmds.commit(path)
    convert_in_ranks(path, 3, [0, 2])
    before = contents(path / "unfinished")
    with pytest.raises(SourceError, match=r"a\.mmds: rank 1 of 3 has not begun$"):
        mmds.commit(path)
    assert contents(path / "unfinished") == before
    with pytest.raises(FormatError, match="unfinished"):
        mmds.open(path)


def test_two_ranks_with_the_same_number(tmp_path: Path) -> None:
    path = tmp_path / "a.mmds"
    convert_in_ranks(path, 2, [0])
    who = rf"process {os.getpid()} on .*\d\d\d\d-"
    with pytest.raises(ExistsError, match=rf"rank 0 of 2 was done by {who}.*each rank is done by one process"):
        convert_in_ranks(path, 2, [0])
    convert_in_ranks(path, 2, [0], resume=True)  # has nothing to do
    convert_in_ranks(path, 2, [1])
    assert mmds.commit(path).samples == 1000


def test_two_ranks_with_the_same_number_at_the_same_time(tmp_path: Path) -> None:
    racing = Racing(tmp_path / "a.mmds", 300)
    with pytest.raises(ExistsError, match=r"unit 2 was written by another process .* rank 0 of 2 is now with process"):
        mmds.convert(SAMPLES, tmp_path / "a.mmds", map=racing, **racing.options)
    convert_in_ranks(tmp_path / "a.mmds", 2, [1], map=racing)
    assert mmds.commit(tmp_path / "a.mmds").samples == 1000


class Racing:
    """A map that at a certain sample lets somebody else take the rank over, who finishes it."""

    options: ClassVar[dict[str, Any]] = {"shard_items": 128, "rank": 0, "world_size": 2}

    def __init__(self, path: Path, at: int) -> None:
        self.path, self.at = path, at

    def __call__(self, sample: Any) -> Any:
        if sample["x"][0] == self.at:
            self.at = -1
            mmds.convert(SAMPLES, self.path, map=self, resume=True, **self.options)
        return sample


def test_ranks_that_do_not_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.mmds"
    convert_in_ranks(path, 3, [0])
    with pytest.raises(OptionError, match="world_size was 3, and is 4"):
        convert_in_ranks(path, 4, [1])
    with pytest.raises(OptionError, match="limit was None, and is 10"):
        convert_in_ranks(path, 3, [1], limit=10)
    with pytest.raises(OptionError, match="shard_items was 128, and is 64"):
        mmds.convert(SAMPLES, path, shard_items=64, rank=1, world_size=3)
    with pytest.raises(OptionError, match="items was 1000, and is 999"):
        convert_in_ranks(path, 3, [1], SAMPLES[:-1])


def test_streams_that_differ_are_noticed_by_commit(tmp_path: Path) -> None:
    for rank, count in enumerate((1000, 990)):
        source = (SAMPLES[k] for k in range(count))
        mmds.convert(source, tmp_path / "a.mmds", shard_items=128, rank=rank, world_size=2)
    with pytest.raises(
        SourceError, match=r"same number of items for all ranks: 1000 for ranks \[0\]; 990 for ranks \[1\]"
    ):
        mmds.commit(tmp_path / "a.mmds")


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_progress_is_of_what_a_rank_does(rank: int, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    mmds.convert(
        SAMPLES,
        tmp_path / "a.mmds",
        shard_items=128,
        rank=rank,
        world_size=3,
        progress=lambda *now: told.append(now[:2]),
    )
    assert told[-1] == ((384, 384), (360, 360), (256, 256))[rank]


def test_a_second_commit(tmp_path: Path) -> None:
    convert_in_ranks(tmp_path / "a.mmds", 2)
    mmds.commit(tmp_path / "a.mmds")
    before = contents(tmp_path / "a.mmds")
    with pytest.raises(ExistsError, match="was committed already"):
        mmds.commit(tmp_path / "a.mmds")
    with pytest.raises(ExistsError, match="exists already"):
        convert_in_ranks(tmp_path / "a.mmds", 2, [1])
    assert contents(tmp_path / "a.mmds") == before


@pytest.mark.parametrize("moment", ["plan.json", "done-00001.json", "00007.json", "dataset.json"])
def test_commits_at_the_same_time(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One succeeds, and the other says so, whatever it was about to do when the first removed it."""
    path, others = tmp_path / "a.mmds", list[mmds.Committed]()
    convert_in_ranks(path, 2)

    def after_the_other(method: Any) -> Any:
        def call(at: Folder, name: str, argument: Any) -> Any:
            if name.endswith(moment):
                monkeypatch.undo()
                others.append(mmds.commit(path))
            return method(at, name, argument)

        return call

    for method in ("load", "create"):
        monkeypatch.setattr(Folder, method, after_the_other(getattr(Folder, method)))
    with pytest.raises(ExistsError, match="was committed already"):
        mmds.commit(path)
    assert others[0].samples == len(mmds.open(path)) == 1000


def test_a_source_that_became_shorter_or_longer(tmp_path: Path) -> None:
    def broken() -> Iterator[Any]:
        yield from SAMPLES[:85]
        raise OSError("the network")

    for length in (40, 85, 100):
        path = tmp_path / f"{length}.mmds"
        with pytest.raises(OSError, match="the network"):
            mmds.convert(broken(), path, shard_items=20)
        resume = {"shard_items": 20, "resume": True}
        if length == 40:
            with pytest.raises(SourceError, match="the source has 40 items, and had 80 when its units were done"):
                mmds.convert((SAMPLES[k] for k in range(length)), path, **resume)  # type: ignore[arg-type]
        else:
            assert mmds.convert((SAMPLES[k] for k in range(length)), path, **resume).samples == length  # type: ignore[arg-type]


def test_a_dataset_that_is_replaced_between_ranks(tmp_path: Path) -> None:
    source = tmp_path / "source.mmds"
    for rank in (0, 1):
        with mmds.Writer(source, overwrite=True) as writer:
            writer.extend({"x": k + 1000 * rank} for k in range(100))
        if not rank:
            mmds.convert(source, tmp_path / "a.mmds", filter=odd, shard_items=10, rank=0, world_size=2, num_workers=1)
    with pytest.raises(OptionError, match="content was"):
        mmds.convert(source, tmp_path / "a.mmds", filter=odd, shard_items=10, rank=1, world_size=2, num_workers=1)


def test_many_bad_samples_with_long_reasons(tmp_path: Path) -> None:
    def fail(sample: Any) -> Any:
        if sample["x"]:
            raise ValueError("x" * 5000)
        return sample

    found = mmds.convert(
        [{"x": k} for k in range(2000)], tmp_path / "a.mmds", map=fail, shard_items=2000, on_error="skip"
    )
    assert (found.samples, len(found.errors)) == (1, 1999)


def test_the_list_of_bad_samples_is_there_before_the_dataset_is(tmp_path: Path) -> None:
    bad: list[Any] = [{"x": 1}, {"y": 2}, {"x": 3}]
    path, report = tmp_path / "a.mmds", tmp_path / "a.mmds.quarantine.jsonl"
    report.mkdir()  # so that it cannot be written
    mmds.convert(bad, path, shard_items=2, rank=0, world_size=1, on_error="quarantine")
    with pytest.raises(StorageError):
        mmds.commit(path)
    report.rmdir()
    assert mmds.commit(path).errors and len(report.read_text().splitlines()) == 1
    done = mmds.convert(bad, path, shard_items=2, on_error="quarantine", resume=True)
    assert done.samples == 2 and report.exists(), "what an earlier run has listed stays"


def test_what_is_wrong_with_a_source_as_a_whole_is_listed_once(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for k in range(6):
        (texts / f"{k}.txt").write_text(f"text {k}")
    (tmp_path / "elsewhere").mkdir()
    (texts / "link").symlink_to(tmp_path / "elsewhere")
    here = mmds.convert(texts, tmp_path / "here.mmds", shard_items=2, on_error="quarantine")
    convert_in_ranks(tmp_path / "ranks.mmds", 2, source=texts, on_error="quarantine")
    assert mmds.commit(tmp_path / "ranks.mmds").errors == here.errors and here.errors
    lists = [(tmp_path / f"{name}.mmds.quarantine.jsonl").read_text() for name in ("here", "ranks")]
    assert lists[0] == lists[1]


@pytest.mark.parametrize("ranks", [None, (0, 2)])
def test_a_split_of_which_no_sample_is_left(ranks: tuple[int, int] | None, tmp_path: Path) -> None:
    """Nothing is published, not even the other one."""
    for split, label, size in (("train", "a", 8), ("val", "b", 9)):
        folder = tmp_path / "set" / split / label
        folder.mkdir(parents=True)
        for k in range(4):
            Image.fromarray(np.full((size, size, 3), k, np.uint8)).save(folder / f"{k}.png")
    options: dict[str, Any] = {"map": only_small, "on_error": "skip", "shard_items": 2, "num_workers": 1}
    if ranks is not None:
        options |= {"rank": ranks[0], "world_size": ranks[1]}
    with pytest.raises(SourceError, match=r"no sample is left in val; val/b/0.png: map failed: ValueError: too large"):
        mmds.convert(tmp_path / "set", tmp_path / "out.mmds", **options)
    assert not list(tmp_path.glob("out*/dataset.json"))


@pytest.mark.parametrize("number", [0, -1, "2", 1.0])
@pytest.mark.parametrize("name", ["world_size", "shard_items"])
def test_numbers_of_a_plan_that_make_no_sense(name: str, number: Any, tmp_path: Path) -> None:
    convert_in_ranks(tmp_path / "a.mmds", 2)
    plan = tmp_path / "a.mmds" / "unfinished" / "plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), name: number}))
    with pytest.raises(FormatError, match=r"plan\.json: damaged \("):
        mmds.commit(tmp_path / "a.mmds")


def test_a_shard_that_changed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mmds"
    convert_in_ranks(path, 2)
    whole = (path / "00003.mmds").read_bytes()
    for damaged, reason in (
        (None, "00003.mmds is missing"),
        (whole[:-1], r"00003.mmds has \d+ bytes, expected"),
        (whole[:-1] + b"!", "00003.mmds"),
    ):
        (path / "00003.mmds").unlink(missing_ok=True)
        if damaged is not None:
            (path / "00003.mmds").write_bytes(damaged)
        with pytest.raises(FormatError, match=rf"{reason}.*run rank 1 of 2 again with resume"):
            mmds.commit(path)
    convert_in_ranks(path, 2, [1], resume=True)
    assert (path / "00003.mmds").read_bytes() == whole
    assert mmds.commit(path).samples == 1000


@pytest.mark.parametrize("name", ["plan.json", "rank-00000.json", "done-00000.json", "00002.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"items": "x"}', b"[" * 100_000, b"\xff"])
def test_what_is_damaged_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.mmds"
    convert_in_ranks(path, 2)
    (path / "unfinished" / name).write_bytes(content)
    if name.startswith("rank"):  # it says who begins what, to people
        mmds.commit(path)
        return
    with pytest.raises(FormatError, match=name):
        mmds.commit(path)


def test_a_unit_that_names_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mmds"
    convert_in_ranks(path, 2)
    record = path / "unfinished" / "00002.json"
    record.write_text(record.read_text().replace("00002.mmds", "00001.mmds"))
    with pytest.raises(FormatError, match=r"00002\.json: damaged \(its shard is 00001\.mmds\)"):
        mmds.commit(path)


# Options


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rank": 0}, "give both"),
        ({"world_size": 2}, "give both"),
        ({"rank": 2, "world_size": 2}, "0 <= rank < world_size"),
        ({"rank": 0, "world_size": 2, "engine": "ray"}, "expected one of them"),
        ({"rank": 0, "world_size": 2, "overwrite": True}, "does not go with rank="),
        ({"shard_items": 10, "shard_size": 10}, "shard_items="),
        ({"shard_items": 10, "append": True}, "append=True"),
        ({"shard_items": 0}, "at least 1"),
        ({"shard_items": 10, "destination_format": "hdf5"}, "shards are for .mmds files"),
        ({"engine": "dask"}, "'local', 'ray'"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises((OptionError, ValueError), match=reason):
        mmds.convert(SAMPLES, tmp_path / "a.mmds", **options)
    assert not list(tmp_path.iterdir())


def test_overwriting_replaces_in_one_step(whole: Path) -> None:
    before = contents(whole)

    def fail(sample: Any) -> Any:
        if sample["x"][0] == 900:
            raise ValueError("late")
        return sample

    with pytest.raises(SourceError, match="Nothing was written"):
        mmds.convert(SAMPLES, whole, shard_items=100, overwrite=True, map=fail)
    assert contents(whole) == before and [each.name for each in whole.parent.iterdir()] == [whole.name]
    mmds.convert(SAMPLES[:500], whole, shard_items=100, overwrite=True)
    assert len(mmds.open(whole)) == 500 and not (whole / "00005.mmds").exists()


def test_a_folder_with_other_things_in_it_stays(tmp_path: Path) -> None:
    (tmp_path / "a.mmds").mkdir()
    (tmp_path / "a.mmds" / "thesis.tex").write_text("...")
    for options in ({"shard_items": 10}, {"shard_items": 10, "overwrite": True}, {"rank": 0, "world_size": 2}):
        with pytest.raises(ExistsError, match="other things in it"):
            mmds.convert(SAMPLES, tmp_path / "a.mmds", **options)  # type: ignore[arg-type]
    (tmp_path / "b.mmds").write_text("a file")
    with pytest.raises(ExistsError, match="exists already"):
        mmds.convert(SAMPLES, tmp_path / "b.mmds", shard_items=10)
    assert (tmp_path / "b.mmds").read_text() == "a file"


# Kills

RANK = """
import sys, mmds, numpy as np
from tests.test_units import SAMPLES
_, path, rank, world_size = sys.argv
mmds.convert(SAMPLES, path, shard_items=16, rank=int(rank), world_size=int(world_size), resume=True)
"""


def start_rank(path: Path | str, rank: int, world_size: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", RANK, str(path), str(rank), str(world_size)])


@pytest.mark.fault(1)
def test_ranks_that_are_killed_and_run_again(tmp_path: Path, cases: Cases) -> None:
    kill_and_resume(tmp_path, cases, kills=4)


@pytest.mark.stress
@pytest.mark.fault(1)
def test_ranks_that_are_killed_often(tmp_path: Path, cases: Cases) -> None:
    kill_and_resume(tmp_path, cases, kills=50)


def kill_and_resume(tmp_path: Path, cases: Cases, kills: int) -> None:
    mmds.convert(SAMPLES, tmp_path / "want.mmds", shard_items=16)
    path, killed = tmp_path / "a.mmds", 0
    pick = np.random.default_rng(kills)
    while killed < kills:
        rank = int(pick.integers(2))
        process = start_rank(path, rank, 2)
        units = len(list(path.glob("unfinished/0*.json")))
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(path.glob("unfinished/0*.json"))) > units:
                time.sleep(float(pick.uniform(0, 0.01)))
                break
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            killed += 1
        else:  # it was faster: all of this rank is done
            for each in [*path.glob(f"unfinished/done-0000{rank}.json"), *[*path.glob("unfinished/0*.json")][::3]]:
                each.unlink()
    for rank in range(2):
        assert start_rank(path, rank, 2).wait() == 0
    assert mmds.commit(path).samples == 1000
    assert contents(path) == contents(tmp_path / "want.mmds")
    cases(kills)


def test_the_commands(tmp_path: Path) -> None:
    source, path = tmp_path / "lines.jsonl", tmp_path / "out.mmds"
    source.write_text("".join(json.dumps({"x": k}) + "\n" for k in range(100)))

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "mmds", *command], capture_output=True, text=True, check=False)

    for rank in (0, 1):
        done = run(
            "convert",
            str(source),
            str(path),
            "--rank",
            str(rank),
            "--world-size",
            "2",
            "--shard-items",
            "30",
            "-j",
            "1",
        )
        assert done.returncode == 0, done.stderr
        if not rank:
            missing = run("commit", str(path))
            assert missing.returncode == 1 and "rank 1 of 2 has not begun" in missing.stderr
    done = run("commit", str(path))
    assert done.returncode == 0 and "100 samples in 4 shards" in done.stdout
    again = run("commit", str(path), "--json")
    assert again.returncode == 1 and "was committed already" in again.stderr


# Object storage


def test_shards_are_uploaded_one_by_one(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    url = f"memory://{tmp_path.name}/out.mmds"
    most: list[int] = []

    def look(sample: Any) -> Any:
        most.append(len(list(tmp_path.glob(".mmds-*"))))
        return sample

    done = mmds.convert(SAMPLES, url, shard_items=128, map=look)
    assert (done.outputs[0].path, done.samples) == (url, 1000)
    uploaded = {name: Remote(url).child(name).load(2**20) for name, _ in Remote(url).list()}
    assert uploaded == {each.name: each.read_bytes() for each in whole.iterdir()}
    assert max(most) == 1 and not list(tmp_path.glob(".mmds-*")), "a shard at a time takes place on this machine"


def test_ranks_and_resuming_at_a_url(whole: Path, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/out.mmds"
    mmds.convert(SAMPLES, url, shard_items=128, rank=0, world_size=2)
    with pytest.raises(SourceError, match="rank 1 of 2 has not begun"):
        mmds.commit(url)
    with pytest.raises(ExistsError, match="rank 0 of 2 was done by"):
        mmds.convert(SAMPLES, url, shard_items=128, rank=0, world_size=2)
    Remote(url).child("00002.mmds").delete()
    Remote(url).child("00001.mmds").create(b"of a writer that was killed before it said so")
    mmds.convert(SAMPLES, url, shard_items=128, rank=0, world_size=2, resume=True)
    mmds.convert(SAMPLES, url, shard_items=128, rank=1, world_size=2)
    assert mmds.commit(url).content_id == mmds.open(whole).content_id
    with pytest.raises(ExistsError, match="was committed already"):
        mmds.commit(url)
    assert [sample["text"] for sample in mmds.open(url)] == [f"text {k}" for k in range(1000)]


def test_ranks_that_are_killed_while_they_upload(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of their own, and a bucket of an S3 server."""
    mmds.convert(SAMPLES, tmp_path / "want.mmds", shard_items=16)
    with S3() as server:
        url = f"{server.bucket(monkeypatch)}/out.mmds"
        first = start_rank(url, 0, 2)
        deadline = time.monotonic() + 60
        while not any(name.startswith("unfinished/0") for name, _ in Remote(url).list()):
            assert first.poll() is None and time.monotonic() < deadline
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert [start_rank(url, rank, 2).wait() for rank in (0, 1)] == [0, 0]
        assert mmds.commit(url).samples == 1000
        uploaded = {name: Remote(url).child(name).load(2**20) for name, _ in Remote(url).list()}
        assert uploaded == {each.name: each.read_bytes() for each in (tmp_path / "want.mmds").iterdir()}
        puts = [request.path for request in server.asked("PUT") if request.path.endswith(".mmds")]
        assert len(puts) - len(set(puts)) <= 2, "one that the kill hit, and had to be replaced: refused, and put again"


def test_from_one_url_to_another(whole: Path, tmp_path: Path) -> None:
    for name, source in (("a", str(whole)), ("b", f"memory://{tmp_path.name}/a.mmds")):
        mmds.convert(source, f"memory://{tmp_path.name}/{name}.mmds", shard_items=128)
    assert mmds.open(f"memory://{tmp_path.name}/b.mmds").content_id == mmds.open(whole).content_id
    mmds.convert(f"memory://{tmp_path.name}/b.mmds", tmp_path / "c.mmds")
    assert [sample["text"] for sample in mmds.open(tmp_path / "c.mmds")] == [f"text {k}" for k in range(1000)]


def test_splits_and_bad_samples_at_a_url(tmp_path: Path) -> None:
    root = f"memory://{tmp_path.name}"
    done = mmds.convert([{"x": 1}, {"y": 2}], f"{root}/a.mmds", on_error="quarantine")
    assert done.quarantine == f"{root}/a.mmds.quarantine.jsonl"
    (line,) = Remote(done.quarantine).load(10_000).splitlines()
    assert json.loads(line) == {
        "name": "sample 1",
        "reason": "field 'value': expected a dict with the keys ['x'], got keys ['y']",
    }
    with pytest.raises(OptionError, match=r"overwrite=True .* a URL"):
        mmds.convert([{"x": 1}], f"{root}/a.mmds", overwrite=True)
    with pytest.raises(ExistsError, match="exists already"):
        mmds.convert([{"x": 1}], f"{root}/a.mmds")
