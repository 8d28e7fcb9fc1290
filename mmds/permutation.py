"""`Permutation`: range(n) in pseudo-random order, every element computed where it is asked for and none of them stored.

An index x below n is a pair of digits (l, r) = divmod(x, b), with l below a and r below b, where a is the even number at or
above the square root of n, and b = ceil(n / a). A generalised Feistel network permutes the pairs: in turns, a keyed function
of one digit is added to the other, modulo a or b. Where the result is not below n, the network is applied again until
it is ("cycle walking"). a * b exceeds n by less than a, so that this is rare: less than one in sqrt(n).

The function of round i with key k is output number x of a SplitMix64 generator whose state is k, scaled to a or b by a
multiplication. a is even because additions modulo an even number give odd permutations as well, and all are reachable.

Sources: J. Black and P. Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002 (the generalised Feistel network,
cycle walking); G. Steele, D. Lea and C. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014 (SplitMix64,
with D. Stafford's 13th mixing function); D. Lemire, "Fast Random Integer Generation in an Interval", TOMACS 2019 (scaling).
It shuffles; it does not encrypt.
"""

from __future__ import annotations

import hashlib
import math
import operator
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

MAX_N = 2**62  # so that digits stay below 2**32, and a digit times its modulus below 2**64
ROUNDS = 8
SMALL, SMALL_ROUNDS = 1024, 24  # below this n, the digits are too small for 8 rounds to mix
CHUNK = 2**14  # indices at a time: four arrays of 128 KiB fit the second cache of a core, and calls of numpy are few

GAMMA, MIX_1, MIX_2 = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))  # SplitMix64
SHIFT_1, SHIFT_2 = np.uint64(30), np.uint64(27)

Words = NDArray[np.uint64]


class Order(Sequence[int]):
    """Indices of samples, each computed where it is asked for: ``order[i]`` is an int, the rest are int64 arrays."""

    _n: int

    def __len__(self) -> int:
        return self._n

    @overload  # type: ignore[override]  # an array is no `Sequence`
    def __getitem__(self, index: slice | NDArray[np.integer[Any]] | list[int]) -> NDArray[np.int64]: ...  # type: ignore[overload-overlap]
    @overload
    def __getitem__(self, index: SupportsIndex) -> int: ...
    def __getitem__(self, index: Any) -> Any:
        positions = resolve(index, self._n)
        values = self._at(positions.reshape(-1)).reshape(positions.shape)
        return values if values.ndim else int(values)

    def __iter__(self) -> Iterator[int]:
        for start in range(0, self._n, CHUNK):
            yield from self[start : start + CHUNK].tolist()

    @abstractmethod
    def _at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return what stands at `positions`, of shape (k,), all in range."""


class Permutation(Order):
    """The numbers from 0 to n - 1 in a pseudo-random order that `n` and `seed` decide. Takes no memory; any n costs the same.

    Args:
        n: how many, from 0 to 2**62.
        seed: any int, or a tuple of ints such as (seed, epoch). Different seeds give unrelated permutations.

    ``p[i]`` is an int, ``p[a:b]`` and ``p[array of indices]`` are int64 arrays of the same shape as the indices. Negative
    indices count from the end. `p.index(value)` is where a value stands, at the same cost as ``p[i]``.

    The order is the same on every platform and with every version of numpy; it is part of the interface.

    Raises TypeError for a seed or index that is no integer, ValueError for an `n` out of bounds, and IndexError for an index
    out of range.

    >>> p = Permutation(10**12, (7, 0))
    >>> p[0], p[-1]
    (288599667509, 919971861723)
    >>> p.index(p[123])
    123
    >>> sorted(Permutation(5, seed=1)[:].tolist())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, n: SupportsIndex, seed: SupportsIndex | Sequence[SupportsIndex]) -> None:
        self._n = integer("n", n, 0, MAX_N)
        self._seed = seeds(seed)
        root = math.isqrt(max(self._n - 1, 0)) + 1  # the square root, rounded up
        self._a = root + root % 2
        self._b = max(-(-self._n // self._a), 1)
        rounds = ROUNDS if self._n >= SMALL else SMALL_ROUNDS
        text = "mmds.Permutation " + " ".join(f"{number:x}" for number in (self._n, *self._seed))
        self._keys = np.frombuffer(hashlib.shake_256(text.encode()).digest(8 * rounds), "<u8").astype(np.uint64)

    @property
    def seed(self) -> tuple[int, ...]:
        """The seed, as a tuple."""
        return self._seed

    def index(self, value: object, start: int = 0, stop: int | None = None) -> int:
        """Return the position of `value`, without searching. Raises ValueError for what is not in range(n)."""
        if value in self:
            position = int(self._permuted(np.asarray(value, np.int64), inverse=True))
            if position in range(self._n)[start:stop]:
                return position
        raise ValueError(f"{value!r} is not in {self!r}[{start}:{'' if stop is None else stop}]")

    def __contains__(self, value: object) -> bool:
        try:
            return 0 <= operator.index(value) < self._n  # type: ignore[arg-type]
        except TypeError:
            return False

    def __repr__(self) -> str:
        return f"Permutation({self._n}, {self._seed[0] if len(self._seed) == 1 else self._seed})"

    # Inside

    def _at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._permuted(positions)

    def _permuted(self, positions: NDArray[np.int64], inverse: bool = False) -> NDArray[np.int64]:
        """Return what stands at `positions`, or the other way round: int64, all in range, any shape."""
        flat = positions.reshape(-1)
        values = np.empty(len(flat), np.int64)
        scratch = np.empty((3, min(CHUNK, len(flat))), np.uint64)
        for start in range(0, len(flat), CHUNK):
            chunk = values[start : start + CHUNK].view(np.uint64)
            chunk[:] = flat[start : start + CHUNK]
            self._network(chunk, scratch[:, : len(chunk)], inverse)
            outside = np.flatnonzero(chunk >= self._n)
            while len(outside):  # cycle walking
                walking = chunk[outside]
                self._network(walking, np.empty((3, len(walking)), np.uint64), inverse)
                chunk[outside] = walking
                outside = outside[walking >= self._n]
        return values.reshape(positions.shape)

    def _network(self, x: Words, scratch: Words, inverse: bool) -> None:
        """Permute `x`, numbers below a * b, in place. Overwrites `scratch`, three times as large."""
        a, b = np.uint64(self._a), np.uint64(self._b)
        left, *work = scratch
        np.floor_divide(x, b, out=left)
        np.multiply(left, b, out=work[0])
        right = np.subtract(x, work[0], out=x)
        turns = list(enumerate(self._keys))
        for number, key in reversed(turns) if inverse else turns:
            if number % 2:
                _round(right, b, left, key, work, inverse)
            else:
                _round(left, a, right, key, work, inverse)
        np.multiply(left, b, out=left)
        np.add(left, right, out=x)


def _round(digit: Words, modulus: np.uint64, other: Words, key: np.uint64, work: list[Words], inverse: bool) -> None:
    """Add a keyed function of the `other` digit to `digit`, in place; or subtract it. Overwrites `work`."""
    mixed, shifted = work
    np.multiply(other, GAMMA, out=mixed)
    np.add(mixed, key, out=mixed)
    np.right_shift(mixed, SHIFT_1, out=shifted)
    np.bitwise_xor(mixed, shifted, out=mixed)
    np.multiply(mixed, MIX_1, out=mixed)
    np.right_shift(mixed, SHIFT_2, out=shifted)
    np.bitwise_xor(mixed, shifted, out=mixed)
    np.multiply(mixed, MIX_2, out=mixed)
    # SplitMix64 ends with `mixed ^= mixed >> 31`, which leaves alone the high bits that the scaling keeps.
    bits = int(modulus).bit_length()
    np.right_shift(mixed, np.uint64(bits), out=mixed)
    np.multiply(mixed, modulus, out=mixed)
    np.right_shift(mixed, np.uint64(64 - bits), out=mixed)
    # Modulo by a minimum: what is too large by a modulus, or below 0, is 2**64 away from the other candidate.
    if inverse:
        np.subtract(digit, mixed, out=digit)
        np.add(digit, modulus, out=mixed)
    else:
        np.add(digit, mixed, out=digit)
        np.subtract(digit, modulus, out=mixed)
    np.minimum(digit, mixed, out=digit)


def integer(name: str, value: object, low: int, high: int) -> int:
    """Return `value` as an int from `low` to `high`, for an argument called `name`."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}={value!r}: expected an integer, got {type(value).__name__}") from None
    if not low <= number <= high:
        raise ValueError(f"{name}={number}: expected an integer from {low} to {high}")
    return number


def seeds(seed: object) -> tuple[int, ...]:
    """Return a seed, which is an int or a sequence of ints, as a tuple."""
    try:
        parts = tuple(map(operator.index, seed if isinstance(seed, Sequence) else [seed]))
    except TypeError:
        parts = ()
    if not parts:
        raise TypeError(f"seed={seed!r}: expected an integer, or a tuple of integers such as (seed, epoch)")
    return parts


def resolve(index: Any, n: int) -> NDArray[np.int64]:
    """Return the positions from 0 to n - 1 that `index` means, in an array of its shape: an integer, a slice, or integers."""
    if isinstance(index, slice):
        chosen = range(n)[index]
        return np.arange(chosen.start, chosen.stop, chosen.step, dtype=np.int64)
    positions = np.asarray(index)
    if positions.dtype.kind not in "iu":
        if positions.size or positions.ndim != 1:
            raise TypeError(f"expected an integer, a slice or an array of integers, got {type(index).__name__}")
        positions = positions.astype(np.int64)  # an empty list, which numpy takes for floats
    if positions.size:
        low, high = int(positions.min()), int(positions.max())
        if low < -n or high >= n:
            raise IndexError(f"index {high if high >= n else low} is out of range for {n} elements")
    positions = positions.astype(np.int64, copy=False)
    return np.where(positions < 0, positions + n, positions)
