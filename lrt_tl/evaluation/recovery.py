"""The headline number: how much of the native vector's effect the transferred vector has.

    recovery = (slope_transferred − slope_random) / (slope_native − slope_random)

with slope_random the signed mean over random draws of equal norm. It is stated only where there is something to
recover: the native slope is above zero beyond its prompts' scatter, and above the random draws by rank.

Over a baseline, a vector that is no null but has to be beaten, the same share is taken of what the baseline leaves:

    (slope_transferred − slope_baseline) / (slope_native − slope_baseline)
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.special import ndtr, stdtrit
from torch import Tensor

from lrt_tl.tables import html_table

LEVEL = 0.05
FEWEST_DRAWS = 19


@dataclass(frozen=True)
class Recovery:
    """An estimate with its 95 % interval, or the reason why there is none.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small = storyworld.load("small")
        >>> vector = lrt.mean_difference(small, storyworld.contrast_pairs("refusal", 8), layer=2)
        >>> result = lrt.evaluate_transfer(small, vector, storyworld.behavior("refusal", 8), native=vector, n_draws=19)
        >>> print(result.recovery)  # of the vector itself
        1.00 [1.00, 1.00]
        >>> print(result.recovery_matched_kl)
        none: no neutral text was given
    """

    estimate: float | None
    low: float | None
    high: float | None
    reason: str | None = None

    def __str__(self) -> str:
        if self.estimate is None:
            return f"none: {self.reason}"
        return f"{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def __repr__(self) -> str:
        return f"Recovery({self})"

    def _repr_html_(self) -> str:
        return html_table({"recovery": str(self)})


@dataclass(frozen=True)
class Effect:
    """A mean over prompts with its 95 % interval, which one prompt does not give."""

    estimate: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return f"{self.estimate:+.3g}" + ("" if self.low is None else f" [{self.low:+.3g}, {self.high:+.3g}]")


def mean_effect(values: Float[Tensor, "prompt"], *, n_bootstrap: int = 4000, seed: int = 0) -> Effect:
    """The mean over prompts, with the bootstrap of `recovery` over them."""
    estimate = float(values.double().mean())
    if len(values) < 2:
        return Effect(estimate, None, None)
    means = _resamples(n_bootstrap, len(values), torch.Generator().manual_seed(seed)) @ values.double()
    return Effect(estimate, *_interval(means, len(values)))


def rank(slope: float, draws: Float[Tensor, "draw"]) -> int:
    """1 + the number of draws at or above: 1 is above all of them."""
    return 1 + int((draws >= slope).sum())


def recovery(
    native: Float[Tensor, "prompt"],
    transferred: Float[Tensor, "prompt"],
    random: Float[Tensor, "draw prompt"],
    *,
    n_bootstrap: int = 4000,
    seed: int = 0,
) -> Recovery:
    """Recovery from the slopes of each prompt, with a bootstrap over prompts and random draws together (one resample of
    the prompts for all arms). The interval is between percentiles, which lie further out for few prompts: see `tail`.
    How often it holds the truth is measured by `benchmarks/coverage_campaign.py`.

    The gate: the native slope's lower 95 % bound is above zero, and (1 + #{draws ≥ native})/(R + 1) ≤ .05 with R ≥ 19.
    Comparing with the interval of the *mean* draw instead would let a native vector that is itself random pass about
    half the time.
    """
    n_draws, n_prompts = random.shape
    if n_prompts < 2:
        return Recovery(None, None, None, "with one prompt only, no interval can be given")
    if n_draws < FEWEST_DRAWS:
        return Recovery(None, None, None, f"{n_draws} random draws; at least {FEWEST_DRAWS} are needed for the rank")
    slope, place = float(native.mean()), rank(float(native.mean()), random.mean(1))
    means = _resampled_means(native, transferred, random, n_bootstrap, seed)
    if float(means[0].quantile(tail(n_prompts))) <= 0:
        return Recovery(
            None, None, None, f"the native slope, {slope:.3g}, is not above zero beyond its prompts' scatter"
        )
    if place / (n_draws + 1) > LEVEL:
        return Recovery(None, None, None, f"{place - 1} of {n_draws} random vectors do as much as the native one")
    return _share(native, transferred, random, means)


def recovery_over_baseline(
    native: Float[Tensor, "prompt"],
    transferred: Float[Tensor, "prompt"],
    baseline: Float[Tensor, "draw prompt"],
    *,
    n_bootstrap: int = 4000,
    seed: int = 0,
) -> Recovery:
    """The share of what a baseline leaves of the native effect that the transferred vector has, from the slopes of each
    prompt, with the bootstrap of `recovery`.

    The gate: the lower 95 % bound of native minus baseline is above zero. So there is no such share where the baseline
    does what the native vector does: then the behavior cannot show that more than the baseline was carried over.
    """
    if len(native) < 2:
        return Recovery(None, None, None, "with one prompt only, no interval can be given")
    means = _resampled_means(native, transferred, baseline, n_bootstrap, seed)
    if float((means[0] - means[2]).quantile(tail(len(native)))) <= 0:
        own, other = float(native.mean()), float(baseline.mean())
        return Recovery(
            None,
            None,
            None,
            f"the baseline's slope, {other:.3g}, leaves nothing of the native one, {own:.3g}, beyond their prompts' "
            "scatter",
        )
    return _share(native, transferred, baseline, means)


Means = tuple[Float[Tensor, "resample"], Float[Tensor, "resample"], Float[Tensor, "resample"]]


def _resampled_means(native: Tensor, transferred: Tensor, others: Tensor, n_bootstrap: int, seed: int) -> Means:
    """The mean of each arm over the same resamples of the prompts; of the others, over resamples of the draws too."""
    generator = torch.Generator().manual_seed(seed)
    prompts = _resamples(n_bootstrap, others.shape[1], generator)
    draws = _resamples(n_bootstrap, others.shape[0], generator)
    return prompts @ native.double(), prompts @ transferred.double(), ((draws @ others.double()) * prompts).sum(1)


def _share(native: Tensor, transferred: Tensor, others: Tensor, means: Means) -> Recovery:
    """(transferred − others)/(native − others), with its interval."""
    left = float(others.double().mean())
    estimate = (float(transferred.double().mean()) - left) / (float(native.double().mean()) - left)
    low, high = _interval((means[1] - means[2]) / (means[0] - means[2]), len(native))
    if not math.isfinite(low) or not math.isfinite(high):
        return Recovery(None, None, None, "in too many resamples the native vector does what it is compared with does")
    return Recovery(estimate, low, high)


def tail(n_prompts: int) -> float:
    """The share of resamples below a 95 % interval, and above it: Φ(−√(n/(n−1)) t), t the 97.5 % quantile of Student's
    distribution with n − 1 degrees of freedom (expanded percentile interval; Hesterberg 2015, arXiv 1411.5279).

    Means of resamples scatter less than those of samples, by √((n−1)/n), and their scatter is taken for known. So the
    plain percentiles, 2.5 % on each side, make an interval that is too narrow: of 8 prompts it holds the truth in 90 of
    100 measurements, and of 16 in 91.
    """
    return float(ndtr(-((n_prompts / (n_prompts - 1)) ** 0.5) * stdtrit(n_prompts - 1, 1 - LEVEL / 2)))


def _interval(values: Float[Tensor, "resample"], n_prompts: int) -> tuple[float, float]:
    """Where a resample has 0/0 it has no say."""
    outside = tail(n_prompts)
    low, high = values.nanquantile(torch.tensor([outside, 1 - outside], dtype=torch.float64)).tolist()
    return low, high


def _resamples(n: int, size: int, generator: torch.Generator) -> Float[Tensor, "resample item"]:
    """Weights, summing to one, of n resamples with replacement of `size` items."""
    chosen = torch.randint(size, (n, size), generator=generator)
    weights = torch.zeros(n, size, dtype=torch.float64)
    weights.scatter_add_(1, chosen, torch.ones(n, size, dtype=torch.float64))
    return weights / size
