"""The datasets that are looked at, and how to make one of them of files with holes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import mmds
from benchmarks.sparse import write_sparse
from mmds.fields import Kind
from mmds.format import schema_id
from mmds.manifest import Manifest, Shard, describe_shard, publish_manifest

LINKS = 1000  # names for one file: file systems allow 65,000 (ext4) and more


@dataclass(frozen=True)
class Plan:
    """A dataset: so many shards of equally many samples."""

    name: str
    kind: Kind  # of the field that makes its size, beside a label
    sample_bytes: int
    shard_items: int
    shards: int

    @property
    def n(self) -> int:
        """The number of samples."""
        return self.shard_items * self.shards

    @property
    def shard_bytes(self) -> int:
        """The length of a shard, without its index."""
        return self.sample_bytes * self.shard_items


PICTURE, TOKENS = 100_032, 2048
PLANS = (
    Plan("1 TB", mmds.Array("uint8", (PICTURE,)), PICTURE, 10_000, 1_000),
    Plan("100 TB", mmds.Array("uint8", (PICTURE,)), PICTURE, 10_000, 100_000),
    Plan("10^10 samples", mmds.Array("uint16", (TOKENS // 2,)), TOKENS, 500_000, 20_000),
)


def write_folder(folder: Path, plan: Plan) -> None:
    """Write a dataset whose samples are all zero: sparse shards of full length, of which up to `LINKS` are one file.

    Opening one reads what it would read of a real shard, which is all there; data and index between are holes.
    """
    folder.mkdir()
    fields = {"value": plan.kind, "label": mmds.Scalar("int64")}
    shards: list[Shard] = []
    for number in range(plan.shards):
        name = f"{number:05d}.mmds"
        if number % LINKS:
            os.link(folder / shards[-1].path, folder / name)
            entry = Shard(name, shards[-1].n, shards[-1].bytes, shards[-1].content_id)
        else:
            write_sparse(folder / name, plan.shard_items, fields)
            entry = describe_shard(folder / name, name)
        shards.append(entry)
    manifest = Manifest(schema_id(mmds.Schema(fields)).hex(), tuple(shards))
    publish_manifest(folder, manifest, overwrite=False)
