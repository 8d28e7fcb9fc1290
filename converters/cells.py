"""Which kind of field holds a column of numbers, bools, texts and more, of which many values were seen.

Nothing is lost: integers become float64 only where that holds each of them, and what has no common kind gets the one that
the caller falls back on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mmds
from mmds.dtypes import NATIVE
from mmds.errors import SchemaError, printable
from mmds.fields import Kind

EXACT = 2**53  # up to here float64 holds every integer
NAMED: dict[str, Kind] = {"text": mmds.Text(), "json": mmds.Json()}


@dataclass
class Column:
    """What was seen of one column: the types of its values, the range of its integers, how many rows had a value."""

    types: set[type] = field(default_factory=set)
    lowest: int = 0
    highest: int = 0
    values: int = 0

    def add(self, value: Any) -> None:
        """Take note of a value that is not None."""
        self.values += 1
        kind = type(value)
        self.types.add(kind)
        if kind is int:
            if value < self.lowest:
                self.lowest = value
            elif value > self.highest:
                self.highest = value

    def dtype(self) -> str | None:
        """Return the dtype that holds every value seen, or None if there is none."""
        if self.types == {bool}:
            return "bool"
        if self.types == {int}:
            if self.lowest >= -(2**63) and self.highest < 2**63:
                return "int64"
            return "uint64" if self.lowest >= 0 and self.highest < 2**64 else None
        if self.types == {float} or (self.types == {float, int} and max(-self.lowest, self.highest) <= EXACT):
            return "float64"
        return None


def chosen_kinds(types: Any, allowed: tuple[str, ...]) -> dict[str, str]:
    """Return the option `types`, checked: which kind the columns have that a person names; ValueError otherwise."""
    if types is None:
        return {}
    known = (*(name for name in NATIVE if not name.startswith("complex")), *allowed)
    if not isinstance(types, Mapping):
        raise ValueError(f'types={types!r}: expected names of columns with their types, such as {{"a": "int64"}}')
    for name, kind in types.items():
        if kind not in known:
            raise ValueError(f"types: '{printable(name)}' is {kind!r}; expected one of {', '.join(known)}")
    return dict(types)


def kind_named(name: str, *, nullable: bool) -> Kind:
    """Return the kind that an option names: a dtype, "text" or "json"."""
    if name in NAMED:
        return type(NAMED[name])(nullable=nullable)
    return mmds.Scalar(name, nullable=nullable)


def refuse_unknown(types: Mapping[str, str], names: Any) -> None:
    """Raise `SchemaError` for a column in `types` that there is not."""
    for name in types:
        if name not in names:
            raise SchemaError(f"types: no column '{printable(name)}'; there are: {printable(', '.join(names), 500)}")
