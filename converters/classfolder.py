"""Folders whose subfolders are the classes, whatever kind of file the samples are: ``root/class/**/x.ext``.

Classes, label ids and the order of samples are those of torchvision's ``ImageFolder``. Beyond it:

* A flat folder (samples in the root, none in a folder of the root) gives samples without a label.
* A root of ``train/ val/ ...`` gives one source per split; the label names are those of all splits together.
* Nothing is left out silently: what is no sample is counted in `ignored`, what cannot be used is in `problems` or
  fails in `load`. An empty class keeps its label id.
* Links out of the tree are refused, and links back to a folder above, which `ImageFolder` follows about 40 times.

A sample is ``{FIELD: ..., "label": ..., "path": ...}``; the path is relative to the root, or to the split's folder. It is
text where all paths of all splits are UTF-8, and bytes otherwise.

A label's name is the name of its folder. The exceptions are in the metadata, so that the tree can be made again from the
dataset: ``class_folders`` gives the bytes, in hex, of a folder's name that is not UTF-8, and null where a split has no
folder of that class.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mmds
from mmds.converters import Ignored, Source
from mmds.converters.extensions import Files
from mmds.converters.tree import Tree, read
from mmds.errors import SourceError
from mmds.fields import Kind

SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
BESIDE = "folder beside the splits"

Item = tuple[str, int | None]  # the path relative to the root, the label if there is one


@dataclass(frozen=True)
class Content:
    """What becomes of the files: the name and the kind of their field, and the function from bytes to its value."""

    field: str
    kind: Kind
    value: Callable[[bytes], Any]  # pickles; raises `SourceError` with the reason why there is no value
    metadata: dict[str, Any]
    cpu_bound: bool = False


def decodes(check: str) -> bool:
    """Return whether the option `check` asks for every file to be decoded; ValueError if it asks for nothing known."""
    if check not in ("quick", "decode"):
        raise ValueError(f"check={check!r}: expected 'quick' or 'decode'")
    return check == "decode"


def branches(path: Path, files: Files, splits: bool | None) -> list[Branch]:
    """List the folder `path`: one branch, or one per split; `splits` says which, None decides by the folders' names."""
    if splits not in (None, True, False):
        raise ValueError(f"splits={splits!r}: expected true or false")
    real = os.path.realpath(path)
    root = Tree(real, real, files)
    found = _are_splits(root) if splits is None else splits
    if not found:
        return [Branch("", root, _classes(root))]
    for name, _ in root.top.folders:
        if not _is_split(name, splits):
            root.ignore(BESIDE, name)
    for name in root.top.files:
        root.ignore(files.outside, name)
    trees = {name: Tree(folder, real, files) for name, folder in root.top.folders if _is_split(name, splits)}
    if not trees:
        raise SourceError("splits=True, but there are no folders")
    first = next(iter(trees.values()))  # reports what lies beside the splits
    first.problems += root.problems
    for reason, ignored in root.ignored.items():
        first.ignored.setdefault(reason, Ignored()).merge(ignored)
    classes = sorted({name for tree in trees.values() for name in _classes(tree)})
    return [Branch(name, tree, classes) for name, tree in trees.items()]


def folder_sources(found: Sequence[Branch], content: Content) -> list[Source]:
    """Return the sources of all branches of a folder."""
    is_text = all(branch.is_utf8 for branch in found)
    return [FolderSource(branch, content, is_text) for branch in found]


def _classes(tree: Tree) -> list[str]:
    """Return the names of all folders in the root. A link that is not followed is one: it must not change label ids."""
    return sorted([name for name, _ in tree.top.folders] + tree.top.refused)


def _is_split(name: str, all_are: bool | None = None) -> bool:
    """Return whether a folder is a split: by its name, or with `all_are` each that is not hidden."""
    return not name.startswith(".") if all_are else name.lower() in SPLITS


def _are_splits(root: Tree) -> bool:
    """Return whether the root holds at least two splits, one of them for training, and samples nowhere else."""
    names = {name.lower() for name, _ in root.top.folders if _is_split(name)}
    if len(names) < 2 or names.isdisjoint(SPLITS[:2]) or root.top.files:
        return False
    look = Tree(root.root, root.boundary, root.files)  # one of its own: what it ignores is counted later
    return not any(look.walk(name, real) for name, real in root.top.folders if not _is_split(name))


class Branch:
    """The samples of one tree, listed. Costs about 100 bytes of memory per sample."""

    def __init__(self, split: str, tree: Tree, classes: Sequence[str]) -> None:
        self.split, self.tree, self.classes = split, tree, classes
        ids = {name: number for number, name in enumerate(classes)}
        self._folders: list[tuple[str, int | None, list[str]]] = []
        for name, real in tree.top.folders:
            found = tree.walk(name, real)
            self._folders += [(folder, ids[name], files) for folder, files in found]
            if not found:
                tree.ignore(tree.files.empty, name)
        self.is_flat = bool(tree.top.files) and not self._folders
        if self.is_flat:
            self._folders = [("", None, tree.top.files)]
        else:
            for name in tree.top.files:
                tree.ignore(tree.files.outside, name)

    def __len__(self) -> int:
        return self._length

    @cached_property
    def _length(self) -> int:
        return sum(len(files) for _, _, files in self._folders)

    @cached_property
    def is_utf8(self) -> bool:
        """Whether all paths of samples are UTF-8."""
        return all(_is_utf8(folder) and all(map(_is_utf8, files)) for folder, _, files in self._folders)

    def items(self) -> Iterator[Item]:
        """Yield (path, label) in the order of ``ImageFolder.samples``."""
        for folder, label, files in self._folders:
            for name in files:
                yield (f"{folder}/{name}" if folder else name), label

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """The names of the classes as Unicode, all different; those that are UTF-8 are as they are."""
        taken = set(filter(_is_utf8, self.classes))
        names = []
        for name in self.classes:
            text = name.encode("utf-8", "backslashreplace").decode()
            if text != name:
                while text in taken:
                    text += "_"
                taken.add(text)
            names.append(text)
        return tuple(names)

    @property
    def class_folders(self) -> dict[str, str | None]:
        """What the folder of a class is called, in hex, where it is not its label's name; None where there is none."""
        own = set(_classes(self.tree))
        return {
            text: os.fsencode(name).hex() if name in own else None
            for name, text in zip(self.classes, self.label_names, strict=True)
            if name not in own or name != text
        }


def _is_utf8(name: str) -> bool:
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:  # Python has kept its bytes as lone surrogates
        return False
    return True


class FolderSource:
    """A `Branch` and what becomes of its files; see `mmds.converters.Source`."""

    def __init__(self, branch: Branch, content: Content, is_text: bool) -> None:
        self.split = branch.split
        self.problems, self.ignored = branch.tree.problems, branch.tree.ignored
        self.cpu_bound = content.cpu_bound
        self.metadata = dict(content.metadata)
        self.fields: dict[str, Any] = {content.field: content.kind}
        if not branch.is_flat:
            self.fields["label"] = mmds.Label(branch.label_names)
            if branch.class_folders:
                self.metadata["class_folders"] = branch.class_folders
        self.fields["path"] = mmds.Text(key=True) if is_text else mmds.Bytes(key=True)
        self.load = LoadFile(branch.tree.root, branch.tree.boundary, content.field, content.value, is_text)
        self.items = branch.items
        self._branch = branch

    def __len__(self) -> int:
        return len(self._branch)


@dataclass(frozen=True)
class LoadFile:
    """The function from item to sample; it is small and pickles, so that any process can call it."""

    root: str
    boundary: str
    field: str
    value: Callable[[bytes], Any]
    is_text: bool

    def __call__(self, item: Item) -> dict[str, Any]:
        """Return the sample of (path, label), or raise `SourceError` with the reason why there is none."""
        path, label = item
        sample = {self.field: self.value(read(f"{self.root}/{path}", self.boundary))}
        if label is not None:
            sample["label"] = label
        sample["path"] = path if self.is_text else os.fsencode(path)
        return sample
