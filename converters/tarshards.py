"""Writing a dataset as WebDataset shards: tar archives that the ``webdataset`` library reads.

`tarmembers` says what is in them. The same samples give the same bytes: members have no time and no owner, and mode 0644.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import mmds
from mmds.converters.tarmembers import Members
from mmds.publish import exists_error, link_into_place, storage_errors, sync_folder
from mmds.staging import Staging, sync_tree

Progress = Callable[[int, int | None, int], None]

REPORT = 256  # samples between two calls of `progress`
RECORD = tarfile.RECORDSIZE  # archives are filled up with zeros to a multiple of this


def export_tar(
    reader: mmds.Reader,
    destination: str | os.PathLike[str],
    *,
    shard_size: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Write the samples of `reader` to the tar archive `destination` and return the paths that were written.

    With `shard_size`, in bytes, ``out.tar`` stands for ``out-000000.tar``, ``out-000001.tar`` and so on: a shard ends
    before the sample that would make it larger (the zeros at its end, up to 11 KiB, are not counted). They appear when all
    of them are complete, the first one last.

    Raises `SchemaError` for a field that cannot be written, and `ExistsError` if the destination, or any shard of it,
    exists; with `overwrite` they are replaced, and shards beyond the new ones removed. `progress` is called with (samples
    done, samples in all, 0).
    """
    if shard_size is not None and (isinstance(shard_size, bool) or not isinstance(shard_size, int) or shard_size < 1):
        raise ValueError(f"shard_size={shard_size!r}: expected a number of bytes, at least 1")
    destination = Path(destination).absolute()
    members = Members(reader)
    if shard_size is None:
        staging = Staging(destination, overwrite=overwrite)
    else:
        with storage_errors(destination):
            old = _existing(destination)
        if old and not overwrite:
            raise exists_error(old[0])
        staging = Staging(_shard(destination, 0), overwrite=overwrite)
    try:
        with storage_errors(destination):
            written = _write(members, staging.content, shard_size, progress)
        if shard_size is None:
            staging.publish()
            return [destination]
        paths = [_shard(destination, number) for number in range(len(written))]
        with storage_errors(destination):
            sync_tree(staging.content)
            for content, path in reversed(list(zip(written, paths, strict=True))):
                if overwrite:
                    content.replace(path)
                else:
                    link_into_place(content, path)
            for path in set(old).difference(paths):
                path.unlink()
            sync_folder(destination.parent)
        return paths
    finally:
        staging.discard()


def _shard(destination: Path, number: int) -> Path:
    return destination.with_name(f"{destination.stem}-{number:06}{destination.suffix}")


def _existing(destination: Path) -> list[Path]:
    """Return the shards of `destination` that exist."""
    name = re.compile(f"{re.escape(destination.stem)}-[0-9]{{6,}}{re.escape(destination.suffix)}")
    return sorted(path for path in destination.parent.iterdir() if name.fullmatch(path.name))


def _write(members: Members, content: Path, shard_size: int | None, progress: Progress | None) -> list[Path]:
    """Write one archive `content`, or a folder of shards; return the paths of the archives."""
    if shard_size is not None:
        content.mkdir()
    paths = [content if shard_size is None else content / "000000"]
    file = paths[0].open("xb")
    try:
        for number, sample in enumerate(members):
            blocks = [block for name, data in sample for block in _member(name, data)]
            if shard_size is not None and file.tell() and file.tell() + sum(map(len, blocks)) > shard_size:
                _end(file)
                paths.append(content / f"{len(paths):06}")
                file = paths[-1].open("xb")
            file.writelines(blocks)
            if progress is not None and number % REPORT == REPORT - 1:
                progress(number + 1, len(members), 0)
        _end(file)
    finally:
        file.close()
    if progress is not None:
        progress(len(members), len(members), 0)
    return paths


def _member(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.PAX_FORMAT), data, bytes(-len(data) % tarfile.BLOCKSIZE)


def _end(file: BinaryIO) -> None:
    """Write the end mark and close an archive."""
    file.write(bytes(2 * tarfile.BLOCKSIZE))
    file.write(bytes(-file.tell() % RECORD))
    file.close()
