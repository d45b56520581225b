"""Reading behaviors, and scoring what a model would say next."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import AnswerTokens, Behavior, PromptAnswers, check_scores, read_behavior, texts_of
from tests.checkpoints import D_VOCAB, PAIRS, PROMPTS, WORDS

ROW = {
    "name": "mood",
    "prompts": ["word1 word2", "word3"],
    "positive_tokens": ["word5", "word6"],
    "negative_tokens": ["word7"],
}


def test_the_score_is_the_log_odds_of_the_answers(bridges: tuple[Any, Any]) -> None:
    score = read_behavior(ROW).scorer(bridges[0].tokenizer)
    logits = torch.randn(4, D_VOCAB, generator=torch.Generator().manual_seed(0))
    p = logits.double().softmax(-1)
    five, six, seven = (WORDS.index(word) for word in ("word5", "word6", "word7"))
    expected = ((p[:, five] + p[:, six]) / p[:, seven]).log()
    torch.testing.assert_close(score(logits).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("as_file", [False, True])
def test_a_behavior_is_read(tmp_path: Path, as_file: bool) -> None:
    path = tmp_path / "mood.json"
    path.write_text(json.dumps(ROW))
    behavior = read_behavior(path if as_file else ROW)
    assert behavior == Behavior("mood", ("word1 word2", "word3"), AnswerTokens(("word5", "word6"), ("word7",)))
    assert read_behavior(behavior) is behavior


MISSING: list[tuple[dict[str, Any], str]] = [
    *(
        ({key: value}, key)
        for key in ("prompts", "positive_tokens", "negative_tokens")
        for value in (None, [], [1], "a")
    ),
]


@pytest.mark.parametrize(("changes", "key"), MISSING)
def test_a_missing_key_is_named(changes: dict[str, Any], key: str) -> None:
    row = {name: value for name, value in (ROW | changes).items() if value is not None}
    wrong = "must be a list of strings that is not empty" if key in row else "is missing; it has"
    with pytest.raises(LrtError, match=f"behavior: '{key}' {wrong}"):
        read_behavior(row)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(LrtError, match=r"there is no file .*absent\.json"):
        read_behavior(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(LrtError, match=r"bad\.json is not valid JSON"):
        read_behavior(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(LrtError, match=r"list\.json must be a mapping, not list"):
        read_behavior(tmp_path / "list.json")


@pytest.mark.parametrize("prompts", [(), ("good", " "), ("",)])
def test_prompts_must_be_text(prompts: tuple[str, ...]) -> None:
    with pytest.raises(LrtError, match="'mood' needs prompts"):
        Behavior("mood", prompts, AnswerTokens(("word1",), ("word2",)))


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        (("word1 word2",), ("word3",), r"'word1 word2' is 2 tokens \(\['word1', 'word2'\]\), not one"),
        (("word1",), ("word3",) * 2 + ("word4!",), r"'word4!' is 2 tokens \(\['word4', '<unk>'\]\)"),
        ((" ",), ("word3",), r"' ' is 0 tokens \(\[\]\)"),
        (("word1", "word2"), ("word3", "word2"), "'word2' is both a positive and a negative answer"),
        (("joyful",), ("word3",), "'joyful' is unknown to the tokenizer"),
    ],
)
def test_answers_that_cannot_be_scored_are_refused(
    bridges: tuple[Any, Any], positive: tuple[str, ...], negative: tuple[str, ...], message: str
) -> None:
    with pytest.raises(LrtError, match=message):
        AnswerTokens(positive, negative).scorer(bridges[0].tokenizer)


def test_a_function_is_its_own_scorer(bridges: tuple[Any, Any]) -> None:
    def score(logits: Tensor) -> Tensor:
        return logits[:, 7]

    assert Behavior("mood", ("word1",), score).scorer(bridges[0].tokenizer) is score


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.tensor([0.0, float("nan")]), "returned NaN or infinity"),
        (torch.tensor([0.0, float("inf")]), "returned NaN or infinity"),
        (torch.zeros(3), r"returned \(3,\) for 2 prompts"),
        (torch.zeros(2, 1), r"returned \(2, 1\) for 2 prompts"),
        (torch.tensor(0.0), r"returned \(\) for 2 prompts"),
    ],
)
def test_scores_that_cannot_be_are_refused(scores: Tensor, message: str) -> None:
    with pytest.raises(LrtError, match=message):
        check_scores(scores, 2, read_behavior(ROW))


def test_scores_become_float64() -> None:
    assert check_scores(torch.tensor([1, 2]), 2, read_behavior(ROW)).dtype == torch.float64


def test_the_texts_of_pairs_and_behaviors(files: dict[str, Path]) -> None:
    pairs = [text for pair in PAIRS for text in pair]
    assert texts_of(files["contrast"], files["behavior"]) == [*pairs, *PROMPTS]
    assert texts_of(PAIRS, read_behavior(files["behavior"])) == [*pairs, *PROMPTS]
    with pytest.raises(LrtError, match="'positive_tokens' is missing"):
        texts_of({"prompts": ["a"]})


def test_an_answer_that_stands_twice_is_refused(bridges: tuple[Any, Any]) -> None:
    with pytest.raises(LrtError, match="stands twice"):
        AnswerTokens(("word1", "word1"), ("word2",)).scorer(bridges[0].tokenizer)


def test_each_prompt_can_have_answers_of_its_own(bridges: tuple[Any, Any]) -> None:
    answers = PromptAnswers(("word1", "word2"), ("word2", "word1"))
    logits = torch.zeros(2, D_VOCAB)
    logits[:, WORDS.index("word1")] = 3.0
    found = Behavior("b", ("word3", "word4"), answers).scorer(bridges[0].tokenizer)(logits)
    assert found.tolist() == [3.0, -3.0]


def test_answers_that_are_not_one_pair_a_prompt_are_refused() -> None:
    with pytest.raises(LrtError, match="one positive and one negative answer a prompt"):
        Behavior("b", ("word3",), PromptAnswers(("word1", "word2"), ("word2", "word1")))


def test_the_same_answer_on_both_sides_of_a_prompt_is_refused(bridges: tuple[Any, Any]) -> None:
    with pytest.raises(LrtError, match="both answers to prompt 0"):
        PromptAnswers(("word1",), ("word1",)).scorer(bridges[0].tokenizer)
