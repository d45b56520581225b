"""May the vector be used? The evidence, held against stated rules, each with its figure and its threshold.

A rule that must hold decides alone: the vector is not used where one fails. One that should hold asks for caution, and
so does evidence that is missing: nothing passes unseen.
"""

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.evaluation.criteria import CRITERIA, Criterion
from lrt_tl.evaluation.effects import slopes
from lrt_tl.evaluation.forecast import Forecast
from lrt_tl.evaluation.pareto import Pareto
from lrt_tl.evaluation.recovery import LEVEL, rank
from lrt_tl.evaluation.result import TransferResult
from lrt_tl.evaluation.side_effects import SideEffects
from lrt_tl.tables import html_columns

Verdict = Literal["go", "caution", "no-go"]

MOST_KL = 0.5
"""Nats a token on neutral text, above which a decision says beware, whatever the native vector costs. No rule: the
verdict is about the transfer, and this is about strength and positions."""


@dataclass(frozen=True)
class Rule:
    """One rule, held against the evidence.

    Attributes:
        figure: None where it is not known.
        threshold: what the figure is held against; `says` tells on which side of it it has to be.
        passed: None where the figure is not known.
        must: whether it decides alone; otherwise it asks for caution.
        says: what the rule asks for and what was found, in plain words.
    """

    name: str
    figure: float | None
    threshold: float
    passed: bool | None
    must: bool
    says: str

    def row(self) -> dict[str, str]:
        """For a table."""
        return {
            "rule": self.name,
            "kind": "must" if self.must else "should",
            "figure": "not known" if self.figure is None else f"{self.figure:.3g}",
            "threshold": f"{self.threshold:g}",
            "passed": {True: "yes", False: "no", None: "not known"}[self.passed],
            "says": self.says,
        }


@dataclass(frozen=True)
class Decision:
    """Whether a carried vector may be used, and the rules that say so.

    Attributes:
        verdict: "no-go" where a rule that must hold fails, or nothing can be judged; "caution" where one that should
            hold fails, or evidence is missing; else "go".

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small = storyworld.load("small")
        >>> vector = lrt.mean_difference(small, storyworld.contrast_pairs("refusal", 8), layer=2)
        >>> result = lrt.evaluate_transfer(small, vector, storyworld.behavior("refusal", 8), native=vector, n_draws=19)
        >>> decision = lrt.decide(result)
        >>> decision.verdict  # for want of evidence
        'caution'
        >>> [rule.name for rule in decision.rules if rule.passed]
        ['native effect', 'above random vectors', 'recovery', 'anti-steerable prompts']
    """

    behavior: str
    verdict: Verdict
    rules: tuple[Rule, ...]
    beware: str = ""
    """What is true of the native vector as well, and so no word about the transfer, and yet to be known before use."""

    @property
    def answer(self) -> str:
        """The verdict with its reasons, in one sentence."""
        decide_alone = [rule for rule in self.rules if rule.must and rule.passed is False]
        reasons = [rule.says for rule in decide_alone or self.rules if not rule.passed]
        told = reasons or [f"all {len(self.rules)} rules hold"]
        return f"{self.verdict}: {'; '.join([*told, *filter(None, [self.beware])])}"

    def rows(self) -> list[Mapping[str, str]]:
        """For a table, a row a rule."""
        return [rule.row() for rule in self.rules]

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "behavior": self.behavior,
            "verdict": self.verdict,
            "answer": self.answer,
            "beware": self.beware,
            "rules": [dict(vars(rule)) for rule in self.rules],
        }

    def __repr__(self) -> str:
        failed = [rule.name for rule in self.rules if not rule.passed]
        return f"Decision({self.behavior}: {self.verdict}{', for ' if failed else ''}{', '.join(failed)})"

    def _repr_html_(self) -> str:
        return f"<p><b>{html.escape(self.behavior)}</b>: {html.escape(self.answer)}</p>{html_columns(self.rows())}"


def decide(
    result: TransferResult,
    *,
    affine_map: AffineMap | None = None,
    forecast: Forecast | None = None,
    pareto: Pareto | None = None,
    side_effects: SideEffects | None = None,
) -> Decision:
    """Go, caution or no-go, from the rules of `CRITERIA`.

    Where the target's own vector has no effect to recover, the verdict is no-go, and the one rule says that the
    transfer cannot be judged: that is no word against the map.

    Args:
        result: with the evidence that `evaluate_transfer` takes: the map, other behaviors' vectors as the control
            "unrelated", the source, neutral text, and the baseline "random_weights".
        affine_map: what carried the vector: how much text it was fitted on.
        forecast: made beforehand: what the recovery is held against.
        pareto: what native and transferred cost at equal effect.
        side_effects: what they cost at the coefficients that are used, by the names "native" and "transferred"; read
            where there is no `pareto`.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small = storyworld.load("small")
        >>> vector = lrt.mean_difference(small, storyworld.contrast_pairs("refusal", 8), layer=2)
        >>> behavior = storyworld.behavior("refusal", 8)
        >>> lrt.decide(lrt.evaluate_transfer(small, vector, behavior, native=vector, n_draws=19)).verdict
        'caution'
        >>> lrt.decide(lrt.evaluate_transfer(small, -vector, behavior, native=vector, n_draws=19)).verdict
        'no-go'
    """
    figures = {
        **_effect(result),
        "cost": _cost(pareto, side_effects),
        "mean activation": None if result.cosine_with_mean is None else abs(result.cosine_with_mean),
        "text for the map": None if affine_map is None else affine_map.report.tokens_per_dimension,
        "forecast": None if forecast is None else _outside(result.recovery.estimate, forecast.low, forecast.high),
    }
    native = slopes(result.native, result.coefficients).mean()
    share = share_above(native, result.control_slopes("random"))
    beyond = result.over_baseline.get("random_weights")
    reasons = {
        "beyond random weights": None if beyond is None else beyond.reason,
        "cost": None if pareto is None else pareto.cost_ratio.reason,
    }
    decision = judge(result.behavior, figures, native=share, reason=result.recovery.reason, unknown=reasons)
    return replace(decision, beware=_beware(side_effects))


def judge(
    behavior: str,
    figures: Mapping[str, float | None],
    *,
    native: float,
    reason: str | None = None,
    unknown: Mapping[str, str | None] | None = None,
) -> Decision:
    """The rules alone, on figures by the names of `CRITERIA`.

    Args:
        figures: None, or left out, where one is not known.
        native: share of the random vectors, and the native one, that do as much as the native one.
        reason: why there is no recovery, where there is none: then nothing can be judged.
        unknown: by name, why a figure is not known, where more can be said than what would give it.
    """
    can = "there is a native effect to recover" if reason is None else f"cannot be judged: {reason}"
    gate = Rule("native effect", native, LEVEL, reason is None, True, can)
    if reason is not None:
        return Decision(behavior, "no-go", (gate,))
    asked = [each for each in CRITERIA if each.without or figures.get(each.name) is not None]
    rules = [gate, *(_rule(each, figures.get(each.name), (unknown or {}).get(each.name)) for each in asked)]
    if any(rule.must and rule.passed is False for rule in rules):
        return Decision(behavior, "no-go", tuple(rules))
    return Decision(behavior, "go" if all(rule.passed for rule in rules) else "caution", tuple(rules))


def _effect(result: TransferResult) -> dict[str, float | None]:
    """The figures that the measurement itself gives."""
    transferred = slopes(result.transferred, result.coefficients)
    own = None if result.source_native is None else slopes(result.source_native, result.coefficients)
    beyond = result.over_baseline.get("random_weights")
    draws = {name: result.control_slopes(name) for name in result.controls}
    return {
        **{
            rule: share_above(transferred.mean(), draws[name]) if name in draws else None
            for rule, name in (("above random vectors", "random"), ("above shuffled maps", "shuffled_map"))
        },
        "recovery": result.recovery.low,
        "beyond random weights": None if beyond is None else beyond.low,
        "above unrelated vectors": None
        if "unrelated" not in draws
        else float((transferred.mean() - draws["unrelated"].max()) / slopes(result.native, result.coefficients).mean()),
        "effect in the source": None if own is None else lower_bound(own),
        "anti-steerable prompts": float((transferred < 0).double().mean()),
    }


def _cost(pareto: Pareto | None, side_effects: SideEffects | None) -> float | None:
    """KL of transferred over native: at equal effect, or else at the coefficients that are used."""
    if pareto is not None:
        return pareto.cost_ratio.estimate
    effects = {} if side_effects is None else side_effects.effects
    if not {"native", "transferred"} <= effects.keys() or effects["native"].kl <= 0:
        return None
    return effects["transferred"].kl / effects["native"].kl


def _beware(side_effects: SideEffects | None) -> str:
    """Where the vector, as its cost was measured, leaves little of neutral text."""
    effect = None if side_effects is None else side_effects.effects.get("transferred")
    if effect is None or effect.kl <= MOST_KL:
        return ""
    return (
        f"beware: as strong as its cost was measured, and at every token, it changes neutral text by {effect.kl:.1f} "
        "nats a token: use less of it, or at fewer positions, and measure that"
    )


def _outside(estimate: float | None, low: float | None, high: float | None) -> float | None:
    """How far a recovery lies outside of an interval; 0 inside."""
    if estimate is None or low is None or high is None:
        return None
    return max(low - estimate, estimate - high, 0.0)


def share_above(slope: float | Tensor, draws: Float[Tensor, "draw"]) -> float:
    """(1 + #{draws ≥ slope}) / (1 + draws): the chance of so high a rank among draws of one kind."""
    return rank(float(slope), draws) / (1 + len(draws))


def lower_bound(some: Float[Tensor, "prompt"]) -> float | None:
    """Of the mean over prompts, by its standard error: 95 % two-sided. None of one prompt."""
    n = len(some)
    return float(some.mean() - 1.96 * some.double().std() / math.sqrt(n)) if n > 1 else None


def _rule(criterion: Criterion, figure: float | None, why: str | None) -> Rule:
    if figure is None:
        says = f"not measured: whether {criterion.asks}; {why or f'give {criterion.without}'}"
        return Rule(criterion.name, None, criterion.threshold, None, criterion.must, says)
    holds = {"above": figure > criterion.threshold, "at least": figure >= criterion.threshold}
    passed = holds.get(criterion.bound, figure <= criterion.threshold)
    asked = f"{'' if passed else 'should be '}{criterion.bound} {criterion.threshold:g}"
    says = f"{criterion.asks if passed else criterion.fails} ({criterion.measure}: {figure:.3g}, {asked})"
    return Rule(criterion.name, figure, criterion.threshold, passed, criterion.must, says)
