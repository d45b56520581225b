"""What steering costs in capability: questions with several choices, answered plain and steered."""

import html
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.intervals import mcnemar, paired_difference, wilson
from lrt_tl.evaluation.likelihood import encode_pairs, log_likelihoods
from lrt_tl.models.protocol import HookedModel
from lrt_tl.report.style import OTHERS, layout
from lrt_tl.steering.handle import require_at_rest
from lrt_tl.steering.steering import Steering
from lrt_tl.tables import html_columns
from lrt_tl.text.documents import read_rows

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question, what may follow it, and the place of what is right.

    Raises:
        LrtError: a text is empty, there are fewer than two choices or equal ones, or no choice stands at `answer`.

    Examples:
        >>> import lrt_tl as lrt
        >>> question = lrt.ChoiceQuestion("The capital of Norvia is", ("Tarn", "Belmar"), answer=1)
        >>> question.choices[question.answer]
        'Belmar'
    """

    question: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        texts = (self.question, *self.choices)
        if not all(text.strip() for text in texts):
            raise LrtError(f"the question or a choice is empty: {texts}")
        if len(self.choices) < 2 or len({choice.strip() for choice in self.choices}) < len(self.choices):
            raise LrtError(f"a question needs two choices or more, all different: {self.choices}")
        if not 0 <= self.answer < len(self.choices):
            raise LrtError(f"answer {self.answer}: there are {len(self.choices)} choices, counted from 0")


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers with its 95 % interval (Wilson's)."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.1%} [{self.low:.1%}, {self.high:.1%}]"


@dataclass(frozen=True)
class AccuracyChange:
    """A difference of two accuracies on the same questions, with its 95 % interval (Newcombe's, for pairs).

    Attributes:
        p: of as uneven a split of the questions that only one of the two gets right, were both as good (McNemar's exact
            test).
    """

    estimate: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        return f"{self.estimate:+.1%} [{self.low:+.1%}, {self.high:+.1%}], p = {self.p:.2g}"


@dataclass(frozen=True, eq=False)
class Capability:
    """Which questions are answered right, by the name of the steering; `"plain"` is the model without any.

    Attributes:
        acc: where the right choice has the highest log-probability.
        acc_norm: where it has the highest log-probability per character of the choice. Both are named as in lm-eval.
        chance: accuracy of guessing.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> found = lrt.capability(storyworld.load("large"), {}, storyworld.fact_questions(20))
        >>> found
        Capability(20 questions, chance 25%: plain 100.0%)
        >>> found.n_questions, found.chance, int(found.acc["plain"].sum())
        (20, 0.25, 20)
    """

    acc: Mapping[str, Bool[Tensor, "question"]]
    acc_norm: Mapping[str, Bool[Tensor, "question"]]
    chance: float

    @property
    def n_questions(self) -> int:
        """How many were asked."""
        return len(self.acc["plain"])

    def accuracy(self, name: str, *, normalized: bool = False) -> Accuracy:
        """Share of right answers, by log-probability or by that per character."""
        right = self._right(normalized)[name]
        return Accuracy(float(right.double().mean()), *wilson(int(right.sum()), len(right)))

    def change(self, name: str, since: str = "plain", *, normalized: bool = False) -> AccuracyChange:
        """Accuracy of one steering less that of another, paired by question: `change("transferred", "native")` is what
        transfer costs beyond native steering."""
        here, there = self._right(normalized)[name], self._right(normalized)[since]
        gained, lost = int((here & ~there).sum()), int((there & ~here).sum())
        both, neither = int((here & there).sum()), int((~here & ~there).sum())
        low, high = paired_difference(both, gained, lost, neither)
        return AccuracyChange((gained - lost) / len(here), low, high, mcnemar(gained, lost))

    def _right(self, normalized: bool) -> Mapping[str, Bool[Tensor, "question"]]:
        return self.acc_norm if normalized else self.acc

    def rows(self) -> list[Mapping[str, str]]:
        """For a table, a row a steering."""
        return [
            {
                "steering": name,
                "accuracy": str(self.accuracy(name)),
                "change": "" if name == "plain" else str(self.change(name)),
                "accuracy by length": str(self.accuracy(name, normalized=True)),
                "change by length": "" if name == "plain" else str(self.change(name, normalized=True)),
            }
            for name in self.acc
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        measures = {"acc": False, "acc_norm": True}
        return {
            "questions": self.n_questions,
            "chance": self.chance,
            "steering": {
                name: {key: vars(self.accuracy(name, normalized=by_length)) for key, by_length in measures.items()}
                | {
                    f"{key}_change": vars(self.change(name, normalized=by_length))
                    for key, by_length in measures.items()
                }
                for name in self.acc
            },
        }

    def figure(self) -> "Figure":
        """Accuracies with their intervals, a row a steering, beside chance."""
        from plotly.graph_objects import Figure, Scatter

        figure = Figure()
        for label, normalized, color in (("accuracy", False, OTHERS[0]), ("by length", True, OTHERS[1])):
            found = [self.accuracy(name, normalized=normalized) for name in self.acc]
            figure.add_trace(
                Scatter(
                    x=[each.estimate for each in found],
                    y=[html.escape(name) for name in self.acc],
                    error_x={
                        "type": "data",
                        "symmetric": False,
                        "array": [each.high - each.estimate for each in found],
                        "arrayminus": [each.estimate - each.low for each in found],
                    },
                    mode="markers",
                    marker={"size": 10, "color": color, "symbol": "diamond-open" if normalized else "circle"},
                    name=label,
                )
            )
        figure.add_vline(x=self.chance, line={"dash": "dot", "color": "#7f7f7f"}, annotation_text="chance")
        figure.update_xaxes(title="share of questions answered right", tickformat=".0%", range=[0, 1.02])
        figure.update_yaxes(autorange="reversed")
        return figure.update_layout(
            layout(height=190 + 44 * len(self.acc), margin={"l": 60, "r": 20, "t": 50, "b": 90})
        )

    def __repr__(self) -> str:
        found = "; ".join(f"{name} {self.accuracy(name).estimate:.1%}" for name in self.acc)
        return f"Capability({self.n_questions} questions, chance {self.chance:.0%}: {found})"

    def _repr_html_(self) -> str:
        return html_columns(self.rows())


def read_questions(source: Any) -> list[ChoiceQuestion]:
    """Questions from a `.jsonl` file, a `.json` list, or mappings, as MMLU and its like are exported:
    `{"question": "…", "choices": ["…", "…"], "answer": 1}`; the answer is counted from 0, or a letter from "A".

    Raises:
        LrtError: there is no question, or a malformed one: names file and line.

    Examples:
        >>> import lrt_tl as lrt
        >>> lrt.read_questions([{"question": "A cow makes the sound", "choices": ["moo", "buzz"], "answer": "A"}])
        [ChoiceQuestion(question='A cow makes the sound', choices=('moo', 'buzz'), answer=0)]
    """
    questions = [_question(row, where) for where, row in read_rows(source, "question")]
    if not questions:
        raise LrtError(f"there are no questions in {source!r:.60}")
    return questions


def _question(row: Any, where: str) -> ChoiceQuestion:
    if isinstance(row, ChoiceQuestion):
        return row
    keys = ("question", "choices", "answer")
    if not isinstance(row, Mapping) or not all(key in row for key in keys):
        raise LrtError(f"{where}: needs {', '.join(keys)}")
    question, choices, answer = (row[key] for key in keys)
    texts = [question, *choices] if isinstance(choices, Sequence) and not isinstance(choices, str) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise LrtError(f"{where}: the question must be a text and the choices a list of texts")
    if isinstance(answer, str) and len(answer) == 1 and answer in _LETTERS:
        answer = _LETTERS.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise LrtError(f"{where}: answer {answer!r} is neither a number from 0 nor a letter from A")
    try:
        return ChoiceQuestion(question, tuple(choices), answer)
    except LrtError as error:
        raise LrtError(f"{where}: {error}") from error


def capability(
    target: HookedModel,
    steering: Mapping[str, Steering],
    questions: Any,
    *,
    batch_size: int = 64,
    prepend_bos: bool = True,
) -> Capability:
    """Ask the plain model and each steering by name: give native and transferred alike, at the coefficients that are
    used.

    Every choice follows the question after a space, and the answer is the one that is most likely there.

    Args:
        questions: whatever `read_questions` takes, or `lrt_tl.storyworld.fact_questions()`.
        batch_size: rows in a forward pass; choices of one token share their question's.

    Raises:
        LrtError: a malformed question, or one longer than the model reads; a steering is named "plain"; or the model is
            being steered.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> large = storyworld.load("large")
        >>> vector = lrt.mean_difference(large, storyworld.contrast_pairs("refusal", 8), layer=5)
        >>> found = lrt.capability(large, {"refusal": vector.add(8.0)}, storyworld.fact_questions(20))
        >>> found.accuracy("plain").estimate, found.n_questions
        (1.0, 20)
        >>> found.change("refusal").estimate < -0.2  # so strong a steering costs right answers
        True
    """
    require_at_rest(target)
    if "plain" in steering:
        raise LrtError("a steering cannot be named 'plain': that is the model without any")
    asked = read_questions(questions)
    contexts, choices = zip(*((each.question.rstrip(), each.choices) for each in asked), strict=True)
    pairs = encode_pairs(
        target.tokenizer,
        [context for context, some in zip(contexts, choices, strict=True) for _ in some],
        [f" {choice.strip()}" for some in choices for choice in some],
        prepend_bos=prepend_bos,
    )
    arms: dict[str, Steering | None] = {"plain": None, **steering}
    right: dict[str, list[tuple[bool, bool]]] = {}
    for name, each in arms.items():
        with nullcontext() if each is None else each.apply(target):
            likely = iter([value for value, _ in log_likelihoods(target, pairs, batch_size=batch_size)])
        right[name] = [_is_right(question, [next(likely) for _ in question.choices]) for question in asked]
    acc, acc_norm = ({name: torch.tensor(both)[:, place] for name, both in right.items()} for place in (0, 1))
    return Capability(acc, acc_norm, sum(1 / len(some) for some in choices) / len(asked))


def _is_right(question: ChoiceQuestion, likely: list[float]) -> tuple[bool, bool]:
    """By log-probability, and by that per character; the first of equals is the answer."""
    by_length = [value / len(choice.strip()) for value, choice in zip(likely, question.choices, strict=True)]
    total, mean = (max(range(len(some)), key=some.__getitem__) == question.answer for some in (likely, by_length))
    return total, mean
