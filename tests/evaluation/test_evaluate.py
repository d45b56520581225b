"""The whole measurement on small random models, against effects worked out by hand."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.fit import fit_affine_map
from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.evaluation.behavior import AnswerTokens, Behavior
from lrt_tl.evaluation.evaluate import TransferResult, evaluate_transfer
from lrt_tl.models.identity import site_of
from lrt_tl.steering.extraction import mean_difference
from lrt_tl.steering.vector import SteeringVector
from tests.checkpoints import PAIRS, PROMPTS

BEHAVIOR = Behavior("counting", PROMPTS, AnswerTokens(("word1", "word2"), ("word3", "word4")))
COEFFICIENTS = (-0.5, -0.25, 0.0, 0.25, 0.5)


@pytest.fixture(scope="module")
def affine_map(bridges: tuple[Any, Any], texts: list[str]) -> AffineMap:
    return fit_affine_map(*bridges, texts, layers=(1, 2))


@pytest.fixture(scope="module")
def vectors(bridges: tuple[Any, Any], affine_map: AffineMap) -> tuple[SteeringVector, SteeringVector, SteeringVector]:
    """Of the source, carried over, and of the target."""
    own = mean_difference(bridges[0], PAIRS, layer=1)
    return own, affine_map.transport(own), mean_difference(bridges[1], PAIRS, layer=2)


@torch.no_grad()
def steered_score(model: Any, hook_name: str, delta: torch.Tensor, prompt: str) -> float:
    """One prompt, one vector, no batch: log-odds from the model's own run_with_hooks."""
    ids = [1, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    logits = model.run_with_hooks(torch.tensor([ids]), fwd_hooks=[(hook_name, lambda act, hook: act + delta)])[0, -1]
    good, bad = (
        model.tokenizer.convert_tokens_to_ids(list(words)) for words in (("word1", "word2"), ("word3", "word4"))
    )
    return float(logits[good].exp().sum().log() - logits[bad].exp().sum().log())


def test_scores_and_slopes_are_those_of_steering_by_hand(
    bridges: tuple[Any, Any], vectors: tuple[SteeringVector, ...]
) -> None:
    own, transferred, native = vectors
    result = evaluate_transfer(
        bridges[1],
        transferred,
        BEHAVIOR,
        native=native,
        source=(bridges[0], own),
        coefficients=COEFFICIENTS,
        n_draws=19,
    )
    cases = {
        "native": (bridges[1], native.direction),
        "transferred": (bridges[1], transferred.direction * native.norm / transferred.norm),
        "source_native": (bridges[0], own.direction),
    }
    for arm, (model, direction) in cases.items():
        hook_name = own.site.hook_name if arm == "source_native" else native.site.hook_name
        by_hand = [[steered_score(model, hook_name, c * direction, p) for p in PROMPTS] for c in COEFFICIENTS]
        torch.testing.assert_close(getattr(result, arm), torch.tensor(by_hand).double(), rtol=0, atol=1e-4)
        slope = np.polyfit(COEFFICIENTS, np.array(by_hand).mean(1), 1)[0]
        assert result.slope(arm) == pytest.approx(slope, abs=1e-4)


def test_an_identity_transfer_recovers_all(bridges: tuple[Any, Any]) -> None:
    target = bridges[1]
    gradient = _towards(target)
    result = evaluate_transfer(
        target, gradient, BEHAVIOR, native=gradient, coefficients=COEFFICIENTS, neutral=["word5 word6 word7"] * 3
    )
    assert result.recovery.estimate == pytest.approx(1, abs=1e-12)
    assert (result.recovery.low, result.recovery.high) == pytest.approx((1, 1), abs=1e-12)
    assert result.recovery_matched_kl.estimate == pytest.approx(1, abs=1e-6)
    assert result.cosine_with_native == pytest.approx(1)
    assert result.summary()["random_slope"]["rank_of_native"] == 1


def test_a_vector_that_does_nothing_recovers_nothing(bridges: tuple[Any, Any]) -> None:
    target = bridges[1]
    native = _towards(target)
    shift = torch.randn(24, generator=torch.Generator().manual_seed(3))
    useless = shift - (shift @ native.direction) / native.norm**2 * native.direction
    result = evaluate_transfer(
        target,
        SteeringVector(useless, native.site),
        BEHAVIOR,
        native=native,
        coefficients=(-1e-3, 0.0, 1e-3),
        n_draws=200,
    )
    assert result.recovery.estimate is not None
    assert abs(result.recovery.estimate) < 0.6
    reverse = evaluate_transfer(
        target, SteeringVector(-native.direction, native.site), BEHAVIOR, native=native, coefficients=COEFFICIENTS
    )
    assert reverse.recovery.estimate is not None
    assert reverse.recovery.estimate < 0
    assert reverse.table()["prompts that move the wrong way"] != "0 %"


def test_no_recovery_without_a_native_effect(bridges: tuple[Any, Any]) -> None:
    native = _towards(bridges[1])
    backwards = SteeringVector(-native.direction, native.site)
    result = evaluate_transfer(
        bridges[1], native, BEHAVIOR, native=backwards, coefficients=COEFFICIENTS, neutral=["word1 word2"]
    )
    assert result.recovery.estimate is None
    assert "not above zero" in str(result.recovery)
    assert result.summary()["recovery"]["reason"] == result.summary()["recovery_matched_kl"]["reason"]


def test_the_summary_is_whole_and_is_json(
    bridges: tuple[Any, Any], vectors: tuple[SteeringVector, ...], affine_map: AffineMap
) -> None:
    own, transferred, native = vectors
    extra = {"mean_state": torch.ones(1, 24)}
    result = evaluate_transfer(
        bridges[1],
        transferred,
        BEHAVIOR,
        native=native,
        affine_map=affine_map,
        controls=extra,
        source=(bridges[0], own),
        coefficients=COEFFICIENTS,
    )
    summary = json.loads(json.dumps(result.summary(), allow_nan=False))
    for null in ("random_slope", "shuffled_map_slope"):
        assert summary[null]["n"] == 64
        draws = result.control_slopes(null.removesuffix("_slope"))
        assert summary[null]["mean"] == pytest.approx(float(draws.mean()))
        above = sum(float(draw) >= summary["transferred_slope"] for draw in draws)
        assert summary[null]["rank_of_transferred"] == 1 + above
    draws = {"random", "shuffled_map", "random_map", "padded", "mean_state"}
    assert set(summary["curves"]) == {"native", "transferred", "source_native"} | draws
    assert summary["coefficients"] == list(COEFFICIENTS)
    assert summary["cosine_with_native"] == pytest.approx(
        float(torch.cosine_similarity(native.direction, transferred.direction, dim=0))
    )


def test_the_result_is_shown_with_its_name_escaped(result_of_hostile_name: TransferResult) -> None:
    assert "<script>" not in result_of_hostile_name._repr_html_()
    assert "recovery" in repr(result_of_hostile_name)


@pytest.fixture(scope="module")
def result_of_hostile_name(bridges: tuple[Any, Any]) -> TransferResult:
    native = _towards(bridges[1])
    hostile = Behavior("<script>alert(1)</script>", PROMPTS, BEHAVIOR.score)
    return evaluate_transfer(bridges[1], native, hostile, native=native, coefficients=COEFFICIENTS, n_draws=19)


@pytest.mark.parametrize("coefficients", [(0.0, 1.0), (-1.0, 0.0, 2.0), (-1.0, 1.0), (0.0, 0.0, 0.0)])
def test_a_grid_that_is_not_symmetric_is_refused(bridges: tuple[Any, Any], coefficients: tuple[float, ...]) -> None:
    native = _towards(bridges[1])
    with pytest.raises(LrtError, match="symmetric about 0"):
        evaluate_transfer(bridges[1], native, BEHAVIOR, native=native, coefficients=coefficients)


def test_vectors_that_are_not_the_targets_are_refused(
    bridges: tuple[Any, Any], vectors: tuple[SteeringVector, ...]
) -> None:
    own, transferred, native = vectors
    with pytest.raises(MismatchError, match=r"carry it over with affine_map\.transport"):
        evaluate_transfer(bridges[1], own, BEHAVIOR, native=native)
    elsewhere = SteeringVector(native.direction, site_of(bridges[1], layer=0))
    with pytest.raises(MismatchError, match="L0"):
        evaluate_transfer(bridges[1], transferred, BEHAVIOR, native=elsewhere)
    with pytest.raises(LrtError, match=r"control 'flat' must be directions \[draw, 24\]"):
        evaluate_transfer(bridges[1], transferred, BEHAVIOR, native=native, controls={"flat": torch.zeros(3, 24)})


def _towards(model: Any) -> SteeringVector:
    """The gradient of the behavior's score on the prompts, at layer 2: a vector that is sure to have an effect."""
    site = site_of(model, layer=2)
    delta = torch.zeros(24, requires_grad=True)
    total = torch.zeros(())
    for prompt in PROMPTS:
        ids = torch.tensor([[1, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
        logits = model.run_with_hooks(ids, fwd_hooks=[(site.hook_name, lambda act, hook: act + delta)])[0, -1]
        good, bad = (model.tokenizer.convert_tokens_to_ids(w) for w in (["word1", "word2"], ["word3", "word4"]))
        total = total + logits[good].logsumexp(0) - logits[bad].logsumexp(0)
    total.backward()
    assert delta.grad is not None
    return SteeringVector(delta.grad / delta.grad.norm(), site)


def test_a_map_that_ends_elsewhere_is_refused(
    bridges: tuple[Any, Any], vectors: tuple[SteeringVector, ...], affine_map: AffineMap, texts: list[str]
) -> None:
    _, transferred, native = vectors
    to_another_layer = fit_affine_map(*bridges, texts, layers=(1, 0))
    backwards = fit_affine_map(bridges[1], bridges[0], texts, layers=(2, 1))
    assert affine_map.target.model is not None
    other_basis = replace(
        affine_map, target=replace(affine_map.target, model=replace(affine_map.target.model, basis="centered"))
    )
    for wrong, message in (
        (to_another_layer, r"ends at large L0 .* the vectors are at large L2"),
        (backwards, r"ends at small L1 \(16 dimensions\)"),
        (other_basis, "the map's target belongs to large; .* basis is raw, not centered"),
    ):
        with pytest.raises(MismatchError, match=message):
            evaluate_transfer(bridges[1], transferred, BEHAVIOR, native=native, affine_map=wrong)


def test_a_transported_vector_is_not_native(bridges: tuple[Any, Any], vectors: tuple[SteeringVector, ...]) -> None:
    with pytest.raises(LrtError, match="must be found in the target itself"):
        evaluate_transfer(bridges[1], vectors[1], BEHAVIOR, native=vectors[1])
