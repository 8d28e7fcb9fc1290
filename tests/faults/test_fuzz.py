"""Files mutated at random with every checksum made right again: read like they are, or refused, and nothing else."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mmds
from mmds.errors import MmdsError
from tests.conftest import Cases
from tests.corpus_files import FOLDER, comparable, seed_of, seeds
from tests.faults.exercise import exercise
from tests.faults.fuzz import decisions_of, run, run_in_processes
from tests.faults.mutator import mutated
from tests.make_golden import GOLDEN
from tests.resealing import golden

pytestmark = pytest.mark.fault(13)
EXAMPLES, QUICK, SWEEP, COVERAGE_GUIDED = 500, 2000, 1_000_000, 20_000


def search() -> None:
    """Let hypothesis look for decisions that make a file which shows a defect, and make them small."""

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.binary(max_size=64))
    def read(decisions: bytes) -> None:
        exercise(mutated(decisions)[1])

    read()


def test_13_mutations_that_hypothesis_finds(cases: Cases) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:  # a signal breaks the pool
        pool.submit(search).result()
    cases(EXAMPLES)


def test_13_mutations_by_number(cases: Cases) -> None:
    report = run_in_processes(QUICK, 0, 1)
    assert not report.faults, "\n".join(report.faults)
    assert report.cases == QUICK
    assert report.read > QUICK // 20 and report.refused > QUICK // 2
    cases(QUICK)


@pytest.mark.stress
def test_13_a_million_mutations(cases: Cases) -> None:
    report = run_in_processes(SWEEP, 10**6, len(os.sched_getaffinity(0)))
    assert not report.faults, "\n".join(report.faults)
    assert report.cases == SWEEP
    cases(SWEEP)


@pytest.mark.stress
@pytest.mark.skipif(find_spec("atheris") is None, reason='atheris is not installed (pip install "mmds[fuzz]")')
def test_13_mutations_that_reach_new_lines(tmp_path: Path, cases: Cases) -> None:
    command = [sys.executable, "-m", "tests.faults.fuzz_coverage", f"-runs={COVERAGE_GUIDED}", "-seed=1", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {COVERAGE_GUIDED} runs" in done.stderr
    cases(COVERAGE_GUIDED)


def test_13_the_corpus(cases: Cases) -> None:
    count = 0
    for count, seed in enumerate(seeds(), start=1):  # noqa: B007 (the last one is wanted)
        outcome = exercise(seed.content, thorough=True)
        assert comparable(outcome) == comparable(seed.outcome), seed.name
    assert count >= 350
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_500_000
    cases(count)


def repair_seeds(folder: Path, step: int) -> int:
    """Repair every `step`-th file of the corpus; return how many there were, and check what comes of each."""
    source, target = folder / "a.mmds", folder / "b.mmds"
    some = list(seeds())[::step]
    for seed in some:
        source.write_bytes(seed.content)
        with contextlib.suppress(MmdsError):
            mmds.repair(source, target)
            # Values that break a rule, in blocks that are as they were written, are copied as they are.
            assert all(damage.samples for damage in mmds.verify(target, num_workers=1).damages), seed.name
        left = {path.name for path in folder.iterdir()}
        assert left <= {"a.mmds", *(("b.mmds", "b.mmds.lost.jsonl") if target.exists() else ())}, (seed.name, left)
        for name in left:
            (folder / name).unlink()
    return len(some)


def test_13_repairing_some_of_the_corpus(tmp_path: Path, cases: Cases) -> None:
    cases(repair_seeds(tmp_path, 16))


@pytest.mark.stress
def test_13_repairing_the_corpus(tmp_path: Path, cases: Cases) -> None:
    cases(repair_seeds(tmp_path, 1))


def test_the_same_decisions_make_the_same_file_and_no_decisions_the_golden_one() -> None:
    files = {decisions: mutated(decisions) for decisions in map(decisions_of, range(300))}
    assert len({data for _, data in files.values()}) > 250
    assert all(mutated(decisions) == made for decisions, made in files.items())


def test_a_seed_of_the_corpus_is_the_file_that_it_was_made_of() -> None:
    for number in range(50):
        name, data = mutated(decisions_of(number))
        seed = seed_of(name, data, "read")
        assert seed.content == data
        assert sum(len(part) for part in seed.parts if isinstance(part, str)) < len(data)


def test_a_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmds.datafile.parse", lambda view: 1 // 0)
    report = run(range(3))
    assert report.cases == len(report.faults) == 3 and "ZeroDivisionError" in report.faults[0]


def test_every_golden_file_reads_like_the_independent_reader_says() -> None:
    for name in GOLDEN:
        assert exercise(golden(name), thorough=True) == "read"
