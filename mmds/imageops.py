"""Operations on pictures as plans: what part of a picture to cut out, its size afterwards, and which way round.

An operation touches no pixel. It turns a `Plan` into the next, so a chain of operations is one plan per picture, and the
picture is decoded once, resized once and written once. Names, arguments and meaning are torchvision's; resizing is its
default, antialiased bilinear. An operation of your own is a class with the two names of `Operation`:

>>> class RandomHalf:
...     draws = 1
...     def plan(self, plan, uniform):
...         left = 0 if uniform[0] < 0.5 else plan.width // 2
...         return plan.cut(left, 0, plan.width // 2, plan.height)
>>> RandomHalf().plan(Plan.whole(375, 500), [0.7]).window
Box(left=250, top=0, width=250, height=375)

`uniform` are as many numbers in [0, 1) as the operation `draws`: a pure function of the sample's seed, so that a picture
does not depend on the batch or the thread it is in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

NdArray = np.ndarray[Any, Any]
Size = int | tuple[int, int]  # in pixels; of two, the height comes first

TRIES = 10  # of RandomResizedCrop, as in torchvision
REDUCTIONS = (8, 4, 2)  # libjpeg's other scales, such as 3/4, decode slower than the whole picture
SMALLEST_REDUCED = 16  # pixels of the longer side; below, several of libjpeg's scales give the same size


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: int
    top: int
    width: int
    height: int


class Plan(NamedTuple):
    """What becomes of one picture: `crop` of it is resized to `size`, and `window` of that is kept, maybe mirrored.

    The window may lie partly outside of what was resized; there the result is black.
    """

    crop: Box  # in pixels of the file
    size: tuple[int, int]  # height and width of the resized crop
    window: Box  # in pixels of the resized crop, as it is before it is mirrored
    mirrored: bool = False  # left to right
    flipped: bool = False  # upside down

    @classmethod
    def whole(cls, height: int, width: int) -> Plan:
        """Return the plan that leaves a picture as it is."""
        box = Box(0, 0, width, height)
        return cls(box, (height, width), box)

    @property
    def height(self) -> int:
        """Height of the result so far."""
        return self.window.height

    @property
    def width(self) -> int:
        """Width of the result so far."""
        return self.window.width

    @property
    def resizes(self) -> bool:
        """Whether the crop has another size than its pixels in the file."""
        return self.size != (self.crop.height, self.crop.width)

    def cut(self, left: int, top: int, width: int, height: int) -> Plan:
        """Keep a rectangle of the result so far. Where it reaches beyond the picture, it is black."""
        window = self.window
        if self.mirrored:
            left = window.width - left - width
        if self.flipped:
            top = window.height - top - height
        return self._replace(window=Box(window.left + left, window.top + top, width, height))

    def resize(self, height: int, width: int) -> Plan:
        """Resize the result so far. What was cut off before has no influence on the pixels.

        A second resize replaces the first: there is only one, from the pixels of the file, and the place of a cut
        between the two is rounded to these. ValueError after padding, whose border would have to be resized, too.
        """
        left, top, w, h = self.window
        if left < 0 or top < 0 or left + w > self.size[1] or top + h > self.size[0]:
            raise ValueError("a padded picture cannot be resized: resize before the crop that pads")
        crop_left, crop_width = _unscaled(left, w, self.crop.width, self.size[1])
        crop_top, crop_height = _unscaled(top, h, self.crop.height, self.size[0])
        crop = Box(self.crop.left + crop_left, self.crop.top + crop_top, crop_width, crop_height)
        return self._replace(crop=crop, size=(height, width), window=Box(0, 0, width, height))

    def mirror(self) -> Plan:
        """Swap left and right."""
        return self._replace(mirrored=not self.mirrored)

    def flip(self) -> Plan:
        """Turn upside down."""
        return self._replace(flipped=not self.flipped)

    def reduction(self) -> int:
        """Return 1, 2, 4 or 8: how much smaller a picture may be decoded without being scaled up because of it."""
        _, _, width, height = self.crop
        if max(width, height) >= SMALLEST_REDUCED:
            for factor in REDUCTIONS:
                if height >= factor * self.size[0] and width >= factor * self.size[1]:
                    return factor
        return 1


def _unscaled(start: int, length: int, source: int, scaled: int) -> tuple[int, int]:
    """Return start and length, on a side of `source` pixels, of what is given on that side scaled to `scaled`."""
    first = min(round(start * source / scaled), source - 1)
    return first, max(1, round((start + length) * source / scaled) - first)


class Operation(Protocol):
    """What a chain consists of: a picklable object, the same for all threads."""

    @property
    def draws(self) -> int:
        """How many random numbers a sample needs; an attribute of the class will do."""

    def plan(self, plan: Plan, uniform: Sequence[float], /) -> Plan:
        """Return the next plan; `uniform` are `draws` numbers in [0, 1)."""


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cut out a random part and resize it to `size`.

    The part has `scale` of the picture's area, uniformly, and `ratio` of width to height, uniformly in its logarithm.
    Parts that do not fit are drawn again, ten times at most; then it is the largest one in the middle that `ratio` allows.
    This is ``torchvision.transforms.RandomResizedCrop.get_params``.
    """

    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    draws: ClassVar[int] = 2 * TRIES + 2

    def __post_init__(self) -> None:
        _pair(self.size)
        _check_range("scale", self.scale)
        _check_range("ratio", self.ratio)

    def plan(self, plan: Plan, uniform: Sequence[float], /) -> Plan:
        """Return the next plan."""
        return plan.cut(*self._box(plan.height, plan.width, uniform)).resize(*_pair(self.size))

    def _box(self, height: int, width: int, uniform: Sequence[float]) -> Box:
        low, high = self.scale
        log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for number in range(0, 2 * TRIES, 2):
            area = height * width * (low + uniform[number] * (high - low))
            ratio = math.exp(log_low + uniform[number + 1] * (log_high - log_low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return Box(int(uniform[-1] * (width - w + 1)), int(uniform[-2] * (height - h + 1)), w, h)
        w, h = width, height
        if width / height < self.ratio[0]:
            h = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            w = max(1, round(height * self.ratio[1]))
        return Box((width - w) // 2, (height - h) // 2, w, h)


@dataclass(frozen=True)
class Resize:
    """Resize to (height, width), or so that the shorter side has `size` pixels and the proportions stay."""

    size: Size
    draws: ClassVar[int] = 0

    def __post_init__(self) -> None:
        _pair(self.size)

    def plan(self, plan: Plan, uniform: Sequence[float], /) -> Plan:
        """Return the next plan."""
        if not isinstance(self.size, int):
            return plan.resize(*self.size)
        height, width = plan.height, plan.width
        if width <= height:
            return plan.resize(int(self.size * height / width), self.size)
        return plan.resize(self.size, int(self.size * width / height))


@dataclass(frozen=True)
class CenterCrop:
    """Cut out the middle, (height, width) or a square. What is smaller gets a black border."""

    size: Size
    draws: ClassVar[int] = 0

    def __post_init__(self) -> None:
        _pair(self.size)

    def plan(self, plan: Plan, uniform: Sequence[float], /) -> Plan:
        """Return the next plan."""
        height, width = _pair(self.size)
        return plan.cut(_middle(plan.width, width), _middle(plan.height, height), width, height)


def _middle(length: int, kept: int) -> int:
    """Return where the middle begins: rounded as torchvision does, inside half to even, with a border down."""
    return -((kept - length) // 2) if kept > length else round((length - kept) / 2)


@dataclass(frozen=True)
class RandomCrop:
    """Cut out (height, width), or a square, at a random place of the picture with a black border of `padding` pixels.

    ValueError where that is smaller than `size`.
    """

    size: Size
    padding: int = 0
    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _pair(self.size)
        if self.padding < 0:
            raise ValueError(f"padding={self.padding}: expected a number of pixels")

    def plan(self, plan: Plan, uniform: Sequence[float], /) -> Plan:
        """Return the next plan."""
        height, width = _pair(self.size)
        rows, columns = (side + 2 * self.padding for side in (plan.height, plan.width))
        if rows < height or columns < width:
            raise ValueError(
                f"{self} does not fit into {rows} x {columns} (height x width, with padding): put a Resize before it"
            )
        top, left = int(uniform[0] * (rows - height + 1)), int(uniform[1] * (columns - width + 1))
        return plan.cut(left - self.padding, top - self.padding, width, height)


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Swap left and right with probability `p`."""

    p: float = 0.5
    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_probability(self.p)

    def plan(self, plan: Plan, uniform: Sequence[float], /) -> Plan:
        """Return the next plan."""
        return plan.mirror() if uniform[0] < self.p else plan


@dataclass(frozen=True)
class RandomVerticalFlip:
    """Turn upside down with probability `p`."""

    p: float = 0.5
    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_probability(self.p)

    def plan(self, plan: Plan, uniform: Sequence[float], /) -> Plan:
        """Return the next plan."""
        return plan.flip() if uniform[0] < self.p else plan


@dataclass(frozen=True)
class Normalize:
    """Make float32 of the pixels: ``(pixel / 255 - mean) / std`` per channel. The last operation of a chain.

    `mean` and `std` are one number, or one per channel.
    """

    mean: float | Sequence[float]
    std: float | Sequence[float]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            plain = float(value) if isinstance(value, (int, float)) else tuple(map(float, value))  # a list has no hash
            object.__setattr__(self, name, plain)
        if not np.all(np.asarray(self.std) > 0):
            raise ValueError(f"std={self.std}: expected numbers above 0")

    def factors(self, channels: int) -> tuple[NdArray, NdArray]:
        """Return what pixels are multiplied by and what is then added, float32 of shape (channels,).

        ValueError where there are other numbers of means than of channels.
        """
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        for values in (mean, std):
            if values.ndim and len(values) != channels:
                raise ValueError(f"{self} has {len(values)} numbers for pictures of {channels} channels")
        scale, shift = np.broadcast_arrays(1 / (255 * std), -mean / std, np.empty(channels))[:2]
        return scale.astype(np.float32), shift.astype(np.float32)


def uniforms(seeds: NdArray, count: int) -> NdArray:
    """Return `count` numbers in [0, 1) for each integer of `seeds`: float64 of shape (len(seeds), count).

    Each is a pure function of its seed and its place. The generator is SplitMix64 (Steele, Lea and Flood, "Fast
    splittable pseudorandom number generators", OOPSLA 2014; constants of Vigna's splitmix64.c), counted from the hash of
    the seed, so that neighbouring seeds do not share a sequence. In batches of 64, the 23 numbers of a
    random crop and a flip take 0.6 µs per sample; to make a `numpy.random.Generator` takes 8.
    """
    start = _splitmix64(seeds.astype(np.uint64) + _GAMMA)
    counters = start[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GAMMA
    numbers: NdArray = (_splitmix64(counters) >> np.uint64(11)) * 2.0**-53
    return numbers


_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _splitmix64(state: NdArray) -> NdArray:
    """Return the output function of SplitMix64, a bijection of 64 bits."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return state


def _pair(size: Size) -> tuple[int, int]:
    """Return (height, width). ValueError for anything but one or two positive integers."""
    height, width = (size, size) if isinstance(size, int) else size
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
        raise ValueError(f"size={size!r}: expected a number of pixels, or (height, width)")
    return height, width


def _check_range(name: str, values: tuple[float, float]) -> None:
    low, high = values
    if not 0 < low <= high:
        raise ValueError(f"{name}={values}: expected (smallest, largest), above 0")


def _check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"p={p}: expected a probability, 0 to 1")
