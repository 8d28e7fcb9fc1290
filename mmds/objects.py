"""Python objects, and datasets in stores, as sources of a pipeline: their samples one by one, for workers too.

An object with `__getitem__` and `__len__` is map-style: each worker has a copy of it, and asks it for samples. Anything else
that can be iterated over, and what holds its samples itself (lists, tuples, arrays), hands over its samples one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmds.converters import Ignored, Item
from mmds.errors import SourceError
from mmds.reader import Reader


class _Given:
    """What the sources here have in common; see `mmds.converters.Source`."""

    split = ""
    fields: Any = None
    metadata: Mapping[str, Any] = {}
    problems: Sequence[tuple[str, str]] = ()
    cpu_bound = True

    def __init__(self) -> None:
        self.ignored: dict[str, Ignored] = {}


class Iterated(_Given):
    """The samples of an iterable. Its length is that of the iterable (TypeError if it has none)."""

    def __init__(self, samples: Iterable[Any]) -> None:
        super().__init__()
        self._samples = samples
        self.load = _second

    def __len__(self) -> int:
        return len(self._samples)  # type: ignore[arg-type]

    def items(self) -> Iterator[Item]:
        """Yield (name, sample)."""
        return ((f"sample {number}", sample) for number, sample in enumerate(self._samples))


class Indexed(_Given):
    """The samples of a map-style dataset."""

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self._length = len(dataset)
        self.load: Callable[[Item], Any] = _Fetch(dataset)

    def __len__(self) -> int:
        return self._length

    def items(self) -> Iterator[Item]:
        """Yield (name, number)."""
        return ((f"sample {number}", number) for number in range(self._length))


class Stored(Indexed):
    """The samples of a dataset in a store, which each process opens by itself with `opens`, narrowed to `fields`."""

    def __init__(self, opens: Callable[[], Reader], fields: Any = None) -> None:
        opened = Opened(opens, fields)
        super().__init__(opened)
        self.fields, self.metadata = opened.reader.fields, opened.reader.metadata
        self.content_id = opened.reader.content_id


class Opened:
    """A reader that can be sent to another process, which opens it again."""

    def __init__(self, opens: Callable[[], Reader], fields: Any) -> None:
        self._opens, self._fields = opens, fields
        self._reader: Reader | None = None

    @property
    def reader(self) -> Reader:
        """The reader, opened once in each process."""
        if self._reader is None:
            reader = self._opens()
            self._reader = reader if self._fields is None else reader.select(self._fields)
        return self._reader

    def open(self) -> Reader:
        """Return the reader."""
        return self.reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Any:
        return self.reader[index]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}


class _Fetch:
    """The function from item to sample of a map-style dataset."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __call__(self, item: Item) -> Any:
        return self._dataset[item[1]]


def as_source(given: Any) -> Iterated | Indexed:
    """Return a Python object as a source, or raise `SourceError`."""
    if hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, (list, tuple, np.ndarray)):
        if isinstance(given, (Mapping, str, bytes)):
            raise SourceError(
                f"cannot convert a {type(given).__name__}; give a path, an iterable or a map-style dataset"
            )
        if not is_stream(given):
            try:
                return Indexed(given)
            except (TypeError, NotImplementedError):  # it has a __len__ that says that it has no length
                pass
    if isinstance(given, Iterable):
        return Iterated(given)
    raise SourceError(f"cannot convert a {type(given).__name__}; give a path, an iterable or a map-style dataset")


def is_stream(given: Any) -> bool:
    """Return whether this is an `IterableDataset`, of torch or of datasets: it has inherited a __getitem__ that only raises."""
    return any(each.__name__ == "IterableDataset" for each in type(given).__mro__)


def _second(item: Item) -> Any:
    return item[1]
