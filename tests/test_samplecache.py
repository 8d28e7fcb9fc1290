"""The slots of the file behind a `SharedDataset`: who makes it, who fills one, and who was faster.

Where the order of two processes matters, another open file description of this process holds the lock that the other
process would hold, until `/proc/locks` says that the cache waits for it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmds import samplecache
from mmds.errors import ExistsError, FormatError, StorageError
from mmds.samplecache import ALIGN, HEADER, TABLE, Full, SampleCache, reclaim
from tests.faults.machine import files_of_at_most, inject, needs_strace

SIZE = 2**20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def made(path: Path, *, keep: bool = False, n: int = 3, size: int = SIZE, identity: str = "numbers") -> SampleCache:
    return SampleCache(path, n, identity, size, keep=keep)


def put(cache: SampleCache, index: int, data: bytes) -> None:
    with cache.lock(index):
        cache.put(index, data)


def got(cache: SampleCache, index: int) -> bytes | None:
    data = cache.get(index)
    return None if data is None else bytes(data)


@contextlib.contextmanager
def held(path: Path, flags: int = 0) -> Iterator[int]:
    """Hold the file as one does who is making it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def wait_until_somebody_waits_for(fd: int) -> None:
    inode = f":{os.fstat(fd).st_ino} "
    deadline = time.monotonic() + 30
    while not any("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines()):
        assert time.monotonic() < deadline, "nobody waits for the lock"
        time.sleep(0.001)


def made_while(path: Path, meanwhile: Callable[[int], object], **options: Any) -> SampleCache:
    """Return the cache that a thread makes, which waits for the lock of the file while `meanwhile` happens to it."""
    with ThreadPoolExecutor(1) as pool, held(path) as fd:
        cache = pool.submit(made, path, **options)
        wait_until_somebody_waits_for(fd)
        meanwhile(fd)
        fcntl.flock(fd, fcntl.LOCK_UN)
        return cache.result(30)


def test_a_slot_is_filled_once_and_seen_by_all(path: Path) -> None:
    one, other = made(path), made(path)
    assert (got(one, 1), one.filled) == (None, 0)
    put(one, 1, b"one")
    put(other, 0, b"")
    assert [got(cache, index) for cache in (one, other) for index in range(3)] == [b"", b"one", None] * 2
    assert one.filled == other.filled == 2
    assert one.nbytes == other.nbytes
    one.close()
    one.close()
    assert path.exists() and got(other, 1) == b"one"
    other.close()
    assert not path.exists()


def test_records_lie_at_multiples_of_64(path: Path) -> None:
    cache = made(path)
    for index, length in enumerate((0, 48, 49)):
        put(cache, index, b"x" * length)
    starts = np.frombuffer(path.read_bytes(), "<u8", 3, TABLE).tolist()
    assert starts == [TABLE + 2 * ALIGN, TABLE + 3 * ALIGN, TABLE + 4 * ALIGN]
    assert cache.nbytes == starts[-1] + 49
    cache.close()


@pytest.mark.parametrize("length", [47, 48, 49, 1000])
def test_what_does_not_fit_is_refused_and_the_rest_stays(path: Path, length: int) -> None:
    cache = made(path, size=TABLE + 2 * ALIGN + 48)  # one record of 48 bytes
    if length > 48:
        with pytest.raises(Full):
            put(cache, 0, b"x" * length)
        put(cache, 1, b"y" * 48)
    else:
        put(cache, 0, b"x" * length)
    with pytest.raises(Full):
        put(cache, 2, b"")
    assert cache.filled == 1
    cache.close()


def test_there_is_always_room_for_the_table(path: Path) -> None:
    cache = made(path, n=1000, size=0)
    assert path.stat().st_size >= TABLE + 8 * 1000
    with pytest.raises(Full):
        put(cache, 999, b"x")
    cache.close()


# Who makes it


def test_whoever_waits_for_one_who_makes_it_takes_part_in_it(path: Path) -> None:
    made(path, keep=True).close()  # what its maker leaves
    cache = made_while(path, lambda _: None, keep=True)
    put(cache, 1, b"one")
    cache.close()
    assert got(made(path, keep=True), 1) == b"one"


@pytest.mark.parametrize("left", [0, 4, HEADER.itemsize, SIZE])
def test_whoever_waits_for_one_who_is_killed_makes_it(path: Path, left: int) -> None:
    cache = made_while(path, lambda fd: os.ftruncate(fd, left))
    put(cache, 2, b"two")
    assert (got(cache, 2), path.stat().st_size) == (b"two", SIZE)
    cache.close()
    assert not path.exists()


def test_a_file_that_loses_its_name_meanwhile_is_not_used(path: Path) -> None:
    cache = made_while(path, lambda _: path.unlink())
    put(cache, 0, b"zero")
    assert np.frombuffer(path.read_bytes(), "<u8", 1, TABLE).all()
    cache.close()


def test_a_file_that_takes_its_name_meanwhile_is_used_instead(path: Path) -> None:
    others: list[SampleCache] = []

    def replace(_: int) -> None:
        path.unlink()
        others.append(made(path))

    cache = made_while(path, replace)
    put(others[0], 0, b"zero")
    assert got(cache, 0) == b"zero"
    others[0].close()
    cache.close()


def test_a_file_that_loses_its_name_before_it_is_locked_is_not_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock

    def late(fd: int, how: int) -> None:
        monkeypatch.undo()
        path.unlink()
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    cache = made(path)
    put(cache, 0, b"zero")
    assert np.frombuffer(path.read_bytes(), "<u8", 1, TABLE).all()
    cache.close()


def test_of_two_who_make_it_at_once_one_does(path: Path) -> None:
    caches: list[SampleCache] = []
    threads = [threading.Thread(target=lambda: caches.append(made(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    put(caches[0], 0, b"zero")
    assert [got(cache, 0) for cache in caches] == [b"zero"] * 8
    for cache in caches:
        cache.close()
    assert not path.exists()


# What is refused


@pytest.mark.parametrize("text", [b"x", b"\x89MMDCACH", b"\x89MMDCACH" + bytes(SIZE)])
def test_what_is_kept_and_no_cache_is_refused(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    with pytest.raises(FormatError, match="not a cache of samples, or an unfinished one; delete it"):
        made(path, keep=True)
    assert path.read_bytes() == text


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("options", [{"n": 4}, {"n": 2}, {"identity": "letters"}])
def test_another_dataset_is_refused_and_nothing_changes(path: Path, keep: bool, options: Any) -> None:
    cache = made(path, keep=keep)
    put(cache, 1, b"one")
    before = path.read_bytes()
    with pytest.raises(ExistsError, match="belongs to another dataset; choose another name"):
        made(path, keep=keep, **options)
    assert path.read_bytes() == before
    cache.close()


def test_one_who_waits_and_is_refused_leaves_what_the_other_made(path: Path, tmp_path: Path) -> None:
    made(tmp_path / "other", keep=True).close()
    whole = (tmp_path / "other").read_bytes()
    with pytest.raises(ExistsError, match="belongs to another dataset"):
        made_while(path, lambda fd: os.pwrite(fd, whole, 0), identity="letters")
    assert path.read_bytes() == whole


def test_a_damaged_file_that_others_have_open_is_not_waited_for_for_ever(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samplecache, "ATTEMPTS", 3)
    with held(path) as fd:
        fcntl.flock(fd, fcntl.LOCK_SH)
        os.pwrite(fd, b"no cache", 0)
        with pytest.raises(FormatError, match="damaged, but in use; end who has it open, or choose another name"):
            made(path)
    cache = made(path)  # nobody has it now
    assert cache.filled == 0
    cache.close()


def test_what_is_not_a_regular_file_is_refused(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(ExistsError, match="belongs to another user"):
        made(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError) as caught:
        made(path)
    assert caught.value.errno == errno.EISDIR


def damaged(path: Path, at: int, data: bytes) -> SampleCache:
    """Return a kept cache of two samples of which something was changed while it was closed."""
    cache = made(path, keep=True)
    put(cache, 0, b"zero")
    put(cache, 1, b"one")
    cache.close()
    del cache  # the map holds the lock, too
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
    return made(path, keep=True)


FIRST = TABLE + 2 * ALIGN  # where the first sample is: behind the table, and its length and hash


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (FIRST, b"Z"),
        (FIRST - 8, b"\0" * 8),
        (FIRST - 16, b"\5"),
        (FIRST - 16, b"\xff" * 8),
        (TABLE, (FIRST + ALIGN).to_bytes(8, "little")),  # where the other one is
        (TABLE, (FIRST + 1).to_bytes(8, "little")),
        (TABLE, TABLE.to_bytes(8, "little")),
    ],
    ids=["a byte", "the hash", "the length", "a length past the end", "another place", "no place", "the table"],
)
def test_a_damaged_sample_is_refused_each_time_and_the_others_are_read(path: Path, at: int, data: bytes) -> None:
    cache = damaged(path, at, data)
    for _ in range(2):
        with pytest.raises(FormatError, match="sample 0 is damaged; delete the file to fill it again"):
            cache.get(0)
        assert got(cache, 1) == b"one"
    cache.close()


def test_samples_that_the_header_does_not_know_are_forgotten(path: Path) -> None:
    offset = HEADER.fields["next"][1]  # type: ignore[index]
    cache = damaged(path, offset, (FIRST + 4).to_bytes(8, "little"))
    assert (got(cache, 0), got(cache, 1), cache.filled) == (b"zero", None, 1)
    put(cache, 2, b"two")
    put(cache, 1, b"one")
    assert [got(cache, index) for index in range(3)] == [b"zero", b"one", b"two"]
    cache.close()


# What the system refuses


@pytest.mark.parametrize("size", [0, 1000, TABLE + ALIGN])
def test_a_file_that_cannot_be_made_leaves_nothing(path: Path, size: int) -> None:
    with files_of_at_most(size), pytest.raises(StorageError, match=r"cannot write .*cache: File too large") as caught:
        made(path)
    assert caught.value.errno == errno.EFBIG
    assert not path.exists()
    made(path).close()


def test_a_sample_that_cannot_be_written_whole_is_not_there(path: Path) -> None:
    cache = made(path)
    with files_of_at_most(2 * TABLE), pytest.raises(Full):
        put(cache, 0, bytes(2 * TABLE))
    assert (got(cache, 0), cache.filled) == (None, 0)
    with pytest.raises(Full):  # also for others, and what would fit: nobody tries again
        put(made(path), 1, b"")
    cache.close()


WRITE = """if True:
    import os, pathlib, sys
    from mmds.errors import StorageError
    from mmds.samplecache import SampleCache
    cache = None
    try:
        cache = SampleCache(pathlib.Path(sys.argv[1]), 3, "numbers", 2**20, keep=True)
        cache.put(0, b"zero")
    except StorageError as error:  # a write to stderr might be the one that fails
        os._exit(error.errno if cache is None else 100 + error.errno + cache.filled)
"""


@needs_strace
@pytest.mark.parametrize(
    ("call", "how", "turn", "code", "exists"),
    [
        ("write", "error=EIO", 1, errno.EIO, False),
        ("write", "retval=7", 1, errno.ENOSPC, False),
        ("write", "error=EIO", 2, 100 + errno.EIO, True),  # the sample
        ("ftruncate", "error=EIO", 1, errno.EIO, False),
        ("ftruncate", "error=EIO", 2, errno.EIO, False),
    ],
)
def test_a_failing_disk(path: Path, call: str, how: str, turn: int, code: int, exists: bool) -> None:
    done = inject(call, how, turn, WRITE, path)
    assert (done.returncode, path.exists()) == (code, exists), done.stderr
    made(path, keep=True).close()


# Leftovers


def test_leftovers_go_and_what_lives_stays(tmp_path: Path) -> None:
    alive, dead = made(tmp_path / "mine-alive"), tmp_path / "mine-dead"
    dead.write_bytes(b"left")
    (tmp_path / "yours-dead").write_bytes(b"left")
    (tmp_path / "mine-link").symlink_to(tmp_path / "yours-dead")
    reclaim(tmp_path, "mine-")
    assert {path.name for path in tmp_path.iterdir()} == {"mine-alive", "mine-link", "yours-dead"}
    alive.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user takes root")
def test_leftovers_of_other_users_stay(tmp_path: Path) -> None:
    (tmp_path / "mine-other").touch()
    os.chown(tmp_path / "mine-other", 12345, 12345)
    reclaim(tmp_path, "mine-")
    assert (tmp_path / "mine-other").exists()
