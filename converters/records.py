"""A source whose items come from an index made beforehand: what most files of many samples need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmds.converters import Ignored, Item


@dataclass(frozen=True)
class Records:
    """See `mmds.converters.Source`. `begin` starts one pass over the items."""

    load: Callable[[Any], Any]
    fields: Any
    metadata: Mapping[str, Any]
    length: int
    begin: Callable[[], Iterator[Item]]
    problems: Sequence[tuple[str, str]] = ()
    ignored: Mapping[str, Ignored] = field(default_factory=dict)
    split: str = ""
    cpu_bound: bool = False

    def __len__(self) -> int:
        return self.length

    def items(self) -> Iterator[Item]:
        """Yield the items in the order of the output."""
        return self.begin()
