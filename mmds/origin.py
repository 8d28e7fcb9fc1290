"""What a conversion reads from: whatever was given, as a dataset in a store, or as sources whose samples come one by one."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmds.converters import FORMATS, Ignored, Item, Source, sources
from mmds.converters.stores import find_store
from mmds.errors import OptionError, printable
from mmds.manifest import NAME as MANIFEST
from mmds.objects import Indexed, Iterated, Stored, as_source, is_stream
from mmds.opening import matches
from mmds.opening import open as open_reader
from mmds.reader import Reader
from mmds.remote import is_url
from mmds.schema import Schema
from mmds.store import Store
from mmds.work import Select, own, renamed

AnySource = Source | Iterated | Indexed


def shown_as(source: Any) -> str:
    """Return what to call a source."""
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"<{type(source).__name__}>"


def narrow(source: AnySource, fields: Any, rename: Mapping[str, str] | None) -> tuple[Select | None, Schema | None]:
    """Return what narrows the samples of a source to `fields`, and the fields that they have then, if these are known."""
    stored = source.fields
    if stored is not None and not isinstance(stored, Schema):
        stored = Schema(stored)
    if isinstance(source, Stored) or (fields is None and not rename):
        return None, stored
    select = Select(fields, stored, tuple((rename or {}).items()))
    return select, None if stored is None else select.narrow(stored)[0]


def as_reader(
    source: Any, format: str | None, fields: Any, rename: Mapping[str, str] | None, options: Mapping[str, Any]
) -> Reader | None:
    """Return a reader of `source` if it is a dataset in a store; None if its samples have to be got one by one."""
    opens = opener_of(source, format)
    if opens is None:
        return None
    reader = opens()
    _refuse(options)
    wanted = renamed(fields, rename or {}, reader.fields)
    return reader if wanted is None else reader.select(wanted)


def as_sources(
    source: Any, format: str | None, fields: Any, rename: Mapping[str, str] | None, options: Mapping[str, Any]
) -> list[AnySource]:
    """Return sources whose samples come one by one."""
    opens = opener_of(source, format)
    if opens is None and isinstance(source, (str, os.PathLike)):
        return list(sources(source, format, **options))
    _refuse(options)
    return [as_source(source) if opens is None else Stored(opens, renamed(fields, rename or {}, opens().fields))]


def opener_of(source: Any, format: str | None) -> Callable[[], Reader] | None:
    """Return what opens `source`, in any process that has it, if it is a dataset in a store."""
    if isinstance(source, Reader):
        return partial(_itself, source)
    if isinstance(source, (str, os.PathLike)):
        if not _is_store(source, format):
            return None
        path = os.fspath(source)  # a worker may be in another folder
        return partial(open_reader, path if is_url(path) else os.path.abspath(path), format=format)  # noqa: PTH100 (patterns)
    is_hugging_face = type(source).__module__.partition(".")[0] == "datasets" and not is_stream(source)
    return partial(_open_hugging_face, source) if is_hugging_face else None


def _itself(reader: Reader) -> Reader:
    return reader


def _open_hugging_face(dataset: Any) -> Reader:
    store: Store = importlib.import_module("mmds.converters.huggingface").as_store(dataset)
    return Reader(store, range(store.n))


def _refuse(options: Mapping[str, Any]) -> None:
    if options:
        raise OptionError(f"this source has no option {printable(', '.join(options))}")


def _is_store(path: str | os.PathLike[str], format: str | None) -> bool:
    if is_url(path):  # of object storage, datasets are read, and nothing else
        return True
    if format is not None:
        return format not in FORMATS
    path = Path(path)
    if path.is_file():  # what nothing claims is taken for an .mmds file, whose errors say what it is not
        return find_store(path) is not None or not any(each.recognise(path) for each in FORMATS.values())
    return (path / MANIFEST).exists() or path.suffix == ".mmds" or find_store(path) is not None or bool(matches(path))


def items_of(source: AnySource, several: bool) -> Iterator[Item]:
    """Return the items of a source; `several` of them may be taken before the first is used."""
    items = source.items()
    if several and isinstance(source, Iterated):
        return ((name, own(sample)) for name, sample in items)  # they may be one array, filled again and again
    return items


def length_of(source: AnySource) -> int | None:
    """Return how many items a source has, None if it does not know."""
    try:
        return len(source)
    except (TypeError, NotImplementedError):
        return None


def left_out(reader: Reader) -> dict[str, Ignored]:
    """Return what of a foreign store is no field."""
    left_out: Mapping[str, str] = getattr(reader.store, "left_out", {})
    ignored: dict[str, Ignored] = {}
    for name, reason in left_out.items():
        ignored.setdefault(f"array that is no field ({reason})", Ignored()).add(name)
    return ignored


def all_ignored(found: Sequence[AnySource]) -> dict[str, Ignored]:
    """Return what the sources have ignored, added up."""
    total: dict[str, Ignored] = {}
    for source in found:
        for reason, ignored in source.ignored.items():
            total.setdefault(reason, Ignored()).merge(ignored)
    return total


def ignored_in_words(found: Sequence[AnySource]) -> str:
    """Return in words what was ignored, as the end of a message."""
    return "".join(
        f"; {reason}: {ignored.count}, such as {', '.join(printable(each) for each in ignored.examples)}"
        for reason, ignored in all_ignored(found).items()
    )
