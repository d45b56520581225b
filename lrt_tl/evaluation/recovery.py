"""The headline number: how much of the native vector's effect the transferred vector has.

    recovery = (slope_transferred − slope_random) / (slope_native − slope_random)

with slope_random the signed mean over random draws of equal norm. It is stated only where there is something to
recover: the native slope is above zero beyond its prompts' scatter, and above the random draws by rank.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

LEVEL = 0.05
FEWEST_DRAWS = 19


@dataclass(frozen=True)
class Recovery:
    """An estimate with its 95 % interval, or the reason why there is none."""

    estimate: float | None
    low: float | None
    high: float | None
    reason: str | None = None

    def __str__(self) -> str:
        if self.estimate is None:
            return f"none: {self.reason}"
        return f"{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]"


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
    """Recovery from the slopes of each prompt, with a percentile bootstrap over prompts and random draws together (one
    resample of the prompts for all arms).

    The gate: the native slope's lower 95 % bound is above zero, and (1 + #{draws ≥ native})/(R + 1) ≤ .05 with R ≥ 19.
    Comparing with the interval of the *mean* draw instead would let a native vector that is itself random pass about
    half the time.
    """
    n_draws, n_prompts = random.shape
    if n_prompts < 2:
        return Recovery(None, None, None, "with one prompt only, no interval can be given")
    if n_draws < FEWEST_DRAWS:
        return Recovery(None, None, None, f"{n_draws} random draws; at least {FEWEST_DRAWS} are needed for the rank")
    generator = torch.Generator().manual_seed(seed)
    prompts = _resamples(n_bootstrap, n_prompts, generator)
    draws = _resamples(n_bootstrap, n_draws, generator)
    natives, transfers = prompts @ native.double(), prompts @ transferred.double()
    randoms = ((draws @ random.double()) * prompts).sum(1)
    slope, place = float(native.mean()), rank(float(native.mean()), random.mean(1))
    if float(natives.quantile(LEVEL / 2)) <= 0:
        return Recovery(
            None, None, None, f"the native slope, {slope:.3g}, is not above zero beyond its prompts' scatter"
        )
    if place / (n_draws + 1) > LEVEL:
        return Recovery(None, None, None, f"{place - 1} of {n_draws} random vectors do as much as the native one")
    baseline = float(random.double().mean())
    estimate = (float(transferred.double().mean()) - baseline) / (float(native.double().mean()) - baseline)
    ratios = (transfers - randoms) / (natives - randoms)
    low, high = ratios.quantile(torch.tensor([LEVEL / 2, 1 - LEVEL / 2], dtype=torch.float64)).tolist()
    return Recovery(estimate, low, high)


def _resamples(n: int, size: int, generator: torch.Generator) -> Float[Tensor, "resample item"]:
    """Weights, summing to one, of n resamples with replacement of `size` items."""
    chosen = torch.randint(size, (n, size), generator=generator)
    weights = torch.zeros(n, size, dtype=torch.float64)
    weights.scatter_add_(1, chosen, torch.ones(n, size, dtype=torch.float64))
    return weights / size
