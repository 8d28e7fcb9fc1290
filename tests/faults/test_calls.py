"""Every system call of everything that writes: killed, interrupted, failing once and for ever, and writing less than asked.

What readers see is the old dataset or the new one, whole; an exception is mmds' own and has the number of the fault;
nothing temporary is left, or, after a kill, the next writer removes it; who goes on ends with the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cases
from tests.faults.machine import needs_strace
from tests.faults.sweep import NOT_ALLOWED
from tests.faults.writers import WRITERS

ROOT = Path(__file__).parents[2]
SOME = ("a file", "shards", "a folder of arrays", "a cache on a disk")


def run(module: str, *arguments: object, **environment: str) -> dict[str, Any]:
    """Run a sweep in a process of its own, and return what it counted."""
    done = subprocess.run(
        [sys.executable, "-B", "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment},
    )
    if done.returncode == NOT_ALLOWED:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    counted: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return counted


@needs_strace
@pytest.mark.fault(1, 2, 4, 8)
@pytest.mark.parametrize("name", WRITERS)
def test_01_02_04_08_some_calls_killed_interrupted_and_failing(name: str, cases: Cases) -> None:
    found = run("tests.faults.sweep", name, 1)
    assert len(found["calls"]) >= 7
    cases(sum(found["cases"].values()))


@needs_strace
@pytest.mark.stress
@pytest.mark.fault(1, 2, 4, 8)
@pytest.mark.parametrize("name", WRITERS)
def test_01_02_04_08_every_call_killed_interrupted_and_failing(name: str, cases: Cases) -> None:
    found = run("tests.faults.sweep", name)
    counts = found["cases"]
    assert min(counts[fault] for fault in counts if fault != "none") >= sum(found["calls"].values()) - 8
    cases(sum(counts.values()))


@pytest.mark.fault(3)
@pytest.mark.parametrize("name", SOME)
def test_03_files_that_may_not_grow(name: str, cases: Cases) -> None:
    """RLIMIT_FSIZE: the write that reaches the limit is short, and the next one fails."""
    found = run("tests.faults.short", name, "limits", 12)
    assert found["failed"] > 0 or "cache" in name
    cases(found["cases"])


@pytest.mark.stress
@pytest.mark.fault(3)
@pytest.mark.parametrize("name", WRITERS)
def test_03_files_that_may_not_grow_beyond_any_write(name: str, cases: Cases) -> None:
    cases(run("tests.faults.short", name, "limits", 10_000)["cases"])


@pytest.fixture(scope="session")
def half_writes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes calls of `write` and `pwrite` write half of what they are asked for."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed (apt-get install gcc)")
    library = tmp_path_factory.mktemp("half") / "half.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library)]
    subprocess.run([*command, str(Path(__file__).parent / "half.c")], check=True)
    return library


@pytest.mark.fault(3)
@pytest.mark.parametrize("name", SOME)
def test_03_short_writes_are_completed(name: str, half_writes: Path, cases: Cases) -> None:
    found = run("tests.faults.short", name, "halves", 3, LD_PRELOAD=str(half_writes))
    assert found["short"] >= 2
    cases(found["cases"])


@pytest.mark.stress
@pytest.mark.fault(3)
@pytest.mark.parametrize("name", WRITERS)
def test_03_every_short_write_is_completed(name: str, half_writes: Path, cases: Cases) -> None:
    cases(run("tests.faults.short", name, "halves", 10_000, LD_PRELOAD=str(half_writes))["cases"])
