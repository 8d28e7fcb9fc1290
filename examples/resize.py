"""Pictures of one size, as JPEG files again: what training would do in every epoch, done once.

    mmds convert photos small.mmds --map examples.resize:resize

Labels and paths stay as they are. (For sizes alone there are options: `mmds convert --resize 96 --crop 96 --encode jpeg:90`.)
"""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, ImageOps

SIZE = 96
QUALITY = 90

Sample = dict[str, Any]


def resize(sample: Sample, size: int = SIZE) -> Sample:
    """Return the sample with the middle of its picture, upright and in RGB, as a JPEG file of `size` x `size` pixels."""
    with Image.open(io.BytesIO(sample["image"])) as picture:
        picture.draft("RGB", (size, size))  # a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is enough
        upright = ImageOps.exif_transpose(picture)  # as the camera was held
        square = ImageOps.fit(upright.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    square.save(file, "JPEG", quality=QUALITY)
    return {**sample, "image": file.getvalue()}
