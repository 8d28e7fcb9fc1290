"""`upload`: a finished dataset to object storage, so that readers see all of it or none.

The manifest of a folder goes last, and is created only where none is. What was interrupted is run again: an object that is
there with the same length and content id is not sent again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmds import canonical
from mmds.cachedshards import describe_remote
from mmds.errors import ExistsError, FormatError, StorageError, printable
from mmds.manifest import NAME, Shard, describe_shard, listed_path, open_listed
from mmds.remote import Remote, at_once
from mmds.sidecar import folder_manifest

PAUSES = (0.2, 1.0)  # seconds between attempts to put a file, each of which obstore may repeat
FILES_AT_ONCE = 4  # of which each takes up to 64 MiB of memory


@dataclass(frozen=True)
class Uploaded:
    """What an upload did."""

    url: str
    files: int  # that the dataset has, without its manifest
    bytes: int  # of them
    sent: int  # how many of the files; the others were there already


def upload(path: str | os.PathLike[str], url: str, *, progress: Callable[[int, int], None] | None = None) -> Uploaded:
    """Put a finished ``.mmds`` file or folder of shards at a URL, such as ``s3://bucket/train.mmds``.

    Nothing that is there is replaced: where an object of the same name has other content, that is an `ExistsError`. Of a
    folder, ``dataset.json`` is created last. What was interrupted continues when it is run again. A URL that ends with a
    slash is where the dataset goes under its own name. `progress` is called with the bytes that are there and those of all.

    Raises `FormatError` if the dataset is not whole, `StorageError`, `ExistsError`.
    """
    path = Path(path)
    target = Remote(url).child(path.name) if url.endswith("/") else Remote(url)
    target.check_writable()
    if not path.is_dir():
        entry = describe_shard(path, path.name)
        return _send(target, [(path, target, entry)], progress)
    manifest = folder_manifest(path)
    last = target.child(NAME)
    _check_manifest(last, manifest.text)
    entries = (*manifest.shards, *manifest.columns)
    for entry in entries:  # all, before any of them is sent
        open_listed(path, entry)
    files = [(Path(listed_path(path, entry)), target.child(entry.path), entry) for entry in entries]
    done = _send(target, files, progress)
    try:
        last.create(manifest.text)
    except ExistsError:
        if not _check_manifest(last, manifest.text):
            raise
    return done


def _send(
    target: Remote, files: list[tuple[Path, Remote, Shard]], progress: Callable[[int, int], None] | None
) -> Uploaded:
    for path, remote, _ in files:
        if "?" in remote.url:
            raise StorageError(f"{printable(path)}: a name with a '?', which no URL can have; give it another one")
    total, there, sent = sum(entry.bytes for _, _, entry in files), 0, 0
    if progress is not None:
        progress(0, total)
    results = at_once(_send_one, files, FILES_AT_ONCE)
    for (_, _, entry), is_new in zip(files, results, strict=True):
        there, sent = there + entry.bytes, sent + is_new
        if progress is not None:
            progress(there, total)
    return Uploaded(target.url, len(files), total, sent)


def _send_one(file: tuple[Path, Remote, Shard]) -> bool:
    """Put a file where nothing is, and return True; or return False if its content is there already."""
    path, remote, entry = file
    for pause in (*PAUSES, None):
        try:
            _check_same(remote, entry)
        except FileNotFoundError:
            pass
        else:
            return pause != PAUSES[0]  # then an attempt of ours has succeeded that looked as if it had failed
        try:
            remote.upload(path)
            break
        except ExistsError:  # somebody else has put it there meanwhile
            _check_same(remote, entry)
            break
        except StorageError:  # obstore does not try again what may have happened
            if pause is None:
                raise
            time.sleep(pause)
    return True


def _check_same(remote: Remote, entry: Shard) -> None:
    """Check that an object has the length and the content id of a file; `ExistsError`, or `FileNotFoundError`."""
    try:
        there = describe_remote(remote)
        if (there.bytes, there.content_id) == (entry.bytes, entry.content_id):
            return
        found = f"{there.bytes} bytes, content id {there.content_id}"
    except FormatError:
        found = "no .mmds file"
    raise ExistsError(
        f"{printable(remote.url, 1000)}: exists already, with other content: {found}; expected {entry.bytes} bytes, content "
        f"id {entry.content_id}. Choose another URL, or delete it"
    )


def _check_manifest(remote: Remote, text: bytes) -> bool:
    """Return whether the same manifest is there already; `ExistsError` if another one is."""
    try:
        found = remote.load(canonical.MAX_BYTES)
    except FileNotFoundError:
        return False
    except FormatError:  # it is longer than any manifest
        found = b""
    if found != text:
        raise ExistsError(
            f"{printable(remote.url, 1000)}: another dataset is there already. Choose another URL, or delete it, its "
            f"{NAME} first"
        )
    return True
