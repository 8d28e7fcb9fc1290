"""What mmds converts from: one module per source or store, found by name or recognised by a look at the path.

To add one, write a module with a function ``sources(path, *, option=..., ...)`` that returns a list of `Source`, and
add a line to `FORMATS`. Its keyword-only arguments are its options, for `mmds.convert` and for the command line.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mmds.errors import OptionError, SourceError, printable

Item = tuple[Any, ...]  # its first element is the name that people see; it must pickle, and cheaply


@dataclass
class Ignored:
    """How much was left out for one reason, with the first few names (untrusted: print them with `printable`)."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count `name`, and keep it if it is one of the first five."""
        self.count += 1
        if self.count <= 5:
            self.examples.append(name)

    def merge(self, other: Ignored) -> None:
        """Add what `other` has counted."""
        self.count += other.count
        self.examples = (self.examples + other.examples)[:5]


class Source(Protocol):
    """Samples to convert, as a list of cheap items and a function that turns one of them into a sample."""

    @property
    def split(self) -> str:
        """What to add to the output's name; empty where a path gives a single source."""

    @property
    def fields(self) -> Any:
        """The structure of a sample with kinds for leaves."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What to write to the output. The same source must give the same metadata, anywhere and at any time."""

    @property
    def problems(self) -> Sequence[tuple[str, str]]:
        """What was found that cannot be used before any item was loaded: (name, reason)."""

    @property
    def ignored(self) -> Mapping[str, Ignored]:
        """What is not part of the dataset, by reason, so that nothing is left out silently."""

    @property
    def cpu_bound(self) -> bool:
        """Whether loading computes (then processes do it) rather than reads (then threads do)."""

    @property
    def load(self) -> Callable[[Any], Any]:
        """The function from item to sample. It must pickle; it raises `SourceError` with the reason, without the name."""

    def __len__(self) -> int: ...

    def items(self) -> Iterator[Item]:
        """Yield the items in the order of the output."""


@dataclass(frozen=True)
class Format:
    """A line of the table of formats: the module that reads it, and how to tell it from the others."""

    module: str
    what: str
    recognise: Callable[[Path], bool]

    @property
    def open(self) -> Callable[..., list[Source]]:
        """The module's function `sources`."""
        function: Callable[..., list[Source]] = importlib.import_module(self.module).sources
        return function

    @property
    def options(self) -> tuple[str, ...]:
        """The names of its options."""
        parameters = inspect.signature(self.open).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


FORMATS = {"imagefolder": Format("mmds.converters.imagefolder", "a folder of pictures", Path.is_dir)}


def sources(path: str | os.PathLike[str], format: str | None = None, **options: Any) -> list[Source]:
    """Return the sources that `path` gives, one per output file, read as `format` or as what it is recognised to be.

    Raises `SourceError` if it is nothing known, `FileNotFoundError`, and `OptionError` for an option that the format
    does not have.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise SourceError(f"no source format '{printable(format)}'; there are: {', '.join(FORMATS)}")
    path.stat()
    found = [name for name in FORMATS if FORMATS[name].recognise(path)] if format is None else [format]
    if not found:
        known = ", ".join(f"{name} ({each.what})" for name, each in FORMATS.items())
        raise SourceError(f"{printable(path)}: not recognised as any source format; there are: {known}")
    chosen = FORMATS[found[0]]
    for name in options:
        if name not in chosen.options:
            raise OptionError(f"{found[0]} has no option '{printable(name)}'; there are: {', '.join(chosen.options)}")
    return chosen.open(path, **options)
