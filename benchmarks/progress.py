"""Progress of long measurements: a line on a terminal, nothing in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator
from typing import TypeVar

T = TypeVar("T")

INTERVAL = 0.2  # seconds between updates: readable, and too rare to disturb what is measured


def say(text: str) -> None:
    """Show what is going on in place of what was shown before; an empty text clears it."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def progress(items: Collection[T], what: str) -> Iterator[T]:
    """Iterate over `items` and show how many of them are done."""
    shown = 0.0
    for number, item in enumerate(items):
        if time.monotonic() - shown > INTERVAL:
            shown = time.monotonic()
            say(f"{what}: {number} of {len(items)}")
        yield item
    say("")
