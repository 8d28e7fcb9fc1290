"""Encoded pictures to one batch tensor: decoded, cropped, resized, mirrored and normalised in the thread that asks.

    images = ImageBatch([RandomResizedCrop(224), RandomHorizontalFlip(), Normalize(mean, std)])
    batch = images(files, seeds)

Nearly all of the time is spent in three calls that leave the interpreter lock: libjpeg-turbo through simplejpeg, torch's
antialiased resize and numpy's arithmetic. So threads share the processor as processes would, without copies between them.
Each uses one core: torch would start threads of its own, per loading thread, for some operations from 32,768 elements on
(to resize a crop that it has to copy first took 1.4 ms instead of 0.1 while the other core was busy). So every such call
here stays below that, or has no parallel part.

Resizing measured, for the whole of 500 x 375 pixels to 224 x 224, and for a crop of 260 x 220: torch 0.16 and 0.10 ms of
processor time, Pillow 1.07 and 0.50 ms. They differ by 1 of 255 at most, by 2 where the picture is enlarged.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from mmds import decode, gather
from mmds.errors import FormatError, missing, printable

try:
    import torch
except ImportError:
    raise missing("torch", "torch", "ImageBatch") from None

from mmds.imageops import CenterCrop as CenterCrop
from mmds.imageops import Normalize as Normalize
from mmds.imageops import Operation, Plan, uniforms
from mmds.imageops import RandomCrop as RandomCrop
from mmds.imageops import RandomHorizontalFlip as RandomHorizontalFlip
from mmds.imageops import RandomResizedCrop as RandomResizedCrop
from mmds.imageops import RandomVerticalFlip as RandomVerticalFlip
from mmds.imageops import Resize as Resize

NdArray = np.ndarray[Any, Any]

CHANNELS = {"RGB": 3, "L": 1}
KEPT_BYTES = 2**26  # of scratch memory per thread and use; a larger picture gets memory of its own
GRAIN = 2**15  # elements up to which torch uses one thread (at::internal::GRAIN_SIZE)
UNDECODABLE = (OSError, ValueError, RuntimeError, SyntaxError)  # what decoders raise on bad files

# What `torch.nn.functional.interpolate(antialias=True)` calls. Here it may write into the batch, and resize by a factor
# that is not the ratio of two whole numbers of pixels. For uint8 it works in one thread.
_resize = torch.ops.aten._upsample_bilinear2d_aa.out


class PictureError(FormatError):
    """A picture that cannot be decoded, or that an operation does not fit; `position` is its place in the batch.

    The error of the decoder is the cause.
    """

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(position, reason)
        self.position, self.reason = position, reason

    def __str__(self) -> str:
        return f"picture {self.position} of the batch: {self.reason}"


class ImageBatch:
    """Turns encoded pictures into one tensor of shape (batch, channels, height, width), in channels_last memory.

    Args:
        operations: what happens to each picture, in this order. All have to end up with one size. They are one plan per
            picture: decoded once, resized once (see `mmds.imageops`).
        mode: "RGB" or "L". Other pictures are converted as Pillow does it; transparency is dropped.
        reduced: whether a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size where its crop is at least that much larger
            than the result, so that nothing is scaled up because of it. This is faster, and the pixels are a little
            different: blocks of them are averaged by libjpeg, and a crop begins at most half a block off, which is half
            a pixel of the result at most.

    The tensor is uint8, or float32 after `Normalize`. Orientation in EXIF is ignored, as torchvision and Pillow do.
    Any number of threads may call one object. Memory of a batch is used again when nobody refers to it any more.
    """

    def __init__(
        self, operations: Sequence[Operation | Normalize] = (), *, mode: str = "RGB", reduced: bool = True
    ) -> None:
        if mode not in CHANNELS:
            raise ValueError(f"mode={mode!r}: expected {' or '.join(map(repr, CHANNELS))}")
        self.operations, self.mode, self.reduced = tuple(operations), mode, reduced
        self._steps: list[Operation] = []
        self._normalize: tuple[NdArray, NdArray] | None = None
        for operation in self.operations:
            if self._normalize is not None:
                raise ValueError(f"{operation} behind Normalize, which has to be the last operation")
            if isinstance(operation, Normalize):
                self._normalize = operation.factors(CHANNELS[mode])
            else:
                self._steps.append(operation)
        self._draws = sum(step.draws for step in self._steps)

    def __repr__(self) -> str:
        steps = ", ".join(map(repr, self.operations))
        return f"ImageBatch([{steps}], mode={self.mode!r}, reduced={self.reduced})"

    def __call__(self, files: Sequence[bytes | memoryview], seeds: NdArray | None = None) -> torch.Tensor:
        """Return the batch of `files`; `seeds` are one integer for each, which decides over all that is random.

        Raises `PictureError` (a ValueError) for a picture that cannot be decoded or that an operation does not fit, and
        ValueError for pictures of different sizes, for no picture at all, and where `seeds` are missing.
        """
        if not len(files):
            raise ValueError("a batch of no pictures has no size")
        batch: NdArray | None = None
        for position, (data, numbers) in enumerate(zip(files, self._numbers(len(files), seeds), strict=True)):
            try:
                file = _File.open(data, self.mode)
                plan = self._plan(file, numbers)
                if batch is None:
                    batch = self._empty(len(files), plan)
                elif batch.shape[1:3] != (plan.height, plan.width):
                    raise ValueError(
                        f"{plan.height} x {plan.width} pixels (height x width), but {batch.shape[1]} x {batch.shape[2]} "
                        "before it. Add an operation that makes them equal, such as RandomResizedCrop(224), "
                        "CenterCrop(224) or Resize((224, 224))"
                    )
                self._fill(batch[position], plan, file)
            except UNDECODABLE as error:
                raise PictureError(position, printable(error, 400)) from error
        assert batch is not None
        return torch.from_numpy(batch).permute(0, 3, 1, 2)

    def _numbers(self, count: int, seeds: NdArray | None) -> list[list[float]]:
        """Return the random numbers of each picture."""
        if not self._draws:
            return [[]] * count
        if seeds is None:
            raise ValueError(f"{self} needs a seed for every picture")
        return uniforms(np.asarray(seeds), self._draws).tolist()  # type: ignore[no-any-return]

    def _plan(self, file: _File, numbers: list[float]) -> Plan:
        plan = Plan.whole(file.height, file.width)
        used = 0
        for step in self._steps:
            plan = step.plan(plan, numbers[used : used + step.draws])
            used += step.draws
        for height, width in (plan.size, (plan.height, plan.width)):
            if height * width > decode.MAX_PIXELS:
                raise ValueError(
                    f"would be resized to {height} x {width}; more than {decode.MAX_PIXELS} pixels are not"
                )
        return plan

    def _empty(self, count: int, plan: Plan) -> NdArray:
        dtype = np.dtype(np.uint8 if self._normalize is None else np.float32)
        return gather.empty((count, plan.height, plan.width, CHANNELS[self.mode]), dtype)

    def _fill(self, row: NdArray, plan: Plan, file: _File) -> None:
        """Write one picture to `row`, of shape (height, width, channels)."""
        target = row if self._normalize is None else _scratch.take("target", row.shape)
        pixels, factor = file.pixels, 1
        if pixels is None:
            if plan == Plan.whole(file.height, file.width):
                into = target
            else:
                factor = plan.reduction() if self.reduced else 1
                shape = (-(-file.height // factor), -(-file.width // factor), target.shape[2])
                into = _scratch.take("decoded", shape)
            try:
                pixels = _decode_jpeg(file.data, self.mode, into)
            except ValueError:  # simplejpeg refuses what it would have to guess; Pillow may not, or says what is wrong
                pixels, factor = decode.picture(bytes(file.data), self.mode), 1
        if pixels is not target:
            render(plan, pixels, factor, target)
        if self._normalize is not None:
            _normalize(target, *self._normalize, out=row)


class _File(NamedTuple):
    """An encoded picture, and its pixels where they are known already."""

    data: bytes | memoryview
    height: int
    width: int
    pixels: NdArray | None  # None: of a JPEG that simplejpeg can decode

    @classmethod
    def open(cls, data: bytes | memoryview | None, mode: str) -> _File:
        """Read the header of a JPEG; decode any other picture. Raises what decoders raise."""
        if data is None:
            raise ValueError("null instead of a picture")
        if data[:3] == decode.JPEG_MAGIC and _simplejpeg() is not None:
            try:
                height, width, space, _ = _simplejpeg().decode_jpeg_header(data)
            except ValueError:
                space = "unknown"
            if space not in ("CMYK", "unknown") and height * width <= decode.MAX_PIXELS:
                return cls(data, height, width, None)
        pixels = decode.picture(bytes(data), mode)
        return cls(data, pixels.shape[0], pixels.shape[1], pixels)


def _decode_jpeg(data: bytes | memoryview, mode: str, out: NdArray) -> NdArray:
    """Decode into `out`, at the smallest of libjpeg's scales that has its height and width, and return `out`."""
    height, width, _ = out.shape
    _simplejpeg().decode_jpeg(
        data, decode.SIMPLEJPEG_SPACES[mode], min_height=height, min_width=width, buffer=out.reshape(-1)
    )
    return out


@cache
def _simplejpeg() -> Any:
    """Return the module, or None where it is not installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def render(plan: Plan, pixels: NdArray, factor: int, out: NdArray) -> None:
    """Write to `out` what `plan` makes of a picture whose `pixels` were decoded at 1 / `factor` of its size.

    Both are uint8 of shape (height, width, channels).
    """
    height, width = plan.size
    left, top, w, h = plan.window
    whole = (left, top, w, h) == (0, 0, width, height)
    resized = pixels
    if plan.resizes or factor > 1:
        resized = out if whole and not plan.flipped else _scratch.take("resized", (height, width, out.shape[2]))
        _resize_crop(plan, pixels, factor, resized)
    else:
        resized = pixels[plan.crop.top : plan.crop.top + height, plan.crop.left : plan.crop.left + width]
    if resized is not out:
        inside = slice(max(top, 0), min(top + h, height)), slice(max(left, 0), min(left + w, width))
        target = out[::-1] if plan.flipped else out
        if left < 0 or top < 0 or left + w > width or top + h > height:
            out[:] = 0
            target = target[max(-top, 0) :, max(-left, 0) :]
        part = resized[inside]
        target[: part.shape[0], : part.shape[1]] = part
    if plan.mirrored:
        _mirror(out)


def _resize_crop(plan: Plan, pixels: NdArray, factor: int, out: NdArray) -> None:
    """Resize the crop of `plan` to `out`.

    A reduced picture is cut at whole pixels of its own, but scaled by the exact factor.
    """
    left, top = round(plan.crop.left / factor), round(plan.crop.top / factor)
    width, height = plan.crop.width / factor, plan.crop.height / factor
    crop = pixels[top : top + math.ceil(height), left : left + math.ceil(width)]
    if not crop.flags.c_contiguous:  # torch would copy it with threads of its own
        copy = _scratch.take("crop", crop.shape)
        np.copyto(copy, crop)
        crop = copy
    size = out.shape[:2]
    _resize(_tensor(crop), size, False, size[0] / height, size[1] / width, out=_tensor(out))


def _mirror(picture: NdArray) -> None:
    """Swap left and right in place. numpy takes 0.11 ms for 224 x 224 x 3, this 0.06."""
    rows = max(1, (GRAIN - 1) // (picture.shape[1] * picture.shape[2]))
    for start in range(0, len(picture), rows):
        piece = picture[start : start + rows]
        np.copyto(piece, torch.flip(_tensor(piece), (3,)).numpy()[0].transpose(1, 2, 0))


def _normalize(picture: NdArray, scale: NdArray, shift: NdArray, *, out: NdArray) -> None:
    """Write `picture` * `scale` + `shift` to `out`, float32, while the picture is still in the processor's cache."""
    height, width, _ = picture.shape
    flat = out.reshape(height, -1)  # long rows: numpy would otherwise start a loop for every pixel
    np.multiply(picture.reshape(height, -1), np.tile(scale, width), out=flat)
    np.add(flat, np.tile(shift, width), out=flat)


def _tensor(picture: NdArray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None]


class _Scratch(threading.local):
    """Memory of the calling thread that is used again for the next picture: fresh pages cost more than the copy."""

    def __init__(self) -> None:
        self._buffers: dict[str, NdArray] = {}

    def take(self, use: str, shape: tuple[int, ...]) -> NdArray:
        """Return an uninitialised uint8 array, valid until the thread takes the next one for this `use`."""
        size = math.prod(shape)
        buffer = self._buffers.get(use)
        if buffer is None or len(buffer) < size:
            buffer = np.empty(size, np.uint8)
            if size <= KEPT_BYTES:
                self._buffers[use] = buffer
        return buffer[:size].reshape(shape)


_scratch = _Scratch()
