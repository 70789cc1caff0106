"""Statistics of many tensors at once, against numpy on each."""

import numpy as np
import pytest
import torch

from paramtree import rng
from paramtree.display.pictures import pictures
from paramtree.display.statistics import ENTRIES, sample, scan, share, statistics
from paramtree.display.wording import number


def draw(*shape, seed=0):
    return rng.normal(rng.key(seed), shape, dtype=torch.float64)


def vectors():
    broken = draw(50)
    broken[[3, 9]], broken[4], broken[5] = float("nan"), float("inf"), -float("inf")
    broken[10:13] = 0
    yield from (broken, draw(1), draw(1000, seed=1) * 1e200, draw(7) * 1e-200 + 1e-190)
    yield from (torch.zeros(4).double(), draw(0), torch.full((3,), float("nan")).double())
    yield torch.tensor([1e308, -1e308], dtype=torch.float64)


def test_numbers_are_numpys():
    rows = list(vectors())
    for x, s in zip(rows, statistics(rows), strict=True):
        x = x.numpy()
        finite = x[np.isfinite(x)]
        assert (s.seen, s.nan, s.infinite) == (len(x), np.isnan(x).sum(), np.isinf(x).sum())
        assert s.zeros == (x == 0).sum() and len(s.bars) == 16
        if not len(finite):
            assert all(np.isnan(v) for v in (s.mean, s.spread, s.low, s.high))
            continue
        scale = np.abs(finite).max() or 1.0
        np.testing.assert_allclose(s.mean / scale, (finite / scale).mean(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(s.spread / scale, (finite / scale).std(), rtol=1e-9, atol=1e-12)
        assert (s.low, s.high) == (finite.min(), finite.max())
        if s.low < s.high:
            counts = np.histogram(finite / scale, 16)[0]
            np.testing.assert_array_equal(np.ceil(counts / counts.max() * 8), s.bars)


def test_a_sample_is_spread_over_rows_and_columns():
    place = torch.arange(4 * 512 * 64).reshape(4, 512, 64)
    for x in (place, place.transpose(1, 2)):
        taken = sample(x, (4,), 4096)
        assert taken.shape[0] == 4 and 500 < taken.shape[1] <= 1024
        inside = taken[2].long() - 2 * 512 * 64
        assert len(set((inside // 64).tolist())) > 256 and len(set((inside % 64).tolist())) == 64
    assert torch.equal(sample(place[:, :2], (4,), 4096), place[:, :2].reshape(4, -1).double())


NUMBERS = {999.4: "999", 999.6: "1,000", -9999.9: "-10,000", 999_999.6: "1e6", 12345678: "1.23e7"}
NUMBERS |= {0.0001: "0.0001", 0.00009999: "1e-4", -1e-5: "-1e-5", 0.5: "0.5", 1e300: "1e300"}
NUMBERS |= {0: "0", float("inf"): "inf", float("nan"): "nan"}


@pytest.mark.parametrize("x", NUMBERS)
def test_a_number_has_three_digits(x):
    assert number(x) == NUMBERS[x]


def test_shares_fill_the_total():
    assert share([10, 20, 1000, 1000], 430) == 200  # 10 + 20 + 200 + 200
    assert share([10, 20], 430) == 20 and share([], 5) == 16
    assert share([10**6] * 10_000, ENTRIES) == ENTRIES // 10_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.int16])
def test_a_scan_sees_every_entry(dtype):
    x = (torch.arange(6000) % 2001 - 1000).reshape(60, 100).to(dtype)
    ends = (0, 1000) if dtype.is_complex else (-1000, 1000)
    assert scan(x)[2:] == (0, 0) and scan(x)[:2] == tuple(torch.tensor(ends).to(dtype).abs()
        if dtype.is_complex else torch.tensor(ends).to(dtype))  # fmt: skip
    if dtype.is_floating_point:
        x[3, 7], x[59, 99] = float("nan"), float("inf")
        assert scan(x)[2:] == scan(x.t())[2:] == (1, 1)
        assert scan(x[:, :8].expand(5, 60, 8))[2:] == (5, 0)


def test_a_picture_keeps_the_order_of_the_numbers():
    import base64

    x = torch.arange(12.0).reshape(3, 4) - 2
    x[1, 1] = float("nan")
    (p,) = pictures([x], 0, 256)
    steps = np.frombuffer(base64.b64decode(p.data), np.uint8).reshape(p.height, p.width)
    assert (p.images, p.height, p.width, p.block) == (1, 3, 4, (1, 1))
    assert steps[1, 1] == 255 and (p.low, p.high) == (-9, 9)
    known = x.isfinite()
    again = p.low + steps.astype(float) / 254 * (p.high - p.low)
    np.testing.assert_allclose(again[known], x[known].numpy(), atol=18 / 254)


def test_a_large_picture_is_of_means_and_a_difference_has_zero_in_its_middle():
    x = torch.zeros(100, 60)
    x[:50, :30] = 1.0
    left, right, difference = pictures([x, x + 0.25], 0, 16)
    assert (left.low, left.high) == (right.low, right.high) == (0, 1.25)
    assert left.height * left.width <= 16 and left.block[0] >= 25
    assert (difference.low, difference.high) == (-0.25, 0.25)
    stack = pictures([draw(3, 5, 8, 8)], 1, 4096)[0]
    assert (stack.images, stack.height, stack.width) == (15, 8, 8)
    rows = pictures([draw(3, 9)], 1, 4096)[0]
    assert (rows.images, rows.height, rows.width) == (3, 1, 9)
