"""``dataset.json`` from somebody else: a folder reads as it says, or is refused, and nothing outside of it is read."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmds
from mmds import canonical
from mmds.errors import FormatError, MmdsError
from tests.conftest import Cases
from tests.faults.machine import IS_ROOT, needs_root, open_to_everybody, run_script
from tests.shard_folders import write_folder

NAMES = ("format", "n", "schema_id", "shards", "sidecars", "version", "bytes", "content_id", "path", "x", "")
NUMBERS = st.sampled_from([0, 1, -1, 3, 5, 4159, 2**31, 2**32, 2**53 - 1, 2**53, 2**63, 2**64, True, 1.5, float("nan")])
TEXTS = st.sampled_from(
    ["", ".", "..", "../secret.mmds", "/etc/passwd", "a\0b", "\x1b[2J", "a//b", "00000.mmds", "00001.mmds", "link.mmds",
     "fifo.mmds", "folder", "folder/../00000.mmds", "device.mmds", "0" * 32, "f" * 32, "\u202e", "x" * 1025, "mmds-dataset"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=8,
)


@dataclass(frozen=True)
class Folder:
    """A dataset, and what its manifest says when nobody has changed it."""

    path: Path
    whole: bytes

    def said(self) -> Any:
        """Return what the manifest says, to be changed."""
        return json.loads(self.whole)

    def read(self, text: bytes) -> str:
        """Read the folder with this ``dataset.json``; return "read" or the error's message."""
        (self.path / "dataset.json").write_bytes(text)
        try:
            reader = mmds.open(self.path)
            for index in range(min(len(reader), 10)):
                reader[index]
        except MmdsError as error:
            assert not set(map(chr, range(32))) & set(str(error)) and "\u202e" not in str(error)
            return str(error)
        return "read"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Return a dataset of two shards, beside a secret one and among things that are no shards."""
    base = tmp_path_factory.mktemp("manifest")
    write_folder(base / "other", [3])
    (base / "other" / "00000.mmds").rename(base / "secret.mmds")
    path = write_folder(base / "set", [3, 2])
    (path / "link.mmds").symlink_to("../secret.mmds")
    (path / "folder").mkdir()
    os.mkfifo(path / "fifo.mmds")
    if IS_ROOT:
        os.mknod(path / "device.mmds", 0o020666, os.makedev(1, 5))
    return Folder(path, (path / "dataset.json").read_bytes())


def places(node: Any) -> list[tuple[Any, Any]]:
    """Return every place in a nest, as what it is in and its key there."""
    found: list[tuple[Any, Any]] = []
    for key, child in node.items() if isinstance(node, dict) else enumerate(node):
        found.append((node, key))
        if isinstance(child, (dict, list)):
            found += places(child)
    return found


@pytest.mark.fault(13, 14)
def test_13_a_manifest_of_odd_values(folder: Folder, cases: Cases) -> None:
    outcomes: list[str] = []

    @settings(max_examples=400, deadline=None, database=None, derandomize=True)
    @given(st.data())
    def mutate(data: st.DataObject) -> None:
        said = folder.said()
        for _ in range(data.draw(st.integers(1, 3))):
            node, key = data.draw(st.sampled_from(places(said)))
            what = data.draw(st.sampled_from(["value", "value", "remove", "rename", "again"]))
            if what == "remove":
                del node[key]
            elif what == "rename" and isinstance(node, dict):
                node[data.draw(st.sampled_from(NAMES))] = node.pop(key)
            elif what == "again" and isinstance(node, list):
                node.append(node[key])
            else:
                node[key] = data.draw(VALUES)
            if not places(said):
                break
        text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
            "utf-8", "surrogatepass"
        )
        outcomes.append(folder.read(text))

    mutate()
    assert outcomes.count("read") < len(outcomes) / 2
    reasons = {
        reason
        for reason in ("not canonical", "expected names inside", "expected an object")
        for said in outcomes
        if reason in said
    }
    assert len(reasons) == 3
    cases(len(outcomes))


@pytest.mark.fault(13, 14)
def test_13_a_manifest_that_ends_early_or_has_one_bit_flipped(folder: Folder, cases: Cases) -> None:
    whole = folder.whole
    for length in range(len(whole)):
        assert folder.read(whole[:length]) != "read"
    flipped = 0
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        flipped += folder.read(bytes(data)) == "read"
    assert flipped == 0  # each of them says something that is not so
    cases(2 * len(whole))


@pytest.mark.fault(14)
@pytest.mark.parametrize("n", [2**31, 2**32, 2**53 - 1])
def test_14_a_manifest_that_lists_more_than_there_is(folder: Folder, n: int) -> None:
    said = folder.said()
    said["shards"][1]["n"] += n - said["n"]
    said["n"] = n
    assert folder.read(canonical.dump(said)) != "read"
    with pytest.raises(FormatError, match=r"00001\.mmds: not the file that dataset\.json lists: samples 2"):
        mmds.open(folder.path)[-1]


@pytest.mark.fault(15)
@pytest.mark.parametrize("path", ["link.mmds", "fifo.mmds", "folder", "device.mmds"])
def test_15_a_manifest_that_lists_what_is_no_file_of_the_folder(folder: Folder, path: str) -> None:
    if path == "device.mmds" and not IS_ROOT:
        pytest.skip("only root can make a device")
    said = folder.said()
    said["shards"] = [{**said["shards"][0], "path": path}]
    said["n"] = said["shards"][0]["n"]
    message = folder.read(canonical.dump(said))
    assert message != "read" and ("leads out of the folder" in message) == (path == "link.mmds"), message


@pytest.mark.fault(14)
def test_14_a_manifest_with_very_many_shards(folder: Folder, cases: Cases) -> None:
    """As many as 16 MiB hold: each is a line to check, and none is opened before it is needed."""
    said = folder.said()
    entry = {**said["shards"][0], "n": 0}
    said["shards"] = [said["shards"][0], *({**entry, "path": f"{number:05}.mmd"} for number in range(100_000))]
    said["n"] = said["shards"][0]["n"]
    assert folder.read(canonical.dump(said)) == "read"
    cases(100_001)


OTHER_USER = """
import os, sys, mmds
from mmds.errors import MmdsError
list(mmds.open(sys.argv[2]))
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    print("read", len(list(mmds.open(sys.argv[1]))))
except (MmdsError, PermissionError) as error:
    print(type(error).__name__, error)
"""


@needs_root
@pytest.mark.fault(15)
def test_15_a_dataset_of_another_user_reads_as_far_as_it_may(tmp_path: Path, cases: Cases) -> None:
    mine = write_folder(tmp_path / "mine", [1])
    with open_to_everybody() as folder:
        path = write_folder(folder / "a", [3, 2])
        for each in (path, *path.iterdir()):
            each.chmod(0o755 if each.is_dir() else 0o644)
        assert run_script(OTHER_USER, path, mine).stdout == "read 5\n"
        for name in ("00001.mmds", "dataset.json"):
            (path / name).chmod(0)
            assert "Permission denied" in run_script(OTHER_USER, path, mine).stdout
    cases(3)
