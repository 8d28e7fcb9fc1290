"""Mutation testing of the format: every operator, number and decorator of two modules changed in turn, and the tests run.

``make mutants`` prints each change that no test noticed, and fails if there are more than `ALLOWED` in a hundred. It works in a
copy of the project: cosmic-ray writes each mutant over the module. A mutant is killed by the specification's own example,
by the golden files, or else by the tests that `NAMES` lists. Constants of texts are not changed.

An argument chooses one module: ``python -m tests.faults.mutation mmds/parse.py``.
"""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = ("mmds/format.py", "mmds/parse.py")
NAMES = "golden format hostile_rules parse_branches hostile_index hostile_fields hostile_frames"
TESTS = [f"tests/test_{name}.py" for name in NAMES.split()]
ALLOWED = 5
SECONDS = 60  # of a processor, for tests that take a few: a mutant may loop for ever
MEMORY = 12 * 2**30  # of address space: or fill a list for ever
UNUSED = "core/ReplaceBinaryOperator_BitOr_.*"  # the only | are those of annotations, which nothing evaluates

QUICK = """if True:
    import doctest, glob, mmds, mmds.format
    assert not doctest.testmod(mmds.format).failed
    for path in glob.glob("tests/golden/*.mmds"):
        list(mmds.open(path))
"""
CONFIGURATION = """
[cosmic-ray]
module-path = {modules}
timeout = 3600
excluded-modules = []
test-command = "{python} -B -m tests.faults.mutation --test"
distributor.name = "local"
filters.operators-filter.exclude-operators = ["{unused}"]
"""
FOUND = """
    select m.module_path, m.start_pos_row, m.operator_name, r.diff from mutation_specs m join work_results r using (job_id)
    where r.test_outcome = 'SURVIVED' order by 1, 2, 3
"""


def test() -> int:
    """Run the tests on a mutant, those first that take least; return 0 if it survives."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for arguments in (["-c", QUICK], ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS]):
        # Without plug-ins, which take longer to import than most mutants live.
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": "."}
        if subprocess.run([sys.executable, "-B", *arguments], env=environment, check=False).returncode:
            return 1
    return 0


def copied(folder: Path) -> None:
    """Copy what the tests need into a folder."""
    for name in ("mmds", "converters", "tests"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)


def mutate(folder: Path, modules: tuple[str, ...]) -> sqlite3.Connection:
    """Go through all mutants of the modules in a copy of the project, and return what became of them."""
    configuration = CONFIGURATION.format(modules=list(modules), python=sys.executable, unused=UNUSED)
    (folder / "mutation.toml").write_text(configuration)
    tools = Path(sys.executable).parent
    for command in (
        ["cosmic-ray", "init", "mutation.toml", "mutation.sqlite"],
        ["cr-filter-operators", "mutation.sqlite", "mutation.toml"],
        ["cosmic-ray", "exec", "mutation.toml", "mutation.sqlite"],
    ):
        subprocess.run([tools / command[0], *command[1:]], cwd=folder, check=True)
    return sqlite3.connect(folder / "mutation.sqlite")


def main(modules: tuple[str, ...]) -> int:
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        copied(folder)
        unharmed = subprocess.run(
            [sys.executable, "-B", "-m", "tests.faults.mutation", "--test"], cwd=folder, check=False
        )
        if unharmed.returncode:
            print("the tests fail where nothing was changed")
            return 1
        found = mutate(folder, modules)
        outcomes = dict(
            found.execute("select test_outcome, count(*) from work_results where worker_outcome = 'NORMAL' group by 1")
        )
        total, survivors = sum(outcomes.values()), list(found.execute(FOUND))
    for module, line, operator, diff in survivors:
        print(f"\n{module}:{line} {operator.removeprefix('core/')}")
        print("\n".join(part for part in diff.splitlines() if part[:1] in "+-" and part[:3] not in ("+++", "---")))
    print(f"\n{total} mutants, {total - len(survivors)} killed ({100 - 100 * len(survivors) / total:.1f} %)")
    return int(100 * len(survivors) > ALLOWED * total)


if __name__ == "__main__":
    sys.exit(test() if sys.argv[1:] == ["--test"] else main(tuple(sys.argv[1:]) or MODULES))
