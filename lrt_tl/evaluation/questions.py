"""Multiple-choice questions as text: the formats they come in, and (A) and (B) in both orders."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from lrt_tl.errors import LrtError
from lrt_tl.text.documents import no_file, parse_json_line, read_json, read_lines

_OPTIONS = re.compile(r"(?P<head>.*?)\(A\)(?P<a>.*?)\(B\)(?P<b>.*)", flags=re.DOTALL)


@dataclass(frozen=True)
class Question:
    """A question that ends where the answer begins, and its two answers."""

    prompt: str
    matching: str
    not_matching: str


def read_questions(source: Any, *, both_orders: bool) -> tuple[tuple[str, ...], ...]:
    """Prompts, the answers to them that match, and those that do not.

    What both answers begin with, such as " (", goes to the prompt; what is left, such as "A" and "B", is the answer.

    Args:
        source: as of `multiple_choice`.
        both_orders: ask questions with options (A) and (B) a second time, just after the first.

    Raises:
        LrtError: no question, a malformed one (says which), or answers that do not differ.
    """
    questions = [_question(row, where) for where, row in _rows(source)]
    if not questions:
        raise LrtError(f"there are no questions in {source!r:.60}")
    asked: list[Question] = []
    for question in questions:
        asked.append(question)
        if both_orders and (swapped := _swapped(question)) is not None:
            asked.append(swapped)
    return tuple(zip(*map(_split, asked), strict=True))


def is_question(row: Any) -> bool:
    """Whether a line or an entry means to be a question."""
    return isinstance(row, Mapping) and "question" in row


def _rows(source: Any) -> Iterable[tuple[str, Any]]:
    if not isinstance(source, (str, Path)):
        return [(f"question {number}", row) for number, row in enumerate(source)]
    path = Path(source)
    if not path.is_file():
        raise no_file(path)
    if path.suffix == ".jsonl":
        return [(f"{path.name}, line {n}", parse_json_line(path, n, line)) for n, line in read_lines(path)]
    rows = read_json(path)
    if not isinstance(rows, list):
        raise LrtError(f"{path.name} must hold a list of questions, not a {type(rows).__name__}")
    return [(f"{path.name}, entry {number}", row) for number, row in enumerate(rows)]


def _question(row: Any, where: str) -> Question:
    keys = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
    values: list[Any] = [row.get(key) for key in keys] if isinstance(row, Mapping) else []
    if not values or not all(isinstance(value, str) and value.strip() for value in values):
        raise LrtError(f"{where}: needs {', '.join(keys)}, all of them text")
    if values[1].strip() == values[2].strip():
        raise LrtError(f"{where}: both answers are {values[1]!r}")
    return Question(*values)


def _swapped(question: Question) -> Question | None:
    """The question with its two options in each other's place; None where it does not say what (A) and (B) are."""
    letters = {answer.strip(" ()") for answer in (question.matching, question.not_matching)}
    match = _OPTIONS.fullmatch(question.prompt)
    if letters != {"A", "B"} or match is None:
        return None
    first, second = match["a"], match["b"]
    one, other = _core(first), _core(second)
    if not one or not other:
        return None
    prompt = f"{match['head']}(A){first.replace(one, other, 1)}(B){second.replace(other, one, 1)}"
    return Question(prompt, question.not_matching, question.matching)


def _core(option: str) -> str:
    """The words of an option, of its first line, without the space around them and an "Answer:" that follows them."""
    return re.split(r"\n|\sAnswer:$", option.strip(), maxsplit=1)[0].strip()


def _split(question: Question) -> tuple[str, str, str]:
    """Prompt and answers, with what both answers begin and end with in the prompt, or left out."""
    one, other = (f" {answer.strip()}" for answer in (question.matching, question.not_matching))
    shared = one[: _common(one, other)]
    if shared.strip():
        one, other = one[len(shared) :], other[len(shared) :]
    else:
        shared = ""
    tail = _common(one[::-1], other[::-1])
    if 0 < tail < min(len(one), len(other)):
        one, other = one[:-tail], other[:-tail]
    return question.prompt.rstrip() + shared, one, other


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
