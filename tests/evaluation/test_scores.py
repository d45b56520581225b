"""Continuations of several tokens, against a loop over Hugging Face's logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import AnswerTokens, Behavior, Continuations, PromptAnswers
from lrt_tl.evaluation.effects import dose_response
from tests.checkpoints import WORDS
from tests.steering.reference import steered_logits
from tests.unchecked import without_type_checks

PROMPTS = ("word1", "word2 word3 word4 word5", "word9 word8")
POSITIVE = (" word5 word6 word7", " word1", " word3 word3")
NEGATIVE = (" word2", " word7 word8 word9 word10", " word4 word11")
LAYER, HOOK = 1, "blocks.1.hook_resid_post"
COEFFICIENTS = (-2.0, 0.0, 1.0)


def directions(n: int = 2) -> Tensor:
    return torch.randn(n, 24, generator=torch.Generator().manual_seed(0))


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def log_probability(folder: Path, prompt: str, continuation: str, delta: Tensor, *, bos: bool = True) -> float:
    """One token at a time, from the whole text before it."""
    row, nats = [1] * bos + ids(prompt), 0.0
    for token in ids(continuation):
        logits = steered_logits(folder, row, LAYER, delta, lambda position, n_prompt: True)
        nats += float(logits[-1].double().log_softmax(-1)[token])
        row.append(token)
    return nats


@pytest.mark.parametrize("negative", [NEGATIVE, None])
@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_the_score_is_a_difference_of_log_probabilities(
    pair: tuple[Any, Any], folders: tuple[Path, Path], batch_size: int, negative: tuple[str, ...] | None
) -> None:
    behavior = Behavior("b", PROMPTS, Continuations(POSITIVE, negative))
    scores = dose_response(pair[1], HOOK, directions(), behavior, COEFFICIENTS, batch_size=batch_size)
    for arm, direction in enumerate(directions()):
        for place, coefficient in enumerate(COEFFICIENTS):
            for number, prompt in enumerate(PROMPTS):
                delta = coefficient * direction
                expected = log_probability(folders[1], prompt, POSITIVE[number], delta)
                if negative is not None:
                    expected -= log_probability(folders[1], prompt, negative[number], delta)
                assert float(scores[arm, place, number]) == pytest.approx(expected, abs=5e-4)


def test_without_a_beginning_of_sequence(bridges: tuple[Any, Any], folders: tuple[Path, Path]) -> None:
    behavior = Behavior("b", PROMPTS[1:2], Continuations(POSITIVE[:1]))
    scores = dose_response(bridges[1], HOOK, directions(1), behavior, COEFFICIENTS, prepend_bos=False)
    expected = log_probability(folders[1], PROMPTS[1], POSITIVE[0], torch.zeros(24), bos=False)
    assert float(scores[0, 1, 0]) == pytest.approx(expected, abs=5e-4)


def test_continuations_of_one_token_score_as_answers_do(bridges: tuple[Any, Any]) -> None:
    sides = (" word5", " word6", " word7"), (" word8", " word9", " word3")
    found, expected = (
        dose_response(bridges[1], HOOK, directions(), Behavior("b", PROMPTS, score), COEFFICIENTS)
        for score in (Continuations(*sides), PromptAnswers(*sides))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_one_prompt_will_do(bridges: tuple[Any, Any]) -> None:
    for score in (Continuations(POSITIVE[:1], NEGATIVE[:1]), AnswerTokens((" word5",), (" word6",))):
        scores = dose_response(bridges[1], HOOK, directions(), Behavior("b", PROMPTS[:1], score), COEFFICIENTS)
        assert scores.shape == (2, 3, 1)
        assert torch.isfinite(scores).all()


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        ("word5", None, r"a token of the continuation 'word5' begins inside the prompt \(\['<unk>'\]\)"),
        (" ", None, "the continuation ' ' has no token"),
        (" joyful", None, "the continuation ' joyful' has a token that is unknown"),
        (" word5 word6", "  word5  word6", "both continuations of prompt 0 are ' word5 word6'"),
    ],
)
def test_continuations_that_cannot_be_scored_are_refused(
    bridges: tuple[Any, Any], positive: str, negative: str | None, message: str
) -> None:
    score = Continuations((positive,), None if negative is None else (negative,))
    with pytest.raises(LrtError, match=message):
        Behavior("b", ("word1",), score).scorer(bridges[0].tokenizer)


def test_a_merge_across_the_border_is_refused() -> None:
    """Byte-level BPE, in which "ab" is one token and so is " ab"."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["ab ab cd ab"] * 20, vocab_size=270, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer)
    with pytest.raises(LrtError, match="a token of the continuation 'b' begins inside the prompt"):
        Behavior("b", ("cd a",), Continuations(("b",))).scorer(tokenizer)
    with pytest.raises(LrtError, match="a token of the continuation 'ab' begins inside the prompt"):
        Behavior("b", ("cd ",), Continuations(("ab",))).scorer(tokenizer)
    reading = Behavior("b", ("cd",), Continuations((" ab ab",))).reading(tokenizer, tokenizer(["cd"])["input_ids"])
    assert reading.targets is not None
    assert tokenizer.decode(reading.targets[0]) == " ab ab"
    assert tokenizer.decode(reading.rows[0]) == "cd ab"


def test_malformed_continuations_are_refused() -> None:
    with without_type_checks():
        for wrong in ("abc", ("a", ""), (1,)):
            with pytest.raises(LrtError, match="continuations must be texts that are not empty, one a prompt"):
                Continuations(wrong)  # type: ignore[arg-type]
    with pytest.raises(LrtError, match="'b' needs one continuation a prompt, on each side"):
        Behavior("b", PROMPTS, Continuations(POSITIVE, NEGATIVE[:2]))


def test_a_continuation_that_is_too_long_is_refused(bridges: tuple[Any, Any]) -> None:
    behavior = Behavior("b", ("word1",), Continuations((" word1" * 64,)))
    with pytest.raises(LrtError, match=r"a text of 'b' is longer than large reads \(64\)"):
        dose_response(bridges[1], HOOK, directions(), behavior, COEFFICIENTS)
