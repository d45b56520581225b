"""The shape of a dose–response curve: where it begins, how it rises, where it saturates and where it breaks down."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.effects import slopes
from lrt_tl.tables import html_table

_SATURATED = 0.9


@dataclass(frozen=True, eq=False)
class Curve:
    """What one vector does to a behavior's score, in the score's units (nats for log-odds). Coefficients are in lengths
    of the native vector.

    Attributes:
        propensity: the score of each prompt without steering.
        slopes: of each prompt, least squares over the whole grid, for each unit of the coefficient.
        slope: their mean.
        anti_steerable: share of the prompts whose slope is below zero (Tan et al. 2024, arXiv 2407.12404).
        saturation: the smallest coefficient above 0 at which 90 % of the largest mean effect on the grid is reached,
            interpolated. None where the effect is never positive, or still rises: it is largest at the end, and its
            last step rises at more than half of the rate from 0 to the end.
        breakdown: the first coefficient above 0 at which the mean score is below its highest so far by more than twice
            the standard error over prompts of that difference, once it had risen. None where it is nowhere on the grid,
            or there is one prompt only.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> scores = torch.tensor([[-2.0, -1.0], [-1.0, -0.5], [0.0, 0.0], [1.0, 0.5], [1.1, 0.6]])  # of two prompts
        >>> for name, value in lrt.effect_curve(scores, (-2.0, -1.0, 0.0, 1.0, 2.0)).table().items():
        ...     print(f"{name}: {value}")
        propensity (mean score without steering): +0.000
        slope: +0.6200
        prompts that move the wrong way: 0 %
        saturates at: 1.15
        breaks down at: not on this grid
    """

    propensity: Float[Tensor, "prompt"]
    slopes: Float[Tensor, "prompt"]
    slope: float
    anti_steerable: float
    saturation: float | None
    breakdown: float | None

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return vars(self) | {"propensity": self.propensity.tolist(), "slopes": self.slopes.tolist()}

    def table(self) -> dict[str, str]:
        """The same for people."""
        return {
            "propensity (mean score without steering)": f"{float(self.propensity.mean()):+.3f}",
            "slope": f"{self.slope:+.4f}",
            "prompts that move the wrong way": f"{100 * self.anti_steerable:.0f} %",
            "saturates at": "not on this grid" if self.saturation is None else f"{self.saturation:.3g}",
            "breaks down at": "not on this grid" if self.breakdown is None else f"{self.breakdown:g}",
        }

    def __repr__(self) -> str:
        return f"Curve({', '.join(f'{name}: {value}' for name, value in self.table().items())})"

    def _repr_html_(self) -> str:
        return html_table(self.table())


def effect_curve(scores: Float[Tensor, "coefficient prompt"], coefficients: Sequence[float]) -> Curve:
    """The shape of a curve, on its positive side but for the slopes.

    Raises:
        LrtError: 0 is not among the coefficients, or none is above it.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> of_one_prompt = torch.tensor([[-1.0], [0.0], [1.0], [1.1]])
        >>> curve = lrt.effect_curve(of_one_prompt, coefficients=(-1.0, 0.0, 1.0, 2.0))
        >>> round(curve.slope, 3), round(curve.saturation, 3)
        (0.73, 0.99)
    """
    if 0 not in coefficients or max(coefficients) <= 0:
        raise LrtError(f"coefficients {list(coefficients)}: a curve needs 0, and something above it")
    of_prompts = slopes(scores, coefficients)
    outward = sorted((value, place) for place, value in enumerate(coefficients) if value >= 0)
    places = [place for _, place in outward]
    grid, rising = [value for value, _ in outward], scores[places].double()
    return Curve(
        propensity=rising[0],
        slopes=of_prompts,
        slope=float(of_prompts.mean()),
        anti_steerable=float((of_prompts < 0).double().mean()),
        saturation=_saturation(grid, (rising - rising[0]).mean(1).tolist()),
        breakdown=_breakdown(grid, rising),
    )


def _saturation(grid: Sequence[float], effects: Sequence[float]) -> float | None:
    """Of the mean effect at coefficients from 0 upwards."""
    largest = max(effects)
    last_rate = (effects[-1] - effects[-2]) / (grid[-1] - grid[-2])
    if largest <= 0 or (effects[-1] == largest and last_rate > 0.5 * largest / grid[-1]):
        return None
    after = next(place for place, effect in enumerate(effects) if effect >= _SATURATED * largest)
    below = effects[after - 1]
    share = (_SATURATED * largest - below) / (effects[after] - below)
    return grid[after - 1] + share * (grid[after] - grid[after - 1])


def _breakdown(grid: Sequence[float], scores: Float[Tensor, "coefficient prompt"]) -> float | None:
    means, highest = scores.mean(1), 0
    if scores.shape[1] < 2:
        return None
    for place in range(1, len(grid)):
        if means[place] > means[highest]:
            highest = place
        fall = scores[highest] - scores[place]
        if highest and fall.mean() > 2 * fall.std() / math.sqrt(len(fall)):
            return grid[place]
    return None
