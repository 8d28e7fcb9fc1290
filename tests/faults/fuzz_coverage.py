"""Mutated files, of which those that reach new lines of mmds are mutated further: atheris, which is libFuzzer for Python.

``python -m tests.faults.fuzz_coverage -runs=100000 FOLDER`` keeps their decisions in FOLDER. All options are libFuzzer's.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Hand over to libFuzzer, which does not come back."""
    import atheris  # only here: importing this module must not instrument anything

    with atheris.instrument_imports(include=["mmds"]):
        from tests.faults.exercise import exercise
        from tests.faults.mutator import mutated

    def case(decisions: bytes) -> None:
        exercise(mutated(decisions)[1])

    atheris.Setup([*sys.argv, "-max_len=96", "-len_control=0", "-timeout=10", "-rss_limit_mb=2048"], case)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
