"""A folder of pictures as a dataset, as torchvision's ``ImageFolder`` defines it: ``root/class/**/x.jpg``.

Classes, label ids, picture extensions and the order of samples are those of ``ImageFolder``. Beyond it:

* A flat folder (pictures in the root, none in a folder of the root) gives samples without a label.
* A root of ``train/ val/ ...`` gives one source per split; the label names are those of all splits together.
* Nothing is left out silently: what is no picture is counted in `ignored`, what cannot be used is in `problems` or
  fails in `load`. An empty class keeps its label id.
* Links out of the tree are refused, and links back to a folder above, which `ImageFolder` follows about 40 times.

A sample is ``{"image": ..., "label": ..., "path": ...}``; the path is relative to the root, or to the split's folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mmds
from mmds.converters import Ignored, Source
from mmds.converters.pictures import Recipe
from mmds.converters.pictures import check as check_picture
from mmds.converters.tree import Tree, read
from mmds.errors import SourceError

SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
OUTSIDE = "picture outside every class folder"
EMPTY_CLASS = "class folder without pictures"
BESIDE = "folder beside the splits"

Item = tuple[str, int | None]  # the path relative to the root, the label if there is one


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
    if check not in ("quick", "decode"):
        raise ValueError(f"check={check!r}: expected 'quick' or 'decode'")
    recipe, decode = Recipe(resize, crop, encode), check == "decode"
    real = os.path.realpath(path)
    root = Tree(real, real)
    found = _are_splits(root) if splits is None else splits
    if not found:
        return [ImageFolder("", root, _classes(root), recipe, decode)]
    for name, _ in root.top.folders:
        if not _is_split(name, splits):
            root.ignore(BESIDE, name)
    for name in root.top.pictures:
        root.ignore(OUTSIDE, name)
    trees = {name: Tree(folder, real) for name, folder in root.top.folders if _is_split(name, splits)}
    if not trees:
        raise SourceError("splits=True, but there are no folders")
    first = next(iter(trees.values()))  # reports what lies beside the splits
    first.problems += root.problems
    for reason, ignored in root.ignored.items():
        first.ignored.setdefault(reason, Ignored()).merge(ignored)
    classes = sorted({name for tree in trees.values() for name in _classes(tree)})
    return [ImageFolder(name, tree, classes, recipe, decode) for name, tree in trees.items()]


def _classes(tree: Tree) -> list[str]:
    """Return the names of all folders in the root. A link that is not followed is one: it must not change label ids."""
    return sorted([name for name, _ in tree.top.folders] + tree.top.refused)


def _is_split(name: str, all_are: bool | None = None) -> bool:
    """Return whether a folder is a split: by its name, or with `all_are` each that is not hidden."""
    return not name.startswith(".") if all_are else name.lower() in SPLITS


def _are_splits(root: Tree) -> bool:
    """Return whether the root holds at least two splits, one of them for training, and pictures nowhere else."""
    names = {name.lower() for name, _ in root.top.folders if _is_split(name)}
    if len(names) < 2 or names.isdisjoint(SPLITS[:2]) or root.top.pictures:
        return False
    look = Tree(root.root, root.boundary)  # one of its own: what it ignores is counted later
    return not any(look.walk(name, real) for name, real in root.top.folders if not _is_split(name))


class ImageFolder:
    """The pictures of one tree; see `mmds.converters.Source`. Costs about 100 bytes of memory per picture."""

    def __init__(self, split: str, tree: Tree, classes: Sequence[str], recipe: Recipe, decode: bool) -> None:
        self.split = split
        self.problems, self.ignored = tree.problems, tree.ignored
        self.cpu_bound = decode or not recipe.keeps_bytes
        self.load = LoadPicture(tree.root, tree.boundary, recipe, decode)
        self.metadata = {"source": "imagefolder", **recipe.options()}
        ids = {name: number for number, name in enumerate(classes)}
        self._folders: list[tuple[str, int | None, list[str]]] = []
        for name, real in tree.top.folders:
            found = tree.walk(name, real)
            self._folders += [(folder, ids[name], pictures) for folder, pictures in found]
            if not found:
                tree.ignore(EMPTY_CLASS, name)
        self.fields: dict[str, Any] = {"image": recipe.kind}
        if self._folders or not tree.top.pictures:  # not flat
            self.fields["label"] = mmds.Label(tuple(map(_as_text, classes)))
            for name in tree.top.pictures:
                tree.ignore(OUTSIDE, name)
        else:
            self._folders = [("", None, tree.top.pictures)]
        self.fields["path"] = mmds.Text(column=True)

    def __len__(self) -> int:
        return self._length

    @cached_property
    def _length(self) -> int:
        return sum(len(pictures) for _, _, pictures in self._folders)

    def items(self) -> Iterator[Item]:
        """Yield (path, label) in the order of ``ImageFolder.samples``."""
        for folder, label, pictures in self._folders:
            for name in pictures:
                yield (f"{folder}/{name}" if folder else name), label


def _as_text(name: str) -> str:
    """Return a class name as Unicode. A file name that is not UTF-8 keeps its label id, though no sample can have it."""
    return name.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class LoadPicture:
    """The function from item to sample; it is small and pickles, so that any process can call it."""

    root: str
    boundary: str
    recipe: Recipe
    decode: bool

    def __call__(self, item: Item) -> dict[str, Any]:
        """Return the sample of (path, label), or raise `SourceError` with the reason why there is none."""
        path, label = item
        try:
            path.encode()
        except UnicodeEncodeError:
            raise SourceError("a file name that is not UTF-8") from None
        data: Any = read(f"{self.root}/{path}", self.boundary)
        if self.recipe.keeps_bytes:
            check_picture(data, decode=self.decode)
        else:
            data = self.recipe.apply(data)
        return {"image": data, "path": path} if label is None else {"image": data, "label": label, "path": path}
