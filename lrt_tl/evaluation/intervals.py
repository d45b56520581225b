"""95 % intervals: bootstrap resamples, and shares in closed form."""

from math import sqrt

import torch
from jaxtyping import Float
from scipy.stats import binom
from torch import Tensor

LEVEL = 0.05
N_BOOTSTRAP = 2000
_Z = 1.959963984540054
"""The normal distribution's 97.5 % point."""

Interval = tuple[float, float]


def resamples(size: int, *, n: int = N_BOOTSTRAP, seed: int = 0) -> Float[Tensor, "resample item"]:
    """Weights, summing to one, of n resamples with replacement of `size` items."""
    chosen = torch.randint(size, (n, size), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(n, size, dtype=torch.float64)
    weights.scatter_add_(1, chosen, torch.ones(n, size, dtype=torch.float64))
    return weights / size


def percentiles(values: Float[Tensor, "resample *item"]) -> Float[Tensor, "2 *item"]:
    """The bounds between which 95 % of the resamples lie."""
    return values.quantile(torch.tensor([LEVEL / 2, 1 - LEVEL / 2], dtype=values.dtype), dim=0)


def wilson(successes: int, n: int) -> Interval:
    """The score interval of a share (Wilson 1927): right also near 0 and 1, where none or all succeed."""
    share, spread = successes / n, _Z**2 / n
    middle, half = share + spread / 2, _Z * sqrt(share * (1 - share) / n + spread / (4 * n))
    low, high = ((middle + side * half) / (1 + spread) for side in (-1, 1))
    return max(0.0, low), min(1.0, high)


def paired_difference(both: int, first_only: int, second_only: int, neither: int) -> Interval:
    """The interval of the share of the first minus that of the second, of successes on the same items: Newcombe's
    method 10 (1998, Statistics in Medicine 17, 2635), which stands on Wilson's and needs no item on which they differ.

    Args:
        both: items on which both succeed; the other arguments likewise.
    """
    n = both + first_only + second_only + neither
    counts = both + first_only, both + second_only
    (one, other), bounds = (count / n for count in counts), [wilson(count, n) for count in counts]
    (low, high), (low_other, high_other) = bounds
    correlation = _correlation(both, first_only, second_only, neither)

    def half(down: float, up: float) -> float:
        return sqrt(max(0.0, down**2 - 2 * correlation * down * up + up**2))

    difference = one - other
    return difference - half(one - low, high_other - other), difference + half(high - one, other - low_other)


def _correlation(both: int, first_only: int, second_only: int, neither: int) -> float:
    """φ of the table, with Newcombe's correction where it is positive; 0 where a side is always the same."""
    sides = (both + first_only) * (second_only + neither) * (both + second_only) * (first_only + neither)
    product, half = both * neither - first_only * second_only, (both + first_only + second_only + neither) / 2
    if sides == 0:
        return 0.0
    return (max(product - half, 0.0) if product > 0 else product) / sqrt(sides)


def mcnemar(first_only: int, second_only: int) -> float:
    """The exact two-sided p of as uneven a split of the items on which only one succeeds, were both as good."""
    n, fewer = first_only + second_only, min(first_only, second_only)
    return min(1.0, 2 * float(binom.cdf(fewer, n, 0.5)))
