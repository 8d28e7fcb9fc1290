"""Damaged datasets of every format that mmds reads but does not vouch for: an error of mmds, or what is left of the samples.

The processes that read them have 512 MiB more than for a whole dataset, and 20 seconds for each case. A library that reads a
format without checks of its own can end the process, or never come back; these are named in `Subject.unchecked`, counted apart
and written down in docs/security.md. Nothing but an error of mmds may come out of them either.
"""

from __future__ import annotations

import pytest

from mmds.converters import FORMATS
from mmds.converters.stores import STORES
from tests.conftest import Cases as Count
from tests.faults import foreign
from tests.faults.foreign_process import Cases, Finding, Result, lengths, sweep

QUICK = 12  # cases of each subject
LONG = 2500
STEPS = {"hdf5": 2311, "zarr": 2311, "tiledb": 2311, "lmdb": 97, "lmdb from elsewhere": 97}  # of what is mostly padding


def faults_of(result: Result) -> list[Finding]:
    """Return what is not the fault of a library that is known to read without checks."""
    return [each for each in result.findings if not (each.ended and foreign.SUBJECTS[each.subject].unchecked)]


def test_every_store_and_every_source_format_is_damaged() -> None:
    stores = {store.name for store in STORES}
    tried = {name.split()[0] for name, subject in foreign.SUBJECTS.items() if subject.source is None}
    assert stores <= tried | {"npy"}
    assert {subject.source for subject in foreign.SUBJECTS.values()} - {None} == set(FORMATS)


@pytest.mark.fault(30, 31)
def test_31_damaged_foreign_files_are_refused_or_read_as_far_as_they_go(cases: Count) -> None:
    checked = [name for name, subject in foreign.SUBJECTS.items() if not subject.unchecked]
    result = sweep([Cases(name, "damaged", range(QUICK)) for name in checked])
    assert faults_of(result) == []
    assert result.cases == QUICK * len(checked) and result.refused > result.cases // 3
    cases(result.cases)


@pytest.mark.stress
@pytest.mark.fault(30, 31)
@pytest.mark.parametrize("name", foreign.SUBJECTS)
def test_31_many_damaged_foreign_files(name: str, cases: Count, capsys: pytest.CaptureFixture[str]) -> None:
    result = sweep([Cases(name, "damaged", range(LONG))])
    assert faults_of(result) == []
    assert result.cases == LONG and result.refused > LONG // 10
    report(name, result, capsys)
    cases(result.cases)


@pytest.mark.stress
@pytest.mark.fault(30, 31)
@pytest.mark.parametrize("name", foreign.SUBJECTS)
def test_31_foreign_files_that_end_early(name: str, cases: Count, capsys: pytest.CaptureFixture[str]) -> None:
    plan = lengths(name, STEPS.get(name, 7))
    result = sweep([plan])
    assert faults_of(result) == []
    assert result.cases == len(plan.numbers)
    report(name, result, capsys)
    cases(result.cases)


def report(name: str, result: Result, capsys: pytest.CaptureFixture[str]) -> None:
    """Print what a library did to the process."""
    with capsys.disabled():
        for (_, what), count in result.kinds().items():
            print(f"\n{name}: {what} in {count} of {result.cases} cases, by {foreign.SUBJECTS[name].unchecked}")
