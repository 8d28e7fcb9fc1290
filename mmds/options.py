"""Options of commands that are no plain text or number: sizes, names with values."""

from __future__ import annotations

import json
import re
from typing import Any

import click

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def size(text: str) -> int:
    """Return the number of bytes that `text` says.

    >>> size("1000000"), size("256MB"), size("1.5 GiB")
    (1000000, 256000000, 1610612736)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if found is None or found[2] not in UNITS or float(found[1]) * UNITS[found[2]] < 1:
        raise click.BadParameter(f"{text!r} is no size; expected a number of bytes, such as 1000000, 256MB or 1GiB")
    return int(float(found[1]) * UNITS[found[2]])


def name_value(text: str) -> tuple[str, Any]:
    """Return the name and the value of ``NAME=VALUE``; the value is JSON, or else text.

    >>> name_value("per=line"), name_value("columns=[1, 2]")
    (('per', 'line'), ('columns', [1, 2]))
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{text!r}: expected NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
