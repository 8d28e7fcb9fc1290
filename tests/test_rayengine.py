"""`engine="ray"`: the same bytes as on this machine, whatever dies meanwhile. On a cluster of two nodes, on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.errors import ExistsError, SourceError
from tests.conftest import Cases
from tests.raycluster import RayCluster, killing, ray_cluster
from tests.test_units import SAMPLES, contents


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster() as cluster:
        yield cluster


def test_samples_that_are_worked_on(cluster: RayCluster, tmp_path: Path) -> None:
    def change(sample: Any) -> Any:
        if sample["x"][0] % 100 == 7:
            raise ValueError("seven")
        return None if sample["x"][0] % 3 else {**sample, "y": np.float32(sample["x"].mean())}

    for engine in ("local", "ray"):
        done = mmds.convert(
            SAMPLES, tmp_path / f"{engine}.mmds", map=change, shard_items=64, engine=engine, on_error="skip"
        )
        assert [name for name, _ in done.errors] == [f"sample {k}" for k in range(7, 1000, 100)]
    assert contents(tmp_path / "ray.mmds") == contents(tmp_path / "local.mmds")


def test_files_and_stores(cluster: RayCluster, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"x": k, "text": f"text {k}"}) + "\n" for k in range(500)))
    mmds.convert(lines, tmp_path / "whole.mmds")
    for source in (lines, tmp_path / "whole.mmds"):
        found = []
        for engine in ("local", "ray"):
            path = tmp_path / f"{source.name}-{engine}.mmds"
            mmds.convert(source, path, shard_items=60, engine=engine, compression="zstd")
            found.append(contents(path))
        assert found[0] == found[1]


def test_a_sample_that_fails_ends_it_and_whole_shards_are_kept(cluster: RayCluster, tmp_path: Path) -> None:
    broken = [*SAMPLES[:300], {"x": "no"}, *SAMPLES[301:]]
    with pytest.raises(SourceError, match=r"sample 300: .*Whole shards are kept"):
        mmds.convert(broken, tmp_path / "a.mmds", shard_items=50, engine="ray")
    assert not (tmp_path / "a.mmds" / "dataset.json").exists()
    with pytest.raises(ExistsError, match="unfinished"):
        mmds.convert(SAMPLES, tmp_path / "a.mmds", shard_items=50, engine="ray")
    begun = {each: each.stat().st_ino for each in (tmp_path / "a.mmds").glob("0*.mmds")}
    mmds.convert(SAMPLES, tmp_path / "a.mmds", shard_items=50, engine="ray", resume=True)
    mmds.convert(SAMPLES, tmp_path / "b.mmds", shard_items=50)
    assert contents(tmp_path / "a.mmds") == contents(tmp_path / "b.mmds")
    known = {each for each, number in begun.items() if each.stat().st_ino == number}
    assert known, "shards that were whole are not written again"


@pytest.mark.fault(9)
def test_a_worker_that_is_killed(cluster: RayCluster, cases: Cases, tmp_path: Path) -> None:
    convert_under_fire(cluster, tmp_path, samples=400, kills=1, seconds=0.3, node_every=5)
    cases(1)


@pytest.mark.stress
@pytest.mark.fault(9)
def test_forty_workers_and_ten_nodes_that_are_killed(cluster: RayCluster, cases: Cases, tmp_path: Path) -> None:
    convert_under_fire(cluster, tmp_path, samples=20_000, kills=50, seconds=1.5, node_every=5)
    cases(50)


def convert_under_fire(
    cluster: RayCluster, tmp_path: Path, samples: int, kills: int, seconds: float, node_every: int
) -> None:
    """Convert while workers and nodes are killed, slowly enough that all kills find something."""
    source = tmp_path / "source.mmds"
    with mmds.Writer(source) as writer:
        writer.extend({"k": k, "x": np.full(100, k, "int32")} for k in range(samples))

    def change(sample: Any) -> Any:
        return {**sample, "text": f"text {sample['k']}"}

    def change_slowly(sample: Any) -> Any:
        time.sleep(0.005)
        return {**sample, "text": f"text {sample['k']}"}

    with killing(cluster, kills, seconds, kills, node_every) as killed:
        mmds.convert(source, tmp_path / "a.mmds", map=change_slowly, shard_items=100, engine="ray")
    assert len(killed) == kills, "it was over before"
    assert killed.count("node") == kills // node_every
    assert [sample["k"] for sample in mmds.open(tmp_path / "a.mmds")] == list(range(samples))
    mmds.convert(source, tmp_path / "b.mmds", map=change, shard_items=100, num_workers=1)
    assert contents(tmp_path / "a.mmds") == contents(tmp_path / "b.mmds")
