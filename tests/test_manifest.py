"""``dataset.json``: what it says, what is refused, and how it is replaced."""

from __future__ import annotations

import gc
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mmds
from mmds import canonical
from mmds.errors import ExistsError, FormatError, StorageError, VersionError
from mmds.manifest import (
    MAGIC,
    Manifest,
    Shard,
    locked,
    open_listed,
    parse_entry,
    parse_manifest,
    publish_manifest,
    read_manifest,
)
from mmds.remote import Remote
from tests.shard_folders import write_shards

ID = "0123456789abcdef" * 2
SHARD = {"bytes": 5000, "content_id": ID, "n": 3, "path": "00000.mmds"}
SIDECAR = {"bytes": 4160, "content_id": ID, "n": 3, "path": "columns/label-0.mmds"}
WHOLE: dict[str, Any] = {
    "format": "mmds-dataset",
    "n": 3,
    "schema_id": ID,
    "shards": [SHARD],
    "sidecars": [SIDECAR],
    "version": 1,
}
LITERAL = (
    b'{"format":"mmds-dataset","n":3,"schema_id":"0123456789abcdef0123456789abcdef","shards":[{"bytes":5000,'
    b'"content_id":"0123456789abcdef0123456789abcdef","n":3,"path":"00000.mmds"}],"sidecars":[],"version":1}'
)


def test_the_bytes_are_these() -> None:
    manifest = Manifest(ID, (Shard("00000.mmds", 3, 5000, ID),))
    assert manifest.text == LITERAL and LITERAL.startswith(MAGIC)
    assert parse_manifest(LITERAL) == manifest
    assert manifest.n == 3 and manifest.content_id == "08ffd26d6cd9fd2d74abcecc5166620d"


def test_sidecars_come_back() -> None:
    found = parse_manifest(canonical.dump(WHOLE))
    assert found.columns == (Shard("columns/label-0.mmds", 3, 4160, ID),) and found.text == canonical.dump(WHOLE)


@pytest.mark.parametrize("is_on", [True, False])
def test_the_garbage_collector_stays_as_it_was(is_on: bool) -> None:
    (gc.enable if is_on else gc.disable)()
    try:
        parse_manifest(LITERAL)
        with pytest.raises(FormatError):
            parse_manifest(LITERAL[:-1])
        assert gc.isenabled() == is_on
    finally:
        gc.enable()


def test_an_entry_alone() -> None:
    assert parse_entry(SHARD, "here") == Shard("00000.mmds", 3, 5000, ID)
    with pytest.raises(FormatError, match=r"^here: n is -1, expected a number of samples"):
        parse_entry({**SHARD, "n": -1}, "here")
    with pytest.raises(FormatError, match=r"^here is 7, expected an object"):
        parse_entry(7, "here")


def without(value: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in value.items() if k != key}


BROKEN: dict[str, tuple[Any, str]] = {
    "no object": ([], "not a manifest"),
    "another format": ({**WHOLE, "format": "mds"}, "not a manifest: expected an object whose format is mmds-dataset"),
    "no format": (without(WHOLE, "format"), "not a manifest"),
    "no version": (without(WHOLE, "version"), "version None, expected 1"),
    "version 0": ({**WHOLE, "version": 0}, "version 0, expected 1"),
    "version true": ({**WHOLE, "version": True}, "version True, expected 1"),
    "a key too many": ({**WHOLE, "url": "x"}, "keys .*'url'.*expected"),
    "a key too few": (without(WHOLE, "sidecars"), "keys .*expected"),
    "schema id in capitals": ({**WHOLE, "schema_id": ID.upper()}, "schema_id '0123456789ABCDEF.*expected 32 hex"),
    "schema id too long": ({**WHOLE, "schema_id": ID + "0"}, "schema_id .*expected 32 hex digits"),
    "schema id a number": ({**WHOLE, "schema_id": 7}, "schema_id 7, expected 32 hex digits"),
    "shards an object": ({**WHOLE, "shards": {}}, "shards is a dict, expected a list"),
    "sidecars null": ({**WHOLE, "sidecars": None}, "sidecars is a NoneType, expected a list"),
    "no shards": ({**WHOLE, "shards": [], "sidecars": [], "n": 0}, "no shards, expected at least one"),
    "an entry with a key too many": ({**WHOLE, "shards": [{**SHARD, "x": 1}]}, r"shards\[0\] is .*expected an object"),
    "an entry with a key too few": ({**WHOLE, "sidecars": [without(SIDECAR, "n")]}, r"sidecars\[0\] is .*with keys"),
    "an entry that is text": ({**WHOLE, "shards": ["00000.mmds"]}, r"shards\[0\] is '00000.mmds', expected an object"),
    "n negative": ({**WHOLE, "shards": [{**SHARD, "n": -3}]}, r"shards\[0\]: n is -3"),
    "n a fraction": ({**WHOLE, "shards": [{**SHARD, "n": 3.0}]}, r"shards\[0\]: n is 3.0"),
    "n true": ({**WHOLE, "shards": [{**SHARD, "n": True}]}, r"shards\[0\]: n is True"),
    "shorter than a file can be": ({**WHOLE, "shards": [{**SHARD, "bytes": 4159}]}, "bytes is 4159.*at least 4160"),
    "bytes text": ({**WHOLE, "shards": [{**SHARD, "bytes": "5000"}]}, "bytes is '5000'"),
    "content id too short": ({**WHOLE, "shards": [{**SHARD, "content_id": "00"}]}, "content_id '00', expected 32 hex"),
    "content id null": ({**WHOLE, "shards": [{**SHARD, "content_id": None}]}, "content_id None, expected 32 hex"),
    "a total that is none": ({**WHOLE, "n": 4}, "n is 4, but the shards have 3 samples together"),
    "a total that is true": (
        {**WHOLE, "n": True, "shards": [{**SHARD, "n": 1}], "sidecars": []},
        "n is True, but the shards have 1",
    ),
    "a sidecar of fewer samples": (
        {**WHOLE, "sidecars": [{**SIDECAR, "n": 2}]},
        r"sidecar 'columns/label-0\.mmds' has 2 samples, expected 3, as the shards have",
    ),
    "a shard twice": ({**WHOLE, "n": 6, "shards": [SHARD, SHARD], "sidecars": []}, "'00000.mmds' is listed 2 times"),
    "a shard as sidecar": ({**WHOLE, "sidecars": [SHARD]}, "'00000.mmds' is listed 2 times"),
}
PATHS = [
    "", "/", "/etc/passwd", "..", "../out.mmds", "a/../b.mmds", "a/..", ".", "./a.mmds", "a/./b", "a//b", "a/", "a\\b",
    "a\0b", "a\nb", "\x1b[2J", "a\x7f", "a" * 1025, None, 7, ["a"],
]  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.fault(13)
def test_every_broken_rule_is_refused_by_name(case: str) -> None:
    value, message = BROKEN[case]
    with pytest.raises(FormatError, match=message):
        parse_manifest(canonical.dump(value))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.fault(13)
def test_paths_that_are_refused(path: Any) -> None:
    with pytest.raises(FormatError, match=r"shards\[0\]: path .*expected names inside of the folder") as raised:
        parse_manifest(canonical.dump({**WHOLE, "shards": [{**SHARD, "path": path}]}))
    assert "\x1b" not in str(raised.value) and len(str(raised.value)) < 400


@pytest.mark.parametrize("path", ["a", "..a", "...", "a/b/c.mmds", "train 1.mmds", ".hidden", "größe.mmds", "a" * 1024])
def test_paths_that_are_not(path: str) -> None:
    assert parse_manifest(canonical.dump({**WHOLE, "shards": [{**SHARD, "path": path}]})).shards[0].path == path


TEXTS = {
    "pretty": json.dumps(WHOLE, indent=1).encode(),
    "a line break at the end": canonical.dump(WHOLE) + b"\n",
    "a key twice": canonical.dump(WHOLE)[:-1] + b',"version":1}',
    "a number with an exponent": canonical.dump(WHOLE).replace(b'"n":3', b'"n":3e0'),
    "not UTF-8": canonical.dump(WHOLE).replace(b"00000.mmds", b"\xff.mmds"),
    "a lone surrogate": canonical.dump(WHOLE).replace(b"00000.mmds", b"\\ud800.mmds"),
    "an integer that JSON readers round": canonical.dump(WHOLE).replace(b"5000", b"9007199254740993"),
    "deep": b"[" * 100_000,
    "cut": canonical.dump(WHOLE)[:-1],
    "empty": b"",
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.fault(13)
def test_what_is_not_canonical_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="not canonical JSON"):
        parse_manifest(TEXTS[text])


@pytest.mark.fault(16)
def test_a_newer_version_is_named_whatever_else_is_in_it() -> None:
    with pytest.raises(VersionError, match=r"manifest version 2; this mmds reads version 1\. Upgrade mmds"):
        parse_manifest(canonical.dump({"format": "mmds-dataset", "version": 2, "shards": "elsewhere"}))


@pytest.mark.fault(15)
def test_what_is_not_a_file_of_its_size(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_manifest(tmp_path)
    os.mkfifo(tmp_path / "dataset.json")  # reading it would wait for ever
    with pytest.raises(FormatError, match=r"dataset\.json: not a regular file"):
        read_manifest(tmp_path)
    (tmp_path / "dataset.json").unlink()
    with (tmp_path / "dataset.json").open("wb") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(FormatError, match=r"dataset\.json: 16777217 bytes; at most 16777216 are allowed"):
        read_manifest(tmp_path)


def test_publishing(tmp_path: Path) -> None:
    manifest = parse_manifest(LITERAL)
    publish_manifest(tmp_path, manifest, overwrite=False)
    assert (tmp_path / "dataset.json").read_bytes() == LITERAL
    assert read_manifest(tmp_path) == manifest
    with pytest.raises(ExistsError):
        publish_manifest(tmp_path, manifest, overwrite=False)
    more = Manifest(ID, (*manifest.shards, Shard("b.mmds", 0, 4160, ID)))
    publish_manifest(tmp_path, more, overwrite=True)
    assert read_manifest(tmp_path) == more
    assert more.content_id != manifest.content_id
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


def test_nothing_is_published_that_readers_would_refuse(tmp_path: Path) -> None:
    sidecar = Shard("c.mmds", 2, 5000, ID)
    for manifest, reason in (
        (Manifest(ID, (Shard("../a.mmds", 1, 5000, ID),)), "path"),
        (Manifest(ID, (Shard("a.mmds", 1, 5000, ID),), (sidecar,)), "has 2 samples, expected 1"),
        (Manifest(ID, (Shard("a.mmds", 2**53, 5000, ID),)), "outside"),
        (Manifest(ID, tuple(Shard(f"{i}", 1, 2**50, ID) for i in range(200_000))), "bytes of JSON"),
    ):
        with pytest.raises(FormatError, match=f"not written: .*{reason}"):
            publish_manifest(tmp_path, manifest, overwrite=True)
    assert not list(tmp_path.iterdir())


def test_one_process_at_a_time_changes_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(StorageError, match="is being changed by another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.fault(13)
def test_a_listed_file_must_be_the_one_that_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (entry,) = write_shards(folder, [3]).shards
    assert open_listed(folder, entry).n == 3
    for other, message in (
        (Shard(entry.path, 4, entry.bytes, entry.content_id), "samples 3, expected 4"),
        (Shard(entry.path, 3, entry.bytes + 1, entry.content_id), f"bytes {entry.bytes}, expected {entry.bytes + 1}"),
        (Shard(entry.path, 3, entry.bytes, ID), f"content id {entry.content_id}, expected {ID}"),
    ):
        with pytest.raises(FormatError, match=f"00000.mmds: not the file that dataset.json lists: {message}"):
            open_listed(folder, other)
    with pytest.raises(FormatError, match=r"b\.mmds: missing, but dataset\.json lists it"):
        open_listed(folder, Shard("b.mmds", 3, entry.bytes, entry.content_id))


@pytest.mark.fault(15)
def test_links_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (entry,) = write_shards(folder, [3]).shards
    (folder / "inside.mmds").symlink_to("00000.mmds")
    assert open_listed(folder, Shard("inside.mmds", 3, entry.bytes, entry.content_id)).n == 3
    (tmp_path / "link").symlink_to(folder)
    assert open_listed(tmp_path / "link", entry).n == 3
    (folder / "00000.mmds").rename(tmp_path / "outside.mmds")
    (folder / "00000.mmds").symlink_to("../outside.mmds")
    (tmp_path / "abc").mkdir()  # begins with the folder's name
    (folder / "columns").symlink_to("../abc")
    (tmp_path / "abc" / "x.mmds").write_bytes((tmp_path / "outside.mmds").read_bytes())
    for path in ("00000.mmds", "columns/x.mmds"):
        with pytest.raises(FormatError, match="leads out of the folder, to "):
            open_listed(folder, Shard(path, 3, entry.bytes, entry.content_id))


def test_a_folder_in_object_storage(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/out.mmds"
    mmds.convert([{"x": k} for k in range(20)], tmp_path / "a.mmds", shard_size=400)
    mmds.upload(tmp_path / "a.mmds", url)
    found, local = read_manifest(url), read_manifest(tmp_path / "a.mmds")
    assert found == local and len(found.shards) > 1
    assert open_listed(url, found.shards[1]).content_id == found.shards[1].content_id
    with pytest.raises(FormatError, match=r"out\.mmds/00000\.mmds: not the file that dataset\.json lists"):
        open_listed(url, replace(found.shards[1], path="00000.mmds"))
    Remote(url).child("00001.mmds").delete()
    with pytest.raises(FormatError, match=r"out\.mmds/00001\.mmds: missing, but dataset\.json lists it"):
        open_listed(url, found.shards[1])
    Remote(url).child("dataset.json").replace(b"{}")
    with pytest.raises(FormatError, match=r"out\.mmds/dataset\.json: not a manifest"):
        read_manifest(url)
