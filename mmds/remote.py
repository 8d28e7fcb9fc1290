"""Objects and folders in object storage, by URL, over obstore: S3, Google Cloud Storage, Azure, HTTP, files, memory.

Credentials, regions and endpoints come from the environment, as obstore reads it (``AWS_ACCESS_KEY_ID``,
``AWS_ENDPOINT_URL``, ``GOOGLE_SERVICE_ACCOUNT``, ``AZURE_STORAGE_ACCOUNT_NAME``, roles of the machine, ...). A URL that holds
any is refused: URLs are stored, shown and logged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

import numpy as np

from mmds.errors import ChangedError, ExistsError, FormatError, StorageError, printable
from mmds.obstores import WRITABLE, obstore, store_of

NdArray = np.ndarray[Any, Any]
T = TypeVar("T")
R = TypeVar("R")

ENCODED = ("http", "https", "file")  # whose URLs are percent-encoded; in the others, a key is what it is

SMALL_UPLOAD = 2**26  # bytes up to which an object is put in one request, which can be told to create only
PART = 2**24  # bytes of a part of a larger one
MOST_PARTS = 9_000  # S3 allows 10,000
PARTS_AT_ONCE = 4  # with PART, the memory that an upload takes

PIECE = 2**23  # bytes of a download by one request: within REQUEST_TIMEOUT at 140 KB/s, and retried alone
READS_AT_ONCE = 8  # one connection carries some 50 MB/s from S3, whatever the network
GAP = 2**16  # bytes between ranges that are read as one: a connection carries more of them than a request takes time

_url = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)/?(.*)", re.DOTALL).fullmatch
_userinfo = re.compile(r"://[^/\s]*@")


def is_url(path: object) -> bool:
    """Return whether `path` is a URL, of whatever scheme, and no path of a file.

    >>> is_url("s3://bucket/a.mmds"), is_url("a.mmds"), is_url("/data/s3:/a")
    (True, False, False)
    """
    return isinstance(path, str) and _url(path) is not None


class Version(NamedTuple):
    """What tells an object from another one that replaces it."""

    size: int
    etag: str | None  # a name of its content: of stores always, of web servers mostly


class Remote:
    """One object or folder in object storage, by URL. Immutable, and pickles as its URL.

    Errors name the URL and the reason: `StorageError`; `FileNotFoundError` where there is no such object; `ExistsError`
    where one is to be created that is there; `ChangedError` where it is not the one that was read before.
    """

    def __init__(self, url: str) -> None:
        found = _url(url)
        if found is None:
            raise StorageError(f"{printable(url)}: expected a URL, such as s3://bucket/name.mmds")
        self.scheme, self.host, path = found[1].lower(), found[2], found[3]
        if "@" in self.host:
            raise StorageError(
                f"{printable(self.scheme)}://…: a URL with credentials; give them by environment variables instead"
            )
        if "?" in path or "?" in self.host or "#" in self.host or (self.scheme in ENCODED and "#" in path):
            host = re.split("[?#]", self.host)[0]
            raise StorageError(
                f"{printable(self.scheme)}://{printable(host)}/…: a URL with a query or fragment, "
                "which may hold credentials; give those by environment variables instead"
            )
        self.key = (unquote(path) if self.scheme in ENCODED else path).rstrip("/")
        names = self.key.split("/") if self.key else []
        if {"", ".", ".."} & set(names) or re.search(r"[\x00-\x1f\x7f]", self.host + self.key):
            raise StorageError(f"{printable(url)}: expected names between single slashes, none of them '.' or '..'")

    def __repr__(self) -> str:
        return f"Remote({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    @property
    def url(self) -> str:
        """The URL, which holds no credentials."""
        return f"{self.scheme}://{self.host}/{quote(self.key) if self.scheme in ENCODED else self.key}"

    @property
    def name(self) -> str:
        """The last part of its path; of a whole bucket, that of the bucket."""
        return self.key.rpartition("/")[2] or self.host

    def child(self, name: str) -> Remote:
        """Return what is at a path below it, such as ``dataset.json`` lists."""
        child = Remote.__new__(Remote)
        child.__dict__.update(self.__dict__, key=f"{self.key}/{name}".lstrip("/"))
        return child

    def size(self) -> int:
        """Return the length of the object."""
        return self.version().size

    def version(self) -> Version:
        """Return what the object is now."""
        with self._asking():
            return _version(obstore().head(self._store(), self._object()))

    def tail(self, length: int) -> tuple[bytes, Version]:
        """Return the last `length` bytes, or all if it has fewer, and of what: by one request where the store can."""
        try:
            return self._get({"suffix": length})
        except StorageError:  # Azure knows no such ranges, and an empty object has none
            version = self.version()
            start = max(0, version.size - length)
            return self.read(start, version.size - start, version), version

    def read(self, offset: int, length: int, version: Version | None = None) -> bytes:
        """Return `length` bytes from `offset` on; `ChangedError` if the object is not the `version` that was seen."""
        if length > PIECE:
            data = bytearray(length)
            self.read_into(offset, memoryview(data), version)
            return bytes(data)
        if not length:
            return b""
        found, now = self._get((offset, offset + length), version)
        if len(found) != length:
            raise ChangedError(
                f"{self._shown}: bytes {offset} to {offset + length} are wanted, and it ends at {now.size}; it has become "
                "shorter while it was read"
            )
        return found

    def read_into(self, offset: int, target: memoryview, version: Version | None = None) -> None:
        """Fill `target` with the bytes from `offset` on: several ranges at once."""

        def fill(start: int) -> None:
            part = target[start : start + PIECE]
            part[:] = self.read(offset + start, len(part), version)

        for _ in at_once(fill, range(0, len(target), PIECE)):
            pass

    def read_spans(self, starts: NdArray, lengths: NdArray, version: Version | None = None) -> list[bytes]:
        """Return the bytes from each of `starts` on. Ranges that lie near each other are read as one, several at once."""
        joined = list(_joined(starts, lengths))
        read = list(at_once(lambda span: self.read(span[0], span[1] - span[0], version), joined))
        found = [b""] * len(starts)
        for (start, _, places), data in zip(joined, read, strict=True):
            for place in places:
                at = int(starts[place]) - start
                found[place] = data[at : at + int(lengths[place])]
        return found

    def load(self, limit: int) -> bytes:
        """Return all of a small object; `FormatError` if it has more than `limit` bytes, of which then none are read."""
        with self._asking():
            result = obstore().get(self._store(), self._object())
            size = int(result.meta["size"])
            if size > limit:
                raise FormatError(f"{self._shown}: {size} bytes; at most {limit} are allowed")
            return self._body(result, size)

    def download(
        self, path: Path, progress: Callable[[int], None] | None = None, *, expected: int | None = None
    ) -> None:
        """Fetch it into a file that exists already, from its beginning on: several ranges at once, in constant memory.

        `progress` is called with the number of bytes that have arrived since. What there is after an error is not whole.
        Where it has not the `expected` length, nothing is fetched: `FormatError`.
        """
        version = self.version()
        size = version.size
        if expected not in (None, size):
            raise FormatError(f"{self._shown}: {size} bytes, expected {expected}: replaced, or cut short")
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

        def fetch(offset: int) -> int:
            data = memoryview(self.read(offset, min(PIECE, size - offset), version))
            length = len(data)
            while data:
                done = os.pwrite(fd, data, offset)
                data, offset = data[done:], offset + done
            return length

        try:
            os.ftruncate(fd, size)
            for length in at_once(fetch, range(0, size, PIECE)):
                if progress is not None:
                    progress(length)
        finally:
            os.close(fd)

    def create(self, data: bytes) -> None:
        """Put an object that is not there yet; `ExistsError` if one is. Of several that try at once, one succeeds."""
        self._put(data, mode="create", use_multipart=False)

    def replace(self, data: bytes) -> None:
        """Put an object, whether one is there or not."""
        self._put(data, mode="overwrite", use_multipart=False)

    def upload(self, path: Path, *, replace: bool = False) -> None:
        """Put a file where no object is yet; `ExistsError` if one is, unless it is to be replaced. Takes constant memory.

        Up to 64 MiB, that is one request, of which the store lets one succeed. A larger file goes in parts, which no store
        can be told (by obstore) to complete only where nothing is: it is looked whether something is there, and of two
        that upload under one name at the same time, the later wins. The object is then one of the two, whole; what belongs
        together says the manifest, which is create-only and lists content ids, and reading checks those.
        """
        size = path.stat().st_size
        if size <= SMALL_UPLOAD:
            self._put(path, mode="overwrite" if replace else "create", use_multipart=False)
            return
        if not replace and self.exists():
            raise ExistsError(f"{self._shown}: exists already")
        part = max(PART, -(-size // MOST_PARTS))
        self._put(path, mode="overwrite", use_multipart=True, chunk_size=part, max_concurrency=PARTS_AT_ONCE)

    def exists(self) -> bool:
        """Return whether there is such an object."""
        try:
            self.version()
        except FileNotFoundError:
            return False
        return True

    def delete(self) -> None:
        """Remove the object."""
        self.check_writable()
        with self._asking():
            obstore().delete(self._store(), self._object())

    def list(self) -> Iterator[tuple[str, int]]:
        """Yield the names of all objects below it, such as "a/b", and their sizes."""
        if self.scheme not in WRITABLE:
            raise StorageError(f"{self._shown}: what lies below a URL of a web server cannot be listed")
        with self._asking():
            for page in obstore().list(self._store(), self.key or None):
                for meta in page:
                    name = meta["path"][len(self.key) :].lstrip("/")
                    if name:
                        yield name, int(meta["size"])

    def _get(self, part: Any, version: Version | None = None) -> tuple[bytes, Version]:
        options = {"range": part}
        if version is not None and version.etag is not None:
            options["if_match"] = version.etag
        with self._asking():
            result = obstore().get(self._store(), self._object(), options=options)
            now = _version(result.meta)
            if version is not None and now.size != version.size:
                raise ChangedError(f"{self._shown}: had {version.size} bytes, and now {now.size}; open it again")
            return self._body(result, part["suffix"] if isinstance(part, dict) else part[1] - part[0]), now

    def _body(self, result: Any, most: int) -> bytes:
        """Return the body of an answer; `StorageError` as soon as it has more bytes than were asked for."""
        chunks, arrived = [], 0
        for chunk in result.stream():  # of 10 MiB; `bytes` would take a body of any length
            arrived += len(chunk)
            if arrived > most:
                raise StorageError(f"{self._shown}: the server sends more than the {most} bytes that were asked for")
            chunks.append(chunk)
        return b"".join(chunks)

    def _put(self, data: bytes | Path, **options: Any) -> None:
        self.check_writable()
        try:
            with self._asking():
                obstore().put(self._store(writing=True), self._object(), data, **options)
        except FileNotFoundError:
            raise StorageError(f"{self._shown}: there is no such bucket, or the file to upload has gone") from None

    def check_writable(self) -> None:
        """Raise `StorageError` for the URL of a web server."""
        if self.scheme not in WRITABLE:
            raise StorageError(f"{self._shown}: a web server can only be read from; upload to s3://, gs:// or az://")

    def _store(self, *, writing: bool = False) -> Any:
        return store_of(self.scheme, self.host, writing=writing)

    def _object(self) -> str:
        if not self.key:
            raise FileNotFoundError(f"{self._shown}: names a whole bucket or server, and no object")
        return self.key

    @property
    def _shown(self) -> str:
        return printable(self.url, 1000)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn what obstore raises into errors of mmds. Its own are pages long, and their first line says it."""
        kinds = obstore().exceptions
        try:
            yield
        except FileNotFoundError:
            raise FileNotFoundError(f"{self._shown}: there is no such object") from None
        except kinds.AlreadyExistsError:
            raise ExistsError(f"{self._shown}: exists already") from None
        except kinds.PreconditionError:
            raise ChangedError(f"{self._shown}: was replaced while it was read; open it again") from None
        except (kinds.BaseError, OSError, ValueError) as error:
            if isinstance(error, (StorageError, FormatError)):
                raise
            reason = _userinfo.sub("://…@", str(error).partition("\n")[0])  # of an endpoint
            raise StorageError(f"{self._shown}: {printable(reason, 300)}") from None


def _version(meta: Any) -> Version:
    return Version(int(meta["size"]), meta["e_tag"])


def _joined(starts: NdArray, lengths: NdArray) -> Iterator[tuple[int, int, list[int]]]:
    """Yield (start, stop, numbers of the ranges in it) for what is to be read, by ascending start."""
    places: list[int] = []
    begin = end = 0
    for place in np.argsort(starts, kind="stable").tolist():
        start, stop = int(starts[place]), int(starts[place]) + int(lengths[place])
        if start == stop:
            continue
        if places and (start > end + GAP or stop - begin > max(PIECE, end - begin)):
            yield begin, end, places
            places = []
        if not places:
            begin = end = start
        places.append(place)
        end = max(end, stop)
    if places:
        yield begin, end, places


def at_once(function: Callable[[T], R], values: Iterable[T], threads: int = READS_AT_ONCE) -> Iterator[R]:
    """Yield `function` of each value, in order, while those of the next ones run in threads. One value takes no thread."""
    rest = iter(values)
    first = list(islice(rest, threads))
    if len(first) < 2:
        yield from map(function, first)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(function, value) for value in first]
        try:
            while waiting:
                yield waiting.pop(0).result()
                waiting.extend(pool.submit(function, value) for value in islice(rest, 1))
        finally:
            for future in waiting:
                future.cancel()
