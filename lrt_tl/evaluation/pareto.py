"""What an effect costs: a behavior's change of score against KL on neutral text, native and transferred."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.evaluation.controls import random_directions
from lrt_tl.evaluation.evaluate import TransferResult
from lrt_tl.evaluation.intervals import LEVEL, percentiles, resamples
from lrt_tl.evaluation.matched_kl import kl_of_steering
from lrt_tl.models.protocol import HookedModel
from lrt_tl.report.style import color_of, layout
from lrt_tl.steering.calibration import neutral_batch
from lrt_tl.steering.handle import require_at_rest
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.tables import html_columns

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_ARMS = ("native", "transferred")
_LEAST_KL = 1e-12
"""Nats. What is less is rounding, and has no logarithm."""
_NEVER = math.inf
"""What it costs to get an effect that a vector does not have."""


@dataclass(frozen=True)
class Dose:
    """What one coefficient of one vector does.

    Attributes:
        effect: mean change of the behavior's score since coefficient 0, and its 95 % interval over prompts.
        kl: KL(plain ‖ steered) of the next token on neutral text, nats a position, and its 95 % interval over texts.
            Bounds are None where there is but one prompt, or one text.
    """

    coefficient: float
    effect: float
    kl: float
    effect_low: float | None = None
    effect_high: float | None = None
    kl_low: float | None = None
    kl_high: float | None = None


@dataclass(frozen=True)
class CostRatio:
    """KL of the transferred vector over that of the native one, each at the coefficient that gives one effect; or the
    reason why there is none.

    Attributes:
        low, high: 95 %, by a bootstrap over prompts and texts; `high` is None where more than one resample in forty
            never reaches the effect.
        effect: at which they are compared.
    """

    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    effect: float | None = None
    reason: str | None = None

    def __str__(self) -> str:
        if self.estimate is None:
            return f"none: {self.reason}"
        return f"{self.estimate:.2f} [{self.low:.2f}, {'∞' if self.high is None else f'{self.high:.2f}'}]"


@dataclass(frozen=True)
class Pareto:
    """Effect and cost of every dose, all vectors at the native one's norm.

    Attributes:
        doses: of `"native"` and `"transferred"`, by coefficient, without 0.
        random: of random vectors, one list each.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small = storyworld.load("small")
        >>> vector = lrt.mean_difference(small, storyworld.contrast_pairs("refusal", 8), layer=2)
        >>> result = lrt.evaluate_transfer(small, vector, storyworld.behavior("refusal", 8), native=vector, n_draws=19)
        >>> found = lrt.pareto(small, result, vector, vector, storyworld.documents(8))
        >>> [dose.coefficient for dose in found.doses["native"]]
        [-8.0, -4.0, 4.0, 8.0]
        >>> print(found.cost_ratio)  # of a vector with itself
        1.00 [1.00, 1.00]
    """

    behavior: str
    doses: Mapping[str, tuple[Dose, ...]]
    random: tuple[tuple[Dose, ...], ...]
    cost_ratio: CostRatio

    def sentence(self) -> str:
        """Does transfer cost more than steering natively?"""
        found, name = self.cost_ratio, self.behavior
        if found.estimate is None:
            return f"{name}: whether transfer costs more than steering natively cannot be said, for {found.reason}."
        low, high = found.low or 0.0, _NEVER if found.high is None else found.high
        verdict = "costs more than" if low > 1 else "costs less than" if high < 1 else "costs as much, within error, as"
        return (
            f"{name}: transfer {verdict} steering natively: for the same effect ({found.effect:+.2f}), its KL on "
            f"neutral text is {found} times that of the target's own vector."
        )

    def rows(self) -> list[Mapping[str, str]]:
        """For a table, a row a dose of the native and the transferred vector."""
        return [
            {
                "vector": arm,
                "coefficient": f"{dose.coefficient:g}",
                "effect": f"{dose.effect:+.3f}{_bounds(dose.effect_low, dose.effect_high, '+.3f')}",
                "KL, nats": f"{dose.kl:.4f}{_bounds(dose.kl_low, dose.kl_high, '.4f')}",
            }
            for arm, doses in self.doses.items()
            for dose in doses
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "behavior": self.behavior,
            "doses": {arm: [vars(dose) for dose in doses] for arm, doses in self.doses.items()},
            "random": [[vars(dose) for dose in doses] for doses in self.random],
            "cost_ratio": vars(self.cost_ratio),
            "sentence": self.sentence(),
        }

    def figure(self) -> "Figure":
        """Effect against KL, a point a dose: what is higher has more effect for its cost. Random vectors are gray."""
        from plotly.graph_objects import Figure

        figure = Figure()
        for place, doses in enumerate(self.random):
            style = {"mode": "markers", "marker": {"color": color_of("random"), "size": 5, "opacity": 0.5}}
            figure.add_trace(_trace(doses, "random vectors", place == 0, **style))
        for arm, doses in self.doses.items():
            dash = "dash" if arm == "transferred" else "solid"
            for sign in (1, -1):
                side = [dose for dose in doses if dose.coefficient * sign > 0]
                style = {"mode": "lines+markers", "line": {"color": color_of(arm), "width": 3, "dash": dash}}
                figure.add_trace(_trace(side, arm, sign > 0, **style))
        if self.cost_ratio.effect is not None:
            figure.add_hline(
                y=self.cost_ratio.effect, line={"dash": "dot", "color": "#444"}, annotation_text="compared here"
            )
        cost = "cost: KL on neutral text, nats a token"
        return figure.update_layout(
            layout(
                title=html.escape(self.behavior),
                xaxis={"title": cost, "type": "log", "dtick": "D2", "exponentformat": "power"},
                yaxis_title="effect: mean change of the score",
                height=430,
                margin={"l": 60, "r": 20, "t": 50, "b": 90},
            )
        )

    def __repr__(self) -> str:
        return f"Pareto({self.behavior}: cost of transfer over native {self.cost_ratio})"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.sentence())}</p>{html_columns(self.rows())}"


def pareto(
    target: HookedModel,
    result: TransferResult,
    native: SteeringVector,
    transferred: SteeringVector,
    texts: Sequence[str],
    *,
    coefficient: float | None = None,
    n_random: int = 8,
    prepend_bos: bool = True,
    seed: int = 0,
) -> Pareto:
    """Measure KL on neutral text at every coefficient of a result, and set the effects against it.

    The cost ratio compares the two vectors at one effect, found between the coefficients of the grid on log–log axes;
    below the smallest of them the effect is taken to grow with the coefficient and KL with its square. Its interval
    leaves out what the interpolation misses: give the grid three coefficients or more on the side that is compared.

    Args:
        result: of `evaluate_transfer`, with these vectors.
        texts: a few dozen neutral ones, that no map was fitted on; their first 16 tokens are read, so that this is
            not the KL of `side_effects`, which reads more.
        coefficient: of the native vector, a positive one of the result's grid: the vectors are compared at the effect
            that it has there. By default at the largest effect that both reach, before they break down.
        n_random: how many of the result's random vectors to show.
        seed: that of `evaluate_transfer`, by which the random vectors are drawn again.

    Raises:
        MismatchError: a vector is not one of the target's, or they are not at one hook point.
        LrtError: a coefficient that is not on the grid, a grid without 0, no neutral text, or a model that is being
            steered.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small = storyworld.load("small")
        >>> native = lrt.mean_difference(small, storyworld.contrast_pairs("refusal", 8), layer=2)
        >>> other = lrt.mean_difference(small, storyworld.contrast_pairs("refusal", 8, seed=1), layer=2)
        >>> result = lrt.evaluate_transfer(small, other, storyworld.behavior("refusal", 8), native=native, n_draws=19)
        >>> found = lrt.pareto(small, result, native, other, storyworld.documents(8))
        >>> round(found.cost_ratio.estimate, 1)  # of vectors from different pairs
        1.0
    """
    require_at_rest(target)
    for vector in (native, transferred):
        vector.check_model(target)
    if transferred.site.hook_name != native.site.hook_name:
        raise MismatchError(f"the native vector is at {native.site}, the transferred one at {transferred.site}")
    if 0 not in result.coefficients:
        raise LrtError(f"the result's coefficients {list(result.coefficients)} lack 0, from which effects are counted")
    grid = sorted(value for value in result.coefficients if value)
    upward = [value for value in grid if value > 0]
    if coefficient is not None and coefficient not in upward:
        raise LrtError(f"coefficient={coefficient} must be a positive one of the result's: {list(result.coefficients)}")
    draws = result.controls["random"]
    random = random_directions(len(draws), target.cfg.d_model, seed=seed)[:n_random]
    directions = torch.stack([native.direction, transferred.scaled_to(native.norm).direction, *(native.norm * random)])
    kls, sizes = _kl_of_texts(target, native.site.hook_name, directions, grid, texts, prepend_bos)
    scores = torch.stack([result.native, result.transferred, *draws[:n_random]])
    places = [result.coefficients.index(value) for value in grid]
    effects = scores[:, places] - scores[:, [result.coefficients.index(0.0)]]
    doses = _doses(grid, effects, kls, sizes, seed)
    arms = effects[:2, -len(upward) :], kls[:2, -len(upward) :]
    ratio = _cost_ratio(*arms, sizes, None if coefficient is None else upward.index(coefficient), seed)
    return Pareto(result.behavior, dict(zip(_ARMS, doses[:2], strict=True)), tuple(doses[2:]), ratio)


def _kl_of_texts(
    target: HookedModel,
    hook_name: str,
    directions: Float[Tensor, "arm d_model"],
    coefficients: Sequence[float],
    texts: Sequence[str],
    prepend_bos: bool,
) -> tuple[Float[Tensor, "arm coefficient text"], Float[Tensor, "text"]]:
    """KL of every dose on every text, and the number of each text's positions."""
    tokens, mask, content = neutral_batch(target, texts, prepend_bos=prepend_bos)
    deltas = torch.einsum("c,ad->acd", torch.tensor(coefficients), directions).flatten(0, 1)
    kept = [place for place, row in enumerate(content) if row.any()]
    found = [
        kl_of_steering(target, hook_name, deltas, tokens[[place]], mask[[place]], content[[place]]) for place in kept
    ]
    kls = torch.stack(found, dim=-1).clamp(min=_LEAST_KL)
    return kls.reshape(len(directions), len(coefficients), -1), content[kept].sum(1).double()


def _doses(
    coefficients: Sequence[float],
    effects: Float[Tensor, "arm coefficient prompt"],
    kls: Float[Tensor, "arm coefficient text"],
    sizes: Float[Tensor, "text"],
    seed: int,
) -> list[tuple[Dose, ...]]:
    """Of each arm: means, and intervals where there is more than one prompt, or text."""
    effect, kl = effects.mean(-1), kls @ (sizes / sizes.sum())
    effect_bounds, kl_bounds = (percentiles(some) for some in _resampled(effects, kls, sizes, seed))
    several_prompts, several_texts = effects.shape[-1] > 1, len(sizes) > 1
    return [
        tuple(
            Dose(
                coefficient,
                float(effect[arm, place]),
                float(kl[arm, place]),
                *(effect_bounds[:, arm, place].tolist() if several_prompts else (None, None)),
                *(kl_bounds[:, arm, place].tolist() if several_texts else (None, None)),
            )
            for place, coefficient in enumerate(coefficients)
        )
        for arm in range(len(effects))
    ]


def _resampled(
    effects: Float[Tensor, "arm coefficient prompt"],
    kls: Float[Tensor, "arm coefficient text"],
    sizes: Float[Tensor, "text"],
    seed: int,
) -> tuple[Float[Tensor, "resample arm coefficient"], Float[Tensor, "resample arm coefficient"]]:
    """Mean effects over resampled prompts, the same for all arms, and mean KL a position over resampled texts."""
    prompts = resamples(effects.shape[-1], seed=seed)
    texts = resamples(len(sizes), seed=seed + 1) * sizes
    texts = texts / texts.sum(1, keepdim=True)
    return torch.einsum("rp,acp->rac", prompts, effects.double()), torch.einsum("rt,act->rac", texts, kls)


def _cost_ratio(
    effects: Float[Tensor, "2 coefficient prompt"],
    kls: Float[Tensor, "2 coefficient text"],
    sizes: Float[Tensor, "text"],
    at: int | None,
    seed: int,
) -> CostRatio:
    """Of two arms, native and transferred, at coefficients that ascend from the smallest positive one. `at` is the
    place of the native one's; by default they are compared at the largest effect that both reach."""
    if effects.shape[-1] < 2 or len(sizes) < 2:
        return CostRatio(reason="with one prompt or one neutral text only, no interval can be given")
    effect, estimate = _compare(effects.mean(-1).tolist(), (kls @ (sizes / sizes.sum())).tolist(), at)
    resampled = (some.tolist() for some in _resampled(effects, kls, sizes, seed))
    found = [_compare(one, other, at) for one, other in zip(*resampled, strict=True)]
    if sum(ratio == 0 for _, ratio in found) >= LEVEL / 2 * len(found):
        return CostRatio(reason="the native effect is not above zero beyond its prompts' scatter")
    if estimate == _NEVER:
        return CostRatio(
            reason=f"the transferred vector does not reach the native one's effect, {effect:+.3g}, on this grid: its "
            f"largest is {_peak(effects[1].mean(-1).tolist()):+.3g}"
            if effect > 0
            else "the transferred vector has no effect in the intended direction"
        )
    ratios = sorted(ratio for _, ratio in found)
    low, high = ratios[math.floor(LEVEL / 2 * len(ratios))], ratios[math.ceil((1 - LEVEL / 2) * len(ratios)) - 1]
    return CostRatio(estimate, low, None if high == _NEVER else high, effect)


def _compare(effects: Sequence[Sequence[float]], kls: Sequence[Sequence[float]], at: int | None) -> tuple[float, float]:
    """The effect at which the two are compared, and the ratio of their KL: 0 where the native vector has no effect,
    infinite where the transferred one does not reach it."""
    native, transferred = effects
    most = _peak(native) if at is None else native[at]
    effect = min(most, _peak(transferred)) if at is None else most
    if most <= 0:
        return effect, 0.0
    if effect <= 0:
        return effect, _NEVER
    cost = kls[0][at] if at is not None else _kl_at(effect, native, kls[0])
    return effect, _kl_at(effect, transferred, kls[1]) / cost


def _peak(effects: Sequence[float]) -> float:
    """The largest before the vector breaks down, which is where a larger coefficient has a smaller effect."""
    rising = takewhile(lambda pair: pair[1] > pair[0], pairwise(effects))
    return max([effects[0], *(after for _, after in rising)])


def _kl_at(effect: float, effects: Sequence[float], kls: Sequence[float]) -> float:
    """KL where a curve first has an effect, which is positive: on log–log axes between two doses; below the first, KL
    goes with the square of the effect, as both do with a small coefficient."""
    before = 0.0, 0.0
    for here in zip(effects, kls, strict=True):
        if here[0] >= effect and before[0] <= 0:
            return here[1] * (effect / here[0]) ** 2
        if here[0] >= effect:
            share = math.log(effect / before[0]) / math.log(here[0] / before[0])
            return math.exp((1 - share) * math.log(before[1]) + share * math.log(here[1]))
        before = here
    return _NEVER


def _trace(doses: Sequence[Dose], name: str, showlegend: bool, **style: Any) -> Any:
    from plotly.graph_objects import Scatter

    return Scatter(
        x=[dose.kl for dose in doses],
        y=[dose.effect for dose in doses],
        text=[f"coefficient {dose.coefficient:g}" for dose in doses],
        name=name,
        legendgroup=name,
        showlegend=showlegend,
        **style,
    )


def _bounds(low: float | None, high: float | None, form: str) -> str:
    return "" if low is None or high is None else f" [{low:{form}}, {high:{form}}]"
