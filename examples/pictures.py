"""Build a folder of real pictures to try things on: crops of photographs that Python packages bring along.

    python examples/pictures.py FOLDER [--per-class N] [--seed S]

writes ``FOLDER/{train,val}/CLASS/0000.jpg``, as torchvision's ImageFolder reads it. A class is a photograph, and a sample
is a crop of 128 x 128 pixels at a random place. Of each photograph the right-hand strip (30 % of its width, but at least
160 pixels) is held out: validation crops lie within the strip, training crops to the left of it, so no pixel is in both,
and validation measures whether a part of the scene that was never seen is recognised.

The photographs are in the wheels of scikit-image (public domain or CC0) and scikit-learn (CC BY); nothing is downloaded.
The same arguments give the same files.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOGRAPHS = {  # class: package and file; chosen so that a person can tell most crops apart
    "brick": ("skimage", "data/brick.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "pavilion": ("sklearn", "datasets/images/china.jpg"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}
SIZE = 128
QUALITY = 90
VALIDATION = 0.2  # of each class's crops
HELD_OUT = 0.3  # of the photograph's width
MIN_STRIP = 160  # wide enough for validation crops to differ


def photograph(name: str) -> Image.Image:
    """Return the photograph of class `name`, in RGB, from the file that its package has installed."""
    package, file = PHOTOGRAPHS[name]
    spec = importlib.util.find_spec(package)  # the package itself need not be imported, which would take a second
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"the photographs are in scikit-image and scikit-learn, and {package} is not installed"
        )
    with Image.open(Path(spec.origin).parent / file) as picture:
        return picture.convert("RGB")


def regions(width: int) -> dict[str, tuple[int, int]]:
    """Return for each split the columns, from and to, that its crops may cover in a photograph of `width` pixels.

    >>> regions(600), regions(451)
    ({'train': (0, 420), 'val': (420, 600)}, {'train': (0, 291), 'val': (291, 451)})
    """
    border = width - max(round(width * HELD_OUT), MIN_STRIP)
    return {"train": (0, border), "val": (border, width)}


def crops(name: str, split: str, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield `count` JPEG files: crops of the photograph of class `name` at random places in the region of `split`."""
    picture = photograph(name)
    left, right = regions(picture.width)[split]
    rng = np.random.default_rng([seed, sorted(PHOTOGRAPHS).index(name), split == "val"])
    for _ in range(count):
        x = int(rng.integers(left, right - SIZE + 1))
        y = int(rng.integers(0, picture.height - SIZE + 1))
        file = io.BytesIO()
        picture.crop((x, y, x + SIZE, y + SIZE)).save(file, "JPEG", quality=QUALITY)
        yield file.getvalue()


def build(folder: Path | str, *, per_class: int = 100, seed: int = 0, classes: int = len(PHOTOGRAPHS)) -> int:
    """Write the pictures of the first `classes` classes to `folder` and return how many there are.

    Files of an earlier run are replaced. FileExistsError where the folder has files that do not belong there, for they
    would be taken for pictures of this data set.
    """
    folder = Path(folder)
    held_out = max(1, round(per_class * VALIDATION))
    counts = {"train": per_class - held_out, "val": held_out}
    if counts["train"] < 1 or not 2 <= classes <= len(PHOTOGRAPHS):
        raise ValueError(
            f"{per_class} pictures of {classes} classes: at least 2 of 2, and {len(PHOTOGRAPHS)} classes at most"
        )
    plan = [(split, name, counts[split]) for split in counts for name in sorted(PHOTOGRAPHS)[:classes]]
    expected = {folder / split / name / f"{k:04}.jpg" for split, name, count in plan for k in range(count)}
    strangers = {path for path in folder.rglob("*") if not path.is_dir()} - expected
    if strangers:
        raise FileExistsError(f"{folder} has other files, such as {min(strangers)}; choose another folder or remove it")
    for split, name, count in plan:
        target = folder / split / name
        target.mkdir(parents=True, exist_ok=True)
        for k, data in enumerate(crops(name, split, count, seed)):
            (target / f"{k:04}.jpg").write_bytes(data)
    return len(expected)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Build a folder of crops of real photographs, for training and validation."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--per-class", type=int, default=100, metavar="N", help="pictures per class (default: 100)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the crops' places (default: 0)")
    arguments = parser.parse_args()
    try:
        count = build(arguments.folder, per_class=arguments.per_class, seed=arguments.seed)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"pictures.py: {error}", file=sys.stderr)
        return 1
    print(
        f"{arguments.folder}: {count} JPEG files of {SIZE} x {SIZE} pixels in {len(PHOTOGRAPHS)} classes, train/ and val/"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
