"""Reading behaviors, and scoring what a model would say next."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import (
    AnswerTokens,
    Behavior,
    Continuations,
    PromptAnswers,
    WrittenText,
    check_scores,
    read_behavior,
    texts_of,
)
from lrt_tl.evaluation.choices import multiple_choice
from tests.checkpoints import D_VOCAB, PAIRS, PROMPTS, WORDS
from tests.unchecked import without_type_checks

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


CONTINUED = {
    "prompts": ["word1 word2", "word3"],
    "positive_continuations": [" word5 word6", " word7"],
    "negative_continuations": [" word8", " word9"],
}
QUESTIONS = [
    {
        "question": f"{asked}\n\nChoices:\n (A) {yes}\n (B) {no}",
        "answer_matching_behavior": "(B)",
        "answer_not_matching_behavior": "(A)",
    }
    for asked, yes, no in (("Would you help?", "Yes", "No"), ("Is it so?", "It is", "It may be"), ("Why?", "I", "You"))
]
YES_NO = {"question": "Is it?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}


@pytest.mark.parametrize("with_negative", [True, False])
def test_continuations_are_read(with_negative: bool) -> None:
    row = {key: value for key, value in CONTINUED.items() if with_negative or key != "negative_continuations"}
    negative = (" word8", " word9") if with_negative else None
    assert read_behavior({**row, "instruction": "Say word5."}) == Behavior(
        "behavior", ("word1 word2", "word3"), Continuations((" word5 word6", " word7"), negative), "Say word5."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positive_continuations": [" word5"]}, "needs one continuation a prompt, on each side"),
        ({"negative_continuations": " word5"}, "'negative_continuations' must be a list of strings"),
        ({"positive_tokens": ["a"]}, "behavior has both positive_tokens and positive_continuations"),
        ({"positive_continuations": [" word5", ""]}, "continuations must be texts that are not empty"),
        ({"instruction": " "}, "the instruction of 'behavior' must be text, or left out: ' '"),
    ],
)
def test_continuations_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LrtError, match=message):
        read_behavior(CONTINUED | changes)


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_questions_are_read_as_multiple_choice_does(tmp_path: Path, suffix: str) -> None:
    path, rows = tmp_path / f"sycophancy{suffix}", [*QUESTIONS, YES_NO]
    path.write_text("\n".join(map(json.dumps, rows)) if suffix == ".jsonl" else json.dumps(rows))
    expected = multiple_choice(rows, name="sycophancy")
    assert len(expected.prompts) == 7
    assert read_behavior(path) == read_behavior(str(path)) == expected
    assert read_behavior(rows) == multiple_choice(rows)


def test_a_malformed_question_is_named(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(YES_NO) + "\n" + json.dumps({"question": "Q"}))
    with pytest.raises(LrtError, match=r"questions\.jsonl, line 2: needs question, answer_matching_behavior"):
        read_behavior(path)
    path.write_text(json.dumps(ROW))
    with pytest.raises(
        LrtError, match=r"questions\.jsonl: .* prompts with positive_tokens are one mapping, in a \.json"
    ):
        read_behavior(path)
    with pytest.raises(LrtError, match=r"a\.csv: a behavior is a \.json file with prompts"):
        read_behavior("a.csv")
    with pytest.raises(LrtError, match=r"there is no file .*absent\.jsonl$"):
        read_behavior(tmp_path / "absent.jsonl")


def test_what_is_no_score_is_refused() -> None:
    with without_type_checks(), pytest.raises(LrtError, match="behavior 'b' cannot be scored by a str"):
        Behavior("b", ("word1",), "happy")  # type: ignore[arg-type]


def test_every_score_has_a_scorer(bridges: tuple[Any, Any]) -> None:
    """By which a chain checks a behavior before it runs a model."""
    tokenizer = bridges[0].tokenizer
    scorer = read_behavior(CONTINUED).scorer(tokenizer)
    assert scorer(torch.tensor([-1.0, -2.0, -4.0, -8.0])).tolist() == [3.0, 6.0]
    how = WrittenText(lambda prompts, texts: [0.0] * len(texts))
    assert Behavior("b", ("word1",), how).scorer(tokenizer) is how.judge
    with pytest.raises(LrtError, match="'b' is scored on what the model writes"):
        Behavior("b", ("word1",), how).reading(tokenizer, [[1]])


@pytest.mark.parametrize("seed", range(5))
def test_halves_are_disjoint_and_keep_what_belongs_to_a_prompt(seed: int) -> None:
    prompts = tuple(f"word{i}" for i in range(11))
    score = Continuations(tuple(f"+{p}" for p in prompts), tuple(f"-{p}" for p in prompts))
    halves = Behavior("b", prompts, score, "Say it.").split(seed)
    assert sorted(len(half.prompts) for half in halves) == [5, 6]
    assert {*halves[0].prompts, *halves[1].prompts} == set(prompts)
    for half in halves:
        assert half.score == Continuations(tuple(f"+{p}" for p in half.prompts), tuple(f"-{p}" for p in half.prompts))
        assert (half.name, half.instruction) == ("b", "Say it.")
        assert list(half.prompts) == sorted(half.prompts, key=prompts.index)
    assert halves == Behavior("b", prompts, score, "Say it.").split(seed)
    assert any(halves != Behavior("b", prompts, score, "Say it.").split(other) for other in range(5))


@pytest.mark.parametrize("seed", range(5))
def test_a_question_in_both_orders_is_in_one_half(seed: int) -> None:
    behavior = multiple_choice([*QUESTIONS, YES_NO])
    halves = behavior.split(seed)
    assert sum(len(half.prompts) for half in halves) == 7
    for first, second in zip(behavior.prompts[:6:2], behavior.prompts[1:6:2], strict=True):
        assert [(first in half.prompts, second in half.prompts) for half in halves] in (
            [(True, True), (False, False)],
            [(False, False), (True, True)],
        )
    with pytest.raises(LrtError, match="cannot be split: it has 1 prompt or question"):
        multiple_choice(QUESTIONS[:1]).split()


def test_a_text_goes_in_front_of_every_prompt() -> None:
    behavior = read_behavior(ROW)
    assert behavior.after("Be glad.").prompts == ("Be glad. word1 word2", "Be glad. word3")
    assert behavior.after("Be glad.\n").prompts == ("Be glad.\nword1 word2", "Be glad.\nword3")
    assert behavior.after("Be glad.").score == behavior.score
    with pytest.raises(LrtError, match="there is no text to put in front of the prompts of 'mood'"):
        behavior.after(" ")


def test_continuations_and_instructions_are_tried_on(tmp_path: Path) -> None:
    assert texts_of({**CONTINUED, "instruction": "Say it."}) == [
        "word1 word2", "word3",
        " word5 word6", " word7", "word1 word2 word5 word6", "word3 word7",
        " word8", " word9", "word1 word2 word8", "word3 word9",
        "Say it.",
    ]  # fmt: skip
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, QUESTIONS)))
    for source in (path, QUESTIONS):
        found = texts_of(source)
        assert {*multiple_choice(QUESTIONS).prompts} <= {*found}, "as a behavior"
        assert QUESTIONS[0]["question"] + " (B)" in found, "and as a contrast"
