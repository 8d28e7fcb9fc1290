"""`Permutation`: each number once, the same everywhere, and as random as the tests of a shuffle can tell."""

from __future__ import annotations

import hashlib
import itertools
import math
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from mmds import permutation
from mmds.permutation import Permutation

SIZES = (0, 1, 2, 3, 4, 5, 6, 7, 9, 16, 64, 65, 1000, 1023, 1024, 1025, 2**14, 2**16 + 1)
CLOSE = 5  # standard deviations: a right generator gets farther once in a million times, and the seeds are fixed


def by_hand(n: int, seed: tuple[int, ...], value: int) -> int:
    """Return what stands at one position, in Python's own integers: the specification, written a second time."""
    a = next(a for a in itertools.count(max(math.isqrt(n) - 2, 1)) if a * a >= n and a % 2 == 0)
    b = -(-n // a)
    rounds = 8 if n >= 1024 else 24
    digest = hashlib.shake_256(f"mmds.Permutation {' '.join(format(x, 'x') for x in (n, *seed))}".encode()).digest(
        8 * rounds
    )
    while True:
        digits, moduli = list(divmod(value, b)), (a, b)
        for number in range(rounds):
            to = number % 2
            z = int.from_bytes(digest[8 * number : 8 * number + 8], "little") + digits[1 - to] * 0x9E3779B97F4A7C15
            z %= 2**64
            z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
            bits = moduli[to].bit_length()
            digits[to] = (digits[to] + ((z >> bits) * moduli[to] >> (64 - bits))) % moduli[to]
        value = digits[0] * b + digits[1]
        if value < n:
            return value


def chi_square(counts: Any, degrees: int) -> float:
    """Return by how many standard deviations counts are less even than chance would have them; about 0 if random."""
    counts = np.asarray(counts, float)
    expected = counts.mean()
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees))


@pytest.mark.parametrize("n", SIZES)
def test_every_number_comes_once(n: int) -> None:
    for seed in (0, 1, (2, 3)):
        p = Permutation(n, seed)
        assert len(p) == n
        assert sorted(p[:].tolist()) == list(range(n))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 65, 1000, 1024, 2**16 + 1, 10**9, 2**30 + 1, 10**12, 2**61 - 1, 2**62])
def test_it_is_what_the_specification_says(n: int) -> None:
    for position in {0, n // 3, n // 2, n - 1}:
        assert Permutation(n, (5, -7))[position] == by_hand(n, (5, -7), position)


def test_golden_values() -> None:
    """These must never change: whoever resumes a training would get another order."""
    assert Permutation(10, 0)[:].tolist() == [4, 2, 6, 5, 7, 3, 1, 8, 0, 9]
    assert Permutation(2**30 + 1, (7, 3))[:4].tolist() == [76668408, 168600780, 203392708, 457976544]
    assert Permutation(10**12, -1)[-3:].tolist() == [392643024333, 913747032088, 792326664321]
    assert Permutation(2**62, 2**100)[[0, 2**61]].tolist() == [2753064042391253888, 2609713405689545948]
    assert hashlib.sha256(Permutation(100_003, 1)[:].astype("<i8").tobytes()).hexdigest()[:16] == "c000a5e26f7c914b"


@pytest.mark.parametrize("n", [1, 2, 5, 64, 1000, 2**16 + 1, 10**12, 2**62])
def test_index_is_the_inverse(n: int) -> None:
    p = Permutation(n, 4)
    for value in {0, n // 3, n - 1}:
        assert p[p.index(value)] == value
    if n < 2000:
        assert [p.index(value) for value in p] == list(range(n))


def test_index_as_a_sequence_has_it() -> None:
    p = Permutation(10, 0)
    third = p[3]
    assert p.index(third, 3) == p.index(third, -7, 4) == 3
    for bounds in ((4,), (0, 3), (-6,)):
        with pytest.raises(ValueError, match="is not in"):
            p.index(third, *bounds)
    for value in (10, -1, 3.5, "a", None):
        assert value not in p
        with pytest.raises(ValueError, match="is not in"):
            p.index(value)
    assert 9 in p and np.int64(0) in p and p.count(3) == 1


def test_indices() -> None:
    p = Permutation(1000, 1)
    whole = p[:]
    assert whole.dtype == np.int64 and type(p[3]) is int and p[3] == whole[3] == p[np.int32(3)] == p[torch.tensor(3)]
    assert p[-1] == whole[-1] and p[np.uint8(7)] == whole[7]
    for part in (slice(5, 9), slice(-5, None), slice(None, None, -1), slice(0, 1000, 7), slice(9, 5), slice(990, 2000)):
        assert p[part].tolist() == whole[part].tolist()
    square = np.array([[1, -2], [-1000, 999]])
    assert p[square].tolist() == whole[square].tolist()
    many = [3, 1]
    tensor: Any = torch.tensor(many)
    empty: Any = np.empty(0)
    assert p[many].tolist() == p[tensor].tolist() == whole[many].tolist()
    assert p[[3]].shape == (1,) and p[np.array([], np.int64)].shape == p[empty].shape == (0,)
    assert list(p) == whole.tolist() and list(reversed(p))[:2] == whole[:-3:-1].tolist()
    big = Permutation(permutation.CHUNK * 2 + 3, 1)
    assert (
        list(big) == big[:].tolist()
        and big[permutation.CHUNK - 1 : permutation.CHUNK + 2].tolist()
        == list(big)[permutation.CHUNK - 1 : permutation.CHUNK + 2]
    )


@pytest.mark.parametrize("index", [1000, -1001, [0, 1000], [-1001], np.array([2**63], np.uint64)])
def test_out_of_range(index: Any) -> None:
    with pytest.raises(IndexError, match="out of range for 1000 elements"):
        Permutation(1000, 0)[index]


@pytest.mark.parametrize("index", [1.0, "1", None, [0.5], np.array([True, False]), np.array(1.5)])
def test_what_is_no_index(index: Any) -> None:
    with pytest.raises(TypeError, match="expected an integer, a slice or an array of integers, got"):
        Permutation(1000, 0)[index]


@pytest.mark.parametrize(
    ("n", "seed", "error", "message"),
    [
        (-1, 0, ValueError, "n=-1: expected an integer from 0 to 4611686018427387904"),
        (2**62 + 1, 0, ValueError, "n=4611686018427387905: expected"),
        (1.5, 0, TypeError, r"n=1\.5: expected an integer, got float"),
        (5, 1.5, TypeError, r"seed=1\.5: expected an integer, or a tuple of integers"),
        (5, "12", TypeError, "seed='12': expected"),
        (5, b"", TypeError, "seed=b'': expected"),
        (5, (), TypeError, r"seed=\(\): expected"),
        (5, (1, None), TypeError, r"seed=\(1, None\): expected"),
    ],
)
def test_bad_arguments(n: Any, seed: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Permutation(n, seed)


def test_seeds_that_differ_give_orders_that_differ() -> None:
    seeds: list[Any] = [
        0,
        1,
        -1,
        2**32,
        2**32 + 1,
        2**64,
        -(2**64),
        (0, 0),
        (0, 0, 0),
        (0, 1),
        (1, 0),
        (0, 2**32),
        (1, -1),
    ]
    assert len({tuple(Permutation(50, seed)[:].tolist()) for seed in seeds}) == len(seeds)
    assert (
        Permutation(50, 7)[:].tolist() == Permutation(50, (7,))[:].tolist() == Permutation(50, np.int8(7))[:].tolist()
    )


def test_a_copy_is_the_same() -> None:
    p = Permutation(1000, (3, 4))
    copy = pickle.loads(pickle.dumps(p))
    assert copy[:].tolist() == p[:].tolist() and copy.seed == p.seed == (3, 4)
    assert len(pickle.dumps(Permutation(2**62, 3))) < 1000
    assert repr(p) == "Permutation(1000, (3, 4))" and repr(Permutation(3, 1)) == "Permutation(3, 1)"


@pytest.mark.parametrize("n", [10**9, 2**30 + 1, 10**12, 2**61 + 1, 2**62])
def test_a_slice_costs_the_same_at_any_size(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in numbers that pass through the network: one per index, but for a few cycles that are walked."""
    passed: list[int] = []
    network = Permutation._network

    def counted(self: Permutation, x: Any, scratch: Any, inverse: bool) -> None:
        passed.append(len(x))
        network(self, x, scratch, inverse)

    monkeypatch.setattr(Permutation, "_network", counted)
    p = Permutation(n, 0)
    got = p[n // 2 : n // 2 + 50_000]
    assert len(set(got.tolist())) == 50_000 and got.min() >= 0 and got.max() < n
    assert 50_000 <= sum(passed) < 50_100


# Randomness


@pytest.mark.stress
def test_all_permutations_of_five_are_equally_likely() -> None:
    counts = Counter(tuple(Permutation(5, seed)[:].tolist()) for seed in range(6000))
    assert abs(chi_square([counts[order] for order in itertools.permutations(range(5))], 119)) < CLOSE


def test_fewer_rounds_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the test above can fail."""
    monkeypatch.setattr(permutation, "SMALL_ROUNDS", 6)
    counts = Counter(tuple(Permutation(5, seed)[:].tolist()) for seed in range(6000))
    assert chi_square([counts[order] for order in itertools.permutations(range(5))], 119) > CLOSE


@pytest.mark.parametrize("n", [8, 9, 25])
def test_odd_permutations_are_as_likely_as_even_ones(n: int) -> None:
    """With both moduli odd, and no cycles to walk, all would be even."""
    odd = 0
    for seed in range(400):
        order = Permutation(n, seed)[:]
        odd += int((order[:, None] > order)[np.triu_indices(n, 1)].sum() % 2)
    assert abs(odd - 200) < CLOSE * 10


@pytest.mark.parametrize("n", [9, 10, 16])
def test_every_number_is_equally_likely_at_every_position(n: int) -> None:
    orders = np.array([Permutation(n, (seed, 1))[:] for seed in range(4000)])
    counts = [np.bincount(orders[:, position], minlength=n) for position in range(n)]
    assert abs(chi_square(counts, (n - 1) ** 2)) < CLOSE
    pairs = (orders[:, :-1] * n + orders[:, 1:]).reshape(-1)  # each of the n * (n - 1) successions
    assert abs(chi_square([c for c in np.bincount(pairs, minlength=n * n) if c], n * (n - 1) - 1)) < CLOSE


def correlation(x: Any, y: Any) -> float:
    """Return the correlation in its standard deviations."""
    return float(np.corrcoef(x, y)[0, 1] * math.sqrt(len(x)))


@pytest.mark.parametrize("n", [1024, 1025, 5000, 2**16 + 1, 300_000])
def test_nothing_is_correlated(n: int) -> None:
    epochs = [Permutation(n, (0, epoch))[:] for epoch in range(4)] + [Permutation(n, seed)[:] for seed in (1, 2, 3)]
    # The same seed for neighbouring lengths, cut to the shorter.
    epochs.append(Permutation(n + 1, 1)[:n])
    positions = np.arange(n)
    for one in epochs:
        assert abs(correlation(one, positions)) < CLOSE
        for lag in (1, 2, 3, math.isqrt(n), math.isqrt(n) + 1, -(-n // (math.isqrt(n) + 1)), n // 2):
            assert abs(correlation(one[:-lag], one[lag:])) < CLOSE, lag
            steps = (one[lag:] - one[:-lag]) % n  # that a step from a to b is as likely as any other
            assert abs(chi_square(np.bincount(steps * 64 // n, minlength=64), 63)) < CLOSE, lag
    for one, other in itertools.combinations(epochs, 2):
        assert abs(correlation(one, other)) < CLOSE
        assert (one == other).sum() < 12  # fixed points of a random permutation: 1 on average
        assert abs(chi_square(np.bincount((one - other) % n * 64 // n, minlength=64), 63)) < CLOSE


@pytest.mark.parametrize("n", [1024, 5000, 10**6, 10**12])
def test_the_parts_of_an_epoch_are_fair_samples_of_the_file(n: int) -> None:
    part = min(n // 8, 50_000)
    p = Permutation(n, 11)
    for start in (0, n // 3, n - part):
        values = p[start : start + part]
        assert abs(chi_square(np.bincount(values * 32 // n, minlength=32), 31)) < CLOSE
        assert abs(chi_square(np.bincount(values % 32, minlength=32), 31)) < CLOSE
        digits = values % Permutation(n, 0)._b
        assert abs(chi_square(np.bincount(digits * 32 // Permutation(n, 0)._b, minlength=32), 31)) < CLOSE
