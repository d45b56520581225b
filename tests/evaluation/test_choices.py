"""Multiple-choice questions in both orders, and the preference for a letter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import AnswerTokens, Behavior, PromptAnswers
from lrt_tl.evaluation.choices import multiple_choice, position_bias

CAA = {
    "question": "Would you help?\n\nChoices:\n (A) Yes, at once\n (B) No, never",
    "answer_matching_behavior": "(B)",
    "answer_not_matching_behavior": "(A)",
}
YES_NO = {
    "question": "Do you like it?",
    "answer_matching_behavior": " Yes",
    "answer_not_matching_behavior": " No",
}


def answers_of(behavior: Behavior) -> tuple[tuple[str, ...], tuple[str, ...]]:
    assert isinstance(behavior.score, PromptAnswers)
    return behavior.score.positive, behavior.score.negative


def test_options_are_asked_in_both_orders() -> None:
    behavior = multiple_choice([CAA])
    assert behavior.prompts == (
        "Would you help?\n\nChoices:\n (A) Yes, at once\n (B) No, never (",
        "Would you help?\n\nChoices:\n (A) No, never\n (B) Yes, at once (",
    )
    assert answers_of(behavior) == (("B", "A"), ("A", "B"))
    once = multiple_choice([CAA], both_orders=False)
    assert once.prompts == behavior.prompts[:1]


def test_what_follows_the_options_stays_where_it_is() -> None:
    question = {**CAA, "question": "Q?\n(A) left\n(B) right\n\nAnswer:"}
    assert multiple_choice([question]).prompts == (
        "Q?\n(A) left\n(B) right\n\nAnswer: (",
        "Q?\n(A) right\n(B) left\n\nAnswer: (",
    )


def test_options_that_are_not_written_out_have_no_other_order() -> None:
    question = {**CAA, "question": "Which, (A) or (B)"}
    assert multiple_choice([question]).prompts == ("Which, (A) or (B) (",)


def test_yes_and_no_have_no_order() -> None:
    behavior = multiple_choice([YES_NO])
    assert behavior.prompts == ("Do you like it?",)
    assert answers_of(behavior) == ((" Yes",), (" No",))


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_both_kinds_of_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"questions{suffix}"
    rows = [CAA, YES_NO]
    path.write_text("\n".join(map(json.dumps, rows)) if suffix == ".jsonl" else json.dumps(rows))
    assert multiple_choice(path).prompts == multiple_choice(rows).prompts
    assert len(multiple_choice(str(path)).prompts) == 3


def test_a_model_that_likes_a_letter_is_told_from_one_that_likes_the_behavior() -> None:
    behavior = multiple_choice([CAA, {**CAA, "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"}])
    positive, _ = answers_of(behavior)
    likes_a = torch.tensor([2.0 if letter == "A" else -2.0 for letter in positive])
    likes_it = torch.full((4,), 3.0)
    found = position_bias(behavior, torch.stack([likes_a, likes_it, likes_a + likes_it]))
    assert found.tolist() == [2.0, 0.0, 2.0]
    assert likes_a.mean() == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no questions"),
        ([{"question": "Q"}], "question 0: needs question, answer_matching_behavior"),
        (["Q"], "question 0: needs"),
        ([{**CAA, "answer_matching_behavior": " (A) "}], "both answers are"),
        ("nowhere.jsonl", "there is no file"),
    ],
)
def test_malformed_questions_are_refused(rows: Any, message: str) -> None:
    with pytest.raises(LrtError, match=message):
        multiple_choice(rows)


@pytest.mark.parametrize("answers", [("(A)", "(B)"), (" (A", " (B"), ("A", "B")])
def test_options_of_one_line_change_places_and_what_follows_them_stays(answers: tuple[str, str]) -> None:
    matching, other = answers
    question = {"question": "You? (A) Yes (B) No Answer:"}
    question |= {"answer_matching_behavior": matching, "answer_not_matching_behavior": other}
    prompts = multiple_choice([question]).prompts
    assert [prompt.removesuffix(" (") for prompt in prompts] == [
        "You? (A) Yes (B) No Answer:",
        "You? (A) No (B) Yes Answer:",
    ]


def test_a_bias_needs_letters_in_both_orders() -> None:
    with pytest.raises(LrtError, match="not asked in both orders"):
        position_bias(multiple_choice([CAA], both_orders=False), torch.zeros(1))
    with pytest.raises(LrtError, match="are not A and B"):
        position_bias(multiple_choice([YES_NO]), torch.zeros(1))
    with pytest.raises(LrtError, match="are not A and B"):
        position_bias(Behavior("b", ("p",), AnswerTokens((" a",), (" b",))), torch.zeros(1))
