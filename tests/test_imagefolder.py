"""Folders of pictures: what torchvision's ImageFolder takes is taken, and everything else is named."""

from __future__ import annotations

import io
import os
import pickle
import socket
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data as photos

import mmds
from mmds.converters import Source, sources
from mmds.converters.extensions import KINDS, LOOK_FOLDERS, PICTURES, SOUNDS, only_holds
from mmds.errors import SourceError
from tests.source_contract import SourceContract

PHOTO = Image.fromarray(photos.astronaut())  # type: ignore[no-untyped-call]


def picture(number: int = 0, kind: str = "JPEG") -> bytes:
    """Return a small photograph, another one for every number."""
    file = io.BytesIO()
    x, y = 37 * number % 400, 53 * number % 400
    PHOTO.crop((x, y, x + 40 + number % 7, y + 30)).save(file, kind)
    return file.getvalue()


def fill(root: Path, names: str, start: int = 0) -> Path:
    """Write a picture to each of the names and make a folder of each name that ends in a slash; return `root`."""
    for number, name in enumerate(names.split(), start):
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number))
    return root


def only(root: Path, **options: Any) -> Source:
    (source,) = sources(root, **options)
    return source


def torchvision_samples(directory: str) -> tuple[list[str], list[tuple[str, int]]]:
    """``torchvision.datasets.folder``'s `find_classes` and `make_dataset` (v0.24), line by line."""
    extensions = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
    classes = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir())
    class_to_idx = {cls_name: i for i, cls_name in enumerate(classes)}
    instances = []
    for target_class in sorted(class_to_idx.keys()):
        class_index = class_to_idx[target_class]
        target_dir = os.path.join(directory, target_class)  # noqa: PTH118 (theirs)
        if not os.path.isdir(target_dir):  # noqa: PTH112
            continue
        for root, _, fnames in sorted(os.walk(target_dir, followlinks=True)):
            for fname in sorted(fnames):
                path = os.path.join(root, fname)  # noqa: PTH118
                if path.lower().endswith(extensions):
                    instances.append((path, class_index))
    return classes, instances


def test_classes_labels_and_order_are_torchvisions(tmp_path: Path) -> None:
    root = fill(
        tmp_path / "set",
        """b/2.jpg b/10.JPG b/1.Jpeg b/a/x.png b/a-b/x.png b/a/y/z.webp b/a.d/q.tif B/x.bmp B/y.PGM é/ü.jpg é/z.jpeg
        c/notes.txt c/x.tiff c/x.jpg.bak .hidden/x.ppm c/.jpg c/folder.jpg/inner.jpg empty/ 10/x.jpg 9/x.jpg top.jpg""",
    )
    (root / "c" / "link.jpg").symlink_to("x.tiff")
    (root / "b" / "linked").symlink_to("../B")
    (root / "alias").symlink_to("9")
    classes, instances = torchvision_samples(str(root))
    source = only(root)
    assert len(instances) == len(source) == 21
    assert [(str(root / name), label) for name, label in source.items()] == instances
    assert source.fields["label"].names == tuple(classes)
    assert {"empty", ".hidden"} <= set(classes)
    assert {reason: ignored.count for reason, ignored in source.ignored.items()} == {
        "class folder without pictures": 1,
        "file extension of no picture format": 2,
        "picture outside every class folder": 1,
    }
    assert not source.problems


def test_sample_is_the_file_byte_for_byte(tmp_path: Path) -> None:
    source = only(fill(tmp_path, "cat/a.jpg dog/b.jpg"))
    assert [source.load(item) for item in source.items()] == [
        {"image": picture(0), "label": 0, "path": "cat/a.jpg"},
        {"image": picture(1), "label": 1, "path": "dog/b.jpg"},
    ]
    assert not source.cpu_bound and source.metadata == {"source": "imagefolder"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM"])
def test_every_format_is_kept(tmp_path: Path, kind: str) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.png").write_bytes(picture(3, kind))  # the content counts, not the extension
    source = only(tmp_path)
    assert source.load(next(source.items()))["image"] == picture(3, kind)


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    source = only(fill(tmp_path, "b.jpg a.jpg z/ notes/x.txt"))
    assert list(source.items()) == [("a.jpg", None), ("b.jpg", None)]
    assert list(source.fields) == ["image", "path"]
    assert source.load(("a.jpg", None)) == {"image": picture(1), "path": "a.jpg"}
    assert source.ignored["class folder without pictures"].examples == ["notes", "z"]


def test_splits_share_their_label_ids(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat/1.jpg train/dog/2.jpg val/ant/3.jpg val/dog/4.jpg test/5.jpg test/6.jpg README.txt .git/")
    found = {source.split: source for source in sources(tmp_path)}
    assert list(found) == ["test", "train", "val"]
    names = ("ant", "cat", "dog")
    assert found["train"].fields["label"].names == found["val"].fields["label"].names == names
    assert list(found["train"].items()) == [("cat/1.jpg", 1), ("dog/2.jpg", 2)]
    assert list(found["val"].items()) == [("ant/3.jpg", 0), ("dog/4.jpg", 2)]
    assert list(found["test"].items()) == [("5.jpg", None), ("6.jpg", None)]
    assert found["test"].ignored["file extension of no picture format"].examples == ["README.txt"]
    assert found["test"].ignored["folder beside the splits"].examples == [".git"]
    assert found["val"].load(("ant/3.jpg", 0))["image"] == picture(2)


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ("train/a/1.jpg val/a/1.jpg", 2),
        ("Training/a/1.jpg VAL/a/1.jpg", 2),
        ("train/a/1.jpg val/a/1.jpg annotations/a.json", 2),
        ("train/a/1.jpg", 1),
        ("val/a/1.jpg test/a/1.jpg", 1),
        ("train/a/1.jpg val/a/1.jpg other/a/1.jpg", 1),
        ("train/a/1.jpg val/a/1.jpg 1.jpg", 1),
    ],
)
def test_when_folders_are_splits(tmp_path: Path, names: str, count: int) -> None:
    fill(tmp_path, names)
    assert len(sources(tmp_path)) == count
    assert len(sources(tmp_path, splits=False)) == 1
    forced = sources(tmp_path, splits=True)
    assert ("picture outside every class folder" in forced[0].ignored) == ("1.jpg" in names.split())
    assert len(forced) == len({n.split("/")[0] for n in names.split() if "/" in n})
    if "annotations" in names:
        assert sources(tmp_path)[0].ignored["folder beside the splits"].examples == ["annotations"]


def reason(source: Source, name: str) -> str:
    with pytest.raises(SourceError) as caught:
        source.load((name, 0))
    return str(caught.value)


@pytest.mark.fault(33)
def test_what_is_no_file_fails_with_its_reason_and_never_blocks(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", "c/good.jpg")
    (tmp_path / "outside.jpg").write_bytes(picture())
    (tmp_path / "set2").mkdir()  # a neighbour whose path begins with the root's
    (tmp_path / "set2" / "x.jpg").write_bytes(picture())
    folder = root / "c"
    os.mkfifo(folder / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.jpg"))
    if os.geteuid() == 0:
        os.mknod(folder / "device.jpg", stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
    (folder / "out.jpg").symlink_to(tmp_path / "outside.jpg")
    (folder / "neighbour.jpg").symlink_to(tmp_path / "set2" / "x.jpg")
    (folder / "nothing.jpg").symlink_to("missing.jpg")
    (folder / "self.jpg").symlink_to("self.jpg")
    (folder / "inside.jpg").symlink_to("good.jpg")
    (folder / "fifo-link.jpg").symlink_to("fifo.jpg")
    (folder / "empty.jpg").touch()
    (folder / "huge.jpg").touch()
    os.truncate(folder / "huge.jpg", 2**40)
    (folder / "text.jpg").write_text("not a picture")
    (folder / "short.jpg").write_bytes(picture()[:-100])
    source = only(root)
    found = {}
    for item in source.items():
        try:
            source.load(item)
        except SourceError as error:
            found[item[0]] = str(error)
    if os.geteuid() == 0:
        assert found.pop("c/device.jpg") == "not a file but a device"
    assert found.pop("c/short.jpg").startswith("a corrupt picture (")
    assert found.pop("c/self.jpg").startswith("cannot be read (Too many levels")
    assert found == {
        "c/fifo.jpg": "not a file but a FIFO",
        "c/fifo-link.jpg": "not a file but a FIFO",
        "c/socket.jpg": "not a file but a socket or a device without a driver",
        "c/out.jpg": "a symbolic link out of the tree",
        "c/neighbour.jpg": "a symbolic link out of the tree",
        "c/nothing.jpg": "a symbolic link to nothing",
        "c/empty.jpg": "an empty file",
        "c/huge.jpg": f"a file of {2**40} bytes; the limit is {2**30}",
        "c/text.jpg": "not a picture in any format that Pillow knows",
    }


@pytest.mark.fault(33)
def test_folder_links_out_of_the_tree_and_in_circles(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", "a/1.jpg b/2.jpg")
    fill(tmp_path / "other", "3.jpg")
    (root / "c").symlink_to("../other")  # a class of its own: the ids of the others do not depend on where it leads
    (root / "a" / "up").symlink_to("..")
    (root / "a" / "self").symlink_to(".")
    (root / "a" / "b").symlink_to("../b")
    (root / "b" / "a").symlink_to("../a")
    source = only(root)
    assert [name for name, _ in source.items()] == ["a/1.jpg", "a/b/2.jpg", "b/2.jpg", "b/a/1.jpg"]
    assert source.fields["label"].names == ("a", "b", "c")
    assert ("c", "a symbolic link out of the tree") in source.problems
    assert {name for name, _ in source.problems} == {
        *("c", "a/up", "a/self", "a/b/a", "b/a/b"),
        *("b/a/up", "b/a/self"),
    }


@pytest.mark.fault(33)
def test_removed_or_replaced_between_listing_and_reading(tmp_path: Path) -> None:
    source = only(fill(tmp_path, "c/gone.jpg c/folder.jpg"))
    (tmp_path / "c" / "gone.jpg").unlink()
    (tmp_path / "c" / "folder.jpg").unlink()
    (tmp_path / "c" / "folder.jpg").mkdir()
    assert reason(source, "c/gone.jpg") == "cannot be read (No such file or directory)"
    assert reason(source, "c/folder.jpg") == "not a file but a folder"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user's eyes, which only root can borrow")
@pytest.mark.fault(33)
def test_what_may_not_be_read(tmp_path: Path) -> None:
    fill(tmp_path, "c/secret.jpg d/1.jpg")
    (tmp_path / "c" / "secret.jpg").chmod(0)
    (tmp_path / "d").chmod(0)
    for folder in (tmp_path, *tmp_path.parents):  # pytest's own folders are closed to others
        if folder.stat().st_uid == 0 and not folder.stat().st_mode & stat.S_IXOTH:
            folder.chmod(folder.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        source = only(tmp_path)
        assert source.problems == [("d", "a folder that cannot be listed (Permission denied)")]
        assert reason(source, "c/secret.jpg") == "cannot be read (Permission denied)"
    finally:
        os.seteuid(0)


def put(root: Path, name: bytes, number: int = 0) -> None:
    """Write a picture to a name of bytes."""
    path = root / os.fsdecode(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(number))


def loaded(source: Source) -> list[dict[str, Any]]:
    return [source.load(item) for item in pickle.loads(pickle.dumps(list(source.items())))]


def test_a_class_name_that_is_not_utf8_keeps_its_label_id(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg z/2.jpg m\\udcff/4.jpg m\\udcff_/")
    put(tmp_path, b"m\xff/3.jpg", 2)
    source = only(tmp_path)
    assert source.fields["label"].names == ("a", "m\\udcff", "m\\udcff_", "m\\udcff__", "z")
    assert source.metadata["class_folders"] == {"m\\udcff__": b"m\xff".hex()}
    assert source.fields["path"] == mmds.Bytes(key=True)
    assert [(each["path"], each["label"]) for each in loaded(source)] == [
        (b"a/1.jpg", 0),
        (b"m\\udcff/4.jpg", 1),
        (b"m\xff/3.jpg", 3),
        (b"z/2.jpg", 4),
    ]


def test_one_name_that_is_not_utf8_makes_all_paths_bytes(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.jpg val/a/2.jpg")
    assert {each.fields["path"] for each in sources(tmp_path)} == {mmds.Text(key=True)}
    put(tmp_path, b"val/a/deep/\xfe.jpg", 3)
    train, val = sources(tmp_path)
    assert train.fields == val.fields and train.fields["path"] == mmds.Bytes(key=True)
    assert loaded(train) == [{"image": picture(0), "label": 0, "path": b"a/1.jpg"}]
    assert loaded(val)[1] == {"image": picture(3), "label": 0, "path": b"a/deep/\xfe.jpg"}
    assert "class_folders" not in train.metadata


@pytest.mark.fault(33)
def test_an_empty_class_or_a_file_that_is_ignored_may_have_any_name(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg")
    (tmp_path / os.fsdecode(b"e\xff")).mkdir()
    (tmp_path / os.fsdecode(b"notes\xff.txt")).touch()
    source = only(tmp_path)
    assert loaded(source) == [{"image": picture(0), "label": 0, "path": "a/1.jpg"}]
    assert source.metadata["class_folders"] == {"e\\udcff": b"e\xff".hex()}


def test_a_split_says_which_classes_it_has_no_folder_of(tmp_path: Path) -> None:
    train, val = sources(fill(tmp_path, "train/a/1.jpg train/b/ val/b/2.jpg val/c/3.jpg"))
    assert train.metadata["class_folders"] == {"c": None} and val.metadata["class_folders"] == {"a": None}


@pytest.mark.parametrize(
    "name", ["x y/ a b.jpg", "new\nline/1\r\n.jpg", "tab\t/'\"\\.jpg", "\u202e/\x1b[2J.jpg", "e\u0301/é.jpg"]
)
def test_odd_names_that_are_utf8_are_text(tmp_path: Path, name: str) -> None:
    for number, each in enumerate((name, name.upper().replace("JPG", "jpg"), "Q/1.jpg", "q/1.jpg")):
        put(tmp_path, each.encode(), number)
    source = only(tmp_path)
    found = {each["path"]: each["image"] for each in loaded(source)}
    assert found == {
        name.upper().replace("JPG", "jpg"): picture(1),
        name: found[name],
        "Q/1.jpg": picture(2),
        "q/1.jpg": picture(3),
    }
    assert source.fields["label"].names == tuple(sorted({each.split("/")[0] for each in found}))


class TestImageFolder(SourceContract):
    format = "imagefolder"

    def make(self, folder: Path) -> Path:
        for number in range(40):
            put(folder, f"class {number % 3}/{number:02}.jpg".encode(), number)
        return folder

    def samples(self) -> list[Any]:
        return [
            {"image": picture(number), "label": label, "path": f"class {label}/{number:02}.jpg"}
            for label in range(3)
            for number in range(label, 40, 3)
        ]

    def spoil(self, path: Path) -> str | None:
        file = path / "class 1" / "13.jpg"
        file.write_bytes(file.read_bytes()[:-1])
        return "class 1/13.jpg"


def test_a_look_tells_folders_apart(tmp_path: Path) -> None:
    known = [("picture", "a/1.jpg"), ("sound", "a/2.OGG"), ("film", "a/b/c/3.webm"), ("array", "a/4.npy")]
    for one, name in known:
        root = tmp_path / one
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()
        (root / "README.txt").touch()
        (root / "loop").symlink_to(".")
        (root / "itself").symlink_to("itself")
        assert [kind.one for kind in KINDS if only_holds(root, kind)] == [one]
        (root / "a" / "more.tiff").touch()
        assert [kind.one for kind in KINDS if only_holds(root, kind)] == (["picture"] if one == "picture" else [])
        assert not only_holds(root / name, PICTURES)


def test_a_look_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2 * LOOK_FOLDERS):
        (tmp_path / f"{number:03}").mkdir()
        (tmp_path / f"{number:03}" / "1.wav").touch()
    (tmp_path / "zzz.jpg").touch()
    listed = []
    scandir = os.scandir

    def counting(path: str) -> Any:
        listed.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counting)
    assert not only_holds(tmp_path, SOUNDS)  # the top is looked at as a whole
    (tmp_path / "zzz.jpg").rename(tmp_path / f"{2 * LOOK_FOLDERS - 1:03}" / "zzz.jpg")
    listed.clear()
    assert only_holds(tmp_path, SOUNDS) and len(listed) == LOOK_FOLDERS


def test_preprocessing_changes_fields_and_metadata(tmp_path: Path) -> None:
    fill(tmp_path, "c/1.jpg")
    source = only(tmp_path, resize=24, crop=20, encode="raw")
    assert source.cpu_bound and source.metadata == {
        "source": "imagefolder", "resize": 24, "crop": 20, "encode": "raw"
    }  # fmt: skip
    image = source.load(next(source.items()))["image"]
    assert image.shape == source.fields["image"].shape == (3, 20, 20) and image.dtype == np.uint8
    assert only(tmp_path, encode="raw").fields["image"].shape == (3, None, None)
    assert only(tmp_path, check="decode").cpu_bound


def test_options_and_paths_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"imagefolder has no option 'reszie'; there are: resize, crop, encode"):
        sources(tmp_path, reszie=3)
    with pytest.raises(SourceError, match=r"no source format 'h\\x1b5'; there are: .*imagefolder"):
        sources(tmp_path, "h\x1b5")
    with pytest.raises(ValueError, match="expected 'quick' or 'decode'"):
        sources(tmp_path, check="slow")
    with pytest.raises(ValueError, match=r"splits='no': expected true or false"):
        sources(tmp_path, splits="no")
    with pytest.raises(FileNotFoundError):
        sources(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match=r"not recognised.*imagefolder \(a folder of pictures\)"):
        sources(tmp_path / "file")
    with pytest.raises(SourceError, match="no folders"):
        sources(tmp_path, splits=True)
