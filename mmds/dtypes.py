"""The element types that a dataset can hold: names, the numpy type each is stored as, and conversion from user values.

A type has a *name*, which is what a schema says, and a *stored* little-endian numpy dtype. For most the two are the
same thing. The *logical* types have no numpy dtype of their own and are stored as unsigned integers of the same width:
`bfloat16` and the 8-bit floats of the OCP 8-bit floating point specification, as PyTorch and ml_dtypes name them.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from mmds.errors import SchemaError, printable

NATIVE = {
    "bool": "|b1",
    "int8": "|i1",
    "uint8": "|u1",
    "int16": "<i2",
    "uint16": "<u2",
    "int32": "<i4",
    "uint32": "<u4",
    "int64": "<i8",
    "uint64": "<u8",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "complex64": "<c8",
    "complex128": "<c16",
}
LOGICAL = {
    "bfloat16": "<u2",
    "float8_e4m3fn": "|u1",
    "float8_e4m3fnuz": "|u1",
    "float8_e5m2": "|u1",
    "float8_e5m2fnuz": "|u1",
}
STORED = {name: np.dtype(code) for name, code in (NATIVE | LOGICAL).items()}


def dtype_name(dtype: Any) -> str:
    """Return the schema's name for `dtype`: a name, a numpy dtype of either byte order, or a torch dtype.

    >>> dtype_name(">f4"), dtype_name(np.uint8), dtype_name("bfloat16")
    ('float32', 'uint8', 'bfloat16')
    """
    text = str(dtype).removeprefix("torch.")
    if text in STORED:
        return text
    try:
        name = str(np.dtype(dtype).name)
    except TypeError:
        name = text
    if name not in STORED:
        raise SchemaError(f"dtype '{printable(text)}' cannot be stored; use one of {', '.join(STORED)}")
    return name


def is_tensor(value: Any) -> bool:
    """Return whether `value` is a torch tensor, without importing torch for those who do not use it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(value: Any) -> tuple[np.ndarray[Any, Any], str]:
    """Return array-like `value` as a numpy array of its stored dtype, and the name of its type.

    Takes numpy arrays of either byte order, torch tensors (any device, also such that require a gradient), ml_dtypes
    arrays and everything with ``__array__``. No copy is made where none is needed.
    """
    if is_tensor(value):
        name = dtype_name(value.dtype)
        if str(value.layout) != "torch.strided" or value.device.type == "meta":
            raise SchemaError(f"a tensor of layout {value.layout} on device {value.device} has no elements to store")
        value = value.detach().cpu().resolve_conj().resolve_neg()
        if name in LOGICAL:
            import torch

            value = value.contiguous().view(torch.int16 if STORED[name].itemsize == 2 else torch.uint8)
        value = value.numpy()
    else:
        if isinstance(value, np.ma.MaskedArray):
            raise SchemaError("a masked array would lose its mask; use nullable=True, or fill it")
        value = np.asarray(value)
        name = dtype_name(value.dtype)
    stored = STORED[name]
    if name in LOGICAL:
        return np.ascontiguousarray(value).view(stored).reshape(value.shape), name
    return value.astype(stored, copy=False), name
