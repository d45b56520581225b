"""What is measured: prompts, and a score of what the model would say after each."""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.questions import is_question, read_questions
from lrt_tl.evaluation.scores import AnswerTokens as AnswerTokens
from lrt_tl.evaluation.scores import Continuations as Continuations
from lrt_tl.evaluation.scores import PromptAnswers as PromptAnswers
from lrt_tl.evaluation.scores import Reading as Reading
from lrt_tl.evaluation.scores import Scorer as Scorer
from lrt_tl.evaluation.written import WrittenText as WrittenText
from lrt_tl.steering.contrast import read_contrast_pairs
from lrt_tl.tables import few, html_table
from lrt_tl.text.batches import tokenize
from lrt_tl.text.documents import no_file, parse_json_line, read_json, read_lines


@dataclass(frozen=True)
class Behavior:
    """Prompts, and how what the model says after each is scored. Higher means more of the behavior.

    Attributes:
        score: `AnswerTokens` and `PromptAnswers` score the next token, and so does a function of its logits;
            `Continuations` the probability of given texts; `WrittenText` what the model writes.
        instruction: text that asks for the behavior, for a model that is prompted and not steered.

    Raises:
        LrtError: there is no prompt, or one is empty; or the instruction is; `PromptAnswers` or `Continuations` are not
            one a prompt; or the score is no score.

    Examples:
        >>> import lrt_tl as lrt
        >>> answers = lrt.AnswerTokens(positive=(" happy", " glad"), negative=(" sad", " lonely"))
        >>> mood = lrt.Behavior("mood", ("She felt very", "He felt", "They felt very", "I felt"), answers)
        >>> choosing, scoring = mood.split()  # one half to choose a coefficient on, the other to score it on
        >>> len(choosing.prompts), len(scoring.prompts)
        (2, 2)
        >>> mood.after("The sun shone.").prompts[0]
        'The sun shone. She felt very'
    """

    name: str
    prompts: tuple[str, ...]
    score: AnswerTokens | PromptAnswers | Continuations | WrittenText | Scorer
    instruction: str | None = None

    def __post_init__(self) -> None:
        if not self.prompts or not all(isinstance(prompt, str) and prompt.strip() for prompt in self.prompts):
            raise LrtError(f"behavior {self.name!r} needs prompts, all of them text: {list(self.prompts)[:3]}")
        if self.instruction is not None and not (isinstance(self.instruction, str) and self.instruction.strip()):
            raise LrtError(f"the instruction of {self.name!r} must be text, or left out: {self.instruction!r}")
        if isinstance(self.score, PromptAnswers):
            counts = {len(self.prompts), len(self.score.positive), len(self.score.negative)}
            if len(counts) > 1:
                raise LrtError(f"behavior {self.name!r} needs one positive and one negative answer a prompt: {counts}")
        elif isinstance(self.score, Continuations):
            counts = {len(self.prompts), *map(len, self.score.sides)}
            if len(counts) > 1:
                raise LrtError(f"behavior {self.name!r} needs one continuation a prompt, on each side: {counts}")
        elif not isinstance(self.score, (AnswerTokens, WrittenText)) and not callable(self.score):
            raise LrtError(f"behavior {self.name!r} cannot be scored by a {type(self.score).__name__}")

    def __repr__(self) -> str:
        return f"Behavior({self.name}, {len(self.prompts)} prompts, {self.score!r})"

    def _repr_html_(self) -> str:
        asked = {} if self.instruction is None else {"instruction": self.instruction}
        rows = {"prompts": f"{len(self.prompts)}: {few(self.prompts)}", "score": repr(self.score), **asked}
        return html_table(rows, caption=self.name)

    def scorer(self, tokenizer: Any) -> Callable[..., Any]:
        """What gives the score, for one tokenizer: a function of next-token logits, of the continuations'
        log-probabilities, or, of written texts, their judge.

        Raises:
            LrtError: an answer or a continuation cannot be scored with this tokenizer.
        """
        if isinstance(self.score, WrittenText):
            return self.score.judge
        return self.reading(tokenizer, tokenize(tokenizer, self.prompts, prepend_bos=False)).score

    def reading(self, tokenizer: Any, rows: list[list[int]]) -> Reading:
        """What the model is to read so that it can be scored: of every score but that of written texts.

        Args:
            rows: the tokens of the prompts.

        Raises:
            LrtError: as of `scorer`, or there is nothing to read, but to write.
        """
        if isinstance(self.score, WrittenText):
            raise LrtError(f"{self.name!r} is scored on what the model writes, not on its logits")
        if isinstance(self.score, Continuations):
            return self.score.reading(tokenizer, self.prompts, rows)
        if isinstance(self.score, (AnswerTokens, PromptAnswers)):
            return Reading(rows, self.score.scorer(tokenizer))
        return Reading(rows, self.score)

    def halves(self, seed: int = 0) -> tuple[list[int], list[int]]:
        """The prompts' numbers in two halves, at random: one to choose a coefficient or a layer on, and one to score
        the choice on. Prompts that are made of the same letters stay together, and so does a question in both orders.
        Of a single prompt or question nothing is left to choose on.
        """
        together = defaultdict(list)
        for number, prompt in enumerate(self.prompts):
            together["".join(sorted(prompt))].append(number)
        groups = list(together.values())
        random.Random(f"split {seed}").shuffle(groups)
        scoring, choosing = list[int](), list[int]()
        for group in groups:
            min(scoring, choosing, key=len).extend(group)
        return sorted(choosing), sorted(scoring)

    def split(self, seed: int = 0) -> tuple["Behavior", "Behavior"]:
        """The behavior with one half of the prompts, to choose on, and with the other, to score on: see `halves`. A
        function of logits is then called on those of one half.

        Raises:
            LrtError: there are not two prompts that may be parted.
        """
        choosing, scoring = self.halves(seed)
        if not choosing:
            raise LrtError(f"{self.name!r} cannot be split: it has 1 prompt or question; give two or more")
        return self._of(choosing), self._of(scoring)

    def after(self, text: str) -> "Behavior":
        """The same with a text in front of every prompt, and a space between, if the text does not end in one.

        Raises:
            LrtError: the text is empty.
        """
        if not text.strip():
            raise LrtError(f"there is no text to put in front of the prompts of {self.name!r}")
        space = "" if text[-1].isspace() else " "
        return replace(self, prompts=tuple(f"{text}{space}{prompt}" for prompt in self.prompts))

    def _of(self, numbers: Sequence[int]) -> "Behavior":
        """Some of the prompts, with what belongs to each."""
        score = self.score
        if isinstance(score, (PromptAnswers, Continuations)):
            negative = None if score.negative is None else tuple(score.negative[number] for number in numbers)
            score = type(score)(tuple(score.positive[number] for number in numbers), negative)  # type: ignore[arg-type]
        return replace(self, prompts=tuple(self.prompts[number] for number in numbers), score=score)


def read_behavior(source: Any) -> Behavior:
    """A behavior from a file or a mapping.

    Args:
        source: a `.json` file or a mapping of `{"name", "prompts", "positive_tokens", "negative_tokens"}` or of
            `{"name", "prompts", "positive_continuations", "negative_continuations"}`, these one a prompt, the negative
            ones optional; `"name"` and `"instruction"` are optional too. Or multiple-choice questions, as a `.jsonl`
            file, a `.json` list or mappings: see `multiple_choice`.

    Raises:
        LrtError: the file does not exist, is not JSON, or a key is missing or not a list of strings.

    Examples:
        >>> import lrt_tl as lrt
        >>> held = {"prompts": ["She felt very"], "positive_tokens": [" glad"], "negative_tokens": [" sad"]}
        >>> behavior = lrt.read_behavior(held)  # or the path of a .json file that holds this
        >>> behavior.score
        AnswerTokens(' glad'; against ' sad')
    """
    if isinstance(source, Behavior):
        return source
    held, where = source, "behavior"
    if isinstance(source, (str, Path)):
        if Path(source).suffix not in (".json", ".jsonl"):
            raise LrtError(
                f"{source}: a behavior is a .json file with prompts, positive_tokens and negative_tokens (or "
                "positive_continuations and negative_continuations), or questions in a .json or .jsonl file"
            )
        held, where = _held(Path(source)), str(source)
    if isinstance(held, (list, tuple)) and held:
        if isinstance(held[0], Mapping) and not is_question(held[0]) and "prompts" in held[0]:
            raise LrtError(
                f"{where}: a list or a .jsonl file holds questions, each with question, answer_matching_behavior and "
                "answer_not_matching_behavior; prompts with positive_tokens are one mapping, in a .json file"
            )
        prompts, *answers = read_questions(source, both_orders=True)
        name = Path(source).stem if isinstance(source, (str, Path)) else "multiple choice"
        return Behavior(name, prompts, PromptAnswers(*answers))
    if not isinstance(held, dict):
        raise LrtError(f"{where} must be a mapping, not {type(held).__name__}; or a list of questions")
    return _of_mapping(held, where)


def texts_of(*sources: Any) -> list[str]:
    """The texts of contrast pairs, and of behaviors the prompts, the continuations and the instruction: what a fit
    should `exclude`, so that the map is not fitted on what it is tried on.

    Args:
        sources: whatever `read_contrast_pairs` and `read_behavior` take; a file that holds a mapping is a behavior, and
            questions count as both.

    Raises:
        LrtError: a source is neither.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> pairs, behavior = storyworld.contrast_pairs("refusal", 8), storyworld.behavior("refusal", 8)
        >>> tried_on = lrt.texts_of(pairs, behavior)  # both sides of 8 pairs, and 8 prompts
        >>> len(tried_on)
        24
    """
    texts: list[str] = []
    for source in sources:
        is_file = isinstance(source, (str, Path)) and Path(source).suffix in (".json", ".jsonl")
        held = _held(Path(source)) if is_file else source
        is_behavior = isinstance(held, (dict, Behavior))
        if is_behavior or (isinstance(held, (list, tuple)) and held and is_question(held[0])):
            texts += _tried_on(read_behavior(source))
        if not is_behavior:
            texts += [text for pair in read_contrast_pairs(source) for text in (pair.positive, pair.negative)]
    return texts


def check_scores(scores: Tensor, n_prompts: int, behavior: Behavior) -> Float[Tensor, "prompt"]:
    """What a scorer returned, as float64.

    Raises:
        LrtError: not one finite number a prompt.
    """
    if not isinstance(scores, Tensor) or scores.shape != (n_prompts,):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise LrtError(f"the scorer of {behavior.name!r} returned {shape} for {n_prompts} prompts: one number each")
    if not torch.isfinite(scores).all():
        raise LrtError(f"the scorer of {behavior.name!r} returned NaN or infinity")
    return scores.cpu().double()


def score_of(behavior: Behavior, score: Callable[[Tensor], Tensor], kept: Tensor) -> Float[Tensor, "prompt"]:
    """The scores of one dose.

    Raises:
        LrtError: the scorer fails, or does not give one finite number a prompt.
    """
    try:
        scores = score(kept)
    except Exception as error:
        raise LrtError(f"the scorer of {behavior.name!r} failed: {error or type(error).__name__}") from error
    return check_scores(scores, len(behavior.prompts), behavior)


def _held(path: Path) -> Any:
    """What a file holds: the mapping or list of a `.json` file, the lines of a `.jsonl` file."""
    if path.suffix == ".json":
        return read_json(path)
    if not path.is_file():
        raise no_file(path)
    return [parse_json_line(path, number, line) for number, line in read_lines(path)]


def _of_mapping(source: Mapping[str, Any], where: str) -> Behavior:
    name, prompts = str(source.get("name", "behavior")), _strings(source, "prompts", where)
    score: AnswerTokens | Continuations
    if "positive_continuations" in source:
        if "positive_tokens" in source:
            raise LrtError(f"{where} has both positive_tokens and positive_continuations: it is scored on one of them")
        negative = _strings(source, "negative_continuations", where) if "negative_continuations" in source else None
        score = Continuations(_strings(source, "positive_continuations", where), negative)
    else:
        score = AnswerTokens(*(_strings(source, key, where) for key in ("positive_tokens", "negative_tokens")))
    return Behavior(name, prompts, score, source.get("instruction"))


def _tried_on(behavior: Behavior) -> list[str]:
    texts = list(behavior.prompts)
    if isinstance(behavior.score, Continuations):
        for side in behavior.score.sides:
            texts += side
            texts += [prompt + text for prompt, text in zip(behavior.prompts, side, strict=True)]
    return texts if behavior.instruction is None else [*texts, behavior.instruction]


def _strings(source: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    if key not in source:
        raise LrtError(f"{where}: {key!r} is missing; it has {sorted(map(str, source))}")
    value = source[key]
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise LrtError(f"{where}: {key!r} must be a list of strings that is not empty")
    return tuple(value)
