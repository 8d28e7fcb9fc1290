"""Run every test of a fault, and write what it has shown into docs/reliability.md: ``python -m tests.faults [--stress]``.

Each row of the table there gets the tests that show it, how many of them passed, how many cases they went through, and why
any was skipped. Exit code 1 if one failed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/reliability.md"
BEGIN, END = "<!-- counts: written by `python -m tests.faults` -->\n", "<!-- end of counts -->\n"


class Counts:
    """A plugin of pytest that counts what the tests of each row have shown."""

    def __init__(self) -> None:
        self.passed: dict[int, Counter[str]] = defaultdict(Counter)  # row -> file -> tests
        self.cases: Counter[int] = Counter()
        self.skipped: dict[int, set[str]] = defaultdict(set)
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one test."""
        rows = [int(str(value)) for name, value in report.user_properties if name == "fault"]
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.skipped and isinstance(report.longrepr, tuple):
            for row in rows:
                self.skipped[row].add(str(report.longrepr[2]).removeprefix("Skipped: "))
        elif report.when == "call":
            counts = [int(str(value)) for name, value in report.user_properties if name == "cases"]
            for row in rows:
                self.passed[row][report.nodeid.partition("::")[0]] += 1
                self.cases[row] += sum(counts) if counts else 1

    def table(self, faults: dict[int, str]) -> str:
        """Return the lines of the table in Markdown."""
        lines = ["| # | fault | shown by | tests | cases |", "|---|---|---|---:|---:|"]
        for row, fault in faults.items():
            files = ", ".join(f"`{file.removeprefix('tests/')}`" for file in sorted(self.passed[row])) or "—"
            why = "".join(f"; skipped: {reason}" for reason in sorted(self.skipped[row]))
            lines.append(f"| {row} | {fault} | {files}{why} | {self.passed[row].total():,} | {self.cases[row]:,} |")
        lines.append("")
        return "\n".join(lines)


def faults(page: str) -> dict[int, str]:
    """Return the faults that the page promises something about, by row."""
    return {int(row): fault for row, fault in re.findall(r"^\*\*(\d+)\. (.+?)\*\*", page, re.MULTILINE)}


def main() -> None:
    """Run the tests and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--stress", action="store_true", help="the long sweeps as well: hours")
    given, more = parser.parse_known_args()
    page = PAGE.read_text()
    counts = Counts()
    marks = "fault" if given.stress else "fault and not stress"
    code = pytest.main(["-q", "-m", marks, "tests", *more], plugins=[counts])
    table = counts.table(faults(page))
    if code or counts.failed:
        sys.stdout.write(table)
        sys.exit(int(code))
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + table + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
