"""The rules by which a carried vector is judged: of each what it asks, and the threshold with where it comes from."""

from dataclasses import dataclass
from typing import Literal

from lrt_tl.alignment.affine_map import FEW_TOKENS_PER_DIMENSION
from lrt_tl.evaluation.recovery import LEVEL

LEAST_RECOVERY = 0.5
"""Of the native effect, at the lower end of the interval. The thresholds lie between what good and null transfers have
on one target of `benchmarks/decision_campaign.py`, and were tried on the other (`benchmarks/results/decision.json`). On
the first the worst good transfer recovers 0.77; nulls up to 0.87, so that this rule alone would not do."""
LEAST_BEYOND = 0.5
"""Of the effect that a source with random weights leaves over, at the lower end of the interval. Good transfers have
0.66 or more; nulls up to 0.43."""
LEAST_ABOVE_UNRELATED = 0.25
"""By how much of the native slope the carried vector does more than the strongest unrelated one. Good transfers have
0.59 or more."""
MOST_ANTI_STEERABLE = 0.25
"""Share of the prompts that move the wrong way. Good transfers have up to 0.08."""
MOST_COST = 2.0
"""KL on neutral text, over the native vector's. Good transfers cost up to 1.5."""
MOST_OF_MEAN = 0.5
"""Cosine with the target's mean activation, of either sign: a vector that is mostly that works like noise."""


@dataclass(frozen=True)
class Criterion:
    """What a figure has to be, said before it is known."""

    name: str
    threshold: float
    bound: Literal["above", "at least", "at most"]
    must: bool
    asks: str
    """What has to be so, in plain words."""
    fails: str
    """What is so where it is not."""
    measure: str
    """What the figure is."""
    without: str
    """What gives the figure, where it is missing; empty for what need not be there."""


CRITERIA = (
    Criterion(
        "above random vectors", LEVEL, "at most", True,
        "the carried vector does more than random vectors of its length",
        "too many random vectors of that length do as much",
        "share of them and it that do",
        "random vectors beside the transfer: evaluate_transfer(n_draws=64)",
    ),
    Criterion(
        "above shuffled maps", LEVEL, "at most", True,
        "it does more than vectors through maps of shuffled pairs",
        "too many vectors through maps of shuffled pairs do as much",
        "share of them and it that do",
        "the map: evaluate_transfer(affine_map=…)",
    ),
    Criterion(
        "recovery", LEAST_RECOVERY, "at least", True,
        "it has the native vector's effect",
        "it is not shown to have the native vector's effect",
        "share of it, lower end of the interval",
        "a recovery",
    ),
    Criterion(
        "beyond random weights", LEAST_BEYOND, "at least", True,
        "it has the effect that a source with random weights does not carry",
        "a source with random weights carries most of its effect",
        "share of the rest that it has, lower end of the interval",
        "the same vector from a source with random weights: evaluate_transfer(baselines=…)",
    ),
    Criterion(
        "above unrelated vectors", LEAST_ABOVE_UNRELATED, "at least", True,
        "it does more than other behaviors' vectors through the same map",
        "another behavior's vector through the same map does about as much",
        "difference to the strongest, in native slopes",
        'other behaviors\' vectors through the same map: evaluate_transfer(controls={"unrelated": …})',
    ),
    Criterion(
        "effect in the source", 0.0, "above", False,
        "the vector works in the source itself",
        "the vector is not shown to work in the source itself",
        "slope there, lower 95 % bound",
        "the source and its vector: evaluate_transfer(source=…)",
    ),
    Criterion(
        "anti-steerable prompts", MOST_ANTI_STEERABLE, "at most", False,
        "few prompts move the wrong way",
        "many prompts move the wrong way",
        "share of them",
        "prompts",
    ),
    Criterion(
        "cost", MOST_COST, "at most", False,
        "it disturbs neutral text about as much as the native vector does",
        "it disturbs neutral text more than the native vector does",
        "KL over the native one's",
        "what it costs: decide(pareto=…), or side_effects of native and transferred",
    ),
    Criterion(
        "mean activation", MOST_OF_MEAN, "at most", False,
        "it is not mostly the target's mean activation",
        "it is mostly the target's mean activation",
        "cosine with it, of either sign",
        "neutral text: evaluate_transfer(neutral=…)",
    ),
    Criterion(
        "text for the map", float(FEW_TOKENS_PER_DIMENSION), "at least", False,
        "the map was fitted on text enough",
        "the map was fitted on little text",
        "tokens per source dimension",
        "the map: decide(affine_map=…)",
    ),
    Criterion(
        "forecast", 0.0, "at most", False,
        "the recovery is what was forecast",
        "the recovery is not what was forecast",
        "how far it lies outside of the forecast interval",
        "",
    ),
)  # fmt: skip
"""The rules of `decide`, but for the first, which asks whether there is anything to judge."""
