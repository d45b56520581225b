"""Dose–response against one prompt at a time, one vector, one hook, no padding."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import AnswerTokens, Behavior
from lrt_tl.evaluation.effects import check_coefficients, dose_response, slopes
from lrt_tl.models.attach import attached
from tests.checkpoints import WORDS

PROMPTS = ("word1", "word2 word3 word4 word5", "word9 word8", "word1 word1 word1")
BEHAVIOR = Behavior("mood", PROMPTS, AnswerTokens(("word5", "word6"), ("word7",)))
HOOK = "blocks.1.hook_resid_post"
COEFFICIENTS = (-2.0, 0.0, 1.0, 2.0)


def directions(n: int = 3) -> Tensor:
    return torch.randn(n, 24, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def score(model: Any, prompt: str, delta: Tensor, *, bos: bool = True) -> float:
    """By hand: the log-odds of the answers with `delta` added at all positions."""
    ids = torch.tensor([[1] * bos + [WORDS.index(word) for word in prompt.split()]])
    logits = model.run_with_hooks(ids, fwd_hooks=[(HOOK, lambda states, hook: states + delta)])[0, -1]
    p = logits.double().softmax(-1)
    five, six, seven = (p[WORDS.index(word)] for word in ("word5", "word6", "word7"))
    return float(((five + six) / seven).log())


@pytest.mark.parametrize("batch_size", [1, 9, 256])
def test_dose_response_is_that_of_one_prompt_at_a_time(pair: tuple[Any, Any], batch_size: int) -> None:
    """Batches of 1, 2 and all 10 doses, so that arms and coefficients share them in different ways."""
    scores = dose_response(pair[1], HOOK, directions(), BEHAVIOR, COEFFICIENTS, batch_size=batch_size)
    assert scores.dtype == torch.float64
    expected = [
        [[score(pair[1], prompt, coefficient * direction) for prompt in PROMPTS] for coefficient in COEFFICIENTS]
        for direction in directions()
    ]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=2e-4)
    assert float(scores.std(0).max()) > 0.05  # the arms differ
    assert torch.equal(scores[0, 1], scores[2, 1])  # but not at 0


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_a_forward_pass_has_no_more_rows_than_it_may(bridges: tuple[Any, Any], batch_size: int) -> None:
    rows: list[int] = []
    with attached(bridges[1], [(HOOK, lambda activation, hook: rows.append(len(activation)))]):
        dose_response(bridges[1], HOOK, directions(), BEHAVIOR, COEFFICIENTS, batch_size=batch_size)
    assert max(rows) <= batch_size


def test_without_a_beginning_of_sequence(bridges: tuple[Any, Any]) -> None:
    scores = dose_response(bridges[1], HOOK, directions(1), BEHAVIOR, COEFFICIENTS, prepend_bos=False)
    expected = [
        [score(bridges[1], prompt, c * directions(1)[0], bos=False) for prompt in PROMPTS] for c in COEFFICIENTS
    ]
    torch.testing.assert_close(scores[0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=2e-4)


def test_the_model_is_left_as_it_was(bridges: tuple[Any, Any]) -> None:
    before = score(bridges[1], PROMPTS[1], torch.zeros(24))
    dose_response(bridges[1], HOOK, directions(), BEHAVIOR, COEFFICIENTS)
    assert score(bridges[1], PROMPTS[1], torch.zeros(24)) == before
    assert not any(point.fwd_hooks for point in bridges[1].hook_dict.values())


def test_a_scorer_that_fails_is_named(bridges: tuple[Any, Any]) -> None:
    for scorer, message in (
        (lambda logits: logits[:, 0] * float("nan"), "'mood' returned NaN"),
        (lambda logits: logits, r"'mood' returned \(4, 48\) for 4 prompts"),
    ):
        with pytest.raises(LrtError, match=message):
            dose_response(bridges[1], HOOK, directions(), Behavior("mood", PROMPTS, scorer), COEFFICIENTS)
    assert not any(point.fwd_hooks for point in bridges[1].hook_dict.values())


def test_a_scorer_that_raises_is_named(bridges: tuple[Any, Any]) -> None:
    def fail(logits: Tensor) -> Tensor:
        raise KeyError("nowhere")

    with pytest.raises(LrtError, match="the scorer of 'mood' failed: 'nowhere'") as raised:
        dose_response(bridges[1], HOOK, directions(), Behavior("mood", PROMPTS, fail), COEFFICIENTS)
    assert isinstance(raised.value.__cause__, KeyError)


def test_a_prompt_that_is_too_long_is_refused(bridges: tuple[Any, Any]) -> None:
    behavior = Behavior("mood", ("word1", " ".join(["word1"] * 64)), BEHAVIOR.score)
    with pytest.raises(LrtError, match=r"'mood' is longer than large reads \(64\)"):
        dose_response(bridges[1], HOOK, directions(), behavior, COEFFICIENTS)


def test_a_prompt_of_no_tokens_is_refused(bridges: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrt_tl.evaluation.effects.tokenize", lambda *_, **__: [[4], []])
    with pytest.raises(LrtError, match="a prompt of 'mood' tokenizes to nothing"):
        dose_response(bridges[1], HOOK, directions(), BEHAVIOR, COEFFICIENTS)


@pytest.mark.parametrize("coefficients", [(-2.0, 0.0, 2.0), (-8.0, -1.0, 0.0, 1.0, 8.0), (2.0, -2.0, 0.0)])
def test_slopes_are_numpys(coefficients: tuple[float, ...]) -> None:
    scores = torch.randn(3, len(coefficients), 4, generator=torch.Generator().manual_seed(0))
    found = slopes(scores, coefficients)
    assert found.shape == (3, 4)
    for arm in range(3):
        expected = np.polyfit(coefficients, scores[arm].double().numpy(), 1)[0]
        np.testing.assert_allclose(found[arm].numpy(), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(slopes(scores[0], coefficients), found[0])


@pytest.mark.parametrize(
    "coefficients",
    [(), (1.0,), (-1.0, 1.0), (0.0, 1.0, 2.0), (-1.0, 0.0, 2.0), (-1.0, 0.0, 0.0, 1.0), (float("nan"),) * 3,
     (-float("inf"), 0.0, float("inf"))],
)  # fmt: skip
def test_coefficients_that_cannot_be_are_refused(coefficients: tuple[float, ...]) -> None:
    with pytest.raises(LrtError, match="at least three, all different and symmetric about 0"):
        check_coefficients(coefficients)


def test_coefficients_may_be_in_any_order() -> None:
    check_coefficients((2.0, -2.0, 0.0))
    check_coefficients((-4.0, -1.0, 1.0, 4.0))
