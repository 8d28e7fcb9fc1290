"""Exports go where the suffix or the format says, come back the same, and never replace what they were not told to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import mmds
from mmds.cli import main
from mmds.converters.stores import STORES
from mmds.errors import ExistsError, OptionError, SourceError
from mmds.exporting import export
from tests.likeness import assert_alike
from tests.samples import jpeg

NAMES = ["cat/1.jpg", "cat/2.jpg", "dog/3.jpg"]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A folder of pictures, converted."""
    for number, name in enumerate(NAMES):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    mmds.convert(tmp_path / "photos", tmp_path / "in.mmds")
    return tmp_path / "in.mmds"


def test_a_folder_is_what_it_was(dataset: Path, tmp_path: Path) -> None:
    for destination, options in ((tmp_path / "out", {}), (tmp_path / "out.photos", {"format": "folder"})):
        assert export(dataset, destination, **options) == [destination]  # type: ignore[arg-type]
        assert {str(each.relative_to(destination)): each.read_bytes() for each in destination.rglob("*.*")} == {
            name: jpeg(number) for number, name in enumerate(NAMES)
        }


def test_tar_shards_come_back(dataset: Path, tmp_path: Path) -> None:
    (whole,) = export(dataset, tmp_path / "out.TAR")
    parts = export(dataset, tmp_path / "out.tar", shard_size=1)
    assert whole.is_file() and [path.name for path in parts] == [f"out-{k:06d}.tar" for k in range(3)]
    mmds.convert(tmp_path / "out-000001.tar", tmp_path / "back.mmds")
    (back,) = mmds.open(tmp_path / "back.mmds")
    assert jpeg(1) in back.values()


@pytest.mark.parametrize("suffix", [".mmds", *(store.suffixes[0] for store in STORES)])
def test_stores_hold_the_same_samples(dataset: Path, tmp_path: Path, suffix: str) -> None:
    (written,) = export(dataset, tmp_path / f"out{suffix}", fields=["image", "label"])
    got, want = mmds.open(written), mmds.open(dataset, fields=["image", "label"])
    assert len(got) == 3 and got.fields == want.fields and dict(got.metadata) == dict(want.metadata)
    for one, other in zip(got, want, strict=True):
        assert_alike(one, other)


def test_a_format_that_is_given_counts_more_than_the_suffix(dataset: Path, tmp_path: Path) -> None:
    (written,) = export(dataset, tmp_path / "out.tar", format="mmds", shard_size=1)
    assert sorted(path.name for path in written.iterdir()) == ["00000.mmds", "dataset.json"]
    (written,) = export(dataset, tmp_path / "out.mmds", format="tar")
    assert written.read_bytes()[257:262] == b"ustar"


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        (
            "out",
            {"format": "n\x1bpe"},
            SourceError,
            r"no format 'n\\x1bpe' to export to; there are: folder, tar, mmds, hd",
        ),
        ("out", {"shard_size": 5}, OptionError, "shard_size= is for tar and mmds, and this is folder"),
        ("out.h5", {"shard_size": 5}, OptionError, "and this is hdf5"),
        ("in.mmds", {}, ExistsError, "exists already"),
        ("photos", {}, ExistsError, "is a folder with things in it"),
        ("out.mmds", {"fields": ["nope"]}, ValueError, "no field 'nope'"),
    ],
)
def test_what_is_refused_leaves_nothing(
    dataset: Path, tmp_path: Path, name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message):
        export(dataset, tmp_path / name, **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_overwriting(dataset: Path, tmp_path: Path) -> None:
    for name in ("out.mmds", "out.tar", "out.h5", "out"):
        (tmp_path / name).write_text("old")
        with pytest.raises(ExistsError):
            export(dataset, tmp_path / name)
        assert (tmp_path / name).read_text() == "old"
        export(dataset, tmp_path / name, overwrite=True)
        assert (tmp_path / name).is_dir() or (tmp_path / name).stat().st_size > 3000
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["out", "out.zarr", "out.npyd"])
def test_no_foreign_folder_is_ever_replaced(dataset: Path, tmp_path: Path, name: str) -> None:
    photos = tmp_path / name
    photos.mkdir()
    (photos / "mine.jpg").write_bytes(b"the only copy")
    with pytest.raises(ExistsError, match="is a folder"):
        export(dataset, photos, overwrite=True)
    assert [path.read_bytes() for path in photos.iterdir()] == [b"the only copy"]
    (photos / "mine.jpg").unlink()
    export(dataset, photos, overwrite=True)
    if name != "out":
        export(dataset, photos, overwrite=True)  # one of its own kind is


@pytest.mark.parametrize("name", ["out", "out.tar", "out.mmds", "out.parquet"])
def test_progress_ends_at_the_end(dataset: Path, tmp_path: Path, name: str) -> None:
    calls: list[tuple[int, int | None, int]] = []
    export(dataset, tmp_path / name, progress=lambda *call: calls.append(call))
    assert calls[-1] == (3, 3, 0) and calls == sorted(calls)


def test_the_command(dataset: Path, tmp_path: Path) -> None:
    def run(*arguments: object, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["export", *map(str, arguments)])
        assert result.exit_code == code, result.output
        return result.output

    out = tmp_path / "o\x1but.tar"
    assert run(dataset, out, "--shard-size", "1") == "".join(f"{tmp_path}/o\\x1but-{k:06d}.tar\n" for k in range(3))
    assert "exists already" in run(dataset, out, "--shard-size", "1", code=1)
    run(dataset, tmp_path / "o", "--to", "parquet", "--fields", "label,path", "--no-progress")
    assert mmds.open(tmp_path / "o", format="parquet").fields.names == ("label", "path")
    assert "no format 'x'" in run(dataset, tmp_path / "p", "--to", "x", code=1)
    assert json.loads(CliRunner().invoke(main, ["info", str(dataset), "--json"]).stdout)["samples"] == 3
