"""Sizes as people write them."""

from __future__ import annotations

import re

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def bytes_of(text: str) -> int:
    """Return the number of bytes that `text` says; ValueError if it says none.

    >>> bytes_of("1000000"), bytes_of("256MB"), bytes_of("1.5 GiB")
    (1000000, 256000000, 1610612736)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if found is None or found[2] not in UNITS or float(found[1]) * UNITS[found[2]] < 1:
        raise ValueError(f"{text!r} is no size; expected a number of bytes, such as 1000000, 256MB or 1GiB")
    return int(float(found[1]) * UNITS[found[2]])
