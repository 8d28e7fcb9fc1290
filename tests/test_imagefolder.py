"""Folders of pictures: what torchvision's ImageFolder takes is taken, and everything else is named."""

from __future__ import annotations

import io
import os
import socket
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data as photos

from mmds.converters import Source, sources
from mmds.errors import SourceError

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


def test_removed_or_replaced_between_listing_and_reading(tmp_path: Path) -> None:
    source = only(fill(tmp_path, "c/gone.jpg c/folder.jpg"))
    (tmp_path / "c" / "gone.jpg").unlink()
    (tmp_path / "c" / "folder.jpg").unlink()
    (tmp_path / "c" / "folder.jpg").mkdir()
    assert reason(source, "c/gone.jpg") == "cannot be read (No such file or directory)"
    assert reason(source, "c/folder.jpg") == "not a file but a folder"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user's eyes, which only root can borrow")
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


def test_names_that_are_not_utf8_keep_the_other_label_ids(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg z/2.jpg")
    bad = os.fsencode(tmp_path) + b"/m\xff"
    os.mkdir(bad)  # noqa: PTH102 (a name that is no str)
    with open(bad + b"/3.jpg", "wb") as file:
        file.write(picture())
    source = only(tmp_path)
    assert source.fields["label"].names == ("a", "m\\udcff", "z")
    assert [label for _, label in source.items()] == [0, 1, 2]
    assert reason(source, "m\udcff/3.jpg") == "a file name that is not UTF-8"


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
    with pytest.raises(SourceError, match=r"no source format 'h\\x1b5'; there are: imagefolder"):
        sources(tmp_path, "h\x1b5")
    with pytest.raises(ValueError, match="expected 'quick' or 'decode'"):
        sources(tmp_path, check="slow")
    with pytest.raises(FileNotFoundError):
        sources(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match=r"not recognised.*imagefolder \(a folder of pictures\)"):
        sources(tmp_path / "file")
    with pytest.raises(SourceError, match="no folders"):
        sources(tmp_path, splits=True)
