"""Effect against KL: ratios of planted curves, and KL against one text at a time."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.evaluation.behavior import AnswerTokens, Behavior
from lrt_tl.evaluation.controls import random_directions
from lrt_tl.evaluation.evaluate import TransferResult, evaluate_transfer
from lrt_tl.evaluation.pareto import _compare, _cost_ratio, _kl_at, pareto
from lrt_tl.models.identity import site_of
from lrt_tl.steering.vector import SteeringVector
from tests.checkpoints import PROMPTS
from tests.unchecked import without_type_checks

HOOK = "blocks.2.hook_resid_post"
TEXTS = ["word1 word2 word7 word9", "word9 word30 word4", "word3 word5 word6 word8 word10 word11"]
BEHAVIOR = Behavior("<counting>", PROMPTS, AnswerTokens(("word1", "word2"), ("word3", "word4")))
COEFFICIENTS = (0.2, -0.2, 0.0, 0.4, -0.4)
DIRECTIONS = torch.randn(2, 24, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def vectors(bridges: Any) -> tuple[SteeringVector, SteeringVector]:
    site = site_of(bridges[1], layer=2)
    return SteeringVector(DIRECTIONS[0], site), SteeringVector(3 * DIRECTIONS[1], site)


@pytest.fixture(scope="module")
def result(bridges: Any, vectors: tuple[SteeringVector, SteeringVector]) -> TransferResult:
    native, transferred = vectors
    return evaluate_transfer(
        bridges[1], transferred, BEHAVIOR, native=native, coefficients=COEFFICIENTS, n_draws=19, seed=4
    )


@torch.no_grad()
def kl(model: Any, delta: Tensor) -> float:
    """KL(plain ‖ steered), a mean over the tokens of all texts."""
    found = []
    for text in TEXTS:
        ids = torch.tensor([[1, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]])
        plain = model(ids)[0, 1:].double().log_softmax(-1)
        steered = model.run_with_hooks(ids, fwd_hooks=[(HOOK, lambda states, hook: states + delta)])
        steered = steered[0, 1:].double().log_softmax(-1)
        found.append((plain.exp() * (plain - steered)).sum(-1))
    return float(torch.cat(found).mean())


def planted(result: TransferResult, native: float, transferred: float, scatter: float = 0.0) -> TransferResult:
    """With effects proportional to the coefficient."""
    grid = torch.tensor(result.coefficients).double()[:, None]
    around = scatter * torch.linspace(-1, 1, len(PROMPTS)).double()
    scores = {"native": grid * (native + around), "transferred": grid * (transferred + around)}
    return replace(result, **scores)  # type: ignore[arg-type]


def test_doses_are_those_of_steering_by_hand(bridges: Any, vectors: Any, result: TransferResult) -> None:
    native, transferred = vectors
    found = pareto(bridges[1], result, native, transferred, TEXTS, n_random=2, seed=4)
    random = native.norm * random_directions(19, 24, seed=4)
    equal = {"native": DIRECTIONS[0], "transferred": DIRECTIONS[1] * native.norm / DIRECTIONS[1].norm()}
    arms = [(found.doses[arm], equal[arm], getattr(result, arm)) for arm in equal]
    arms += [(found.random[i], random[i], result.controls["random"][i]) for i in range(2)]
    for doses, direction, scores in arms:
        assert [dose.coefficient for dose in doses] == [-0.4, -0.2, 0.2, 0.4]
        for dose, place in zip(doses, (0, 1, 3, 4), strict=True):
            assert dose.kl == pytest.approx(kl(bridges[1], dose.coefficient * direction), rel=1e-3)
            assert dose.effect == pytest.approx(float((scores[place] - scores[2]).mean()))
            assert dose.effect_low is not None
            assert dose.kl_low is not None
            assert dose.effect_low <= dose.effect <= (dose.effect_high or 0)
            assert dose.kl_low <= dose.kl <= (dose.kl_high or 0)


def test_the_ratio_of_planted_effects(bridges: Any, vectors: Any, result: TransferResult) -> None:
    native, _ = vectors
    same = pareto(bridges[1], planted(result, 2, 2), native, native, TEXTS).cost_ratio
    assert (same.estimate, same.low, same.high) == pytest.approx((1, 1, 1))
    assert same.effect == pytest.approx(0.8)
    half = pareto(bridges[1], planted(result, 2, 1), native, native, TEXTS)
    kl_half, kl_whole = (kl(bridges[1], c * DIRECTIONS[0]) for c in (0.2, 0.4))
    assert half.cost_ratio.effect == pytest.approx(0.4)  # native at 0.2, transferred at 0.4
    assert half.cost_ratio.estimate == pytest.approx(kl_whole / kl_half, rel=1e-3)
    assert half.cost_ratio.low is not None
    assert half.cost_ratio.low > 1
    assert "costs more than steering natively: for the same effect (+0.40)" in half.sentence()
    assert "costs less than" in pareto(bridges[1], planted(result, 1, 2), native, native, TEXTS).sentence()
    scattered = pareto(bridges[1], planted(result, 2, 2.02, scatter=1), native, native, TEXTS)
    assert "costs as much, within error, as" not in scattered.sentence()  # prompts are resampled together
    at = pareto(bridges[1], planted(result, 2, 1), native, native, TEXTS, coefficient=0.2).cost_ratio
    assert at.estimate == pytest.approx(half.cost_ratio.estimate)


def test_power_laws_are_interpolated_exactly() -> None:
    coefficients = torch.tensor([0.5, 1.0, 2.0, 4.0]).double()
    effects, kls = 3 * coefficients**0.8, 0.1 * coefficients**1.9
    for coefficient in (0.5, 0.7, 1.0, 3.9):
        assert _kl_at(3 * coefficient**0.8, effects.tolist(), kls.tolist()) == pytest.approx(0.1 * coefficient**1.9)
    assert _kl_at(0.1, [1.0, 2.0], [0.5, 2.0]) == pytest.approx(0.5 * 0.01)  # below the first dose
    assert _kl_at(1.0, [-1.0, 2.0], [0.5, 2.0]) == pytest.approx(0.5)  # after one that works the wrong way
    assert _kl_at(3.0, [1.0, 2.0], [0.5, 2.0]) == float("inf")


def test_they_are_compared_before_they_break_down() -> None:
    kls = [[1.0, 4.0, 16.0]] * 2
    assert _compare([[1.0, 2.0, 0.5], [1.0, 2.0, 4.0]], kls, None) == pytest.approx((2.0, 1.0))
    assert _compare([[1.0, 2.0, 4.0], [1.0, 1.0, 4.0]], kls, None) == pytest.approx((1.0, 1.0))
    assert _compare([[1.0, 2.0, 4.0], [2.0, 4.0, 8.0]], kls, 1) == pytest.approx((2.0, 0.25))


def test_intervals_hold_the_truth() -> None:
    generator = torch.Generator().manual_seed(0)
    held = 0
    for trial in range(100):
        noise = 0.6 * torch.randn(2, 1, 40, generator=generator).double()
        dose = torch.tensor([1.0, 2.0]).double()[None, :, None]
        effects = dose * (torch.tensor([2.0, 1.5]).double()[:, None, None] + noise)
        sizes = torch.full((40,), 8.0).double()
        kls = dose**2 * torch.tensor([1.0, 1.2]).double()[:, None, None] * (1 + torch.rand(40, generator=generator))
        with without_type_checks():  # of each of 2,000 resamples, which take most of the time
            found = _cost_ratio(effects, kls, sizes, None, seed=trial)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1.2 * (2 / 1.5) ** 2 <= found.high
    assert 89 <= held <= 99


def test_no_ratio_where_there_is_none(bridges: Any, vectors: Any, result: TransferResult) -> None:
    native, transferred = vectors

    def reason(some: TransferResult, **options: Any) -> str:
        found = pareto(bridges[1], some, native, transferred, TEXTS, **options)
        assert found.cost_ratio.estimate is None
        assert "cannot be said" in found.sentence()
        json.dumps(found.to_json(), allow_nan=False)
        return str(found.cost_ratio.reason)

    assert "does not reach the native one's effect, +0.8" in reason(planted(result, 2, 1), coefficient=0.4)
    assert "its largest is +0.4" in reason(planted(result, 2, 1), coefficient=0.4)
    assert "native effect is not above zero" in reason(planted(result, -1, 1))
    assert "native effect is not above zero" in reason(planted(result, 0.2, 1, scatter=3))
    assert "no effect in the intended direction" in reason(planted(result, 1, -1))
    scores = {"native": result.native[:, :1], "transferred": result.transferred[:, :1]}
    one = replace(result, **scores, controls={"random": result.controls["random"][..., :1]})  # type: ignore[arg-type]
    assert "one prompt or one neutral text" in reason(one)


def test_it_is_shown_with_names_escaped(bridges: Any, vectors: Any, result: TransferResult) -> None:
    native, transferred = vectors
    found = pareto(bridges[1], planted(result, 2, 1), native, transferred, TEXTS)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["doses"]["native"][3]["coefficient"] == 0.4
    for page in (found._repr_html_(), str(found.figure().to_dict())):
        assert "&lt;counting&gt;" in page
        assert "<counting>" not in page
    assert [row["vector"] for row in found.rows()] == ["native"] * 4 + ["transferred"] * 4
    assert repr(found).startswith("Pareto(<counting>: cost of transfer over native ")
    assert len(found.random) == 8
    assert {trace.name for trace in found.figure().data} == {"native", "transferred", "random vectors"}


def test_bad_input_is_refused(bridges: Any, vectors: Any, result: TransferResult) -> None:
    native, transferred = vectors
    with pytest.raises(LrtError, match=r"coefficient=0.3 must be a positive one of the result's: \[-0.4, -0.2, 0.0"):
        pareto(bridges[1], result, native, transferred, TEXTS, coefficient=0.3)
    without = replace(result, coefficients=(0.2, -0.2, 0.1, 0.4, -0.4))
    with pytest.raises(LrtError, match="lack 0, from which effects are counted"):
        pareto(bridges[1], without, native, transferred, TEXTS)
    with pytest.raises(LrtError, match="neutral text"):
        pareto(bridges[1], result, native, transferred, [])
    elsewhere = SteeringVector(DIRECTIONS[1], site_of(bridges[1], layer=1))
    with pytest.raises(MismatchError, match="the native vector is at"):
        pareto(bridges[1], result, native, elsewhere, TEXTS)
