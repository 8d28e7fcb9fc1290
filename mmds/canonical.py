"""Canonical JSON: one text for one value, so that it can be hashed and compared.

Keys are sorted, there is no white space, strings are UTF-8 without needless escapes, numbers are finite and integers lie
within ±(2**53 - 1), where every language's JSON reader is exact. `load` accepts nothing but what `dump` writes, which
also refuses duplicate keys, NaN, lone surrogates and other spellings of the same number.
"""

from __future__ import annotations

import json
from typing import Any

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 32
MAX_INTEGER = 2**53 - 1


def dump(value: Any) -> bytes:
    """Return `value` as canonical JSON; ValueError or TypeError where it has none.

    >>> dump({"b": [1, None], "a": "é"}).decode()
    '{"a":"é","b":[1,null]}'
    """
    _check(value, MAX_DEPTH)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    encoded = text.encode()
    if len(encoded) > MAX_BYTES:
        raise ValueError(f"{len(encoded)} bytes of JSON; at most {MAX_BYTES} are allowed")
    return encoded


def load(text: bytes) -> Any:
    """Return the value of canonical JSON; ValueError where `text` is anything else."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"{len(text)} bytes of JSON; at most {MAX_BYTES} are allowed")
    try:
        value = json.loads(text.decode())
        same = dump(value) == text
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH}") from None
    if not same:
        raise ValueError("not in canonical form")
    return value


def _check(value: Any, depth: int) -> None:
    if depth == 0 and isinstance(value, (dict, list, tuple)):
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("JSON keys must be strings")
        for item in value.values():
            _check(item, depth - 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check(item, depth - 1)
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_INTEGER:
        raise ValueError(f"integer {value} is outside ±(2**53 - 1)")
