"""The folder that downloads go to: once, whole, bounded, and never from under anybody's hands."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmds.errors import StorageError
from mmds.shardcache import ShardCache, checked_size, let_go
from tests.conftest import Cases
from tests.faults.machine import inject, needs_root, needs_strace

SIZE = 5000
fork = multiprocessing.get_context("fork")


def name(number: int) -> str:
    """Return a content id."""
    return f"{number:032x}"


def content(number: int) -> bytes:
    """Return a shard."""
    return number.to_bytes(2, "little") * (SIZE // 2)


class Filler:
    """Fills drafts, and counts."""

    def __init__(self) -> None:
        self.filled: list[int] = []

    def __call__(self, number: int) -> Callable[[Path], None]:
        def fill(draft: Path) -> None:
            assert draft.stat().st_size == SIZE  # the room is taken
            self.filled.append(number)
            with draft.open("r+b") as file:
                file.write(content(number))

        return fill


def names(folder: Path) -> list[str]:
    """Return what is in a cache but its lock, in order."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def shards(*numbers: int) -> list[str]:
    """Return the names of shards."""
    return [f"{name(number)}.mmds" for number in numbers]


def used(folder: Path) -> int:
    """Return how many bytes a folder has."""
    return sum(path.stat().st_size for path in folder.iterdir())


@contextlib.contextmanager
def held(cache: ShardCache, number: int, filler: Filler) -> Iterator[int]:
    """Hold a shard."""
    fd = cache.hold(name(number), SIZE, filler(number))
    try:
        yield fd
    finally:
        let_go(fd)


def test_a_shard_is_filled_once_and_found_afterwards(tmp_path: Path) -> None:
    folder, filler = tmp_path / "made" / "cache", Filler()
    for cache in (ShardCache(folder), ShardCache(folder, "1MB"), ShardCache(str(folder))):
        with held(cache, 7, filler) as fd:
            assert os.pread(fd, SIZE, 0) == content(7) == cache.path(name(7)).read_bytes()
    assert filler.filled == [7] and names(folder) == shards(7)


def test_processes_that_want_a_shard_at_once_fill_it_once(tmp_path: Path, cases: Cases) -> None:
    start, log = fork.Barrier(8), tmp_path / "log"

    def want() -> None:
        def fill(draft: Path) -> None:
            with log.open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.01)
            Filler()(number)(draft)

        cache = ShardCache(tmp_path / "cache", 3 * SIZE)
        for number in range(20):
            start.wait(30)
            fd = cache.hold(name(number), SIZE, fill)
            assert os.pread(fd, SIZE, 0) == content(number)
            let_go(fd)

    processes = [fork.Process(target=want) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 8
    assert len(log.read_text().split()) == 20
    cases(20)


def test_a_killed_filler_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    cache, filler = ShardCache(tmp_path, 10 * SIZE), Filler()

    def die(draft: Path) -> None:
        draft.write_bytes(content(1)[:2000])
        os.kill(os.getpid(), signal.SIGKILL)

    for number in (1, 2):
        process = fork.Process(target=cache.hold, args=(name(number), SIZE, die))
        process.start()
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
    assert names(tmp_path) == [f".{name(2)}.tmp"]  # the second one has taken away what was left of the first
    with held(cache, 2, filler) as fd:
        assert os.pread(fd, SIZE, 0) == content(2)
    assert filler.filled == [2] and names(tmp_path) == shards(2)


def test_who_waits_for_a_filler_that_is_killed_fills(tmp_path: Path) -> None:
    cache, filler, began = ShardCache(tmp_path), Filler(), fork.Event()

    def wait(draft: Path) -> None:
        began.set()
        time.sleep(60)

    process = fork.Process(target=cache.hold, args=(name(1), SIZE, wait))
    process.start()
    assert began.wait(30)
    threading.Timer(0.2, process.kill).start()
    with held(cache, 1, filler) as fd:
        assert os.pread(fd, SIZE, 0) == content(1)
    process.join(30)
    assert filler.filled == [1] and names(tmp_path) == shards(1)


def test_a_failed_filler_leaves_nothing(tmp_path: Path) -> None:
    cache, filler = ShardCache(tmp_path), Filler()

    def fail(draft: Path) -> None:
        raise StorageError("the server is gone")

    with pytest.raises(StorageError, match=r"^the server is gone$"):
        cache.hold(name(1), SIZE, fail)
    assert names(tmp_path) == []
    with held(cache, 1, filler):
        assert filler.filled == [1]


def test_the_shard_opened_longest_ago_is_removed_first(tmp_path: Path) -> None:
    cache, filler = ShardCache(tmp_path, 3 * SIZE), Filler()
    for number in (1, 2, 3, 1, 4):
        with held(cache, number, filler):
            assert used(tmp_path) <= 3 * SIZE
    assert names(tmp_path) == shards(1, 3, 4) and filler.filled == [1, 2, 3, 4]


def test_a_shard_in_use_is_never_removed_and_the_bound_gives_way(tmp_path: Path) -> None:
    cache, filler = ShardCache(tmp_path, 2 * SIZE), Filler()
    with held(cache, 1, filler), held(cache, 2, filler):
        with held(cache, 3, filler):
            assert names(tmp_path) == shards(1, 2, 3)
        with held(cache, 4, filler):  # 3 is in nobody's hands
            assert names(tmp_path) == shards(1, 2, 4)
    with held(cache, 5, filler):
        assert len(names(tmp_path)) == 2 and used(tmp_path) <= 2 * SIZE


def test_who_keeps_shards_open_lets_go_of_them_when_there_is_no_room(tmp_path: Path) -> None:
    class Keeper:
        def __init__(self, *fds: int) -> None:
            self.fds = list(fds)

        def forget(self) -> None:
            while self.fds:
                let_go(self.fds.pop())

    cache, filler = ShardCache(tmp_path, 2 * SIZE), Filler()
    keeper = Keeper(*(cache.hold(name(number), SIZE, filler(number)) for number in (1, 2)))
    cache.add(keeper)
    with held(cache, 3, filler):
        assert not keeper.fds and names(tmp_path) == shards(2, 3)

    asked, filled = fork.Event(), fork.Event()  # another process is asked, and does it when it next opens one

    def other() -> None:
        mine = ShardCache(tmp_path, 2 * SIZE)
        with held(mine, 2, filler), held(mine, 3, filler):
            filled.set()
            asked.wait(30)
        keeper = Keeper(mine.hold(name(2), SIZE, filler(2)), mine.hold(name(3), SIZE, filler(3)))
        mine.add(keeper)
        filled.set()
        asked.clear()
        asked.wait(30)
        with held(mine, 3, filler):
            os._exit(len(keeper.fds))

    process = fork.Process(target=other)
    process.start()
    assert filled.wait(30)
    assert not cache.fetch(name(4), SIZE, filler(4), ())
    filled.clear()
    asked.set()
    assert filled.wait(30)
    with held(cache, 5, filler):
        assert names(tmp_path) == shards(2, 3, 5)
    asked.set()
    process.join(30)
    assert process.exitcode == 0


def test_fetching_ahead_takes_no_room_of_what_is_needed_sooner(tmp_path: Path) -> None:
    cache, filler = ShardCache(tmp_path, 3 * SIZE), Filler()
    with held(cache, 1, filler):
        assert cache.fetch(name(2), SIZE, filler(2), ())
        assert cache.fetch(name(3), SIZE, filler(3), {name(2)})
        assert not cache.fetch(name(4), SIZE, filler(4), {name(2), name(3)})
        assert names(tmp_path) == shards(1, 2, 3)
        assert cache.fetch(name(4), SIZE, filler(4), {name(2)})
        assert names(tmp_path) == shards(1, 2, 4)
        assert cache.fetch(name(2), SIZE, filler(2), ())
    assert filler.filled == [1, 2, 3, 4]
    cache.renew([name(1), name(9)])
    with held(cache, 5, filler):
        assert names(tmp_path) == shards(1, 4, 5)


def test_downloads_under_way_count_and_are_not_waited_for_ahead(tmp_path: Path) -> None:
    cache, filler = ShardCache(tmp_path, SIZE + 10), Filler()
    began, end = threading.Event(), threading.Event()

    def wait(draft: Path) -> None:
        began.set()
        assert end.wait(30)
        filler(1)(draft)

    thread = threading.Thread(target=lambda: let_go(cache.hold(name(1), SIZE, wait)))
    thread.start()
    assert began.wait(30) and used(tmp_path) == SIZE
    assert cache.fetch(name(1), SIZE, filler(1), ()) and not filler.filled  # somebody is at it
    assert not cache.fetch(name(2), SIZE, filler(2), ()) and used(tmp_path) == SIZE
    end.set()
    thread.join()
    assert cache.fetch(name(2), SIZE, filler(2), ()) and names(tmp_path) == shards(2)


def test_a_forked_child_keeps_no_lock_of_a_download(tmp_path: Path) -> None:
    cache, filler, began, end = ShardCache(tmp_path, SIZE), Filler(), threading.Event(), threading.Event()

    def wait(draft: Path) -> None:
        began.set()
        assert end.wait(30)
        filler(1)(draft)

    thread = threading.Thread(target=lambda: let_go(cache.hold(name(1), SIZE, wait)))
    thread.start()
    assert began.wait(30)
    child = fork.Process(target=time.sleep, args=(60,))
    child.start()
    end.set()
    thread.join()
    with held(cache, 2, filler):
        assert child.is_alive() and names(tmp_path) == shards(2)
    child.kill()
    child.join()


def test_a_shard_that_was_cut_short_is_fetched_again(tmp_path: Path) -> None:
    cache, filler = ShardCache(tmp_path), Filler()
    with held(cache, 1, filler):
        pass
    os.truncate(cache.path(name(1)), 100)
    with held(cache, 1, filler) as fd:
        assert os.pread(fd, SIZE, 0) == content(1)
    with held(cache, 1, filler) as fd:
        cache.remove(name(1), fd)
        with held(cache, 1, filler) as other:
            assert filler.filled == [1, 1, 1]
            cache.remove(name(1), fd)  # which is the damaged one, and has no name any more
            assert names(tmp_path) == shards(1)
            cache.remove(name(1), other)
            assert names(tmp_path) == []


def test_without_a_bound_nothing_is_looked_at_but_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at all shards takes 0.6 s where there are 100,000 of them, and everybody waits for it."""
    scans: list[Any] = []
    scandir = os.scandir

    def counted(folder: Any) -> Any:
        scans.append(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", counted)
    for size in (None, 5 * SIZE):
        with held(ShardCache(tmp_path, size), 1 if size is None else 2, Filler()):
            assert len(scans) == (size is not None)


def test_what_would_not_fit_beside_nothing_removes_nothing(tmp_path: Path) -> None:
    cache, filler = ShardCache(tmp_path), Filler()
    with held(cache, 1, filler):
        pass
    disk = os.statvfs(tmp_path)
    size = disk.f_blocks * disk.f_frsize * 2
    with pytest.raises(StorageError, match=f"no room for a shard of {size} bytes") as caught:
        cache.hold(name(2), size, filler(2))
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == shards(1) and filler.filled == [1]


def test_of_several_bounds_the_exceeded_one_is_kept_to(tmp_path: Path) -> None:
    less, more, filler = ShardCache(tmp_path, 2 * SIZE), ShardCache(tmp_path, 4 * SIZE), Filler()
    with held(less, 1, filler), held(less, 2, filler), held(less, 3, filler), held(more, 1, filler):
        assert names(tmp_path) == shards(1, 2, 3)  # which all are in use
    with held(more, 1, filler):
        assert used(tmp_path) <= 2 * SIZE
    for number in (4, 5):  # its own bound is another one, again
        with held(more, number, filler):
            pass
    assert len(names(tmp_path)) == 4


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_what_is_no_file_of_the_cache_is_refused_and_left(tmp_path: Path, kind: str) -> None:
    cache, filler = ShardCache(tmp_path / "cache", 2 * SIZE), Filler()
    target = tmp_path / "target"
    target.write_bytes(content(1))
    for place in (cache.path(name(1)), cache.folder / f".{name(2)}.tmp"):
        match kind:
            case "link":
                place.symlink_to(target)
            case "folder":
                place.mkdir()
            case "fifo":
                os.mkfifo(place)
    (cache.folder / "notes.txt").write_bytes(bytes(9 * SIZE))  # which do not count either
    for number in (1, 2):
        with pytest.raises(StorageError, match="not a file of this user's cache; it is left as it is"):
            cache.hold(name(number), SIZE, filler(number))
    before = names(cache.folder)
    for number in (3, 4, 5):
        with held(cache, number, filler):
            pass
    assert set(names(cache.folder)) == {*before, *shards(4, 5)} and target.read_bytes() == content(1)


@needs_root
def test_files_of_another_user_are_neither_read_nor_removed(tmp_path: Path) -> None:
    cache, filler = ShardCache(tmp_path, SIZE), Filler()
    cache.path(name(1)).write_bytes(content(1))
    os.chown(cache.path(name(1)), 12345, 12345)
    with pytest.raises(StorageError, match="not a file of this user's cache"):
        cache.hold(name(1), SIZE, filler(1))
    with held(cache, 2, filler):
        assert names(tmp_path) == shards(1, 2)
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(StorageError, match="belongs to another user"):
        ShardCache(tmp_path)


def test_folders_that_cannot_be_a_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cache_dir .*file is no folder"):
        ShardCache(tmp_path / "file")
    with pytest.raises(StorageError, match=r"cannot use cache_dir .*below: Not a directory"):
        ShardCache(tmp_path / "file" / "below")


@needs_root
def test_a_folder_that_cannot_be_written_to() -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "cache"
        folder.mkdir(0o555)
        os.chown(folder, 12345, 12345)
        Path(parent).chmod(0o755)

        def be_somebody() -> None:
            os.setuid(12345)
            with pytest.raises(StorageError, match=r"cache_dir .*cache cannot be written to; choose another"):
                ShardCache(folder)
            with pytest.raises(StorageError, match=r"cannot use cache_dir .*new: Permission denied"):
                ShardCache(Path(parent) / "new")

        process = fork.Process(target=be_somebody)
        process.start()
        process.join(30)
        assert process.exitcode == 0


@pytest.mark.parametrize(
    ("size", "found"), [(None, None), (5, 5), ("200GB", 200 * 10**9), ("1.5 GiB", 3 * 2**29), ("70", 70)]
)
def test_sizes(size: Any, found: int | None) -> None:
    assert checked_size(size) == found


@pytest.mark.parametrize(
    ("size", "error"), [(0, ValueError), ("much", ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_sizes_that_are_none(size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"cache_size|is no size"):
        checked_size(size)


FILL = """
import json, sys
from pathlib import Path
from mmds.errors import StorageError
from mmds.shardcache import ShardCache, let_go

def fill(draft):
    with open(draft, "r+b") as file:
        file.write(bytes([7]) * 5000)

cache = ShardCache(sys.argv[1], int(sys.argv[2]))
try:
    let_go(cache.hold("7" * 32, 5000, fill))
except StorageError as error:
    print(json.dumps([error.errno, str(error)]))
"""


@needs_strace
def test_a_full_disk(tmp_path: Path) -> None:
    """What is in nobody's hands makes room; where nothing is, the error says so, and nothing is left."""
    cache, filler = ShardCache(tmp_path, 100 * SIZE), Filler()
    with held(cache, 1, filler):
        pass
    result = inject("fallocate", "error=ENOSPC", 1, FILL, tmp_path, 100 * SIZE)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert names(tmp_path) == [f"{'7' * 32}.mmds"]
    cache.path("7" * 32).unlink()
    with held(cache, 1, filler):
        result = inject("fallocate", "error=ENOSPC", "1+", FILL, tmp_path, 100 * SIZE)
        assert result.returncode == 0, result.stderr
        code, message = json.loads(result.stdout)
        assert code == 28 and f"{tmp_path}: no room for a shard of 5000 bytes" in message and "cache_dir" in message
        assert names(tmp_path) == shards(1)


@needs_strace
@pytest.mark.parametrize("call", ["write", "fdatasync", "rename"])
def test_a_failing_disk(tmp_path: Path, call: str) -> None:
    result = inject(call, "error=EIO", 1, FILL, tmp_path, 100 * SIZE)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)[0] == 5 and names(tmp_path) == []


def check_kills(tmp_path: Path, calls: tuple[str, ...]) -> int:
    """Kill a filler at every one of its `calls`, and return how often that was."""
    kills = 0
    for call in calls:
        for turn in range(1, 100):
            folder = tmp_path / f"{call}-{turn}"
            filler = Filler()
            with held(ShardCache(folder, SIZE), 1, filler):  # of which there is no room for both
                pass
            result = inject(call, "signal=KILL", turn, FILL, folder, SIZE)
            whole = folder / f"{'7' * 32}.mmds"
            assert not whole.exists() or whole.read_bytes() == bytes([7]) * 5000
            with held(ShardCache(folder, SIZE), 2, filler) as fd:
                assert os.pread(fd, SIZE, 0) == content(2) and names(folder) == shards(2)
            if result.returncode == 0:
                break
            assert result.returncode in (-9, 137), result.stderr
            kills += 1
    return kills


@needs_strace
def test_kills_around_the_name(tmp_path: Path, cases: Cases) -> None:
    kills = check_kills(tmp_path, ("fdatasync", "rename"))
    assert kills >= 2
    cases(kills)


@needs_strace
@pytest.mark.stress
@pytest.mark.fault(26)
def test_26_a_filler_of_the_shard_cache_killed_at_every_call(tmp_path: Path, cases: Cases) -> None:
    kills = check_kills(tmp_path, ("flock", "fallocate", "ftruncate", "write", "fdatasync", "rename", "unlink"))
    assert kills >= 8
    cases(kills)


def test_a_lock_of_somebody_else_on_the_folder_does_not_matter(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with held(ShardCache(tmp_path, SIZE), 1, Filler()):
        assert names(tmp_path) == shards(1)
    os.close(fd)
