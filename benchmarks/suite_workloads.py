"""What `python -m benchmarks` keeps in every library: seeded samples of one value each, and what becomes of a batch.

fixed     pixels, uint8 (3, 96, 96), random
ragged    random bytes; lengths follow a log-normal distribution with a median of 30 KB
tiny      float32 (16,), random
tokens    documents of uint16; lengths follow a log-normal distribution with a median of 270 tokens
jpeg      JPEG files of 500 x 375 pixels, crops of photographs; no two files are equal
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

NdArray = np.ndarray[Any, Any]

BATCH = 256
JPEG_SIZE, JPEG_QUALITY, JPEG_DISTINCT = (500, 375), 90, 48  # pictures that are really encoded
CROP = 224
LONGEST = 2**22  # bytes; what is longer is cut


@dataclass(frozen=True)
class Workload:
    """Samples of one sort: arrays of `dtype`, of one `shape`, or (None) of one dimension and any length."""

    name: str
    title: str
    dtype: str
    shape: tuple[int, ...] | None
    full: int  # samples at --scale 1
    lengths: tuple[float, float] = (0, 0)  # mean and deviation of the logarithm of a length
    encoded: bool = False  # whether values are JPEG files

    def count(self, scale: float) -> int:
        """Return the number of samples: two batches at least."""
        return max(2 * BATCH, round(self.full * scale))


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("fixed", "uint8 (3, 96, 96)", "uint8", (3, 96, 96), 40_960),
        Workload("ragged", "bytes, median 30 KB", "uint8", None, 20_480, lengths=(float(np.log(30_000)), 1.0)),
        Workload("tiny", "float32 (16,)", "float32", (16,), 2_000_000),
        Workload("tokens", "uint16 documents, median 270", "uint16", None, 200_000, lengths=(5.6, 0.9)),
        Workload("jpeg", "JPEG 500 x 375 -> uint8 (3, 224, 224)", "uint8", None, 10_240, encoded=True),
    )
}


@dataclass(frozen=True)
class Samples:
    """Samples in memory: `values` of shape (count, ...), or all of them in one row and where each begins."""

    values: NdArray
    offsets: NdArray | None = None

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    def get(self, i: int) -> NdArray:
        """Return one sample, a view."""
        if self.offsets is None:
            return self.values[i]  # type: ignore[no-any-return]
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def all(self) -> Iterator[NdArray]:
        """Yield all samples, views."""
        return map(self.get, range(self.count))

    def blocks(self, size: int = 1024) -> Iterator[Samples]:
        """Yield all samples, `size` at a time."""
        for start in range(0, self.count, size):
            if self.offsets is None:
                yield Samples(self.values[start : start + size])
            else:
                offsets = self.offsets[start : start + size + 1]
                yield Samples(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def first(self, count: int) -> Samples:
        """Return the first samples."""
        return next(self.blocks(count))


def make(workload: Workload, count: int) -> Samples:
    """Return `count` samples; the same ones each time."""
    rng = np.random.default_rng([4, *workload.name.encode()])
    if workload.encoded:
        return join([_numbered(_pictures()[i % JPEG_DISTINCT], i) for i in range(count)])
    if workload.shape is not None:
        shape = (count, *workload.shape)
        if workload.dtype == "float32":
            return Samples(rng.random(shape, np.float32))
        return Samples(rng.integers(0, 256, shape, np.uint8))
    lengths = np.exp(rng.normal(*workload.lengths, count)).astype(np.int64) + 1
    offsets = np.concatenate(([0], np.cumsum(np.minimum(lengths, LONGEST))))
    most = 256 if workload.dtype == "uint8" else 50_000
    return Samples(rng.integers(0, most, int(offsets[-1]), np.dtype(workload.dtype)), offsets)


def join(values: Sequence[Any]) -> Samples:
    """Return byte strings or arrays of one dimension, one after the other."""
    arrays = [as_array(value) for value in values]
    return Samples(np.concatenate(arrays), np.concatenate(([0], np.cumsum([len(array) for array in arrays]))))


def as_array(value: Any) -> NdArray:
    """Return a value as an array: what is bytes as uint8."""
    return np.frombuffer(value, np.uint8) if isinstance(value, (bytes, bytearray, memoryview)) else np.asarray(value)


def checksum(value: Any) -> int:
    """Return the sum of the bytes of what was read, in whatever it is packed; of a pair (values, offsets), of values."""
    if isinstance(value, dict):
        return sum(map(checksum, value.values()))
    if isinstance(value, tuple) or hasattr(value, "offsets"):
        value = value[0] if isinstance(value, tuple) else value.values
        value = value() if callable(value) else value
    if isinstance(value, list):
        return sum(map(checksum, value))
    return int(np.ascontiguousarray(as_array(value)).view(np.uint8).sum(dtype=np.int64))


def rows_in(batch: Any) -> int:
    """Return how many samples are in a batch."""
    while isinstance(batch, dict):
        batch = next(iter(batch.values()))
    if isinstance(batch, tuple):
        return len(batch[1]) - 1 if len(batch) == 2 else len(batch[0])
    return len(batch)


def decode(file: Any) -> Any:
    """Return a random crop of a JPEG file as a tensor, uint8 (3, 224, 224): simplejpeg, then torch's antialiased resize.

    8 to 100 % of the area are cropped, as torchvision's `RandomResizedCrop` does by default.
    """
    import simplejpeg
    import torch

    pixels = torch.from_numpy(simplejpeg.decode_jpeg(file))
    height, width, _ = pixels.shape
    area, ratio = np.random.uniform(0.08, 1) * height * width, np.exp(np.random.uniform(np.log(3 / 4), np.log(4 / 3)))
    h, w = min(height, round((area / ratio) ** 0.5)), min(width, round((area * ratio) ** 0.5))
    top, left = np.random.randint(0, height - h + 1), np.random.randint(0, width - w + 1)
    crop = pixels[top : top + h, left : left + w].permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(crop, (CROP, CROP), mode="bilinear", antialias=True)[0]


def collate(batch: Any, workload: Workload) -> Any:
    """Return as tensors what a library gives for a batch: one tensor, or all values in a row and their offsets."""
    import torch

    if isinstance(batch, torch.Tensor):
        return batch
    if isinstance(batch, np.ndarray):
        return torch.from_numpy(batch)
    if isinstance(batch, list) and isinstance(batch[0], torch.Tensor):
        return torch.stack(batch)
    if isinstance(batch, list) and workload.shape is not None:
        return torch.from_numpy(np.stack(batch))
    if isinstance(batch, list):
        joined = join(batch)
        batch = joined.values, joined.offsets
    return tuple(map(torch.as_tensor, batch))


def each(batch: Any) -> list[Any]:
    """Return the values of a batch of different length one by one."""
    return list(Samples(*batch).all()) if isinstance(batch, tuple) else list(batch)


@cache
def _pictures() -> list[bytes]:
    """Return the JPEG files that are really encoded."""
    from PIL import Image

    from examples.pictures import PHOTOGRAPHS, photograph

    rng = np.random.default_rng(5)
    names = sorted(PHOTOGRAPHS)
    photographs = {name: photograph(name) for name in names}
    files = []
    for number in range(JPEG_DISTINCT):
        picture = photographs[names[number % len(names)]]
        scale = rng.uniform(0.6, 1) * min(picture.width / JPEG_SIZE[0], picture.height / JPEG_SIZE[1])
        width, height = (int(scale * side) for side in JPEG_SIZE)
        x, y = (int(rng.integers(0, room + 1)) for room in (picture.width - width, picture.height - height))
        file = io.BytesIO()
        crop = picture.crop((x, y, x + width, y + height)).resize(JPEG_SIZE, Image.Resampling.BICUBIC)
        crop.save(file, "JPEG", quality=JPEG_QUALITY)
        files.append(file.getvalue())
    return files


def _numbered(file: bytes, number: int) -> bytes:
    from benchmarks.picture_folder import with_comment

    return with_comment(file, b"%08d" % number)
