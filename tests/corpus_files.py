"""The regression corpus in ``tests/corpus``: files that are, or once were, hard to refuse or to read, and what comes of each.

Each is a JSON object in a file of its own, whose name says which golden file it was made from and what comes of it:

    golden    the file that it was made from
    outcome   "read", or what it is refused with
    parts     what it consists of, front to back: [start, stop] of the golden file, or bytes in hex, "1fff" for two of them

So a seed takes a few hundred bytes, and stays the same file whatever becomes of the mutator.
``python -m tests.corpus_files`` replays them and says which outcomes have changed; ``--rewrite`` writes those down.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.resealing import golden

FOLDER = Path(__file__).parent / "corpus"
GRAIN = 12  # bytes that have to be the same for a reference to the golden file, which takes as much

Part = list[int] | str


class Seed(NamedTuple):
    """A file of the corpus."""

    golden: str
    outcome: str
    parts: list[Part]

    @property
    def content(self) -> bytes:
        """The bytes of the file."""
        base = golden(self.golden)
        return b"".join(
            bytes.fromhex(part) if isinstance(part, str) else base[part[0] : part[1]] for part in self.parts
        )

    @property
    def name(self) -> str:
        """The name of its JSON file."""
        words = re.sub(r"[^a-z]+", "-", self.outcome.removeprefix("file: ").lower()).strip("-")[:48].rstrip("-")
        return f"{self.golden}.{words}.{hashlib.sha256(self.content).hexdigest()[:8]}.json"

    def write(self) -> None:
        """Add it to the corpus."""
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / self.name).write_text(json.dumps(self._asdict(), ensure_ascii=True) + "\n")


def comparable(outcome: str) -> str:
    """Return an outcome without the words of Python, libzstd and msgspec, which differ from version to version.

    >>> comparable("file: footer: Expecting value: line 1 column 1 (char 0)")
    'file: footer: JSON'
    >>> comparable("file: sample 1, field 'x': a damaged zstd frame (Data corruption detected); run mmds verify")
    "file: sample 1, field 'x': a damaged zstd frame"
    """
    outcome = re.sub(r"footer: .* line \d+ column .*", "footer: JSON", outcome, flags=re.DOTALL)
    return re.split(r" \(|: 'utf-8'|: not JSON|: '?[Oo]ut of range", outcome)[0]


def seeds() -> Iterator[Seed]:
    """Yield all that there are, by name."""
    for path in sorted(FOLDER.glob("*.json")):
        yield Seed(**json.loads(path.read_text()))


def seed_of(name: str, content: bytes, outcome: str) -> Seed:
    """Return the seed of a file that was made from the golden file `name`."""
    base, literal, at = golden(name), bytearray(), 0
    parts: list[Part] = []
    places: dict[bytes, int] = {}
    for start in range(len(base) - GRAIN, -1, -1):
        places[base[start : start + GRAIN]] = start
    while at < len(content):
        start = at if content[at : at + GRAIN] == base[at : at + GRAIN] else places.get(content[at : at + GRAIN], -1)
        if start < 0 or at + GRAIN > len(content):
            literal.append(content[at])
            at += 1
            continue
        size = GRAIN
        while at + size < len(content) and start + size < len(base) and content[at + size] == base[start + size]:
            size += 1
        parts += [literal.hex()] if literal else []
        parts.append([start, start + size])
        literal.clear()
        at += size
    seed = Seed(name, outcome, parts + ([literal.hex()] if literal else []))
    assert seed.content == content
    return seed


def main() -> int:
    """Replay all seeds, and print (or write down) the outcomes that are no longer what they were."""
    from tests.faults.exercise import exercise

    changed = 0
    for seed in seeds():
        outcome = exercise(seed.content, thorough=True)
        if comparable(outcome) != comparable(seed.outcome):
            changed += 1
            print(f"{seed.name}\n  was {seed.outcome}\n  is  {outcome}")
            if "--rewrite" in sys.argv:
                (FOLDER / seed.name).unlink()
                seed._replace(outcome=outcome).write()
    print(f"{changed} outcomes have changed")
    return changed > 0


if __name__ == "__main__":
    sys.exit(main())
