"""Films -> frames -> boxes: one film gives many samples, and a detector looks at many frames at once.

    mmds convert films faces.mmds --map examples.faces:frames --batch-map examples.faces:boxes --batch-size 8 \\
        --output-fields examples.faces:FACES

The detector is a classical one that scikit-image brings along (a cascade over local binary patterns), and misses faces that
look aside. A neural network takes its place in `boxes`, which gets frames in batches.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache
from typing import Any

import av
import numpy as np
import simplejpeg
from skimage import data
from skimage.feature import Cascade

import mmds

EVERY = 0.5  # seconds between frames
QUALITY = 90
FACES = {
    "frame": mmds.Image(),
    "time": mmds.Scalar("float64"),  # seconds
    "film": mmds.Text(column=True),
    "boxes": mmds.Array("int32", (None, 4)),  # a row for each face: x, y, width, height
}

Sample = dict[str, Any]


def frames(sample: Sample) -> Iterator[Sample]:
    """Yield frames of the film in `sample`, at most one in `EVERY` seconds. Only one of them is in memory at a time."""
    due = 0.0
    with av.open(io.BytesIO(sample["video"]), "r") as film:
        for frame in film.decode(video=0):
            if frame.time is None or frame.time < due:
                continue
            due = frame.time + EVERY
            pixels = np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
            picture = simplejpeg.encode_jpeg(pixels, quality=QUALITY)
            yield {"frame": picture, "time": frame.time, "film": sample["path"]}


@cache
def detector() -> Cascade:
    """Return the detector. Each worker loads it once, as it would load the weights of a network."""
    return Cascade(data.lbp_frontal_face_cascade_filename())  # type: ignore[no-untyped-call]


def boxes(samples: list[Sample]) -> Iterator[Sample]:
    """Yield the frames of a batch with the boxes of the faces in them: x, y, width, height in pixels."""
    for sample in samples:
        pixels = simplejpeg.decode_jpeg(sample["frame"])
        side = min(pixels.shape[:2])
        found = detector().detect_multi_scale(
            pixels, scale_factor=1.1, step_ratio=1, min_size=(side // 4, side // 4), max_size=(side, side)
        )
        rows = [[face["c"], face["r"], face["width"], face["height"]] for face in found]
        yield {**sample, "boxes": np.array(rows, "int32").reshape(-1, 4)}
