"""``dataset.json``: the shards, and the columns added later, that make a folder one dataset. THE specification of that file.

A folder such as ``out.mmds/`` is a dataset if it holds a regular file ``dataset.json``. It is canonical JSON
(`canonical.py`) of at most 16 MiB, an object with exactly these keys, so that it begins with ``{"format":"mmds-dataset",``::

    {"format":    "mmds-dataset",
     "n":         samples in all shards together,
     "schema_id": 32 hex digits: the schema id in the header of every shard (`format.py`),
     "shards":    [ENTRY, ...],
     "sidecars":  [ENTRY, ...],
     "version":   1}

and an ENTRY is one ``.mmds`` file, an object with exactly these keys::

    {"bytes": its length, "content_id": 32 hex digits, from its trailer, "n": its samples, "path": where it is}

* Samples are those of the shards, one shard after the other, as listed. There MUST be at least one shard; it MAY be empty.
* A sidecar holds further fields of the same samples: its n MUST be that of the dataset, and its samples and those of the
  shards are objects. A key of its samples takes the place of that key of the shards' samples, with all that is below it;
  other keys follow at the end, in the order of the sidecars. No two sidecars have the same key.
* A path is relative to the folder, of names between single slashes. A name MUST NOT be empty, "." or "..", and MUST NOT
  contain a backslash or a control character; a path has at most 1,024 characters and MUST NOT be listed twice. Where it
  leads MUST be inside of the folder, whatever is a link.
* A reader MUST refuse a file whose length, n, content id or schema id is not the listed one.
* A reader MUST refuse a version that it does not know. Files in the folder that are not listed are no part of the dataset.

The content id of the dataset is the first 32 hex digits of the SHA-256 of ``dataset.json``. The files are written first, and
never changed; ``dataset.json`` is written last, and replaced by rename: a reader sees one dataset or the other.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmds import canonical
from mmds.datafile import DataFile
from mmds.errors import FormatError, StorageError, VersionError, printable
from mmds.format import MIN_FILE
from mmds.openfile import Reading, open_file
from mmds.publish import Draft
from mmds.remote import Remote, is_url

NAME = "dataset.json"
FORMAT, VERSION = "mmds-dataset", 1
MAGIC = b'{"format":"mmds-dataset",'
MAX_PATH = 1024
PIECE = 1000  # entries that are encoded at a time

_KEYS = {"format", "n", "schema_id", "shards", "sidecars", "version"}
_ENTRY = {"bytes", "content_id", "n", "path"}
_is_id = re.compile(r"[0-9a-f]{32}").fullmatch
_is_path = re.compile(r"(?!\.{1,2}(/|$))[^/\\\x00-\x1f\x7f]+(/(?!\.{1,2}(/|$))[^/\\\x00-\x1f\x7f]+)*").fullmatch


@dataclass(frozen=True, slots=True)  # there may be 100,000 of them
class Shard:
    """One ``.mmds`` file of a folder: a shard, or a sidecar."""

    path: str  # relative to the folder
    n: int
    bytes: int
    content_id: str


@dataclass(frozen=True)
class Manifest:
    """What ``dataset.json`` says."""

    schema_id: str
    shards: tuple[Shard, ...]
    columns: tuple[Shard, ...] = ()  # the sidecars

    @property
    def n(self) -> int:
        """The number of samples."""
        return sum(shard.n for shard in self.shards)

    @cached_property
    def text(self) -> bytes:
        """The content of the file."""
        return canonical.dump(
            {
                "format": FORMAT,
                "n": self.n,
                "schema_id": self.schema_id,
                "shards": [_entry(shard) for shard in self.shards],
                "sidecars": [_entry(column) for column in self.columns],
                "version": VERSION,
            }
        )

    @cached_property
    def content_id(self) -> str:
        """32 hex digits that name the whole dataset."""
        return _content_id(self.text)


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Return what the manifest of a folder says, all rules checked; opens none of the files that it lists.

    Raises `FormatError`, `VersionError`, or `FileNotFoundError` if there is none.
    """
    path: str | Path = Path(folder) / NAME
    text = None
    if is_url(folder):
        remote = Remote(os.fspath(folder)).child(NAME)
        path, text = remote.url, remote.load(canonical.MAX_BYTES)
    try:
        return parse_manifest(_read(Path(path)) if text is None else text)
    except FormatError as error:
        raise type(error)(f"{printable(path)}: {error}") from None


def publish_manifest(folder: str | os.PathLike[str], manifest: Manifest, *, overwrite: bool) -> None:
    """Write the manifest of a folder whose files are all there, whole or not at all.

    Raises `FormatError` before anything is written if readers would refuse it, `ExistsError`, `StorageError`.
    """
    try:
        parse_manifest(manifest.text)
    except ValueError as error:  # FormatError, or too large for JSON
        raise FormatError(f"{printable(Path(folder) / NAME)}: not written: {error}") from None
    draft = Draft(Path(folder) / NAME, overwrite=overwrite)
    try:
        draft.write(memoryview(manifest.text))
        draft.publish()
    finally:
        draft.discard()


def describe_shard(path: str | os.PathLike[str], relative: str) -> Shard:
    """Return the entry of an ``.mmds`` file that lies at `relative` in its folder."""
    file = open_file(path)
    return Shard(relative, file.n, file.footer.file_length, file.content_id)


def listed_path(folder: str | os.PathLike[str], entry: Shard) -> str:
    """Return the path, or URL, of a file of the folder; `FormatError` if it leads out of it."""
    if is_url(folder):  # where nothing is a link
        return Remote(os.fspath(folder)).child(entry.path).url
    path = os.path.join(folder, entry.path)  # noqa: PTH118 (as all paths that DataFile keeps)
    real, root = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath([real, root]) != root:
        raise FormatError(f"{printable(path)}: leads out of the folder, to {printable(real)}")
    return path


def open_listed(folder: str | os.PathLike[str], entry: Shard, reading: Reading = "mapped") -> DataFile:
    """Open a file of the folder; `FormatError` where it is not the one that the manifest lists."""
    path = listed_path(folder, entry)
    try:
        file = open_file(path, reading)
    except FileNotFoundError:
        raise FormatError(f"{printable(path)}: missing, but {NAME} lists it") from None
    check_listed(file, entry)
    return file


def check_listed(file: DataFile, entry: Shard) -> None:
    """Check that an open file is the one that the manifest lists, or raise `FormatError`."""
    for what, found, expected in (
        ("content id", file.content_id, entry.content_id),
        ("bytes", file.footer.file_length, entry.bytes),
        ("samples", file.n, entry.n),
    ):
        if found != expected:
            raise FormatError(
                f"{printable(file.path)}: not the file that {NAME} lists: {what} {found}, expected {expected}; "
                f"it was replaced, or {NAME} belongs to other files"
            )


def parse_manifest(text: bytes) -> Manifest:
    """Return what the content of a manifest says; `FormatError` or `VersionError` where it breaks a rule."""
    found = _load_regular(text) or _load_any(text)
    if not found.shards:
        raise FormatError("no shards, expected at least one")
    for what, entries in (("shards", found.shards), ("sidecars", found.sidecars)):
        for number, entry in enumerate(entries):
            if fault := _fault(entry):
                raise FormatError(f"{what}[{number}]: {fault}")
    manifest = Manifest(found.schema_id, found.shards, found.sidecars)
    manifest.__dict__["content_id"] = _content_id(text)  # it is canonical: nothing else would be written
    n = manifest.n
    if type(found.n) is not int or found.n != n:
        raise FormatError(f"n is {printable(repr(found.n))}, but the shards have {n} samples together")
    for column in manifest.columns:
        if column.n != n:
            raise FormatError(
                f"sidecar '{printable(column.path)}' has {column.n} samples, expected {n}, as the shards have; "
                "columns are added after the last shard"
            )
    listed = (*manifest.shards, *manifest.columns)
    if not all(a.path < b.path for a, b in pairwise(listed)):  # mostly they are; a dict takes memory
        path, times = Counter(entry.path for entry in listed).most_common(1)[0]
        if times > 1:
            raise FormatError(f"'{printable(path)}' is listed {times} times")
    return manifest


@dataclass
class _Listed:
    """The content of ``dataset.json``. Its fields are the keys there, whose order in the file is that of the alphabet."""

    format: str
    n: int
    schema_id: str
    shards: tuple[Shard, ...]
    sidecars: tuple[Shard, ...]
    version: int


@lru_cache(1)
def _codec() -> Any:
    """Return what decodes a manifest into typed objects, and what encodes them; `import mmds` does not load msgspec."""
    import msgspec

    return msgspec.json.Decoder(_Listed), msgspec.json.Encoder(order="sorted")


def _load_regular(text: bytes) -> _Listed | None:
    """Return what a manifest says, or None where anything is unusual, for `_load_any` to say what.

    No dict is made per entry: 100,000 of them would take longer, and twice the memory, than all the rest. What is encoded again
    as the same bytes is canonical, and has no other keys: of strings with neither control characters nor backslashes, and of
    integers in bounds, msgspec and `canonical` make the same JSON.
    """
    decoder, encoder = _codec()
    try:
        with _no_collection():
            found: _Listed = decoder.decode(text)
    except (ValueError, RecursionError):  # what is wrong is said by `_load_any`, in words of its own
        return None
    greatest = max((found.n, *(max(entry.n, entry.bytes) for entry in (*found.shards, *found.sidecars))))
    if len(text) > canonical.MAX_BYTES or greatest > canonical.MAX_INTEGER:
        return None
    if (found.format, found.version) != (FORMAT, VERSION) or not _is_id(found.schema_id):
        return None
    at = 0
    for piece in _encoded(found, encoder):
        if text[at : at + len(piece)] != piece:
            return None
        at += len(piece)
    return found if at == len(text) else None


def _encoded(found: _Listed, encoder: Any) -> Iterator[bytes]:
    """Yield the JSON of a manifest in pieces: whole, it would be the most memory that opening takes."""
    head, key, tail = encoder.encode(replace(found, shards=())).partition(b'"shards":[')
    yield head + key
    for start in range(0, len(found.shards), PIECE):
        yield (b"," if start else b"") + encoder.encode(found.shards[start : start + PIECE])[1:-1]
    yield tail


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from looking for cycles among new objects, which takes longer than making them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _load_any(text: bytes) -> _Listed:
    """Return what a manifest says, whose numbers and entries are yet to be checked; `FormatError` where it is none."""
    try:
        found = canonical.load(text)
    except ValueError as error:
        raise FormatError(f"not canonical JSON: {printable(error)}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FormatError(f"not a manifest: expected an object whose format is {FORMAT}")
    version = found.get("version")
    if type(version) is not int or version < 1:
        raise FormatError(f"version {printable(repr(version))}, expected {VERSION}")
    if version > VERSION:
        raise VersionError(f"manifest version {version}; this mmds reads version {VERSION}. Upgrade mmds")
    if found.keys() != _KEYS:
        raise FormatError(f"keys {printable(sorted(found))}, expected {sorted(_KEYS)}")
    if not isinstance(found["schema_id"], str) or not _is_id(found["schema_id"]):
        raise FormatError(f"schema_id {printable(repr(found['schema_id']))}, expected 32 hex digits")
    for what in ("shards", "sidecars"):
        if not isinstance(found[what], list):
            raise FormatError(f"{what} is a {type(found[what]).__name__}, expected a list")
        found[what] = tuple(_keyed(entry, f"{what}[{number}]") for number, entry in enumerate(found[what]))
    return _Listed(**found)


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes from replacing the manifest while this one reads it, writes files and replaces it.

    The lock is on the folder itself, ends with the process, and concerns no reader. `StorageError` if it is taken.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(
                errno.EWOULDBLOCK, f"{printable(folder)} is being changed by another process; try again when it is done"
            ) from None
        yield
    finally:
        os.close(fd)


def _read(path: Path) -> bytes:
    # O_NONBLOCK: a FIFO would wait for a writer for ever. It does nothing to a regular file.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError("not a regular file, so not a manifest")
        if status.st_size > canonical.MAX_BYTES:
            raise FormatError(f"{status.st_size} bytes; at most {canonical.MAX_BYTES} are allowed")
        return file.read(status.st_size + 1)  # which allocates as much


def parse_entry(entry: Any, where: str) -> Shard:
    """Return what an entry says of a file, all rules checked; `FormatError` that begins with `where`."""
    shard = _keyed(entry, where)
    if fault := _fault(shard):
        raise FormatError(f"{where}: {fault}")
    return shard


def _keyed(entry: Any, where: str) -> Shard:
    """Return an entry whose values are yet to be checked; `FormatError` if it has other keys."""
    if not isinstance(entry, dict) or entry.keys() != _ENTRY:
        raise FormatError(f"{where} is {printable(repr(entry))}, expected an object with keys {sorted(_ENTRY)}")
    return Shard(**entry)


def _fault(entry: Shard) -> str:
    """Return which rule an entry of any values breaks; "" if none."""
    path, n, size, content_id = entry.path, entry.n, entry.bytes, entry.content_id
    if not isinstance(path, str) or len(path) > MAX_PATH or not _is_path(path):
        return f"path {printable(repr(path))}, expected names inside of the folder, with slashes"
    if type(n) is not int or not 0 <= n <= canonical.MAX_INTEGER:
        return f"n is {printable(repr(n))}, expected a number of samples"
    if type(size) is not int or not MIN_FILE <= size <= canonical.MAX_INTEGER:
        return f"bytes is {printable(repr(size))}, expected a length of at least {MIN_FILE}"
    if not isinstance(content_id, str) or not _is_id(content_id):
        return f"content_id {printable(repr(content_id))}, expected 32 hex digits"
    return ""


def _entry(shard: Shard) -> dict[str, Any]:
    return {"bytes": shard.bytes, "content_id": shard.content_id, "n": shard.n, "path": shard.path}


def _content_id(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:32]
