"""Intervals against scipy's, textbook figures, and how often they hold the truth."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from lrt_tl.evaluation.intervals import mcnemar, paired_difference, percentiles, resamples, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (3, 7), (480, 500)])
def test_wilson_is_scipys(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("one", "other"), [(0, 0), (5, 0), (3, 4), (10, 2), (30, 50)])
def test_mcnemar_is_the_binomial_test(one: int, other: int) -> None:
    expected = binomtest(one, one + other).pvalue if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("counts", "interval"),
    [((36, 12, 2, 0), (0.0569, 0.3404)), ((36, 14, 0, 0), (0.1528, 0.4167)), ((54, 0, 0, 0), (-0.0664, 0.0664))],
)
def test_paired_differences_are_the_papers(counts: tuple[int, int, int, int], interval: tuple[float, float]) -> None:
    low, high = paired_difference(*counts)
    assert (low, high) == pytest.approx(interval, abs=1e-4)
    both, first_only, second_only, neither = counts
    assert paired_difference(both, second_only, first_only, neither) == pytest.approx((-high, -low))


@pytest.mark.parametrize("shares", [(0.9, 0.04, 0.03, 0.03), (0.5, 0.2, 0.1, 0.2), (0.97, 0.02, 0.005, 0.005)])
def test_paired_intervals_hold_the_truth(shares: tuple[float, ...]) -> None:
    tables = np.random.default_rng(0).multinomial(80, shares, size=2000)
    bounds = np.array([paired_difference(*(int(count) for count in table)) for table in tables])
    truth = shares[1] - shares[2]
    assert 0.93 < ((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])).mean() <= 1


def test_resampled_means_scatter_as_means_do() -> None:
    items = torch.randn(400, generator=torch.Generator().manual_seed(1)).double()
    weights = resamples(400)
    torch.testing.assert_close(weights.sum(1), torch.ones(2000).double())
    low, high = percentiles(weights @ items)
    half = 1.96 * float(items.std()) / math.sqrt(400)
    assert (float(low), float(high)) == pytest.approx(
        (float(items.mean()) - half, float(items.mean()) + half), abs=0.01
    )


def test_mcnemar_of_thousands() -> None:
    assert mcnemar(600, 600) == 1.0
    assert mcnemar(5000, 5400) == pytest.approx(binomtest(5000, 10400, 0.5).pvalue, rel=1e-9)
