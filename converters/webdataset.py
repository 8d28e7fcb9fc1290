"""WebDataset shards as a dataset: tar archives in which members that follow each other and share a key are a sample.

A member's name is ``KEY.EXTENSION``: the key ends at the first dot of the last part of the name. A sample is
``{"__key__": KEY, EXTENSION: ..., ...}``, extensions in small letters; `suffixes` says which kind each of them has. These
are WebDataset's own rules (``webdataset/tariterators.py``, ``autodecode.py``), with these differences, for a conversion is
not to lose anything in silence:

* A key that comes back later in its shard, where WebDataset gives two samples, each with a part of the members, and two
  members with one name are failures.
* Hidden files, which WebDataset takes for samples if they are in a folder, are ignored, as are links and devices.
* An archive that is cut off, or damaged, is a problem; WebDataset ends where ``tarfile`` ends.

Nothing is unpacked to the disk and no name in an archive is ever used as a path: ``../x`` and ``/x`` are keys like others.
Headers are read twice, once for the fields and once for the items; nothing is kept per member, but a number per key of the
shard that is being read. Samples of a compressed shard travel as part of their items, for it can only be read in order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import mmds
from mmds.converters import Ignored, Item, Source
from mmds.converters.memberfields import HEADER, MAX_EXTENSIONS, Fields, Form, array_form, value_of
from mmds.converters.records import Records
from mmds.converters.suffixes import FAMILIES, SHARDS
from mmds.converters.tararchive import SPARSE, Archive, Member, open_archive
from mmds.converters.tree import MAX_FILE_BYTES, opened
from mmds.errors import SourceError, printable
from mmds.fields import Kind

MAX_NAME = 4096  # characters, the longest path that a system takes
MAX_CARRIED = 2**26  # bytes of a member of a compressed shard: those of many samples are in memory at a time
RESERVED = ("__key__", "__url__", "__local_path__")  # what WebDataset adds to a sample

NO_EXTENSION = "a name without an extension"
HIDDEN = "a hidden file"
META = "a name that WebDataset reserves for metadata"
NO_SHARD = "a file that is no .tar"
FOLDER = "a folder beside the shards"
UNMATCHED = "a shard that the pattern leaves out"
CAME_BACK = "a key that this shard has had before; the members of a sample must follow each other"
TWICE = "two members with the same extension"

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # WebDataset's base_plus_ext
_META = re.compile(r"__[^/]*__($|/)")  # its tar_file_iterator

Take = Callable[[Archive, str, Member], Any]
Group = tuple[str, list[tuple[str, Any]] | str]  # key, what was taken of each extension or why the sample is no good


def sources(
    path: Path, *, pattern: str = "*", kinds: Mapping[str, str] | None = None, check: str = "quick"
) -> list[Source]:
    """Return the source in the tar archive `path`, or in all archives of the folder `path` whose names fit `pattern`.

    `kinds` says what extensions mean where the default will not do, as in ``{"cls": "text", "pic": "image"}``: "image",
    "audio", "video", "int", "text", "json", "npy" or "bytes". `check` is how pictures are looked at: "quick" (whole by
    their structure), "decode" (each is decoded) or "off".
    """
    if check not in ("quick", "decode", "off"):
        raise ValueError(f"check={check!r}: expected 'quick', 'decode' or 'off'")
    if not isinstance(pattern, str):
        raise ValueError(f"pattern={pattern!r}: expected text such as 'train-*'")
    families = _families(kinds)
    found = Found()
    root, shards = _shards(path, pattern, found)
    fields, count = Fields(families), 0
    for shard in shards:
        for _, members in _groups(root, shard, found, partial(_form, fields)):
            count += 1
            if not isinstance(members, str):
                fields.add(members)
    load = LoadSample(root, fields.kinds(), check)
    return [
        Records(
            load,
            {"__key__": mmds.Text(key=True), **load.kinds},
            {"source": "webdataset"} | ({"kinds": families} if families else {}),
            count,
            partial(_items, root, shards),
            found.problems,
            found.ignored,
            cpu_bound=check == "decode",
        )
    ]


def _families(kinds: Any) -> dict[str, str]:
    if kinds is not None and not isinstance(kinds, Mapping):
        raise ValueError(f"kinds={kinds!r}: expected a dict from extensions to kinds")
    for extension, family in (kinds or {}).items():
        if family not in FAMILIES or not isinstance(extension, str) or extension != extension.lower():
            raise ValueError(
                f"kinds: '{printable(extension)}' as '{printable(family)}': expected an extension in small letters and one "
                f"of {', '.join(FAMILIES)}"
            )
    return dict(kinds or {})


@dataclass
class Found:
    """What is not in the dataset, and why."""

    problems: list[tuple[str, str]] = field(default_factory=list)
    ignored: dict[str, Ignored] = field(default_factory=dict)

    def ignore(self, reason: str, name: str) -> None:
        """Count `name` as left out for `reason`."""
        self.ignored.setdefault(reason, Ignored()).add(name)


def _shards(path: Path, pattern: str, found: Found) -> tuple[str, list[str]]:
    """Return the folder of the shards, as a real path, and their names in it, sorted."""
    real = Path(os.path.realpath(path))
    if not real.is_dir():
        return str(real.parent), [real.name]
    shards = []
    with os.scandir(real) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir():
                found.ignore(FOLDER, entry.name)
            elif not entry.name.lower().endswith(SHARDS):
                found.ignore(NO_SHARD, entry.name)
            elif not fnmatchcase(entry.name, pattern):
                found.ignore(UNMATCHED, entry.name)
            else:
                shards.append(entry.name)
    return str(real), shards


def _groups(root: str, shard: str, found: Found, take: Take) -> Iterator[Group]:
    """Yield the samples of a shard with what `take` returns for each of their members."""
    seen: set[int] = set()  # hashes of keys: the keys themselves would take three times as much
    key: str | None = None
    members: list[tuple[str, Any]] | str = []
    try:
        with open_archive(f"{root}/{shard}", root) as archive:
            for member in archive:
                name = _split(shard, member, found)
                if name is None:
                    continue
                if name[0] != key:
                    if key is not None:
                        yield key, members
                    key = name[0]
                    members = CAME_BACK if hash(key) in seen else []
                    seen.add(hash(key))
                if isinstance(members, str):
                    continue
                if any(name[1] == extension for extension, _ in members):
                    members = f"{TWICE}, '.{printable(name[1])}'"
                elif len(members) == MAX_EXTENSIONS:
                    members = f"more than {MAX_EXTENSIONS} members"
                else:
                    members.append((name[1], take(archive, name[1], member)))
        if key is not None:
            yield key, members
    except SourceError as error:
        found.problems.append((shard, f"{error}. The rest of it is left out, from the last sample before that on"))


def _split(shard: str, member: Member, found: Found) -> tuple[str, str] | None:
    """Return key and extension of a member; None if it is no part of a sample, which `found` is told."""
    if member.is_folder:
        return None
    shown = f"{shard}/{member.name[:MAX_NAME]}"
    name, reason = split_name(member.name)
    if member.reason and member.reason != SPARSE:
        found.ignore(member.reason, shown)
    elif name is None:
        found.ignore(reason, shown)
    elif member.reason or reason:
        found.problems.append((shown, member.reason or reason))
    else:
        return name
    return None


def split_name(name: str) -> tuple[tuple[str, str] | None, str]:
    """Return key and extension of a member by its name, and why it cannot be used; None if it belongs to no sample.

    >>> split_name("train/cat.1/007.Seg.PNG"), split_name("README")
    ((('train/cat.1/007', 'seg.png'), ''), (None, 'a name without an extension'))
    """
    base = name.rpartition("/")[2]
    if _META.match(name) or ("/" not in name and name.startswith("__") and name.endswith("__")):
        return None, META
    if base.startswith("."):
        return None, HIDDEN
    match = _NAME.fullmatch(name)
    if match is None or not match[2]:
        return None, NO_EXTENSION
    key, extension = match[1], match[2].lower()
    reason = ""
    if len(name) > MAX_NAME:
        reason = f"a name of {len(name)} characters; the limit is {MAX_NAME}"
    elif any("\ud800" <= character <= "\udfff" for character in name):
        reason = "a name that is not UTF-8"
    elif extension in RESERVED:
        reason = "an extension that WebDataset reserves"
    return (key, extension), reason


def _form(fields: Fields, archive: Archive, extension: str, member: Member) -> Form | None:
    """Return dtype and shape of a member that is an array."""
    if fields.family(extension) != "npy":
        return None
    return array_form(archive.read(member, HEADER), member.size)


def _place(archive: Archive, extension: str, member: Member) -> tuple[int, int] | bytes | str:
    """Return what an item says of a member: where it is, its data if it is compressed, or why it cannot be loaded."""
    if not archive.is_compressed:
        return member.offset, member.size
    if member.size > MAX_CARRIED:
        return f"{member.size} bytes in a compressed shard, the limit is {MAX_CARRIED}: unpack it to .tar first"
    return archive.read(member)


def _items(root: str, shards: list[str]) -> Iterator[Item]:
    for shard in shards:
        for key, members in _groups(root, shard, Found(), _place):
            yield f"{shard}/{key}", shard, key, members if isinstance(members, str) else tuple(members)


@dataclass(frozen=True)
class LoadSample:
    """The function from item to sample."""

    root: str
    kinds: dict[str, Kind]
    check: str

    def __call__(self, item: Item) -> dict[str, Any]:
        """Return the sample of (name, shard, key, members), or raise `SourceError` with the reason why there is none."""
        _, shard, key, members = item
        if isinstance(members, str):
            raise SourceError(members)
        contents = {extension: place for extension, place in members if not isinstance(place, tuple)}
        if len(contents) < len(members):
            with opened(f"{self.root}/{shard}", self.root) as (fd, _):
                contents |= {extension: _read(fd, *place) for extension, place in members if isinstance(place, tuple)}
        if not contents.keys() <= self.kinds.keys():
            raise SourceError("the shard has changed since it was looked at")
        sample: dict[str, Any] = {"__key__": key}
        for extension, kind in self.kinds.items():
            content = contents.get(extension)
            try:
                if isinstance(content, str):
                    raise SourceError(content)
                sample[extension] = None if content is None else value_of(content, kind, self.check)
            except SourceError as error:
                raise SourceError(f".{printable(extension)}: {error}") from None
        return sample


def _read(fd: int, offset: int, size: int) -> bytes:
    """Return bytes of an open file, which other threads may read at the same time."""
    if size > MAX_FILE_BYTES:
        raise SourceError(f"a member of {size} bytes; the limit is {MAX_FILE_BYTES}")
    data = os.pread(fd, size, offset)
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            raise SourceError("a shard that became shorter while it was read")
        data += more
    return data
