"""Accuracy on questions with choices, against one text at a time."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.capability import Capability, ChoiceQuestion, capability, read_questions
from lrt_tl.evaluation.intervals import mcnemar, paired_difference, wilson
from lrt_tl.evaluation.likelihood import encode_pairs, log_likelihoods
from lrt_tl.models.identity import site_of
from lrt_tl.steering.vector import SteeringVector

QUESTIONS = [
    ChoiceQuestion("word1 word2", ("word3", "word4 word5 word6", "word7"), 0),
    ChoiceQuestion("word8 ", ("word9 word10", " word11"), 1),
    *(ChoiceQuestion(f"word{i}", tuple(f"word{j}" for j in range(i + 1, i + 5)), i % 4) for i in range(12, 30)),
]


def some_vector(model: Any) -> SteeringVector:
    direction = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(3))
    return SteeringVector(direction, site_of(model, layer=1))


@torch.no_grad()
def by_hand(model: Any, question: ChoiceQuestion) -> tuple[bool, bool]:
    scores = []
    for choice in question.choices:
        n_context = 1 + len(question.question.split())
        ids = [1, *model.tokenizer(f"{question.question} {choice}", add_special_tokens=False)["input_ids"]]
        after = model(torch.tensor([ids]))[0].double().log_softmax(-1)
        scores.append(sum(float(after[place - 1, ids[place]]) for place in range(n_context, len(ids))))
    by_length = [score / len(choice.strip()) for score, choice in zip(scores, question.choices, strict=True)]
    return scores.index(max(scores)) == question.answer, by_length.index(max(by_length)) == question.answer


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_each_answer_against_a_loop(pair: Any, batch_size: int) -> None:
    model = pair[1]
    steering = some_vector(model).add(3.0)
    found = capability(model, {"native": steering}, QUESTIONS, batch_size=batch_size)
    plain = [by_hand(model, question) for question in QUESTIONS]
    with steering.apply(model):
        steered = [by_hand(model, question) for question in QUESTIONS]
    for name, expected in (("plain", plain), ("native", steered)):
        assert list(zip(found.acc[name].tolist(), found.acc_norm[name].tolist(), strict=True)) == expected
    assert found.acc["plain"].tolist() != found.acc["native"].tolist()
    assert found.chance == pytest.approx((1 / 3 + 1 / 2 + 18 / 4) / 20)


@torch.no_grad()
def test_log_likelihoods_of_pairs_that_share_a_row(bridges: Any) -> None:
    model = bridges[1]
    contexts, continuations = ["word1 word2"] * 3 + ["word5"], [" word3", " word4", " word3 word6", " word7"]
    pairs = encode_pairs(model.tokenizer, contexts, continuations)
    rows: list[int] = []
    found = log_likelihoods(_counting(model, rows), pairs)
    assert sum(rows) == 3
    for (context, continuation), (likely, greedy) in zip(pairs, found, strict=True):
        after = model(torch.tensor([context + continuation]))[0, len(context) - 1 : -1].double().log_softmax(-1)
        assert likely == pytest.approx(float(sum(after[i, token] for i, token in enumerate(continuation))), abs=1e-4)
        assert greedy == (after.argmax(-1).tolist() == continuation)
    best = int(model(torch.tensor([pairs[0][0]]))[0, -1].argmax())
    assert log_likelihoods(model, [(pairs[0][0], [best])])[0][1]


def _counting(model: Any, rows: list[int]) -> Any:
    """The model, which notes how many rows it is given."""

    class Counted:
        cfg, tokenizer, blocks, W_E, hook_dict = model.cfg, model.tokenizer, model.blocks, model.W_E, model.hook_dict
        generate = model.generate

        def __call__(self, tokens: torch.Tensor, **options: Any) -> Any:
            rows.append(len(tokens))
            return model(tokens, **options)

    return Counted()


def test_figures_of_known_answers() -> None:
    answers = {"plain": [True] * 30 + [False] * 10, "native": [True] * 24 + [False] * 14 + [True] * 2}
    right = {name: torch.tensor(some) for name, some in answers.items()}
    found = Capability(right, {name: ~some for name, some in right.items()}, 0.25)
    accuracy = found.accuracy("native")
    assert (accuracy.estimate, accuracy.low, accuracy.high) == (0.65, *wilson(26, 40))
    change = found.change("native")
    assert change.estimate == pytest.approx(-0.1)
    assert (change.low, change.high) == paired_difference(24, 2, 6, 8)
    assert change.p == mcnemar(2, 6)
    assert found.change("plain", "native", normalized=True).estimate == pytest.approx(-0.1)
    assert found.accuracy("plain", normalized=True).estimate == 0.25
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["steering"]["native"]["acc"]["estimate"] == 0.65
    assert found.rows()[1]["accuracy"] == "65.0% [49.5%, 77.9%]"
    assert repr(found) == "Capability(40 questions, chance 25%: plain 75.0%; native 65.0%)"
    assert "McNemar" not in found._repr_html_()
    assert "−" not in found.rows()[0]["change"]


def test_names_are_escaped() -> None:
    right = {name: torch.tensor([True, False]) for name in ("plain", "<b>")}
    found = Capability(right, right, 0.5)
    for page in (found._repr_html_(), str(found.figure().to_dict())):
        assert "&lt;b&gt;" in page
        assert "<b>" not in page


def test_questions_from_files(tmp_path: Path) -> None:
    rows = [
        {"question": "one?", "choices": ["a", "b"], "answer": 1, "subject": "counting"},
        {"question": "two?", "choices": ["a", "b", "c"], "answer": "C"},
    ]
    expected = [ChoiceQuestion("one?", ("a", "b"), 1), ChoiceQuestion("two?", ("a", "b", "c"), 2)]
    (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.json").write_text(json.dumps(rows))
    for source in (tmp_path / "task.jsonl", str(tmp_path / "task.json"), rows, expected):
        assert read_questions(source) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "task.jsonl, line 2: not valid JSON"),
        ("[1]", "task.jsonl, line 2: needs question, choices, answer"),
        ('{"question": "q", "choices": ["a", "b"]}', "line 2: needs question, choices, answer"),
        (
            '{"question": "q", "choices": "ab", "answer": 0}',
            "line 2: the question must be a text and the choices a list",
        ),
        (
            '{"question": "q", "choices": ["a", 3], "answer": 0}',
            "line 2: the question must be a text and the choices a list",
        ),
        ('{"question": " ", "choices": ["a", "b"], "answer": 0}', "line 2: the question or a choice is empty"),
        ('{"question": "q", "choices": ["a", "a "], "answer": 0}', "line 2: a question needs two choices or more, all"),
        ('{"question": "q", "choices": ["a"], "answer": 0}', "line 2: a question needs two choices or more"),
        ('{"question": "q", "choices": ["a", "b"], "answer": 2}', "line 2: answer 2: there are 2 choices"),
        ('{"question": "q", "choices": ["a", "b"], "answer": "C"}', "line 2: answer 2: there are 2 choices"),
        ('{"question": "q", "choices": ["a", "b"], "answer": "AB"}', "line 2: answer 'AB' is neither a number"),
        ('{"question": "q", "choices": ["a", "b"], "answer": true}', "line 2: answer True is neither a number"),
    ],
)
def test_malformed_questions_are_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text('{"question": "q", "choices": ["a", "b"], "answer": 0}\n' + line)
    with pytest.raises(LrtError, match=message):
        read_questions(path)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "one.json").write_text("{}")
    for name, message in (
        ("empty.jsonl", "there are no questions"),
        ("missing.jsonl", "there is no file"),
        ("one.json", "must hold a list"),
        ("task.csv", "read from .jsonl and .json files, not '.csv'"),
    ):
        with pytest.raises(LrtError, match=message):
            read_questions(tmp_path / name)


def test_what_cannot_be_asked_is_refused(bridges: Any) -> None:
    model = bridges[1]
    with pytest.raises(LrtError, match="cannot be named 'plain'"):
        capability(model, {"plain": some_vector(model).add()}, QUESTIONS)
    with pytest.raises(LrtError, match="text 1 has 102 tokens, large reads 64"):
        capability(model, {}, [ChoiceQuestion("word1", ("word2", "word3 " * 101), 0)])
    with pytest.raises(LrtError, match="finds no token before its last part"):
        encode_pairs(model.tokenizer, ["word1"], [""])
