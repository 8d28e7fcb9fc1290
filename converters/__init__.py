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
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from mmds.converters.extensions import FILMS, SOUNDS, has_class_arrays, only_holds
from mmds.converters.inside import refuse_special
from mmds.converters.suffixes import is_shards
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
    look: Callable[[Path], bool]

    def recognise(self, path: Path) -> bool:
        """Return whether `path` looks like this format."""
        try:
            return self.look(path)
        except OSError:  # something in it may not be looked at: whoever reads the rest of it will say so
            return False

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


def _asks(module: str) -> Callable[[Path], bool]:
    """Return the function that asks the module's own `recognise`, which is imported only then."""
    return lambda path: bool(importlib.import_module(module).recognise(path))


def _ends_in(*suffixes: str) -> Callable[[Path], bool]:
    return lambda path: path.suffix.lower() in suffixes and path.is_file()


FORMATS = {
    "jsonl": Format("mmds.converters.jsonlines", "JSON lines", _ends_in(".jsonl", ".ndjson", ".json-lines")),
    "csv": Format("mmds.converters.csvfile", "CSV or TSV", _ends_in(".csv", ".tsv")),
    "audiofolder": Format("mmds.converters.audiofolder", "a folder of sounds", partial(only_holds, files=SOUNDS)),
    "videofolder": Format("mmds.converters.videofolder", "a folder of films", partial(only_holds, files=FILMS)),
    "npyfolder": Format("mmds.converters.npyfolder", "class folders of .npy files", has_class_arrays),
    "webdataset": Format("mmds.converters.webdataset", "WebDataset shards (.tar)", is_shards),
    "text": Format("mmds.converters.textfiles", "texts (.txt)", _asks("mmds.converters.textfiles")),
    "megatron": Format("mmds.converters.megatron", "Megatron-LM's .bin and .idx", _asks("mmds.converters.megatron")),
    "mds": Format("mmds.converters.mds", "MosaicML Streaming's MDS", _asks("mmds.converters.mds")),
    "tfrecord": Format("mmds.converters.tfrecord", "TFRecord files", _asks("mmds.converters.tfrecord")),
    "imagefolder": Format("mmds.converters.imagefolder", "a folder of pictures", Path.is_dir),
}


def sources(path: str | os.PathLike[str], format: str | None = None, **options: Any) -> list[Source]:
    """Return the sources that `path` gives, one per output file, read as `format` or as what it is recognised to be.

    Raises `SourceError` if it is nothing known, `FileNotFoundError`, and `OptionError` for an option that the format
    does not have.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise SourceError(f"no source format '{printable(format)}'; there are: {', '.join(FORMATS)}")
    refuse_special(path)
    found = [name for name in FORMATS if FORMATS[name].recognise(path)] if format is None else [format]
    if not found:
        known = ", ".join(f"{name} ({each.what})" for name, each in FORMATS.items())
        raise SourceError(f"{printable(path)}: not recognised as any source format; there are: {known}")
    chosen = FORMATS[found[0]]
    for name in options:
        if name not in chosen.options:
            raise OptionError(f"{found[0]} has no option '{printable(name)}'; there are: {', '.join(chosen.options)}")
    return chosen.open(path, **options)
