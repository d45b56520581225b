"""Each rule alone turns the verdict; the figures are worked out anew from the scores."""

import json
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.fit import fit_affine_map
from lrt_tl.evaluation.behavior import AnswerTokens, Behavior
from lrt_tl.evaluation.criteria import CRITERIA
from lrt_tl.evaluation.decide import Decision, decide, judge
from lrt_tl.evaluation.evaluate import evaluate_transfer
from lrt_tl.evaluation.features import Features
from lrt_tl.evaluation.forecast import Forecast
from lrt_tl.evaluation.pareto import CostRatio, Pareto
from lrt_tl.evaluation.recovery import Recovery
from lrt_tl.evaluation.result import TransferResult
from lrt_tl.evaluation.side_effects import SideEffect, SideEffects
from lrt_tl.steering.extraction import mean_activation, mean_difference
from tests.checkpoints import PAIRS, PROMPTS

BEHAVIOR = Behavior("counting", PROMPTS, AnswerTokens(("word1", "word2"), ("word3", "word4")))
COEFFICIENTS = (-0.5, -0.25, 0.0, 0.25, 0.5)
NEUTRAL = ["word5 word6 word7", "word8 word9"]
NEEDED = [criterion.name for criterion in CRITERIA if criterion.without]


def at_threshold(**others: float | None) -> dict[str, float | None]:
    """Figures that just pass every rule."""
    just = {criterion.name: criterion.threshold + 1e-6 * (criterion.bound == "above") for criterion in CRITERIA}
    return just | {name.replace("_", " "): figure for name, figure in others.items()}


def verdict(figures: dict[str, float | None]) -> str:
    return judge("mood", figures, native=0.015).verdict


def test_what_just_passes_every_rule_is_a_go() -> None:
    found = judge("mood", at_threshold(), native=0.015)
    assert found.verdict == "go"
    assert found.answer == "go: all 12 rules hold"
    assert all(rule.passed for rule in found.rules)
    assert repr(found) == "Decision(mood: go)"


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda criterion: criterion.name)
def test_one_rule_that_fails_is_enough(criterion: Any) -> None:
    beyond = criterion.threshold + {"above": 0.0, "at least": -1e-6, "at most": 1e-6}[criterion.bound]
    found = judge("mood", at_threshold() | {criterion.name: beyond}, native=0.015)
    assert found.verdict == ("no-go" if criterion.must else "caution")
    assert [rule.name for rule in found.rules if not rule.passed] == [criterion.name]
    assert found.answer == f"{found.verdict}: {next(rule for rule in found.rules if not rule.passed).says}"
    assert found.answer.startswith(f"{found.verdict}: {criterion.fails} (")
    assert f"should be {criterion.bound} {criterion.threshold:g})" in found.answer


@pytest.mark.parametrize("name", NEEDED)
def test_evidence_that_is_missing_is_a_caution_that_says_what_to_give(name: str) -> None:
    for figures in (at_threshold() | {name: None}, {k: v for k, v in at_threshold().items() if k != name}):
        found = judge("mood", figures, native=0.015)
        assert found.verdict == "caution"
        (missing,) = (rule for rule in found.rules if rule.passed is None)
        assert (missing.name, missing.figure) == (name, None)
        assert missing.says.startswith("not measured: whether ")
        assert "; give " in missing.says
        assert missing.row()["figure"] == "not known"


def test_missing_evidence_does_not_soften_a_failure() -> None:
    assert verdict(at_threshold(recovery=0.1, cost=None)) == "no-go"


def test_a_forecast_need_not_be_there() -> None:
    assert verdict(at_threshold(forecast=None)) == "go"


def test_without_a_native_effect_nothing_is_judged() -> None:
    found = judge("mood", at_threshold(), native=0.4, reason="25 of 64 random vectors do as much as the native one")
    assert found.verdict == "no-go"
    assert found.answer == "no-go: cannot be judged: 25 of 64 random vectors do as much as the native one"
    assert [(rule.name, rule.figure, rule.passed) for rule in found.rules] == [("native effect", 0.4, False)]


def test_a_decision_is_json_and_is_escaped() -> None:
    found = judge("<script>", at_threshold(cost=None), native=0.015)
    assert "<script>" not in found._repr_html_()
    read = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert read["verdict"] == "caution"
    assert {rule["name"] for rule in read["rules"]} == {"native effect", *(criterion.name for criterion in CRITERIA)}
    assert len(found.rows()) == 12


@pytest.fixture(scope="module")
def affine_map(bridges: tuple[Any, Any], texts: list[str]) -> AffineMap:
    return fit_affine_map(*bridges, texts, layers=(1, 2))


@pytest.fixture(scope="module")
def unrelated() -> torch.Tensor:
    return torch.randn(3, 24, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def result(bridges: tuple[Any, Any], affine_map: AffineMap, unrelated: torch.Tensor) -> TransferResult:
    own, native = mean_difference(bridges[0], PAIRS, layer=1), mean_difference(bridges[1], PAIRS, layer=2)
    return evaluate_transfer(
        bridges[1],
        affine_map.transport(own),
        BEHAVIOR,
        native=native,
        affine_map=affine_map,
        controls={"unrelated": unrelated},
        source=(bridges[0], own),
        neutral=NEUTRAL,
        coefficients=COEFFICIENTS,
    )


def slopes_by_hand(scores: torch.Tensor) -> np.ndarray:
    """[prompt]"""
    return np.polyfit(COEFFICIENTS, scores.numpy(), 1)[0]


def given_recovery(result: TransferResult, recovery: Recovery, **baselines: Recovery) -> TransferResult:
    """The result as it would be with another recovery, and shares of the effect beyond baselines."""
    return replace(result, recovery=recovery, over_baseline=baselines)


def by_name(decision: Decision) -> dict[str, float | None]:
    return {rule.name: rule.figure for rule in decision.rules}


def test_the_figures_are_those_of_the_scores(
    result: TransferResult, affine_map: AffineMap, bridges: tuple[Any, Any]
) -> None:
    native, transferred = slopes_by_hand(result.native), slopes_by_hand(result.transferred)
    assert result.source_native is not None
    own = slopes_by_hand(result.source_native)
    draws = {name: np.array([slopes_by_hand(each).mean() for each in some]) for name, some in result.controls.items()}
    changed = given_recovery(result, Recovery(0.7, 0.6, 0.8), random_weights=Recovery(0.5, 0.4, 0.6))
    figures = by_name(decide(changed, affine_map=affine_map))
    mean = mean_activation(bridges[1], NEUTRAL, layer=2).direction
    carried = affine_map.transport(mean_difference(bridges[0], PAIRS, layer=1)).direction
    cosine = abs(float(mean @ carried / mean.norm() / carried.norm()))
    expected = {
        "native effect": np.mean([*(draws["random"] >= native.mean()), True]),
        "above random vectors": np.mean([*(draws["random"] >= transferred.mean()), True]),
        "above shuffled maps": np.mean([*(draws["shuffled_map"] >= transferred.mean()), True]),
        "recovery": 0.6,
        "beyond random weights": 0.4,
        "above unrelated vectors": (transferred.mean() - draws["unrelated"].max()) / native.mean(),
        "effect in the source": own.mean() - 1.96 * own.std(ddof=1) / np.sqrt(len(own)),
        "anti-steerable prompts": np.mean(transferred < 0),
        "cost": None,
        "mean activation": cosine,
        "text for the map": affine_map.report.tokens_per_dimension,
    }
    assert figures == {name: figure if figure is None else pytest.approx(figure) for name, figure in expected.items()}


def test_what_can_be_read_off_the_words_is_no_transfer(result: TransferResult) -> None:
    """Language is recovered to 0.87 from a model of another language; a source with random weights does as much."""
    language = given_recovery(result, Recovery(0.87, 0.86, 0.88), random_weights=Recovery(0.19, 0.1, 0.28))
    found = decide(language)
    assert found.verdict == "no-go"
    measured = "(share of the rest that it has, lower end of the interval: 0.1, should be at least 0.5)"
    assert f"a source with random weights carries most of its effect {measured}" in found.answer
    all_of_it = Recovery(None, None, None, "the baseline does as much as the native vector")
    rule = next(
        rule
        for rule in decide(given_recovery(result, Recovery(0.9, 0.9, 0.9), random_weights=all_of_it)).rules
        if rule.name == "beyond random weights"
    )
    assert rule.passed is None
    assert "the baseline does as much as the native vector" in rule.says


def test_a_vector_that_garbles_text_is_named_whatever_the_verdict(result: TransferResult) -> None:
    """As the native one may too, the rules on cost can hold all the same."""
    changed = given_recovery(result, Recovery(0.7, 0.6, 0.8))
    said = {}
    for kl in (0.5, 0.6):
        effect = SideEffect(kl=kl, perplexity=2.0, perplexity_plain=2.0, agreement=1.0)
        found = decide(changed, side_effects=SideEffects({"native": effect, "transferred": effect}))
        said[kl] = found.answer
        assert found.to_json()["beware"] == found.beware
        assert by_name(found)["cost"] == 1
    assert "beware" not in said[0.5]
    assert "it changes neutral text by 0.6 nats a token" in said[0.6]
    assert said[0.6].startswith(said[0.5])


def test_cost_is_at_equal_effect_where_that_is_known(result: TransferResult) -> None:
    def effect(kl: float) -> SideEffect:
        return SideEffect(kl=kl, perplexity=2.0, perplexity_plain=2.0, agreement=1.0)

    changed = given_recovery(result, Recovery(0.7, 0.6, 0.8))
    effects = SideEffects({"plain": effect(0.0), "native": effect(0.2), "transferred": effect(0.3)})
    assert by_name(decide(changed, side_effects=effects))["cost"] == pytest.approx(1.5)
    pareto = Pareto("counting", {}, (), CostRatio(1.25, 1.0, None, effect=0.1))
    assert by_name(decide(changed, side_effects=effects, pareto=pareto))["cost"] == 1.25
    never = Pareto("counting", {}, (), CostRatio(reason="the transferred vector has no effect"))
    (rule,) = (each for each in decide(changed, side_effects=effects, pareto=never).rules if each.name == "cost")
    assert rule.passed is None
    assert rule.says.endswith("; the transferred vector has no effect")
    assert by_name(decide(changed, side_effects=SideEffects({"other": effect(0.1)})))["cost"] is None
    nothing = SideEffects({"native": effect(0.0), "transferred": effect(0.3)})
    assert by_name(decide(changed, side_effects=nothing))["cost"] is None


@pytest.mark.parametrize(("estimate", "outside"), [(0.7, 0.0), (0.2, 0.3), (1.1, 0.2)])
def test_a_forecast_is_held_against_what_came(result: TransferResult, estimate: float, outside: float) -> None:
    unknown = Features(**dict.fromkeys(field.name for field in fields(Features)))
    told = Forecast(0.7, 0.5, 0.9, unknown, 0.1, 0.3, 0.8, 0.9, 5, 100)
    changed = given_recovery(result, Recovery(estimate, estimate, estimate))
    assert by_name(decide(changed, forecast=told))["forecast"] == pytest.approx(outside)
    assert "forecast" not in by_name(decide(changed))


def test_no_recovery_no_judgement(result: TransferResult) -> None:
    found = decide(given_recovery(result, Recovery(None, None, None, "the native slope is not above zero")))
    assert found.answer == "no-go: cannot be judged: the native slope is not above zero"
