"""Folders of shards for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mmds
from mmds.format import schema_id
from mmds.manifest import Manifest, describe_shard, publish_manifest


def plain_sample(i: int) -> dict[str, Any]:
    """Return sample `i` of `write_folder`."""
    return {"number": i, "text": f"sample {i}"}


def write_shards(
    folder: Path, counts: Sequence[int], sample: Callable[[int], Any] = plain_sample, fields: Any = None
) -> Manifest:
    """Write shards with as many samples each as `counts` says, and return the manifest, which is not published."""
    folder.mkdir()
    schema = mmds.Schema.infer(sample(0)) if fields is None else mmds.Schema(fields)
    start, entries = 0, []
    for number, count in enumerate(counts):
        path = folder / f"{number:05}.mmds"
        with mmds.Writer(path, schema) as writer:
            writer.extend(sample(i) for i in range(start, start + count))
        entries.append(describe_shard(path, path.name))
        start += count
    return Manifest(schema_id(schema).hex(), tuple(entries))


def write_folder(
    folder: Path, counts: Sequence[int], sample: Callable[[int], Any] = plain_sample, fields: Any = None
) -> Path:
    """Write a folder of shards and its manifest."""
    publish_manifest(folder, write_shards(folder, counts, sample, fields), overwrite=False)
    return folder
