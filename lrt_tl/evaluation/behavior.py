"""What is measured: prompts, and a score of what the model would say next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.steering.contrast import read_contrast_pairs
from lrt_tl.text.batches import tokenize
from lrt_tl.text.documents import read_json

Scorer = Callable[[Float[Tensor, "prompt d_vocab"]], Float[Tensor, "prompt"]]
"""The logits after each prompt's last token → a score for each prompt."""


@dataclass(frozen=True)
class AnswerTokens:
    """Answers of one token each. The score is the log-odds of the positive ones:
    logsumexp of their log-probabilities, minus that of the negative ones', in nats."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def scorer(self, tokenizer: Any) -> Scorer:
        """Raises:
        LrtError: an answer is not a single token, is unknown, or is both positive and negative.
        """
        positive = _single_tokens(tokenizer, self.positive)
        negative = _single_tokens(tokenizer, self.negative)
        for side in (positive, negative):
            if len(set(side)) < len(side):
                raise LrtError(f"an answer stands twice among {[tokenizer.decode([token]) for token in side]}")
        if both := set(positive) & set(negative):
            raise LrtError(f"{tokenizer.decode(sorted(both))!r} is both a positive and a negative answer")

        def score(logits: Tensor) -> Tensor:
            return logits[:, positive].logsumexp(-1) - logits[:, negative].logsumexp(-1)

        return score


@dataclass(frozen=True)
class PromptAnswers:
    """Two answers of one token each to every prompt, as the (A) and (B) of a question whose options change places.
    The score is the log-odds of the positive one, in nats."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def scorer(self, tokenizer: Any) -> Scorer:
        """Raises:
        LrtError: an answer is not a single token, is unknown, or is both the positive and the negative one.
        """
        positive, negative = (_single_tokens(tokenizer, side) for side in (self.positive, self.negative))
        for number, (one, other) in enumerate(zip(positive, negative, strict=True)):
            if one == other:
                raise LrtError(f"both answers to prompt {number} are {self.positive[number]!r}")

        def score(logits: Tensor) -> Tensor:
            rows = torch.arange(len(logits))
            return logits[rows, positive] - logits[rows, negative]

        return score


@dataclass(frozen=True)
class Behavior:
    """Prompts, and how the model's next token after each is scored. Higher means more of the behavior.

    Raises:
        LrtError: there is no prompt, or one is empty, or `PromptAnswers` are not one pair a prompt.
    """

    name: str
    prompts: tuple[str, ...]
    score: AnswerTokens | PromptAnswers | Scorer

    def __post_init__(self) -> None:
        if not self.prompts or not all(isinstance(prompt, str) and prompt.strip() for prompt in self.prompts):
            raise LrtError(f"behavior {self.name!r} needs prompts, all of them text: {list(self.prompts)[:3]}")
        if isinstance(self.score, PromptAnswers):
            counts = {len(self.prompts), len(self.score.positive), len(self.score.negative)}
            if len(counts) > 1:
                raise LrtError(f"behavior {self.name!r} needs one positive and one negative answer a prompt: {counts}")

    def scorer(self, tokenizer: Any) -> Scorer:
        """The score as a function of logits, for one tokenizer."""
        return self.score.scorer(tokenizer) if isinstance(self.score, (AnswerTokens, PromptAnswers)) else self.score


def read_behavior(source: Any) -> Behavior:
    """A behavior from a `.json` file or a mapping: `{"name", "prompts", "positive_tokens", "negative_tokens"}`.

    Raises:
        LrtError: the file does not exist, is not JSON, or a key is missing or not a list of strings.
    """
    if isinstance(source, Behavior):
        return source
    where = "behavior"
    if isinstance(source, (str, Path)):
        if Path(source).suffix != ".json":
            raise LrtError(f"{source}: a behavior is a .json file with prompts, positive_tokens and negative_tokens")
        source, where = read_json(Path(source)), str(source)
    if not isinstance(source, dict):
        raise LrtError(f"{where} must be a mapping, not {type(source).__name__}")
    lists = [_strings(source, key, where) for key in ("prompts", "positive_tokens", "negative_tokens")]
    return Behavior(str(source.get("name", "behavior")), lists[0], AnswerTokens(lists[1], lists[2]))


def texts_of(*sources: Any) -> list[str]:
    """The texts of contrast pairs and the prompts of behaviors: what a fit should `exclude`, so that the map is not
    fitted on what it is tried on.

    Args:
        sources: whatever `read_contrast_pairs` and `read_behavior` take; a file that holds a mapping is a behavior.

    Raises:
        LrtError: a source is neither.
    """
    texts: list[str] = []
    for source in sources:
        is_json = isinstance(source, (str, Path)) and Path(source).suffix == ".json"
        held = read_json(Path(source)) if is_json else source
        if isinstance(held, (dict, Behavior)):
            texts += read_behavior(held).prompts
        else:
            texts += [text for pair in read_contrast_pairs(held) for text in (pair.positive, pair.negative)]
    return texts


def _strings(source: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    if key not in source:
        raise LrtError(f"{where}: {key!r} is missing; it has {sorted(map(str, source))}")
    value = source[key]
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise LrtError(f"{where}: {key!r} must be a list of strings that is not empty")
    return tuple(value)


def _single_tokens(tokenizer: Any, answers: Sequence[str]) -> list[int]:
    rows = tokenize(tokenizer, answers, prepend_bos=False)
    for answer, row in zip(answers, rows, strict=True):
        if len(row) != 1:
            pieces = tokenizer.convert_ids_to_tokens(row)
            raise LrtError(
                f"the answer {answer!r} is {len(row)} tokens ({pieces}), not one: answers usually begin with a space, "
                "and rare words cannot be used"
            )
        if row[0] == tokenizer.unk_token_id:
            raise LrtError(f"the answer {answer!r} is unknown to the tokenizer")
    return [row[0] for row in rows]


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
