"""What happens to one sample on its way from a source to a writer: loaded, narrowed, filtered, mapped, mapped in batches.

`Work` pickles, so that any process can do it. What it gives for an item depends on that item alone (with `batch_map`, on the
items of its batch), so that the output does not depend on who does it, and it may be done again.
"""

from __future__ import annotations

import functools
import importlib
import json
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmds.converters import Item
from mmds.dtypes import is_tensor
from mmds.errors import OptionError, SchemaError, SourceError, printable
from mmds.schema import Schema

Outputs = Iterator[tuple[int, Any]]  # the number of an item, and a sample that it gives, or a `Failure`
Function = Callable[[Any], Any]


@dataclass(frozen=True)
class Failure:
    """In place of a sample: why there is none, and where in somebody's code that came up."""

    reason: str
    trace: str = ""
    item: int | None = None  # its number, where it is not the one that the output has: in a batch


@dataclass(frozen=True)
class Select:
    """Narrows a sample to some of its fields, in the structure that `wanted` is: a list of names, or names in places.

    >>> Select({"x": "image"})({"image": b"...", "label": 3})
    {'x': b'...'}
    """

    wanted: Any
    fields: Schema | None = None  # of the samples; None: inferred from each
    names: tuple[tuple[str, str], ...] = ()  # (old, new), for `renamed`

    def narrow(self, fields: Schema) -> tuple[Schema, list[int]]:
        """Return the schema of what is wanted of samples with these fields, and where its fields are in them."""
        return fields.select(renamed(self.wanted, dict(self.names), fields))

    @functools.cached_property
    def _known(self) -> tuple[Schema, list[int]]:
        assert self.fields is not None
        return self.narrow(self.fields)

    def __call__(self, sample: Any) -> Any:
        """Return the part of `sample` that is wanted."""
        if self.fields is None:
            fields = Schema.infer(sample)
            chosen, positions = self.narrow(fields)
        else:
            fields, (chosen, positions) = self.fields, self._known
        leaves = fields.leaves(sample)
        pick = [lambda _, leaf=leaves[position]: leaf for position in positions]
        return chosen.assembler(pick)(None)


def renamed(wanted: Any, names: Mapping[str, str], fields: Schema) -> Any:
    """Return a structure for `Schema.select` in which keys of the sample have new names; `names` are from old to new."""
    if not names:
        return wanted
    keys = fields.tree
    if not isinstance(keys, dict):
        raise SchemaError("rename= gives keys of samples other names, and these samples are no dicts")
    if wanted is not None:
        if not isinstance(wanted, list) or not all(name in keys for name in wanted):
            raise OptionError(
                "rename= goes with a list of keys as fields=; a structure such as {'new': 'old'} renames, too"
            )
        keys = [key for key in keys if key in wanted]
    unknown = [name for name in names if name not in keys]
    if unknown:
        raise OptionError(f"rename=: no field '{printable(unknown[0])}'; there are: {printable(', '.join(keys), 1000)}")
    found = {names.get(key, key): key for key in keys}
    if len(found) < len(list(keys)):
        raise OptionError(f"rename=: two fields would have the same name: {printable(dict(names))}")
    return found


@dataclass(frozen=True)
class Steps:
    """A user's functions of samples, in this order; true if there is any.

    `filter` says whether to keep a sample. `map` gives one, None to drop it, or many: a list or an iterator. `batch_map` gets
    lists of at most `batch_size` of what `batch_size` items gave together, and gives the same.
    """

    filter: Function | None = None
    map: Function | None = None
    batch_map: Callable[[list[Any]], Any] | None = None
    batch_size: int = 1

    def __bool__(self) -> bool:
        return self.filter is not None or self.map is not None or self.batch_map is not None

    @property
    def may_change_fields(self) -> bool:
        """Whether there is more than a filter."""
        return self.map is not None or self.batch_map is not None

    def to_json(self) -> dict[str, Any]:
        """Return what identifies the steps: the names of the functions."""
        functions = {"filter": self.filter, "map": self.map, "batch_map": self.batch_map}
        return {"batch_size": self.batch_size, **{step: _name(each) for step, each in functions.items()}}


def named(given: Any) -> Any:
    """Return what a text such as "module:name" stands for, or what is given itself; `OptionError` if there is none."""
    if not isinstance(given, str):
        return given
    module, _, name = given.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise OptionError(f"no '{printable(given)}' (expected module:name): {printable(error)}") from error
    return found


def function(given: Function | str | None) -> Function | None:
    """Return a function that may be given as "module:function"; `OptionError` if there is none of that name."""
    found: Function | None = named(given)
    if found is not None and not callable(found):
        raise OptionError(
            f"{printable(repr(given), 200)} is a {type(found).__name__}; expected a function or 'module:function'"
        )
    return found


def _name(given: Any) -> str | None:
    if given is None:
        return None
    if isinstance(given, functools.partial):  # its arguments are the options of the function
        arguments = json.dumps(
            [given.args, given.keywords], default=lambda value: type(value).__qualname__, sort_keys=True
        )
        return f"{_name(given.func)} {arguments}"
    kind = type(given)
    return f"{getattr(given, '__module__', kind.__module__)}:{getattr(given, '__qualname__', kind.__qualname__)}"


@dataclass(frozen=True)
class Work:
    """What is done to each item: `load` gives its sample, `select` narrows that, and the steps follow."""

    load: Function
    select: Function | None = None
    steps: Steps = Steps()

    @property
    def is_plain(self) -> bool:
        """Whether each item gives one sample, as it is loaded."""
        return self.select is None and not self.steps

    @property
    def batch_size(self) -> int:
        """Of how many items the output is decided together."""
        return 1 if self.steps.batch_map is None else self.steps.batch_size

    def run(
        self,
        first: int,
        items: Sequence[Item],
        begin: Callable[[int], None] = lambda number: None,
        lost: Mapping[int, str] | None = None,
    ) -> Outputs:
        """Yield what items `first`, `first + 1`, ... give, in order.

        With `batch_map`, `first` begins a batch, and what a batch gives has the number of its first item. `begin` is told
        which item (or batch) comes next; those in `lost` are not tried, but fail with the reason that is given there.
        """
        for start in range(0, len(items), self.batch_size):
            number = first + start
            batch = items[start : start + self.batch_size]
            begin(number)
            if lost and number in lost:
                for offset in range(len(batch)):
                    yield number, Failure(lost[number], item=number + offset)
            else:
                for value in self._sample(batch[0]) if self.steps.batch_map is None else self._batch(number, batch):
                    yield number, value

    def _sample(self, item: Item) -> Iterator[Any]:
        step = "loading"
        try:
            sample = self.load(item)
            step = "fields"
            if self.select is not None:
                sample = self.select(sample)
            if self.steps:  # which may change it in place, and the source must not notice
                sample = own(sample)
            step = "filter"
            if self.steps.filter is not None and not self.steps.filter(sample):
                return
            step = "map"
            if self.steps.map is None:
                yield sample
            else:
                yield from _many(self.steps.map(sample))
        except Exception as error:  # noqa: BLE001 (anybody's code: it costs this sample, not the others)
            yield _failure(step, error)

    def _batch(self, number: int, items: Sequence[Item]) -> Iterator[Any]:
        samples: list[Any] = []
        owners: list[int] = []  # the numbers of the items that gave them
        for offset, item in enumerate(items):
            for value in self._sample(item):
                if isinstance(value, Failure):
                    yield replace(value, item=number + offset)
                    continue
                samples.append(value if self.steps.map is None else own(value))  # a generator may fill one array again
                owners.append(number + offset)
                if len(samples) == self.batch_size:  # of one item, perhaps: a film has many frames
                    yield from self._mapped(samples, owners)
                    samples, owners = [], []
        if samples:
            yield from self._mapped(samples, owners)

    def _mapped(self, samples: list[Any], owners: list[int]) -> Iterator[Any]:
        assert self.steps.batch_map is not None
        try:
            yield from _many(self.steps.batch_map(samples))
        except Exception as error:  # noqa: BLE001 (as above)
            for owner in dict.fromkeys(owners):
                yield replace(_failure("batch_map", error), item=owner)


def _many(result: Any) -> Iterator[Any]:
    """Yield the samples that a function gave: one, none, or many."""
    if isinstance(result, (list, Iterator)):
        yield from (sample for sample in result if sample is not None)
    elif result is not None:
        yield result


def own(sample: Any) -> Any:
    """Return a sample whose arrays nobody else has: a copy of them, and of the structure that they are in."""
    if type(sample) is dict:
        return {key: own(value) for key, value in sample.items()}
    if type(sample) is tuple or type(sample) is list:
        return type(sample)(map(own, sample))
    if isinstance(sample, np.ndarray):
        return sample.copy("K")
    if isinstance(sample, (bytearray, memoryview)):
        return bytes(sample)
    return sample.clone() if is_tensor(sample) else sample


def _failure(step: str, error: Exception) -> Failure:
    if isinstance(error, SourceError):
        return Failure(str(error), "".join(error.__notes__) if hasattr(error, "__notes__") else "")
    lines = "".join(traceback.format_exception(error)).splitlines()
    trace = "\n".join(printable(line, 1000) for line in lines)
    return Failure(f"{step} failed: {type(error).__name__}: {printable(error, 1000)}", trace)


def nbytes(sample: Any) -> int:
    """Return about how many bytes `sample` holds."""
    if isinstance(sample, (dict, tuple, list)):
        return sum(map(nbytes, sample.values() if isinstance(sample, dict) else sample))
    size = getattr(sample, "nbytes", None)
    return size if isinstance(size, int) else len(sample) if isinstance(sample, (bytes, str)) else 8
