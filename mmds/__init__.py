"""mmds: a memory-mapped dataset format for machine-learning training.

Names are loaded on first use, so that `import mmds` costs nothing and nobody pays for what they do not use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmds import memory as memory
    from mmds import ray as ray
    from mmds.addcolumn import add_column as add_column
    from mmds.addcolumn import drop_column as drop_column
    from mmds.aheadsampler import ahead as ahead
    from mmds.conversion import Conversion as Conversion
    from mmds.dataset import MemoryMappedDataset as MemoryMappedDataset
    from mmds.exporting import export as export
    from mmds.fields import Array as Array
    from mmds.fields import Audio as Audio
    from mmds.fields import Bytes as Bytes
    from mmds.fields import Image as Image
    from mmds.fields import Json as Json
    from mmds.fields import Label as Label
    from mmds.fields import Scalar as Scalar
    from mmds.fields import Text as Text
    from mmds.fields import Video as Video
    from mmds.images import ImageBatch as ImageBatch
    from mmds.integrity import Damage as Damage
    from mmds.integrity import Verification as Verification
    from mmds.integrity import verify as verify
    from mmds.jagged import Jagged as Jagged
    from mmds.loader import Loader as Loader
    from mmds.opening import open as open
    from mmds.permutation import Permutation as Permutation
    from mmds.pipeline import convert as convert
    from mmds.reader import Reader as Reader
    from mmds.repairing import Repair as Repair
    from mmds.repairing import repair as repair
    from mmds.samplers import BlockShuffleSampler as BlockShuffleSampler
    from mmds.schema import Field as Field
    from mmds.schema import Schema as Schema
    from mmds.selecting import merge as merge
    from mmds.selecting import select as select
    from mmds.shareddataset import SharedDataset as SharedDataset
    from mmds.sharing import SharedSamples as SharedSamples
    from mmds.sharing import share as share
    from mmds.splitting import split as split
    from mmds.units import Committed as Committed
    from mmds.units import commit as commit
    from mmds.uploading import Uploaded as Uploaded
    from mmds.uploading import upload as upload
    from mmds.writer import Writer as Writer

_HOME = {
    **dict.fromkeys(("Array", "Audio", "Bytes", "Image", "Json", "Label", "Scalar", "Text", "Video"), "fields"),
    **dict.fromkeys(("Field", "Schema"), "schema"),
    **dict.fromkeys(("Damage", "Verification", "verify"), "integrity"),
    **dict.fromkeys(("add_column", "drop_column"), "addcolumn"),
    **dict.fromkeys(("Conversion", "convert"), "pipeline"),
    **dict.fromkeys(("Repair", "repair"), "repairing"),
    "ahead": "aheadsampler",
    "export": "exporting",
    "Jagged": "jagged",
    "Loader": "loader",
    "Permutation": "permutation",
    "BlockShuffleSampler": "samplers",
    "ImageBatch": "images",
    "Reader": "reader",
    "open": "opening",
    "MemoryMappedDataset": "dataset",
    "SharedDataset": "shareddataset",
    **dict.fromkeys(("SharedSamples", "share"), "sharing"),
    **dict.fromkeys(("merge", "select"), "selecting"),
    "split": "splitting",
    **dict.fromkeys(("Uploaded", "upload"), "uploading"),
    **dict.fromkeys(("Committed", "commit"), "units"),
    "Writer": "writer",
}

__all__ = sorted([*_HOME, "memory"])


def __getattr__(name: str) -> object:
    if name in ("memory", "ray"):  # modules of their own: mmds.memory.watch, mmds.ray.read_mmds
        return importlib.import_module(f"mmds.{name}")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'mmds' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"mmds.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
