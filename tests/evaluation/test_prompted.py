"""A text in front of the prompts, against the model's own logits after the two together."""

import json
from typing import Any

import pytest
import torch

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import AnswerTokens, Behavior
from lrt_tl.evaluation.prompted import Prompted, check_examples, prompted_effect
from lrt_tl.evaluation.recovery import Effect
from lrt_tl.evaluation.strength import Strength
from tests.checkpoints import PROMPTS

BEHAVIOR = Behavior("counting", PROMPTS, AnswerTokens(("word1",), ("word3",)))
HOOK = "blocks.1.hook_resid_post"
EXAMPLES = ("word1 word2", "word3 word4")


@torch.no_grad()
def score(model: Any, text: str) -> float:
    tokens = torch.tensor([[1, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]])
    logits = model(tokens)[0, -1]
    good, bad = model.tokenizer.convert_tokens_to_ids(["word1", "word3"])
    return float(logits[good] - logits[bad])


def prompted(model: Any, examples: tuple[str, ...] = (), behavior: Behavior = BEHAVIOR, **strength: Any) -> Prompted:
    plain = torch.tensor([score(model, prompt) for prompt in behavior.prompts]).double()
    return prompted_effect(model, HOOK, behavior, plain, Strength(**strength), examples)


def test_the_positive_example_minus_the_negative_one(pair: tuple[Any, Any]) -> None:
    model = pair[1]
    by_hand = [score(model, f"{EXAMPLES[0]} {prompt}") - score(model, f"{EXAMPLES[1]} {prompt}") for prompt in PROMPTS]
    found = prompted(model, EXAMPLES, native=Effect(0.5, 0.4, 0.6), scoring=(1, 3))
    assert found.effect is not None
    assert found.effect.low is not None
    assert found.effect.high is not None
    assert found.effect.estimate == pytest.approx(sum(by_hand) / 4, abs=1e-4)
    assert min(by_hand) - 1e-4 < found.effect.low < found.effect.high < max(by_hand) + 1e-4
    assert found.over_native == pytest.approx((by_hand[1] + by_hand[3]) / 2 / 0.5, abs=1e-3)
    assert (found.texts, found.reason) == (EXAMPLES, None)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["texts"] == list(EXAMPLES)


def test_an_instruction_against_nothing(bridges: tuple[Any, Any]) -> None:
    behavior = Behavior("asked", PROMPTS, BEHAVIOR.score)
    object.__setattr__(behavior, "instruction", "word1 word1 word1")
    by_hand = [score(bridges[1], f"word1 word1 word1 {prompt}") - score(bridges[1], prompt) for prompt in PROMPTS]
    found = prompted_effect(
        bridges[1],
        HOOK,
        behavior,
        torch.tensor([score(bridges[1], prompt) for prompt in PROMPTS]).double(),
        Strength(reason="none"),
    )
    assert found.effect is not None
    assert found.effect.estimate == pytest.approx(sum(by_hand) / 4, abs=1e-4)
    assert found.over_native is None
    assert found.texts == ("word1 word1 word1",)


def test_what_cannot_be_asked_says_why(bridges: tuple[Any, Any]) -> None:
    nothing = prompted(bridges[1])
    assert nothing.effect is None
    assert "no examples were given (examples=)" in nothing._repr_html_()
    long = prompted(bridges[1], ("word1 " * 80, "word2"))
    assert long.effect is None
    assert long.reason is not None
    assert long.reason.startswith("with the text in front, a text of 'counting' is longer than large reads (64)")


@pytest.mark.parametrize("examples", [("word1",), "ab", ("word1", " "), ("a", "b", "c")])
def test_examples_are_two_texts(examples: Any) -> None:
    with pytest.raises(LrtError, match="give two texts, one with the behavior and one without"):
        check_examples(examples)


def test_how_it_shows() -> None:
    assert repr(Prompted(Effect(1.5, 1.0, 2.0), 3.0, EXAMPLES)) == "Prompted(+1.5 [+1, +2], 3 × the native vector's)"
