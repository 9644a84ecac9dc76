"""Philox noise: published vectors, an independent implementation, and the statistics of a sample.

Everything is keyed, so each of these numbers is the same on every run: no test here can flicker.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from fastvae import ops
from fastvae.kernels import philox

MASK = 0xFFFFFFFF
# The known-answer file of Random123 (kat_vectors, "philox4x32 10"): counter, key, output.
VECTORS = [
    ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]
SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1]
ORDINALS = [0, 1, 2, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 5 * 2**40 + 3, 2**62]


def philox4x32(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 on Python integers, written from the paper."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(q >> 32) ^ c[1] ^ k[0], q & MASK, (p >> 32) ^ c[3] ^ k[1], p & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def philox_numpy(seed: int, ordinal: np.ndarray, columns: int, stream: int) -> np.ndarray:
    """The same in NumPy's unsigned integers, for many: (R,) ordinals to (R, columns) words."""
    groups = np.arange(-(-columns // 4), dtype=np.uint64)
    wide, low, shift = ordinal.astype(np.uint64)[:, None], np.uint64(MASK), np.uint64(32)
    c = list(np.broadcast_arrays(groups[None], wide & low, wide >> shift, np.uint64(stream)))
    k0, k1 = seed & MASK, seed >> 32
    for _ in range(10):
        p, q = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        first, third = (q >> shift) ^ c[1] ^ np.uint64(k0), (p >> shift) ^ c[3] ^ np.uint64(k1)
        c = [first, q & low, third, p & low]
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return np.stack(c, axis=-1).reshape(len(ordinal), -1)[:, :columns].astype(np.int64)


def expected_words(seed: int, ordinal: int, columns: int, stream: int = 0) -> list[int]:
    key = [seed & MASK, seed >> 32]
    blocks = [
        philox4x32([group, ordinal & MASK, ordinal >> 32, stream], key)
        for group in range(-(-columns // 4))
    ]
    return [word for block in blocks for word in block][:columns]


def ordinals(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.fixture(scope="module")
def normal() -> np.ndarray:
    """A million values of noise: 50,000 samples by 20 columns."""
    return ops.philox_normal(17, torch.arange(50_000), 20).double().numpy()


@pytest.mark.parametrize(("counter", "key", "answer"), VECTORS)
def test_the_reference_gives_the_published_vectors(counter: str, key: str, answer: str) -> None:
    words = [[int(word, 16) for word in text.split()] for text in (counter, key, answer)]
    assert philox4x32(words[0], words[1]) == words[2]


def test_words_start_with_the_first_published_vector() -> None:
    answer = [int(word, 16) for word in VECTORS[0][2].split()]
    assert ops.philox_words(0, ordinals(0), 4).tolist() == [answer]


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 6, 7, 8, 13, 20])
def test_words_equal_the_reference(columns: int) -> None:
    for seed in SEEDS:
        words = ops.philox_words(seed, ordinals(*ORDINALS), columns)
        assert words.dtype == torch.int64
        assert words.tolist() == [expected_words(seed, o, columns) for o in ORDINALS]


def test_words_of_many_random_keys_equal_the_reference() -> None:
    rng = np.random.default_rng(0)
    for seed in rng.integers(0, 2**63 - 1, 20).tolist():
        chosen = rng.integers(0, 2**63 - 1, 12).tolist()
        got = ops.philox_words(seed, ordinals(*chosen), 9).tolist()
        assert got == [expected_words(seed, o, 9) for o in chosen]


@pytest.mark.parametrize("stream", [0, 1, 2**31, MASK])
def test_words_of_a_stream_equal_the_reference(stream: int) -> None:
    words = ops.philox_words(2**40 + 1, ordinals(*ORDINALS), 9, stream=stream)
    assert words.tolist() == [expected_words(2**40 + 1, o, 9, stream) for o in ORDINALS]


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_many_words_equal_numpy(seed: int, stream: int) -> None:
    ordinal = np.random.default_rng(seed % 1000).integers(0, 2**63 - 1, 3000)
    expected = philox_numpy(seed, ordinal, 21, stream)
    got = ops.philox_words(seed, torch.from_numpy(ordinal), 21, stream=stream)
    assert np.array_equal(got.numpy(), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_in_a_tensor_is_the_same_seed(seed: int) -> None:
    """State on a device is read there; on a GPU an int would have to be waited for."""
    for function in (philox.philox_words, philox.philox_normal):
        whole = function(seed, ordinals(*ORDINALS), 7)
        assert torch.equal(function(torch.tensor(seed), ordinals(*ORDINALS), 7), whole)


def test_words_of_far_columns_equal_the_reference() -> None:
    """An image of 64 x 64 x 3 pixels takes 12,288 columns."""
    words = ops.philox_words(5, ordinals(2**33), 12_288)[0]
    key = [5, 0]
    for column in (0, 4095, 4096, 12_285, 12_287):
        block = philox4x32([column // 4, 0, 2, 0], key)
        assert words[column] == block[column % 4]


def test_shapes_at_the_edges() -> None:
    assert ops.philox_words(0, ordinals(), 5).shape == (0, 5)
    assert ops.philox_words(0, ordinals(1, 2), 0).shape == (2, 0)
    assert ops.philox_normal(0, ordinals(), 5).shape == (0, 5)
    with pytest.raises(ValueError, match="columns = -1"):
        ops.philox_words(0, ordinals(0), -1)


@pytest.mark.parametrize("columns", [1, 3, 10, 20])
@pytest.mark.parametrize("batch", [1, 2, 5, 17, 64])
def test_batch_split_does_not_change_a_bit(columns: int, batch: int) -> None:
    """Rows computed alone or together are identical: what makes resume and any world exact."""
    seed, ordinal = 2**62 + 11, torch.arange(200) * 7919 + 2**32 - 400
    for function in (ops.philox_words, ops.philox_normal):
        whole = function(seed, ordinal, columns)
        parts = [function(seed, part, columns) for part in ordinal.split(batch)]
        assert torch.equal(torch.cat(parts), whole)
        order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
        assert torch.equal(function(seed, ordinal[order], columns), whole[order])


def test_bernoulli_does_not_depend_on_the_batch() -> None:
    pixels = ops.philox_words(3, torch.arange(64), 147).remainder(256).to(torch.uint8)
    pixels = pixels.reshape(64, 3, 7, 7)
    ordinal = torch.arange(64) + 2**40
    whole = ops.philox_bernoulli(9, ordinal, pixels)
    for batch in (1, 3, 10):
        pairs = zip(ordinal.split(batch), pixels.split(batch), strict=True)
        assert torch.equal(torch.cat([ops.philox_bernoulli(9, o, p) for o, p in pairs]), whole)
    strided = pixels.contiguous(memory_format=torch.channels_last)
    assert torch.equal(ops.philox_bernoulli(9, ordinal, strided), whole)


def test_fewer_columns_are_a_prefix_of_more() -> None:
    ordinal = torch.arange(100)
    for function in (ops.philox_words, ops.philox_normal):
        whole = function(4, ordinal, 12)
        for columns in range(1, 12):
            assert torch.equal(function(4, ordinal, columns), whole[:, :columns])


def box_muller(words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two normals of pairs of words (..., 2), from the definition in float64.

    First word: u = (word + 1/2) / 2^32, as float32 rounds it. Second: 30 low bits, read as a
    signed fraction, are an angle in [-pi/4, pi/4); of the two above, the lower swaps sine and
    cosine and the upper turns by half a circle.
    """
    u = (words[..., 0].float() * 2.0**-32 + 2.0**-33).double()
    fraction = (words[..., 1] & 0x3FFFFFFF).double() / 2**29
    angle = torch.where(fraction < 1, fraction, fraction - 2) * (math.pi / 4)
    radius = (-2 * u.log()).sqrt() * (1 - 2 * (words[..., 1] >> 31)).double()
    swap = (words[..., 1] >> 30 & 1).bool()
    one = torch.where(swap, angle.sin(), angle.cos())
    return radius * one, radius * torch.where(swap, angle.cos(), angle.sin())


def edge_words() -> torch.Tensor:
    """Pairs of words (n, 2): random ones, all powers of two, and their neighbours."""
    edges = {2**k + d for k in range(33) for d in (-2, -1, 0, 1, 2)}
    edges |= {MASK - 2**k for k in range(32)}
    edges |= {w + int(0.70710678 * 2**k) for k in range(33) for w in range(-300, 300, 7)}
    one = torch.tensor(sorted(w for w in edges if 0 <= w <= MASK))
    pairs = torch.stack((one, one.flip(0)), dim=1)
    return torch.cat((pairs, ops.philox_words(3, torch.arange(200_000), 2)))


def test_normal_is_box_muller_on_the_words() -> None:
    words = edge_words()
    expected = torch.stack(box_muller(words), dim=1)
    radius, (one, two) = philox._radius(words[:, 0]), philox._unit_vector(words[:, 1])
    error = (torch.stack((radius * one, radius * two), dim=1).double() - expected).abs()
    assert error.max() < 1.1e-6
    assert error.mean() < 5e-8
    # As a part of the radius, down to the smallest: u next to 1, where the logarithm vanishes.
    u = (words[:, 0].float() * 2.0**-32 + 2.0**-33).double()
    exact = (-2 * u.log()).sqrt()
    assert (exact[u < 1] < 1e-3).any()
    assert ((radius.double() - exact).abs() <= 2e-7 * exact).all()
    assert (error.max(dim=1).values <= 3e-7 * exact).all()


def test_normal_takes_words_in_pairs() -> None:
    """Columns 2i and 2i + 1 come from words 2i and 2i + 1."""
    words = ops.philox_words(1, torch.arange(500), 8).reshape(500, 4, 2)
    expected = torch.stack(box_muller(words), dim=-1).reshape(500, 8)
    eps = ops.philox_normal(1, torch.arange(500), 8)
    assert eps.dtype == torch.float32
    torch.testing.assert_close(eps.double(), expected, rtol=0, atol=1.1e-6)


def test_normal_is_pinned() -> None:
    """Any change of these bits would change every run, and every resumed one in its middle."""
    eps = ops.philox_normal(2024, ordinals(0, 1, 2**40), 3)
    assert eps.view(torch.int32).tolist() == [
        [1039102558, 1065317272, 1042028693],
        [1068727025, 1060962718, -1083579450],
        [-1084112802, -1073539765, -1078195393],
    ]


def test_normal_is_finite_at_the_ends_of_the_uniforms(monkeypatch: pytest.MonkeyPatch) -> None:
    """All-zero and all-one words: no infinity, and the bound that the docstring names."""
    ends = torch.tensor([[0, 0], [0, MASK], [MASK, 0], [MASK, MASK]])
    monkeypatch.setattr(philox, "philox_words", lambda seed, ordinal, columns: ends)
    eps = philox.philox_normal(0, torch.arange(4), 2)
    assert torch.isfinite(eps).all()
    assert eps.abs().max() == pytest.approx(math.sqrt(66 * math.log(2)), rel=2e-7)
    assert torch.equal(eps[2:], torch.zeros(2, 2))  # u rounds to 1


def test_compiled_normals_are_the_same_bits() -> None:
    """C++ that the compiler may vectorize, with three columns the tail of a vector as well."""
    ordinal, seed = torch.arange(4001) * 7919 + 2**33, 2**62 + 5
    compiled = torch.compile(philox.philox_normal, fullgraph=True)
    got = compiled(torch.tensor(seed), ordinal, 3)
    assert torch.equal(got, philox.philox_normal(seed, ordinal, 3))


def test_compiled_normals_are_the_same_bits_for_any_words() -> None:
    def normals(words: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (philox._radius(words[:, 0]), *philox._unit_vector(words[:, 1]))

    words = edge_words()
    for got, expected in zip(
        torch.compile(normals, fullgraph=True)(words), normals(words), strict=True
    ):
        assert torch.equal(got.view(torch.int32), expected.view(torch.int32))


def test_normal_moments(normal: np.ndarray) -> None:
    x = normal.ravel()
    error = 1 / math.sqrt(x.size)  # one standard error of the mean
    assert abs(x.mean()) < 4 * error
    assert abs(x.var() - 1) < 4 * math.sqrt(2) * error
    assert abs((x**3).mean()) < 4 * math.sqrt(15) * error
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96) * error


def test_normal_kolmogorov_smirnov(normal: np.ndarray) -> None:
    assert stats.kstest(normal.ravel(), "norm").pvalue > 0.01
    worst = min(stats.kstest(normal[:, c], "norm").pvalue for c in range(normal.shape[1]))
    assert worst > 0.01 / normal.shape[1]


@pytest.mark.parametrize("bound", [1.0, 2.0, 3.0, 4.0])
def test_normal_tails(normal: np.ndarray, bound: float) -> None:
    expected = normal.size * stats.norm.sf(bound)
    for count in ((normal > bound).sum(), (normal < -bound).sum()):
        assert abs(count - expected) < 4.5 * math.sqrt(expected)


def test_normal_extremes(normal: np.ndarray) -> None:
    assert 4.4 < np.abs(normal).max() < 6.77


def test_partners_of_a_pair_are_independent(normal: np.ndarray) -> None:
    """They share a radius: uncorrelated in their values, squares and signs, and the angle even."""
    one, two = normal[:, 0::2].ravel(), normal[:, 1::2].ravel()
    bound = 4 / math.sqrt(one.size)
    assert abs((one * two).mean()) < bound
    assert abs(((one**2 - 1) * (two**2 - 1)).mean()) < 2 * bound
    assert abs((np.sign(one) * np.sign(two)).mean()) < bound
    assert abs((one * (two**2 - 1)).mean()) < math.sqrt(2) * bound
    turn = np.arctan2(two, one) / (2 * math.pi) % 1
    assert stats.kstest(turn, "uniform").pvalue > 0.01
    assert stats.kstest(np.exp(-0.5 * (one**2 + two**2)), "uniform").pvalue > 0.01


def test_far_tails() -> None:
    """Beyond 4.5 and 5 standard deviations, in 40 million values drawn from the transform alone."""
    generator = torch.Generator().manual_seed(0)
    counts = np.zeros(2)
    for _ in range(10):
        words = torch.randint(0, 2**32, (2, 2_000_000), generator=generator)
        radius, (one, two) = philox._radius(words[0]), philox._unit_vector(words[1])
        size = torch.stack((radius * one, radius * two)).abs()
        counts += [int((size > bound).sum()) for bound in (4.5, 5.0)]
    expected = 4e7 * 2 * stats.norm.sf([4.5, 5.0])
    assert np.all(np.abs(counts - expected) < 4.5 * np.sqrt(expected))


def test_normal_is_uncorrelated_between_neighbours(normal: np.ndarray) -> None:
    """Between columns of one sample, and between samples 1, 2 and 16 apart; squares as well."""
    for x in (normal, normal**2 - 1):
        x = x / x.std()
        rows, columns = x.shape
        correlation = x.T @ x / rows - np.eye(columns)
        off_diagonal = correlation[~np.eye(columns, dtype=bool)]
        assert np.abs(off_diagonal).max() < 4.5 / math.sqrt(rows)
        for lag in (1, 2, 16):
            assert abs((x[lag:] * x[:-lag]).mean()) < 4 / math.sqrt(x[lag:].size)


def test_neighbouring_seeds_give_independent_noise() -> None:
    ordinal = torch.arange(20_000)
    noises = [ops.philox_normal(seed, ordinal, 4) for seed in (0, 1, 2, 2**32, 2**32 + 1)]
    for a, b in pairwise(noises):
        assert abs((a * b).double().mean().item()) < 4.5 / math.sqrt(a.numel())


def test_words_have_balanced_bits() -> None:
    words = ops.philox_words(0, torch.arange(20_000), 8).numpy().ravel()
    for bit in range(32):
        ones = ((words >> bit) & 1).sum()
        assert abs(ones - words.size / 2) < 4.5 * math.sqrt(words.size / 4)
    counts = np.bincount(words >> 24, minlength=256)
    assert 1e-3 < stats.chisquare(counts).pvalue < 1 - 1e-3


def test_bernoulli_of_0_never_and_of_255_always() -> None:
    ordinal = torch.arange(4000)
    black = torch.zeros(4000, 1, 16, 16, dtype=torch.uint8)
    assert not ops.philox_bernoulli(0, ordinal, black).any()
    assert ops.philox_bernoulli(0, ordinal, black + 255).all()


def test_bernoulli_at_the_ends_of_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest word draws 1 for any pixel but 0; the largest draws 0 for any but 255."""
    pixels = torch.arange(256, dtype=torch.uint8)[None]
    for word, expected in ((0, pixels > 0), (MASK, pixels == 255)):
        words = torch.full((1, 256), word)
        monkeypatch.setattr(philox, "philox_words", lambda *_, words=words: words)
        assert torch.equal(philox.philox_bernoulli(0, ordinals(0), pixels), expected)


def test_bernoulli_frequency_is_the_pixel_value() -> None:
    """Every pixel value, 6,000 draws each: no value off by 4.5 standard errors, and no bias."""
    rows = 6000
    pixels = torch.arange(256, dtype=torch.uint8).expand(rows, 256)
    drawn = ops.philox_bernoulli(21, torch.arange(rows), pixels)
    assert drawn.dtype == torch.bool
    p = np.arange(1, 255) / 255
    z = (drawn.sum(0).numpy()[1:255] - rows * p) / np.sqrt(rows * p * (1 - p))
    assert np.abs(z).max() < 4.5
    assert abs(z.sum()) / math.sqrt(z.size) < 4
    assert stats.kstest(z, "norm").pvalue > 0.01


def test_bernoulli_is_monotone_in_the_pixel() -> None:
    """One word per pixel: a darker pixel never loses a bit that a lighter one has."""
    ordinal = torch.arange(50)
    drawn = [
        ops.philox_bernoulli(2, ordinal, torch.full((50, 64), value, dtype=torch.uint8))
        for value in range(0, 256, 15)
    ]
    assert all((a <= b).all() for a, b in pairwise(drawn))


def test_derive_seed_is_stable() -> None:
    """Pinned: a change of these numbers would change every run and every resumed stream."""
    assert ops.derive_seed(0, "posterior") == 6288550580427810619
    assert ops.derive_seed(1, "binarize") == 5043068764804260957
    assert ops.derive_seed(0, "epoch", 3) == 9113405148103508133


def test_derive_seed_differs_for_each_label() -> None:
    labels = ["posterior", "prior", "binarize", "order", "Posterior", "", "0", "1"]
    seeds = [ops.derive_seed(seed, label) for seed in range(200) for label in labels]
    seeds += [ops.derive_seed(seed) for seed in range(200)]
    seeds += [ops.derive_seed(0, "epoch", epoch) for epoch in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.slow
@pytest.mark.parametrize("function", ["words", "normal", "bernoulli"])
def test_compiled_code_has_the_same_bits_for_any_seed(function: str) -> None:
    """Products of 32-bit words pass 2^63, where C++ has no rule: halves are multiplied instead."""
    torch._dynamo.reset()
    pixels = torch.arange(256, dtype=torch.uint8).repeat(8, 1)
    calls = {
        "words": lambda seed, ordinal: philox.philox_words(seed, ordinal, 20),
        "normal": lambda seed, ordinal: philox.philox_normal(seed, ordinal, 20),
        "bernoulli": lambda seed, ordinal: philox.philox_bernoulli(seed, ordinal, pixels),
    }
    compiled = torch.compile(calls[function], fullgraph=True)
    lows = [0, 1, 2_600_000_000, 2_620_000_000, 3_000_000_000, 2**32 - 1]
    for seed in [*lows, *(low << 32 | 5 for low in lows[:-1]), 2**63 - 1]:
        key = torch.tensor(seed & (2**63 - 1))
        for first in (0, 2**32 - 4, 3_000_000_000, 2**62):
            ordinal = first + torch.arange(8)
            expected = calls[function](int(key), ordinal)
            assert torch.equal(compiled(key, ordinal), expected), (seed, first)
