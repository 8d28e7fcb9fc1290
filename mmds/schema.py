"""The schema: which fields a sample has, and how a nested sample maps to a flat list of leaves and back.

A sample is a single value or a nest of dicts (str keys) and tuples. Its leaves, in depth-first order, are its fields.
A field's path is the list of keys that leads to it: strings for dicts, integers for tuples, empty for a single value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mmds import canonical
from mmds.dtypes import STORED
from mmds.errors import SchemaError, printable
from mmds.fields import KINDS, Fixed, Kind, Misfit, describe
from mmds.infer import infer

MAX_FIELDS = 4096
MAX_PATH = 16  # levels of nesting
JSON_TYPES: dict[str, tuple[type, ...]] = {
    "path": (list,),
    "kind": (str,),
    "nullable": (bool,),
    "dtype": (str,),
    "shape": (list,),
    "align": (int,),
    "column": (bool,),
    "key": (bool,),
    "compression": (str,),
    "names": (list,),
    "mode": (str, type(None)),
}
Path = tuple[str | int, ...]


def path_name(path: Path) -> str:
    """Return the name of the field at `path`: its keys joined by dots, or "value" for a single value.

    >>> path_name(("target", "boxes")), path_name((0,)), path_name(())
    ('target.boxes', '0', 'value')
    """
    return ".".join(map(str, path)) or "value"


@dataclass(frozen=True)
class Field:
    """One leaf of a sample: where it is (`path`) and what it is (`kind`)."""

    path: Path
    kind: Kind

    @property
    def name(self) -> str:
        """The path as text, as used in `fields=`, `reader.column(name)` and messages."""
        return path_name(self.path)

    @property
    def is_payload(self) -> bool:
        """Whether its values lie in the data region; the others are columns of the index."""
        if isinstance(self.kind, Fixed):
            return not self.kind.is_column
        return not getattr(self.kind, "column", False)

    @property
    def align(self) -> int:
        """The alignment of its values in the data region."""
        return 1 if self.is_compressed else getattr(self.kind, "align", 1)

    @property
    def is_compressed(self) -> bool:
        """Whether its values lie in the data region as zstd frames."""
        return getattr(self.kind, "compression", None) is not None


class Schema(Sequence[Field]):
    """The fields of a dataset, in order. Build it from a structure that looks like a sample with kinds for leaves.

    >>> from mmds.fields import Array, Label
    >>> schema = Schema({"image": Array("uint8", (3, 96, 96)), "label": Label(("cat", "dog"))})
    >>> schema.names
    ('image', 'label')
    """

    def __init__(self, structure: Any) -> None:
        structure = structure.structure if isinstance(structure, Schema) else structure
        fields: list[Field] = []
        self.tree = _number(structure, (), fields)
        self.structure: Any = structure
        self.fields = tuple(fields)
        self.names = tuple(field.name for field in fields)
        for name, count in Counter(self.names).items():
            if count > 1:
                raise SchemaError(
                    f"{count} fields are named '{printable(name)}'; keys with dots in them can cause that"
                )
        self.payload = tuple(k for k, field in enumerate(fields) if field.is_payload)
        try:
            canonical.dump(self.to_json())
        except ValueError as error:
            raise SchemaError(f"these fields cannot be written down as JSON: {printable(error)}") from None

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, index: Any) -> Any:
        return self.fields[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and self.fields == other.fields

    def __hash__(self) -> int:
        return hash(self.fields)

    def __repr__(self) -> str:
        return f"Schema({self.structure!r})"

    def index(self, name: Any, start: int = 0, stop: int | None = None) -> int:
        """Return the position of the field called `name`, or raise `SchemaError` with the names there are."""
        try:
            return self.names.index(name)
        except ValueError:
            raise SchemaError(f"no field '{printable(name)}'; there are: {self._names_shown}") from None

    @property
    def _names_shown(self) -> str:
        return printable(", ".join(self.names))

    @cached_property
    def payload_numbers(self) -> dict[int, int]:
        """The number among the payload fields of each of them, by position."""
        return {position: number for number, position in enumerate(self.payload)}

    @cached_property
    def alignment(self) -> int:
        """The largest alignment of any payload field; 1 where there is none."""
        return max((self.fields[k].align for k in self.payload), default=1)

    @cached_property
    def compressed(self) -> tuple[int, ...]:
        """The positions of the fields whose values are compressed."""
        return tuple(k for k, field in enumerate(self.fields) if field.is_compressed)

    def mapped(self, kind_of: Callable[[int], Kind]) -> Schema:
        """Return the schema of the same structure with the kinds that `kind_of` gives for each position."""
        return Schema(_map(self.tree, kind_of))

    # Between a sample and its leaves

    def leaves(self, sample: Any) -> list[Any]:
        """Return the leaves of `sample` in field order; `Misfit` where its structure is another one."""
        values: list[Any] = []
        self._flatten(self.tree, sample, (), values)
        return values

    def _flatten(self, node: Any, sample: Any, path: Path, values: list[Any]) -> None:
        if isinstance(node, int):
            values.append(sample)
        elif isinstance(node, tuple):
            if not isinstance(sample, tuple) or len(sample) != len(node):
                raise Misfit(f"a tuple of {len(node)}", describe(sample), path_name(path))
            for key, child in enumerate(node):
                self._flatten(child, sample[key], (*path, key), values)
        else:
            if not isinstance(sample, Mapping) or sample.keys() != node.keys():
                keys = f"keys {printable(list(sample))}" if isinstance(sample, Mapping) else describe(sample)
                raise Misfit(f"a dict with the keys {printable(list(node))}", keys, path_name(path))
            for key, child in node.items():
                self._flatten(child, sample[key], (*path, key), values)

    def assembler(self, functions: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
        """Return the function that calls each field's function on its argument and nests the results as a sample.

        >>> from mmds.fields import Scalar
        >>> Schema({"a": Scalar("int8"), "b": (Scalar("int8"),)}).assembler([abs, str])(-2)
        {'a': 2, 'b': ('-2',)}
        """
        return _assembler(self.tree, functions)

    # Inference, selection

    @classmethod
    def infer(cls, sample: Any, like: Schema | None = None) -> Schema:
        """Return the schema of which `sample` is the first one; `Misfit` where a leaf cannot be stored.

        A field that is in `like`, and whose value still fits, keeps its kind: a picture is not just any bytes.
        """
        return cls(_infer(sample, (), {} if like is None else {field.path: field.kind for field in like.fields}))

    def select(self, wanted: Any) -> tuple[Schema, list[int]]:
        """Return the schema of the samples that `wanted` asks for, and the position of each of its fields in this one.

        A list of names keeps the structure and drops the rest; otherwise samples take the structure of `wanted`: a name
        alone gives that value, a tuple of names gives tuples, a dict gives dicts with its keys. A name may stand for a
        whole sub-structure, as "target" does for "target.boxes" and "target.labels".

        >>> from mmds.fields import Scalar
        >>> schema = Schema({"x": Scalar("int8"), "y": Scalar("int8"), "z": Scalar("int8")})
        >>> schema.select(("z", "x"))[1], schema.select(["z", "x"])[1], schema.select({"label": "y"})[0].names
        ([2, 0], [0, 2], ('label',))
        """
        if isinstance(wanted, list):
            keep = {position for name in wanted for position in _positions(self._subtree(name))}
            picked = _prune(self.tree, keep)
        else:
            picked = self._pick(wanted)
        if picked is None:
            raise SchemaError(f"fields={wanted!r} selects nothing; there are: {self._names_shown}")
        return Schema(_map(picked, lambda position: self.fields[position].kind)), list(_positions(picked))

    def _pick(self, wanted: Any) -> Any:
        if isinstance(wanted, tuple):
            return tuple(self._pick(part) for part in wanted)
        if isinstance(wanted, dict):
            return {key: self._pick(part) for key, part in wanted.items()}
        return self._subtree(wanted)

    def _subtree(self, name: Any) -> Any:
        if name in self.names:
            return self.names.index(name)
        node = self.tree
        for key in name.split(".") if isinstance(name, str) else ():
            children = dict(enumerate(node)) if isinstance(node, tuple) else node if isinstance(node, dict) else {}
            node = {str(label): child for label, child in children.items()}.get(key)
        if node is None or node is self.tree:
            raise SchemaError(f"no field '{printable(name)}'; there are: {self._names_shown}")
        return node

    # JSON

    def to_json(self) -> list[dict[str, Any]]:
        """Return the fields as JSON values: path, kind, nullable and the kind's options."""
        return [
            {"path": list(path), "kind": kind.name, "nullable": kind.nullable, **kind.options(), **kind.extras()}
            for path, kind in ((field.path, field.kind) for field in self.fields)
        ]

    @classmethod
    def from_json(cls, fields: Any) -> Schema:
        """Return the schema that `to_json` wrote as `fields`; `SchemaError` where it is anything else."""
        try:
            kinds = [(tuple(field["path"]), _kind_from_json(field)) for field in fields]
            schema = cls(_nest(kinds))
            same = canonical.dump(schema.to_json()) == canonical.dump(fields)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise SchemaError(f"malformed fields ({type(error).__name__}: {printable(error)})") from None
        if not same:
            raise SchemaError("fields are not in their canonical form")
        return schema


def _number(node: Any, path: Path, fields: list[Field]) -> Any:
    if len(path) > MAX_PATH or len(fields) >= MAX_FIELDS:
        raise SchemaError(
            f"{printable(path_name(path))}: more than {MAX_FIELDS} fields or {MAX_PATH} levels of nesting"
        )
    if isinstance(node, Kind):
        fields.append(Field(path, node))
        return len(fields) - 1
    if isinstance(node, dict) and node:
        if not all(isinstance(key, str) for key in node):
            raise SchemaError(
                f"{printable(path_name(path))}: keys of a sample must be strings, got {printable(list(node))}"
            )
        return {key: _number(child, (*path, key), fields) for key, child in node.items()}
    if isinstance(node, tuple) and node:
        return tuple(_number(child, (*path, key), fields) for key, child in enumerate(node))
    raise SchemaError(
        f"{printable(path_name(path))}: expected a field kind or a non-empty dict or tuple, got {describe(node)}"
    )


def _infer(sample: Any, path: Path, known: Mapping[Path, Kind]) -> Any:
    if path in known and _fits(known[path], sample):
        return known[path]
    if isinstance(sample, Mapping) and sample:
        return {key: _infer(value, (*path, key), known) for key, value in sample.items()}
    if isinstance(sample, tuple) and sample:
        return tuple(_infer(value, (*path, key), known) for key, value in enumerate(sample))
    try:
        return infer(sample)
    except Misfit as misfit:
        raise Misfit(misfit.expected, misfit.got, path_name(path)) from None
    except SchemaError:
        raise Misfit("an element type that can be stored", describe(sample), path_name(path)) from None


def _fits(kind: Kind, value: Any) -> bool:
    try:
        if value is not None or not kind.nullable:
            kind.encode(value)
    except Misfit:
        return False
    return True


def _assembler(node: Any, functions: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    if isinstance(node, int):
        return functions[node]
    if isinstance(node, tuple):
        parts = [_assembler(child, functions) for child in node]
        if len(parts) == 2:
            one, other = parts
            return lambda argument: (one(argument), other(argument))
        return lambda argument: tuple([part(argument) for part in parts])
    items = [(key, _assembler(child, functions)) for key, child in node.items()]
    if len(items) == 1:  # a loop would take as long as the rest of reading such a sample
        ((only, get_only),) = items
        return lambda argument: {only: get_only(argument)}
    if len(items) == 2:
        (first, get_first), (second, get_second) = items
        return lambda argument: {first: get_first(argument), second: get_second(argument)}
    return lambda argument: {key: part(argument) for key, part in items}


def _positions(node: Any) -> Iterator[int]:
    if isinstance(node, int):
        yield node
    else:
        for child in node.values() if isinstance(node, dict) else node:
            yield from _positions(child)


def _prune(node: Any, keep: set[int]) -> Any:
    if isinstance(node, int):
        return node if node in keep else None
    if isinstance(node, tuple):
        return tuple(kept for child in node if (kept := _prune(child, keep)) is not None) or None
    return {key: kept for key, child in node.items() if (kept := _prune(child, keep)) is not None} or None


def _map(node: Any, function: Callable[[int], Any]) -> Any:
    if isinstance(node, dict):
        return {key: _map(child, function) for key, child in node.items()}
    if isinstance(node, tuple):
        return tuple(_map(child, function) for child in node)
    return function(node)


def _kind_from_json(field: Any) -> Kind:
    for key, value in field.items():
        if type(value) not in JSON_TYPES[key] or (key == "path" and len(value) > MAX_PATH):
            raise SchemaError(f"{key} is {describe(value)}")
    options = {key: value for key, value in field.items() if key not in ("path", "kind")}
    if options.get("dtype", "uint8") not in STORED:
        raise SchemaError(f"unknown dtype '{printable(options['dtype'])}'")
    return KINDS[field["kind"]](**options)


def _nest(kinds: list[tuple[Path, Kind]]) -> Any:
    """Return the structure whose leaves are at the given paths."""
    if len(kinds) == 1 and not kinds[0][0]:
        return kinds[0][1]
    groups: dict[str | int, list[tuple[Path, Kind]]] = {}
    for path, kind in kinds:
        groups.setdefault(path[0], []).append((path[1:], kind))
    if any(isinstance(key, int) for key in groups):
        return tuple(_nest(groups[key]) for key in range(len(groups)))
    return {key: _nest(group) for key, group in groups.items()}
