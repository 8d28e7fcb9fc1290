"""Which kind of field holds a value that a user hands over without saying."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmds.dtypes import LOGICAL, as_array
from mmds.fields import Array, Bytes, Image, Json, Kind, Misfit, Scalar, Text, describe, is_picture


def infer(value: Any) -> Kind:
    """Return the kind that holds `value`, or raise `Misfit`."""
    if isinstance(value, bool):
        return Scalar("bool")
    if isinstance(value, int):
        return Scalar("uint64" if value >= 2**63 else "int64")
    if isinstance(value, (str, np.str_)):
        return Text()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return Bytes()
    if isinstance(value, (np.bool_, np.number)) and value.dtype.name not in LOGICAL:
        return Scalar(value.dtype.name)
    if isinstance(value, float):
        return Scalar("float64")
    if isinstance(value, complex):
        return Scalar("complex128")
    if is_picture(value):
        return Image()
    if hasattr(value, "__array__"):
        array, name = as_array(value)
        return Array(name, array.shape)
    if isinstance(value, (list, dict)):
        try:
            Json().encode(value)
        except Misfit:
            raise Misfit(
                "a list of JSON values", f"{describe(value)}; use a tuple for a fixed number of parts, or stack arrays"
            ) from None
        return Json()
    if value is None:
        raise Misfit("a value to infer the field from", "None; pass fields= with nullable=True")
    raise Misfit("numbers, arrays, bytes, str, PIL images, lists, dicts or tuples of these", describe(value))
