"""Conditions on columns, such as ``label == 'cat' and width > 100 and path.startswith('train/')``.

A condition is written like a Python expression and means of every sample what that would mean, but it is not Python: it is
parsed into a tree, of which only the nodes below are known, and evaluated with numpy on many samples at once. It has:

* names of columns; dots as in ``target.width``, and backticks around what is no Python name: ```0```, ``box.`a-b```
* numbers, strings, bytes, True, False, None; lists of them behind ``in``
* ``== != < <= > >=``, also in chains; ``and or not``; ``in`` and ``not in``, of lists and of text; ``+ - * / // %``
* ``.startswith(x)``, ``.endswith(x)`` and ``.contains(x)`` of text
* ``is None`` and ``is not None``. A null is equal to nothing, like NaN, and so is what was divided by zero.

A label is compared with numbers or with names of its classes.
"""

from __future__ import annotations

import ast
import functools
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mmds.errors import MmdsError, printable
from mmds.fields import Bytes, Fixed, Kind, Label, Text
from mmds.schema import Schema

NdArray = np.ndarray[Any, Any]

MAX_LENGTH = 2**16  # characters
MAX_DEPTH = 60  # levels of the tree, each of which takes a few Python calls
_QUOTED = re.compile(r"""(?P<string>'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|`(?P<name>[^`]*)`""", re.DOTALL)
_COMPARISONS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_METHODS: Mapping[str, Any] = {
    "startswith": np.frompyfunc(lambda text, part: text.startswith(part), 2, 1),
    "endswith": np.frompyfunc(lambda text, part: text.endswith(part), 2, 1),
    "contains": np.frompyfunc(operator.contains, 2, 1),
}


class ExpressionError(MmdsError, ValueError):
    """A condition that is not understood, or that these columns cannot be asked."""


@dataclass(frozen=True)
class Column:
    """Values of a column: an array of numbers, or of str or bytes as objects; and which of them are not null."""

    values: NdArray
    valid: NdArray | None = None


@dataclass(frozen=True)
class _Value:
    """What a part of an expression is, for each sample, or in arrays of shape () for all of them."""

    type: str  # "number", "condition", "text", "bytes", "label", "list", "None"
    data: Any = None
    valid: Any = np.True_
    names: tuple[str, ...] = ()  # of a label


class Condition:
    """A condition on the columns of `schema`. `columns` are the positions of those that it needs, by name."""

    def __init__(self, text: str, schema: Schema) -> None:
        self.text = text
        self._kinds = {field.name: field.kind for field in schema if not field.is_payload and is_usable(field.kind)}
        self._quoted: dict[str, str] = {}
        self._tree = self._parse()
        names = {self._name(node) for node in ast.walk(self._tree) if isinstance(node, (ast.Name, ast.Attribute))}
        self.columns = {name: schema.index(name) for name in sorted(names & self._kinds.keys())}
        # Without any sample: what is wrong with names and types shows at once.
        self({name: Column(_nothing(self._kinds[name])) for name in self.columns}, 0)

    def __call__(self, columns: Mapping[str, Column], n: int) -> NdArray:
        """Return for each of `n` samples, given as the columns that are needed, whether it meets the condition."""
        with np.errstate(all="ignore"):
            found = _Evaluation(self, columns).truth(self._tree)
        return np.array(np.broadcast_to(found, (n,)), bool)

    def _parse(self) -> ast.expr:
        prefix = "field_"
        while prefix in self.text:
            prefix += "_"

        def replaced(match: re.Match[str]) -> str:
            if match["name"] is None:
                return match["string"]
            self._quoted[f"{prefix}{len(self._quoted)}"] = match["name"]
            return f"{prefix}{len(self._quoted) - 1}"

        if len(self.text) > MAX_LENGTH:
            raise self.error(f"{len(self.text)} characters; at most {MAX_LENGTH} are allowed")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about escapes in strings
                tree = ast.parse(_QUOTED.sub(replaced, self.text).strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self.error(f"not an expression: {printable(getattr(error, 'msg', error))}") from None
        level: list[ast.AST] = [tree]
        for _ in range(MAX_DEPTH):
            level = [child for node in level for child in ast.iter_child_nodes(node)]
        if level:
            raise self.error(f"nested more than {MAX_DEPTH} levels deep")
        return tree

    def error(self, reason: str) -> ExpressionError:
        """Return the error for this condition."""
        return ExpressionError(f"where='{printable(self.text)}': {reason}")

    def column(self, node: ast.expr) -> tuple[str, Kind]:
        """Return the column that a node names."""
        name = self._name(node)
        if name not in self._kinds:
            shown = printable(", ".join(self._kinds), 1000) or "none"
            raise self.error(f"no column '{printable(name)}' of numbers, labels or text; there are: {shown}")
        return name, self._kinds[name]

    def _name(self, node: ast.expr) -> str:
        if isinstance(node, ast.Attribute):
            return f"{self._name(node.value)}.{self._quoted.get(node.attr, node.attr)}"
        return self._quoted.get(node.id, node.id) if isinstance(node, ast.Name) else "()"


class _Evaluation:
    """One evaluation of a condition."""

    def __init__(self, condition: Condition, columns: Mapping[str, Column]) -> None:
        self._condition, self._columns = condition, columns
        self._error = condition.error

    def truth(self, node: ast.expr) -> Any:
        """Return whether a part of the expression holds. What is null does not."""
        value = self.value(node)
        if value.type != "condition":
            raise self._error(f"'{_shown(node)}' is a {value.type}, expected a condition such as x == 1")
        return value.data & value.valid

    def value(self, node: ast.expr) -> _Value:
        """Return the value of a part of the expression."""
        match node:
            case ast.Constant(value):
                return self._literal(value)
            case ast.Name() | ast.Attribute():
                return self._column(*self._condition.column(node))
            case ast.List(elements) | ast.Tuple(elements) | ast.Set(elements):
                return _Value("list", [self.value(element) for element in elements])
            case ast.BoolOp(op, parts):
                combine = np.logical_and if isinstance(op, ast.And) else np.logical_or
                return _Value("condition", functools.reduce(combine, [self.truth(part) for part in parts]))
            case ast.UnaryOp(ast.Not(), operand):
                return _Value("condition", ~self.truth(operand))
            case ast.UnaryOp(ast.USub(), operand):
                return self._arithmetic(ast.Sub, self._literal(0), self.value(operand))
            case ast.BinOp(left, op, right) if type(op) in _ARITHMETIC:
                return self._arithmetic(type(op), self.value(left), self.value(right))
            case ast.Compare(first, ops, others):
                values = [self.value(each) for each in (first, *others)]
                pairs = [self._compare(op, *pair) for op, pair in zip(ops, pairwise(values), strict=True)]
                return _Value("condition", functools.reduce(np.logical_and, pairs))
            case ast.Call(ast.Attribute(text, method), [part], []) if method in _METHODS:
                return _Value("condition", self._method(method, self.value(text), self.value(part)))
        raise self._error(
            f"'{_shown(node)}' is not understood; there are names of columns, literals, comparisons, and, or, not, in, "
            f"arithmetic, and of text .{'(x), .'.join(_METHODS)}(x)"
        )

    def _literal(self, value: Any) -> _Value:
        if isinstance(value, bool):
            return _Value("condition", np.asarray(value))
        if isinstance(value, (int, float)):
            return _Value(
                "number", np.asarray(value, object if isinstance(value, int) and abs(value) >= 2**63 else None)
            )
        if isinstance(value, (str, bytes)):
            return _Value("text" if isinstance(value, str) else "bytes", np.asarray(value, object))
        if value is None:
            return _Value("None", valid=np.False_)
        raise self._error(f"{value!r} is no number and no text")

    def _column(self, name: str, kind: Kind) -> _Value:
        column = self._columns[name]
        values, valid = column.values, np.True_ if column.valid is None else column.valid
        if isinstance(kind, (Text, Bytes)):
            return _Value("text" if isinstance(kind, Text) else "bytes", values, valid)
        if values.dtype == bool:
            return _Value("condition", values, valid)
        if values.dtype.kind == "f":
            values = values.astype(np.float64)  # as the Python number that a sample has
        else:
            values = values.astype(np.int64 if not values.size or values.max() < 2**63 else object)
        return (
            _Value("label", values, valid, kind.names) if isinstance(kind, Label) else _Value("number", values, valid)
        )

    def _arithmetic(self, op: type, left: _Value, right: _Value) -> _Value:
        if not {left.type, right.type} <= {"number", "condition"}:
            raise self._error(f"arithmetic with a {left.type} and a {right.type}, expected numbers")
        a, b = (side.data.astype(np.int64) if side.data.dtype == bool else side.data for side in (left, right))
        valid = left.valid & right.valid
        if op not in (ast.Add, ast.Sub, ast.Mult):
            valid, b = valid & np.asarray(b != 0, bool), np.where(b == 0, 1, b)
        try:
            if op is ast.Div or "f" in (a.dtype.kind, b.dtype.kind):
                a, b = a.astype(np.float64), b.astype(np.float64)
            elif (_largest(a) + 1) * (_largest(b) + 1) >= 2**63:
                a, b = a.astype(object), b.astype(object)  # Python's numbers, which do not overflow
            return _Value("number", np.asarray(_ARITHMETIC[op](a, b)), valid)
        except OverflowError as error:
            raise self._error(f"cannot be calculated: {printable(error)}") from None

    def _compare(self, op: ast.cmpop, left: _Value, right: _Value) -> Any:
        if isinstance(op, (ast.Is, ast.IsNot)) and right.type == "None":
            return ~left.valid if isinstance(op, ast.Is) else left.valid
        if isinstance(op, (ast.In, ast.NotIn)):
            found = self._in(left, right)
            return ~found if isinstance(op, ast.NotIn) else found
        if type(op) not in _COMPARISONS:
            raise self._error("'is' stands before None only; write ==")
        left, right = self._named(left, right), self._named(right, left)
        types = {left.type, right.type}
        if not (types <= {"number", "condition"} or types in ({"text"}, {"bytes"}, {"label"}, {"label", "number"})):
            raise self._error(f"a {left.type} and a {right.type} cannot be compared; nulls are found by 'is None'")
        found = np.asarray(_COMPARISONS[type(op)](left.data, right.data), bool)
        valid = left.valid & right.valid
        return found | ~valid if isinstance(op, ast.NotEq) else found & valid

    def _in(self, left: _Value, right: _Value) -> Any:
        if right.type != "list":
            return self._method("contains", right, left)
        if left.type in ("text", "bytes") and all(
            each.type == left.type and not each.data.shape for each in right.data
        ):
            known = {each.data.item() for each in right.data}
            return np.asarray(np.frompyfunc(known.__contains__, 1, 1)(left.data), bool) & left.valid
        return functools.reduce(np.logical_or, [self._compare(ast.Eq(), left, each) for each in right.data], np.False_)

    def _method(self, method: str, text: _Value, part: _Value) -> Any:
        text, part = self._named(text, part, any_text=True), self._named(part, text, any_text=True)
        if text.type not in ("text", "bytes") or part.type != text.type:
            raise self._error(f"{method} of a {text.type} with a {part.type}, expected text")
        return np.asarray(_METHODS[method](text.data, part.data), bool) & text.valid & part.valid

    def _named(self, label: _Value, other: _Value, any_text: bool = False) -> _Value:
        """Return a label as the name of its class, where the other side is a text."""
        if label.type != "label" or other.type != "text":
            return label
        if not any_text and not other.data.shape and other.data.item() not in label.names:
            shown = printable(", ".join(label.names), 1000)
            raise self._error(f"no class '{printable(other.data.item())}'; there are: {shown}")
        names: NdArray = np.array([*label.names, ""], object)  # "" for what is no class, in a damaged file
        known = (label.data >= 0) & (label.data < len(label.names))
        return _Value("text", names[np.where(known, label.data, len(label.names))], label.valid & known)


def is_usable(kind: Kind) -> bool:
    """Return whether values of this kind, in a column, are numbers or text."""
    return not isinstance(kind, Fixed) or (kind.dimensions == () and kind.stored.kind in "biuf")


def _nothing(kind: Kind) -> NdArray:
    return np.empty(0, kind.stored if isinstance(kind, Fixed) else object)


def _largest(numbers: NdArray) -> int:
    return max(abs(int(numbers.min())), abs(int(numbers.max()))) if numbers.size else 0


def _shown(node: ast.expr) -> str:
    return printable(ast.unparse(node), 80)
