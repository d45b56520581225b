"""The coefficient is chosen on one half of the prompts, by the native vector, and scored on the other."""

import json

import pytest
import torch
from torch import Tensor

from lrt_tl.evaluation.behavior import AnswerTokens, Behavior, PromptAnswers
from lrt_tl.evaluation.choices import multiple_choice
from lrt_tl.evaluation.strength import chosen_strength

GRID = (-2.0, -1.0, 0.0, 1.0, 2.0)


def behavior_of(n: int) -> Behavior:
    return Behavior("b", tuple(f"prompt {number}" for number in range(n)), AnswerTokens(("a",), ("b",)))


def curves(at_1: Tensor, at_2: Tensor) -> Tensor:
    """[coefficient, prompt], odd in the coefficient, with a propensity of 5."""
    return 5 + torch.stack([-at_2, -at_1, 0 * at_1, at_1, at_2]).double()


def constant(value: float, n: int) -> Tensor:
    return torch.full((n,), value, dtype=torch.float64)


def test_halves_part_the_prompts() -> None:
    for n, sizes in ((10, (5, 5)), (11, (5, 6)), (2, (1, 1)), (1, (0, 1))):
        choosing, scoring = behavior_of(n).halves()
        assert (len(choosing), len(scoring)) == sizes
        assert sorted([*choosing, *scoring]) == list(range(n))
    assert behavior_of(40).halves(0)[0] == behavior_of(40).halves(0)[0]
    assert behavior_of(40).halves(0)[0] != behavior_of(40).halves(1)[0]


@pytest.mark.parametrize("seed", range(5))
def test_a_question_in_both_orders_stays_together(seed: int) -> None:
    questions = [
        {
            "question": f"Question {n}?\n (A) red {n}\n (B) green {2 * n}" if n % 3 else f"Is {n} divided by 3?",
            "answer_matching_behavior": ("(A)" if n % 2 else "(B)") if n % 3 else "Yes",
            "answer_not_matching_behavior": ("(B)" if n % 2 else "(A)") if n % 3 else "No",
        }
        for n in range(1, 13)
    ]
    behavior = multiple_choice(questions)
    assert len(behavior.prompts) == 8 * 2 + 4
    sides = [{behavior.prompts[n] for n in side} for side in behavior.halves(seed)]
    for n in (1, 2, 4, 5, 7, 8, 10, 11):
        assert sum(any(f"Question {n}?" in prompt for prompt in side) for side in sides) == 1
    assert sorted(map(len, sides))[0] >= 8


def test_prompts_that_only_look_like_twins_are_parted() -> None:
    behavior = Behavior("b", ("one", "two"), PromptAnswers(("A", "B"), ("B", "A")))
    assert [len(side) for side in behavior.halves()] == [1, 1]


def test_the_coefficient_is_the_native_vectors_best_on_the_choosing_half() -> None:
    """The scoring half prefers 2, the transferred vector too: neither has a say."""
    n = 20
    choosing, scoring = behavior_of(n).halves(3)
    native_2 = constant(6.0, n)
    native_2[choosing] = 1.0
    native = curves(constant(3.0, n), native_2)
    transferred = curves(constant(1.5, n), constant(9.0, n))
    effects = torch.linspace(-1, 1, 30).double()
    random = torch.stack([curves(constant(float(value), n), constant(0.0, n)) for value in effects])
    found = chosen_strength(behavior_of(n), GRID, native, transferred, random, seed=3)
    assert found.coefficient == 1
    assert (found.choosing, found.scoring) == (tuple(choosing), tuple(scoring))
    assert found.native is not None
    assert found.transferred is not None
    assert found.random is not None
    assert found.recovery is not None
    assert (found.native.estimate, found.native.low, found.native.high) == pytest.approx((3, 3, 3))
    assert found.transferred.estimate == pytest.approx(1.5)
    assert found.random.estimate == pytest.approx(0, abs=1e-12)
    assert found.random_high == pytest.approx(float(effects.quantile(0.95)))
    assert found.recovery.estimate == pytest.approx(0.5)
    assert found.reason is None


def test_effects_are_of_the_scoring_half_alone() -> None:
    n = 12
    choosing, scoring = behavior_of(n).halves()
    effect = torch.arange(1.0, n + 1).double()
    strange = effect.clone()
    strange[choosing] = 1000.0
    found = chosen_strength(
        behavior_of(n), GRID, curves(strange / 2, strange), curves(strange, strange), curves(effect, effect)[None]
    )
    assert found.coefficient == 2
    for each in (found.native, found.transferred, found.random):
        assert each is not None
        assert each.low is not None
        assert each.high is not None
        assert each.estimate == pytest.approx(float(effect[scoring].mean()))
        assert float(effect[scoring].min()) < each.low < each.estimate < each.high < float(effect[scoring].max())


def test_a_coefficient_after_breakdown_is_not_chosen() -> None:
    """3, 2, 4: the curve falls at 2 in every prompt before it is highest at 3."""
    steps = torch.tensor([0.0, 3.0, 2.0, 4.0], dtype=torch.float64)
    scores = torch.cat([-steps[1:].flip(0), steps])[:, None].expand(-1, 6)
    found = chosen_strength(behavior_of(6), (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0), scores, scores, scores[None])
    assert found.coefficient == 1


@pytest.mark.parametrize(("n", "reason"), [(1, "cannot be split in two"), (2, "no interval can be given")])
def test_too_few_prompts_say_so(n: int, reason: str) -> None:
    scores = curves(constant(1.0, n), constant(2.0, n))
    found = chosen_strength(behavior_of(n), GRID, scores, scores, scores[None])
    assert found.reason is not None
    assert reason in found.reason
    assert reason in found._repr_html_()
    assert (found.coefficient is None) == (n == 1)
    assert found.native is None or (found.native.estimate, found.native.low) == (pytest.approx(2), None)


def test_a_native_vector_without_effect_has_no_strength() -> None:
    scores = curves(constant(-1.0, 6), constant(-2.0, 6))
    found = chosen_strength(behavior_of(6), GRID, scores, -scores, scores[None])
    assert found.coefficient is None
    assert repr(found) == "Strength(none: the native vector raises the score at no coefficient, on average)"
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["native"] is None
