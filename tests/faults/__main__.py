"""Run the tests of faults, and write what they have shown into docs/reliability.md.

    python -m tests.faults [--sweeps] [files and options of pytest]
    python -m tests.faults --sweeps --junit FILE      # of an earlier run: pytest -o junit_family=xunit1 --junitxml=FILE

Each row of the table there gets the files whose tests show it, how many of them passed, and how many cases they went through:
in `make test`, and in the long sweeps of `make stress`, which take hours all together and may be run file by file. The counts
are kept in counts.json beside this file; a run replaces those of the rows and files that it ran. If a test fails, nothing is
written.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

PAGE = Path(__file__).parents[2] / "docs/reliability.md"
COUNTS = Path(__file__).with_name("counts.json")
BEGIN, END = "<!-- counts: written by `python -m tests.faults` -->\n", "<!-- end of counts -->\n"

Counts = dict[str, dict[str, list[int]]]  # file -> row -> tests, cases


class Counting:
    """A plugin of pytest that counts what the tests of each row have shown."""

    def __init__(self) -> None:
        self.counts: Counts = defaultdict(lambda: defaultdict(lambda: [0, 0]))
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one test."""
        self.failed |= report.failed
        if report.when == "call" and report.passed:
            self.add(report.nodeid.partition("::")[0], [(name, str(value)) for name, value in report.user_properties])

    def add(self, file: str, properties: list[tuple[str, str]]) -> None:
        """Count a test that passed, by what it has noted."""
        cases = [int(value) for name, value in properties if name == "cases"]
        for row in [value for name, value in properties if name == "fault"]:
            found = self.counts[file][row]
            found[0] += 1
            found[1] += sum(cases) if cases else 1

    def read(self, junit: Path) -> None:
        """Count the tests that passed in an earlier run."""
        for test in ElementTree.parse(junit).getroot().iter("testcase"):
            if all(test.find(each) is None for each in ("failure", "error", "skipped")):
                noted = [(each.get("name", ""), each.get("value", "")) for each in test.iter("property")]
                self.add(str(test.get("classname")).replace(".", "/") + ".py", noted)


def table(faults: dict[str, str], counts: dict[str, Counts]) -> str:
    """Return the lines of the table in Markdown."""
    lines = ["| # | fault | shown by | tests | cases | sweeps | cases |", "|---|---|---|---:|---:|---:|---:|"]
    for row, fault in faults.items():
        files = sorted({file for found in counts.values() for file, rows in found.items() if row in rows})
        cells = [row, fault, ", ".join(f"`{file.removeprefix('tests/')}`" for file in files) or "nothing"]
        for kind in ("quick", "sweeps"):
            shown = [rows[row] for rows in counts[kind].values() if row in rows]
            cells += [f"{sum(each[k] for each in shown):,}" if shown else "" for k in range(2)]
        lines.append(f"| {' | '.join(cells)} |")
    totals = [sum(each[1] for rows in counts[kind].values() for each in rows.values()) for kind in ("quick", "sweeps")]
    return "\n".join([*lines, "", f"Cases: {totals[0]:,} in `make test`, {totals[1]:,} in the sweeps.", ""])


def faults_of(page: str) -> dict[str, str]:
    """Return the faults that the page promises something about, by row."""
    return dict(re.findall(r"^\*\*(\d+)\. (.+?)\*\*", page, re.MULTILINE))


def main() -> None:
    """Run the tests and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--sweeps", action="store_true", help="run the long sweeps instead of the tests of `make test`")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="run nothing; count what passed in an earlier run")
    given, more = parser.parse_known_args()
    counts: dict[str, Counts] = json.loads(COUNTS.read_text()) if COUNTS.exists() else {"quick": {}, "sweeps": {}}
    counting = Counting()
    if given.junit:
        counting.read(given.junit)
    else:
        marks = f"fault and {'' if given.sweeps else 'not '}stress"
        paths = more if any(not each.startswith("-") and Path(each).exists() for each in more) else ["tests", *more]
        code = pytest.main(["-q", "-m", marks, *paths], plugins=[counting])
        if code or counting.failed:
            sys.exit(int(code) or 1)
    kind = counts["sweeps" if given.sweeps else "quick"]
    for file, rows in counting.counts.items():
        kind[file] = {**kind.get(file, {}), **rows}
    COUNTS.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n")
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + table(faults_of(page), counts) + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
