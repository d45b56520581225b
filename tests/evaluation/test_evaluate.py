"""The whole measurement on small random models, against effects worked out by hand."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lrt_tl import storyworld
from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.fit import fit_affine_map
from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.evaluation.behavior import AnswerTokens, Behavior
from lrt_tl.evaluation.evaluate import TransferResult, evaluate_transfer
from lrt_tl.models.identity import site_of
from lrt_tl.steering.extraction import mean_activation, mean_difference
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


def test_the_identity_map_of_a_trained_model_recovers_all(affine_map: AffineMap) -> None:
    """storyworld-large to itself: 1 to 1e-6, at matched norm and at matched KL, with nothing between the bounds."""
    model = storyworld.load("large")
    own = mean_difference(model, storyworld.contrast_pairs("refusal", 16), layer=4, position="last")
    width = model.cfg.d_model
    identity = replace(
        affine_map,
        weight=torch.eye(width),
        bias=torch.zeros(width),
        sources=(own.site,),
        target=own.site,
        target_covariance=torch.eye(width),
        source_covariance=None,
    )
    result = evaluate_transfer(
        model,
        identity.transport(own),
        storyworld.behavior("refusal", 8),
        native=own,
        affine_map=identity,
        neutral=storyworld.neutral_prompts("mood", 4),
        coefficients=(-0.5, 0.0, 0.5),
        n_draws=19,
    )
    for found in (result.recovery, result.recovery_matched_kl, result.strength.recovery):
        assert found is not None
        assert (found.estimate, found.low, found.high) == pytest.approx((1, 1, 1), abs=1e-6)
    assert result.cosine_with_native == pytest.approx(1)


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
        neutral=["word5 word6 word7", "word8 word9"],
        examples=("word1 word1", "word3 word3"),
        baselines={"random_weights": torch.ones(2, 24)},
        coefficients=COEFFICIENTS,
    )
    summary = json.loads(json.dumps(result.summary(), allow_nan=False))
    for null in ("random_slope", "shuffled_map_slope"):
        assert summary[null]["n"] == 64
        draws = result.control_slopes(null.removesuffix("_slope"))
        assert summary[null]["mean"] == pytest.approx(float(draws.mean()))
        above = sum(float(draw) >= summary["transferred_slope"] for draw in draws)
        assert summary[null]["rank_of_transferred"] == 1 + above
    draws = {"random", "shuffled_map", "random_map", "mean_activation", "padded", "mean_state", "random_weights"}
    assert set(summary["curves"]) == {"native", "transferred", "source_native"} | draws
    assert summary["coefficients"] == list(COEFFICIENTS)
    assert summary["cosine_with_native"] == pytest.approx(
        float(torch.cosine_similarity(native.direction, transferred.direction, dim=0))
    )

    assert set(summary) == {
        *("name", "prompts", "coefficients", "curves", "arms", "recovery", "recovery_matched_kl", "strength"),
        *("source_native_slope", "native_slope", "transferred_slope", "prompted", "baselines", "missing"),
        *(f"{name}_slope" for name in draws - {"random_weights"}),
        *("anti_steerable", "agreement", "cosine_with_native", "norm_over_native"),
    }
    assert summary["random_map_slope"]["n"] == 16
    assert list(summary["missing"]) == ["unrelated"]
    assert summary["arms"]["transferred"]["slope"] == pytest.approx(summary["transferred_slope"])
    assert summary["baselines"]["random_weights"]["n"] == 2
    assert [row["coefficient"] for row in summary["agreement"]] == list(COEFFICIENTS)
    with pytest.raises(
        LrtError, match="no arm 'nothing' was measured, only native, transferred, source_native, random"
    ):
        result.curve("nothing")


def test_what_was_not_measured_is_named(bridges: tuple[Any, Any]) -> None:
    native = _towards(bridges[1])
    result = evaluate_transfer(bridges[1], native, BEHAVIOR, native=native, coefficients=COEFFICIENTS, n_draws=1)
    assert set(result.missing) == {
        *("shuffled_map", "random_map", "mean_activation", "padded", "unrelated"),
        *("source_native", "baselines", "prompted"),
    }
    assert result.missing["random_map"] == "no map was given (affine_map=)"
    assert result.summary()["missing"] == result.missing
    assert result.table()["not measured: source native"] == "no source was given (source=)"
    assert "no examples were given" in result.missing["prompted"]
    with pytest.raises(LrtError, match="no arm 'source_native' was measured"):
        result.slope("source_native")


def test_controls_of_the_default_set_by_hand(
    bridges: tuple[Any, Any], vectors: tuple[SteeringVector, ...], affine_map: AffineMap
) -> None:
    """What a given control replaces, and what stands in the default set where none is given."""
    own, transferred, native = vectors
    neutral = ["word5 word6 word7", "word8 word9"]
    mean = mean_activation(bridges[1], neutral, layer=2).direction
    padded = torch.cat([own.direction, torch.zeros(8)])
    default, given = (
        evaluate_transfer(
            bridges[1],
            transferred,
            BEHAVIOR,
            native=native,
            affine_map=affine_map,
            source=(bridges[0], own),
            neutral=neutral,
            controls=controls,
            coefficients=(-0.5, 0.5, 1.0, -1.0),
            n_draws=2,
        )
        for controls in ({}, {"mean_activation": -mean[None], "unrelated": torch.ones(3, 24)})
    )
    assert default.coefficients == (-1.0, -0.5, 0.0, 0.5, 1.0)  # with 0, and in order
    for result, name, direction in (
        (default, "mean_activation", mean),
        (default, "padded", padded),
        (given, "mean_activation", -mean),
        (given, "unrelated", torch.ones(24)),
    ):
        equal = 0.5 * native.norm / direction.norm() * direction
        by_hand = [steered_score(bridges[1], native.site.hook_name, equal, prompt) for prompt in PROMPTS]
        torch.testing.assert_close(result.controls[name][0, 3], torch.tensor(by_hand).double(), rtol=0, atol=1e-4)
    assert ("unrelated" in default.missing, "unrelated" in given.missing) == (True, False)


def test_the_share_over_a_baseline(bridges: tuple[Any, Any]) -> None:
    """Baselines in the plane of the native vector, whose slopes are nearly shares of its own, since steps are small."""
    native = _towards(bridges[1])
    shift = torch.randn(24, generator=torch.Generator().manual_seed(3))
    aside = shift - (shift @ native.direction) * native.direction
    aside = aside / aside.norm()

    def turned(cosine: float) -> torch.Tensor:
        return cosine * native.direction + (1 - cosine**2) ** 0.5 * aside

    result = evaluate_transfer(
        bridges[1],
        SteeringVector(turned(0.8), native.site),
        BEHAVIOR,
        native=native,
        baselines={"weak": turned(0.2)[None], "equal": native.direction[None], "several": torch.stack([aside, -aside])},
        coefficients=(-1e-2, 0.0, 1e-2),
        n_draws=200,
    )
    own, carried, weak = (result.slope(name) for name in ("native", "transferred", "weak"))
    over = result.over_baseline["weak"]
    assert over.estimate == pytest.approx((carried - weak) / (own - weak))
    random = float(result.control_slopes("random").mean())
    assert result.baseline_recovery["weak"].estimate == pytest.approx((weak - random) / (own - random))
    assert result.baseline_recovery["equal"].estimate == pytest.approx(1)
    assert "leaves nothing of the native one" in str(result.over_baseline["equal"])
    assert result.over_baseline["several"].estimate == pytest.approx(carried / own, abs=0.02)
    assert "the baseline's own recovery is" in result.table()["recovery over weak (baseline)"]


def test_over_a_baseline_nothing_is_said_where_there_is_no_recovery(bridges: tuple[Any, Any]) -> None:
    native = _towards(bridges[1])
    result = evaluate_transfer(
        bridges[1],
        native,
        BEHAVIOR,
        native=-native,
        baselines={"random_weights": torch.ones(1, 24)},
        coefficients=COEFFICIENTS,
        n_draws=19,
    )
    assert result.over_baseline["random_weights"] == result.recovery
    assert result.strength.coefficient is None


def test_one_prompt_has_no_interval_and_says_so(bridges: tuple[Any, Any]) -> None:
    native = _towards(bridges[1])
    for n, reason in ((1, "cannot be split in two"), (2, "no interval can be given")):
        behavior = Behavior("few", PROMPTS[:n], BEHAVIOR.score)
        result = evaluate_transfer(
            bridges[1],
            native,
            behavior,
            native=native,
            coefficients=COEFFICIENTS,
            n_draws=19,
            examples=("word1", "word3"),
        )
        summary = json.loads(json.dumps(result.summary(), allow_nan=False))
        assert reason in summary["strength"]["reason"]
        assert summary["agreement"] is None
        assert (summary["prompted"]["effect"]["low"] is None) == (n == 1)
        assert (result.recovery.estimate is None) == (n == 1)


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
    one = torch.ones(1, 24)
    for clash in ({"controls": {"native": one}}, {"controls": {"x": one}, "baselines": {"x": one}}):
        with pytest.raises(LrtError, match="that is another arm of the measurement"):
            evaluate_transfer(bridges[1], transferred, BEHAVIOR, native=native, **clash)
    with pytest.raises(LrtError, match="n_draws=0"):
        evaluate_transfer(bridges[1], transferred, BEHAVIOR, native=native, n_draws=0)
    with pytest.raises(MismatchError, match="24 dimensions, small has 16"):
        evaluate_transfer(bridges[1], transferred, BEHAVIOR, native=native, source=(bridges[0], native))


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
