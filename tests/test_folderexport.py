"""What a folder format has taken in comes out again byte for byte, and no dataset can write outside its folder."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.converters import folderexport, sources
from mmds.converters.folderexport import export_folder
from mmds.converters.outputfolder import OutputFolder
from mmds.converters.signatures import extension
from mmds.errors import ExistsError, SchemaError, SourceError, StorageError
from tests.test_audiofolder import SUFFIXES as SOUND_SUFFIXES
from tests.test_audiofolder import sound
from tests.test_imagefolder import picture
from tests.test_videofolder import SUFFIXES as FILM_SUFFIXES
from tests.test_videofolder import film

Tree = dict[bytes, bytes | None]


def make(root: Path, tree: Tree) -> Path:
    """Make files and, where there is no content, folders."""
    root.mkdir(parents=True)
    for name, content in tree.items():
        path = root / os.fsdecode(name)
        (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content)
    return root


def tree_at(root: Path) -> Tree:
    """Return all files, and all folders without files, below `root`."""
    found: Tree = {}
    for path in root.rglob("*"):
        assert not path.is_symlink()
        if path.is_file():
            found[os.fsencode(path.relative_to(root))] = path.read_bytes()
        elif not any(path.iterdir()):
            found[os.fsencode(path.relative_to(root))] = None
    return found


def pack(root: Path, path: Path, format: str | None = None, **options: Any) -> list[mmds.Reader]:
    """Write each source in a folder to a file of its own, and open them."""
    readers = []
    for number, source in enumerate(sources(root, format, **options)):
        assert not source.problems
        file = path.with_name(f"{path.stem}-{number}.mmds")
        with mmds.Writer(file, source.fields, metadata=source.metadata) as writer:
            writer.extend(map(source.load, source.items()))
        readers.append(mmds.open(file))
    return readers


def dataset(path: Path, fields: Any, samples: list[Any], **options: Any) -> mmds.Reader:
    with mmds.Writer(path, fields, **options) as writer:
        writer.extend(samples)
    return mmds.open(path)


@pytest.mark.parametrize(
    "tree",
    [
        {b"a/1.jpg": picture(1), b"b/2.JPEG": picture(2)},
        {b"2.jpg": picture(1), b"1.png": picture(2, "PNG"), b" .jpg": picture(3)},
        {b"a b/x y.jpg": picture(1), b"new\nline/\r\n\t.jpg": picture(2), b"-rf/*.jpg": picture(3)},
        {b"Cat/1.jpg": picture(1), b"cat/1.jpg": picture(2), b"cat/1.JPG": picture(3), b"CAT": None},
        {b"m\xff/\xfe.jpg": picture(1), b"m\\udcff/1.jpg": picture(2), b"m\\xff": None, b"\xff\xfe": None},
        {
            b"a/b/c/d/e/1.jpg": picture(1),
            b"a/b/2.jpg": picture(2),
            b"a/0.jpg": picture(3),
            b"\xc3\xa9/1.jpg": picture(4),
        },
        {b"a/1.jpg": picture(1), b"empty": None, b"\xe2\x80\xae": None, b"_": None},
        {b"a/" + b"x" * 251 + b".jpg": picture(1), b"y" * 255: None},
        {b"a/x.jpg/1.jpg": picture(1), b"a/x.jpg.jpg": picture(1)},  # the same picture twice
    ],
    ids=["plain", "flat", "odd", "case", "bytes", "deep", "empty", "long", "folder.jpg"],
)
def test_a_picture_folder_comes_back_byte_for_byte(tmp_path: Path, tree: Tree) -> None:
    source = make(tmp_path / "in", tree)
    (reader,) = pack(source, tmp_path / "a.mmds", "imagefolder")
    calls: list[Any] = []
    count = export_folder(reader, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert tree_at(tmp_path / "out") == tree_at(source) == tree
    assert count == len(reader) and calls[-1] == (count, count, 0)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_splits_come_back_one_by_one(tmp_path: Path) -> None:
    tree: Tree = {
        b"train/a/1.jpg": picture(1),
        b"train/b\xff/2.jpg": picture(2),
        b"train/e": None,
        b"val/b\xff": None,
        b"val/c/3.jpg": picture(3),
        b"test/4.jpg": picture(4),
    }
    source = make(tmp_path / "in", tree)
    names = [each.split for each in sources(source)]
    for name, reader in zip(names, pack(source, tmp_path / "a.mmds"), strict=True):
        export_folder(reader, tmp_path / "deep" / "out" / name)
    assert tree_at(tmp_path / "deep" / "out") == tree


def test_sounds_films_and_arrays_come_back(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.arange(12.0).reshape(3, 4))
    trees: list[Tree] = [
        {f"a/{suffix}/x{suffix}".encode(): sound(1, suffix) for suffix in SOUND_SUFFIXES},
        {f"\N{SNOWMAN}/x{suffix}".encode(): film(1, suffix) for suffix in FILM_SUFFIXES},
        {b"a/1.npy": file.getvalue(), b"b": None},
    ]
    for number, tree in enumerate(trees):
        source = make(tmp_path / f"in{number}", tree)
        (reader,) = pack(source, tmp_path / f"{number}.mmds")
        export_folder(reader, tmp_path / f"out{number}")
        assert tree_at(tmp_path / f"out{number}") == tree


def test_arrays_of_other_orders_come_back_equal(tmp_path: Path) -> None:
    values = [np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)), np.zeros((1, 3), "<i4")]
    for number, value in enumerate(values):
        (tmp_path / "in" / "c").mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "in" / "c" / f"{number}.npy", value)
    (reader,) = pack(tmp_path / "in", tmp_path / "a.mmds")
    export_folder(reader, tmp_path / "out")
    for number, value in enumerate(values):
        assert np.array_equal(np.load(tmp_path / "out" / "c" / f"{number}.npy"), value)


def test_pictures_that_were_encoded_again_are_called_what_they_are(tmp_path: Path) -> None:
    tree: Tree = {
        b"a/1.jpg": picture(1),
        b"a/2.JPEG": picture(2),
        b"a/3.png": picture(3, "PNG"),
        b"a/4.Tiff": picture(4, "TIFF"),
    }
    source = make(tmp_path / "in", tree)
    for encode, names in {
        "png": {b"a/1.png", b"a/2.png", b"a/3.png", b"a/4.png"},
        "jpeg:80": {b"a/1.jpg", b"a/2.JPEG", b"a/3.jpg", b"a/4.jpg"},
        "raw": {b"a/1.npy", b"a/2.npy", b"a/3.npy", b"a/4.npy"},
    }.items():
        (reader,) = pack(source, tmp_path / f"{encode}.mmds", encode=encode, resize=24)
        export_folder(reader, tmp_path / encode)
        assert set(tree_at(tmp_path / encode)) == names
    assert (tmp_path / "png" / "a" / "1.png").read_bytes().startswith(b"\x89PNG")
    assert np.load(tmp_path / "raw" / "a" / "1.npy").shape[0] == 3
    (tmp_path / "in" / "a" / "1.bmp").write_bytes(picture(5, "BMP"))
    (reader,) = pack(source, tmp_path / "twins.mmds", encode="png")
    with pytest.raises(SourceError, match=r"sample 1: 'a/1.png' is there already"):
        export_folder(reader, tmp_path / "twins")
    assert not (tmp_path / "twins").exists()


def test_without_paths_files_are_numbered_in_the_folder_of_their_label(tmp_path: Path) -> None:
    fields = (mmds.Image(), mmds.Label(("cat", "dog", "\N{SNOWMAN} x")))
    reader = dataset(tmp_path / "a.mmds", fields, [(picture(0), 1), (picture(1, "PNG"), 0), (picture(2), 1)])
    export_folder(reader, tmp_path / "out")
    assert tree_at(tmp_path / "out") == {
        b"dog/000000000.jpg": picture(0),
        b"cat/000000001.png": picture(1, "PNG"),
        b"dog/000000002.jpg": picture(2),
        "\N{SNOWMAN} x".encode(): None,
    }
    export_folder(reader[1:], tmp_path / "part")
    assert tree_at(tmp_path / "part")[b"dog/000000001.jpg"] == picture(2)


@pytest.mark.parametrize(
    ("kind", "value", "name", "content"),
    [
        (mmds.Text(), "h\N{SNOWMAN}", b"000000000.txt", "h\N{SNOWMAN}".encode()),
        (mmds.Json(), {"a": [1]}, b"000000000.json", b'{"a":[1]}'),
        (mmds.Bytes(), b"BM, the text", b"000000000.bin", b"BM, the text"),
        (mmds.Bytes(), b"", b"000000000.bin", b""),
        (mmds.Audio(), sound(), b"000000000.wav", sound()),
    ],
)
def test_single_values_of_every_kind(tmp_path: Path, kind: Any, value: Any, name: bytes, content: bytes) -> None:
    export_folder(dataset(tmp_path / "a.mmds", kind, [value]), tmp_path / "out")
    assert tree_at(tmp_path / "out") == {name: content}


def test_extensions_by_content() -> None:
    assert [extension(picture(0, kind)) for kind in ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF")] == [
        *(".jpg", ".png", ".bmp", ".webp", ".tiff", ".ppm", ".gif")
    ]
    for data in (
        b"",
        b"\xff",
        b"\xff\xfeU\0T\0F\0",
        b"GGG" * 200,
        b"BMW and other cars",
        b"P7\n",
        b"RIFF",
        b"\xff\xd8",
    ):
        assert extension(data) in ("", ".mpg" if data.startswith(b"GGG") else "")


def test_which_field_is_meant_has_to_be_clear(tmp_path: Path) -> None:
    fields = {"left": mmds.Image(), "right": mmds.Image(), "n": mmds.Scalar("int8"), "path": mmds.Text(column=True)}
    sample = {"left": picture(0), "right": picture(1), "n": 3, "path": "a.jpg"}
    reader = dataset(tmp_path / "a.mmds", fields, [sample])
    with pytest.raises(SchemaError, match=r"several fields can be files \(left, right\); select one"):
        export_folder(reader, tmp_path / "out")
    with pytest.raises(SchemaError, match="no field of files, bytes, text or arrays; there are: n"):
        export_folder(mmds.open(tmp_path / "a.mmds", fields=["n", "path"]), tmp_path / "out")
    export_folder(mmds.open(tmp_path / "a.mmds", fields=["right", "path"]), tmp_path / "out")
    assert tree_at(tmp_path / "out") == {b"a.jpg": picture(1)}
    labels = {"x": mmds.Bytes(), "one": mmds.Label(("a",)), "two": mmds.Label(("a",))}
    with pytest.raises(SchemaError, match="several labels"):
        export_folder(dataset(tmp_path / "b.mmds", labels, [{"x": b"", "one": 0, "two": 0}]), tmp_path / "out2")
    odd = dataset(tmp_path / "c.mmds", mmds.Array("bfloat16", (2,)), [])
    with pytest.raises(SchemaError, match="bfloat16"):
        export_folder(odd, tmp_path / "out2")


PATHS = [
    *(
        b"",
        b"/",
        b"/etc/x",
        b"..",
        b"../x",
        b"a/../../x",
        b"a/..",
        b".",
        b"./x",
        b"a/./x",
        b"a//x",
        b"a/",
        b"x\0y",
        b"a\0/x",
    ),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", [mmds.Bytes(column=True), mmds.Text(column=True)], ids=["bytes", "text"])
@pytest.mark.fault(30)
def test_paths_that_lead_out_are_refused(tmp_path: Path, path: bytes, kind: Any) -> None:
    fields = {"image": mmds.Image(), "path": kind}
    samples = [{"image": b"x", "path": each if kind.name == "bytes" else each.decode()} for each in (b"fine", path)]
    reader = dataset(tmp_path / "a.mmds", fields, samples)
    with pytest.raises(
        SourceError, match=r"a.mmds: sample 1: '.*' is no relative path of plain names. Nothing was written"
    ):
        export_folder(reader, tmp_path / "out" / "in")
    assert tree_at(tmp_path) == {b"a.mmds": (tmp_path / "a.mmds").read_bytes(), b"out": None}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (b"a/x", b"a/x", "'a/x' is there already"),
        (b"a", b"a/x", "'a/x' goes through a file"),
        (b"a/x", b"a", "'a' is there already: another file, or a folder"),
        (b"a/b/c", b"a/b", "'a/b' is there already"),
        (b"a/b", b"a/b/c/d", "'a/b/c/d' goes through a file, or a link: step 2"),
        (b"\x1b[2J", b"\x1b[2J", r"'\\x1b\[2J' is there already"),
    ],
)
@pytest.mark.fault(30)
def test_paths_that_clash_are_refused(tmp_path: Path, first: bytes, second: bytes, message: str) -> None:
    fields = {"x": mmds.Bytes(), "path": mmds.Bytes(column=True)}
    reader = dataset(tmp_path / "a.mmds", fields, [{"x": b"", "path": path} for path in (first, second)])
    with pytest.raises(SourceError, match=f"sample 1: {message}"):
        export_folder(reader, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mmds"]


@pytest.mark.parametrize("folder", ["..", "", "/tmp", "a/../../b", "a\0"])
@pytest.mark.parametrize("used", [True, False])
@pytest.mark.fault(30)
def test_labels_that_are_no_folder_names_are_refused(tmp_path: Path, folder: str, used: bool) -> None:
    for number, (name, metadata) in enumerate([(folder, {}), ("x", {"class_folders": {"x": folder.encode().hex()}})]):
        fields = {"x": mmds.Bytes(), "label": mmds.Label((name, "fine"))}
        reader = dataset(
            tmp_path / f"{number}.mmds", fields, [{"x": b"", "label": 0 if used else 1}], metadata=metadata
        )
        with pytest.raises(SourceError, match="is no relative path of plain names"):
            export_folder(reader, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("said", [{"x": 3}, {"x": "zz"}, {"x": ["61"]}])
def test_metadata_that_lie_are_refused(tmp_path: Path, said: Any) -> None:
    fields = {"x": mmds.Bytes(), "label": mmds.Label(("x",))}
    reader = dataset(tmp_path / "a.mmds", fields, [{"x": b"", "label": 0}], metadata={"class_folders": said})
    with pytest.raises(SourceError, match="class_folders: no hex for 'x'"):
        export_folder(reader, tmp_path / "out")


def test_labels_that_are_not_the_folders_of_paths_get_none(tmp_path: Path) -> None:
    fields = {"image": mmds.Image(), "label": mmds.Label(("n/a", "cat")), "path": mmds.Text(column=True)}
    samples: list[Any] = [
        {"image": b"1", "label": 1, "path": "cat/1.jpg"},
        {"image": b"2", "label": 0, "path": "2.jpg"},
    ]
    export_folder(dataset(tmp_path / "a.mmds", fields, samples), tmp_path / "out")
    assert tree_at(tmp_path / "out") == {b"cat/1.jpg": b"1", b"2.jpg": b"2"}


def test_a_label_with_a_slash_is_a_folder_in_a_folder(tmp_path: Path) -> None:
    fields = {"x": mmds.Bytes(), "label": mmds.Label(("n", "n/a"))}
    export_folder(dataset(tmp_path / "a.mmds", fields, [{"x": b"1", "label": 1}]), tmp_path / "out")
    assert tree_at(tmp_path / "out") == {b"n/a/000000000.bin": b"1"}


def test_nulls_have_no_file(tmp_path: Path) -> None:
    fields = {"x": mmds.Bytes(nullable=True), "path": mmds.Text(column=True, nullable=True)}
    for sample, message in (({"x": None, "path": "a"}, "no value"), ({"x": b"", "path": None}, "no path")):
        with mmds.Writer(tmp_path / "a.mmds", fields, overwrite=True) as writer:
            writer.write(sample)
        with pytest.raises(SourceError, match=f"sample 0: {message}"):
            export_folder(mmds.open(tmp_path / "a.mmds"), tmp_path / "out")


def test_what_is_there_stays_unless_overwriting(tmp_path: Path) -> None:
    reader = dataset(tmp_path / "a.mmds", mmds.Bytes(), [b"new"])
    make(tmp_path / "out", {b"old": b"old"})
    with pytest.raises(ExistsError):
        export_folder(reader, tmp_path / "out")
    assert tree_at(tmp_path / "out") == {b"old": b"old"}
    assert export_folder(reader, tmp_path / "out", overwrite=True) == 1
    assert tree_at(tmp_path / "out") == {b"000000000.bin": b"new"}
    bad = dataset(tmp_path / "b.mmds", {"x": mmds.Bytes(), "path": mmds.Text()}, [{"x": b"", "path": ".."}])
    with pytest.raises(SourceError):
        export_folder(bad, tmp_path / "out", overwrite=True)
    assert tree_at(tmp_path / "out") == {b"000000000.bin": b"new"}
    assert export_folder(reader[:0], tmp_path / "none") == 0 and tree_at(tmp_path / "none") == {}


def test_a_full_disk_names_the_sample_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = dataset(tmp_path / "a.mmds", mmds.Bytes(), [b"1", b"2"])
    write = os.write

    def full(fd: int, data: Any) -> int:
        if bytes(data) == b"2":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match=r"out: sample 1: '000000001.bin': No space left") as caught:
        export_folder(reader, tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["a.mmds"]


@pytest.mark.fault(30)
def test_links_in_the_folder_are_never_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").write_bytes(b"mine")
    with OutputFolder(tmp_path / "new") as folder:
        folder.put(b"a/1", b"1")
        (tmp_path / "new" / "link").symlink_to(tmp_path / "victim")
        (tmp_path / "new" / "a" / "2").symlink_to(tmp_path / "victim" / "file")
        for name in (b"link/file", b"link/other", b"a/2"):
            with pytest.raises(ValueError, match=r"there already|through a file, or a link"):
                folder.put(name, b"yours")
        with pytest.raises(ValueError, match="through a file, or a link"):
            folder.put(b"link", None)
    assert tree_at(tmp_path / "victim") == {b"file": b"mine"}


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_descriptors_do_not_pile_up(tmp_path: Path) -> None:
    before = open_descriptors()
    with OutputFolder(tmp_path / "new") as folder:
        for number in range(50):
            folder.put(b"a/%d/b/c" % number, b"")
            with pytest.raises(ValueError, match="file"):
                folder.put(b"a/%d/b/c/d/e" % number, b"")
            with pytest.raises(OSError, match="too long"):
                folder.put(b"a/%d/" % number + b"x" * 300 + b"/y", b"")
        assert open_descriptors() <= before + 2
    assert open_descriptors() <= before  # the collector may have closed others


def test_batches_hold_few_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folderexport, "BATCH_BYTES", 10_000)
    reader = dataset(tmp_path / "a.mmds", mmds.Bytes(), [bytes(1000)] * 100)
    done: list[int] = []
    export_folder(reader, tmp_path / "out", progress=lambda count, *_: done.append(count))
    assert done == [1, 5, *range(15, 100, 10), 100]


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    export_folder(dataset(tmp_path / "a.mmds", mmds.Bytes(), [b""]), tmp_path / "out")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "out" / "000000000.bin").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~mask
