"""Every call of the system that a conversion into shards makes fails once, or is its last: it goes on to the same bytes."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mmds
from tests.test_resume import state

STRACE = shutil.which("strace")
CALLS = {
    "write": "write",
    "fsync": "fsync",
    "flock": "flock",
    "link": "?link,?linkat",
    "rename": "?rename,?renameat,?renameat2",
    "unlink": "?unlink,?unlinkat",
    "mkdir": "?mkdir,?mkdirat",
}
SCRIPT = """if True:
    import sys, mmds
    samples = [{"n": n, "data": bytes([n]) * (4000 + n)} for n in range(40)]
    try:
        mmds.convert(samples, sys.argv[1], shard_size=50_000, resume=True)
    except mmds.errors.StorageError as error:
        print(error.errno)
        sys.exit(3)
"""

pytestmark = pytest.mark.skipif(STRACE is None, reason="strace is not installed")


def run(path: Path, *inject: str) -> subprocess.CompletedProcess[str]:
    command = [*inject, sys.executable, "-B", "-c", SCRIPT, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def want(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("want")
    assert run(folder / "out.mmds").returncode == 0
    assert len(state(folder / "out.mmds")) == 5
    return state(folder / "out.mmds")


def fails_at(call: str, turn: int, how: str, folder: Path, want: dict[str, bytes]) -> bool:
    """Let one call fail, and return whether there was one. Afterwards it goes on, and nothing is left beside."""
    assert STRACE is not None
    path = folder / f"{call} {turn}.mmds"
    calls = CALLS[call]
    inject = f"inject={calls}:{how}:when={turn}"
    done = run(path, STRACE, "-qq", "-f", "-o", os.devnull, "-e", f"trace={calls}", "-e", inject)
    hit = done.returncode != 0
    if hit and how == "signal=KILL":
        assert done.returncode == -9
    elif hit:
        assert (done.returncode, done.stdout) == (3, f"{errno.ENOSPC}\n"), done.stderr
    if (path / "dataset.json").exists():
        assert len(mmds.open(path)) == 40  # what readers see is whole
    assert run(path).returncode == 0
    assert state(path) == want
    assert [each.name for each in folder.iterdir()] == [path.name]
    shutil.rmtree(path)
    return hit


QUICK = [("write", 2), ("fsync", 5), ("link", 1), ("rename", 3), ("unlink", 3), ("flock", 1), ("mkdir", 1)]


@pytest.mark.parametrize(("call", "turn"), QUICK)
def test_a_call_that_is_the_last(call: str, turn: int, tmp_path: Path, want: dict[str, bytes]) -> None:
    assert fails_at(call, turn, "signal=KILL", tmp_path, want)


@pytest.mark.parametrize(("call", "turn"), [each for each in QUICK if each[0] != "unlink"])
def test_a_call_that_fails(call: str, turn: int, tmp_path: Path, want: dict[str, bytes]) -> None:
    assert fails_at(call, turn, "error=ENOSPC", tmp_path, want)


@pytest.mark.stress
@pytest.mark.parametrize("how", ["signal=KILL", "error=ENOSPC"])
@pytest.mark.parametrize("call", CALLS)
def test_every_call(call: str, how: str, tmp_path: Path, want: dict[str, bytes]) -> None:
    turn = misses = hits = 0
    while misses < 8:  # that temporary names are not removed is no failure
        turn += 1
        hit = fails_at(call, turn, how, tmp_path, want)
        hits, misses = hits + hit, 0 if hit else misses + 1
    assert hits >= 1
