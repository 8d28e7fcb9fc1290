"""A folder of pictures as a dataset, as torchvision's ``ImageFolder`` defines it: ``root/class/**/x.jpg``.

`classfolder` has the rules for classes, flat folders, splits, links and names. A sample is
``{"image": ..., "label": ..., "path": ...}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmds.converters import Source
from mmds.converters.classfolder import Content, branches, decodes, folder_sources
from mmds.converters.extensions import PICTURES
from mmds.converters.pictures import Recipe
from mmds.converters.pictures import check as check_picture


def sources(
    path: Path,
    *,
    resize: int | None = None,
    crop: int | None = None,
    encode: str | None = None,
    check: str = "quick",
    splits: bool | None = None,
) -> list[Source]:
    """Return the sources in the folder `path`: one, or one per split.

    `resize`, `crop` and `encode` are those of `Recipe`. `check` is "quick" (whole by its structure) or "decode" (every
    picture is decoded). `splits` says whether the root's folders are splits; None decides by their names.
    """
    picture = Picture(Recipe(resize, crop, encode), decodes(check))
    content = Content(
        field="image",
        kind=picture.recipe.kind,
        value=picture,
        metadata={"source": "imagefolder", **picture.recipe.options()},
        cpu_bound=picture.decode or not picture.recipe.keeps_bytes,
    )
    return folder_sources(branches(path, PICTURES, splits), content)


@dataclass(frozen=True)
class Picture:
    """The function from a file's bytes to the picture in the sample."""

    recipe: Recipe
    decode: bool

    def __call__(self, data: bytes) -> Any:
        """Return the picture, preprocessed or checked; `SourceError` if it is none."""
        if not self.recipe.keeps_bytes:
            return self.recipe.apply(data)
        check_picture(data, decode=self.decode)
        return data
