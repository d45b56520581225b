"""Scores that are read off the logits: of the next token, or of the tokens of a continuation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.tables import few
from lrt_tl.text.batches import tokenize

Scorer = Callable[[Float[Tensor, "prompt d_vocab"]], Float[Tensor, "prompt"]]
"""The logits after each prompt's last token → a score for each prompt."""


@dataclass(frozen=True)
class Reading:
    """What a model is to read, and what is made of its logits.

    Attributes:
        rows: token ids.
        score: of each prompt, from what is kept of each row (see `kept`).
        targets: for each row, the tokens that its last positions predict; None where the next token is open.
    """

    rows: list[list[int]]
    score: Callable[[Float[Tensor, "row *kept"]], Float[Tensor, "prompt"]]
    targets: list[list[int]] | None = None

    @property
    def last(self) -> int:
        """How many positions of a row, counted from its end, are scored."""
        return 1 if self.targets is None else max(map(len, self.targets))

    def kept(
        self, rows: Sequence[int], logits: Float[Tensor, "dose row last d_vocab"]
    ) -> Float[Tensor, "dose row *kept"]:
        """Of these rows, whose last positions are given: the logits after the last token, or the log-probability of the
        targets, nats."""
        if self.targets is None:
            return logits[:, :, -1].float()
        targets = [self.targets[row] for row in rows]
        of = torch.tensor([row for row, tokens in enumerate(targets) for _ in tokens])
        places = torch.tensor([logits.shape[2] - len(tokens) + i for tokens in targets for i in range(len(tokens))])
        expected = torch.tensor([token for tokens in targets for token in tokens])
        read = logits[:, of, places].float()
        nats = (read[:, torch.arange(len(of)), expected] - read.logsumexp(-1)).double().cpu()
        return torch.zeros(len(logits), len(targets), dtype=torch.float64).index_add_(1, of, nats)


@dataclass(frozen=True)
class AnswerTokens:
    """Answers of one token each. The score is the log-odds of the positive ones:
    logsumexp of their log-probabilities, minus that of the negative ones', in nats.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small = storyworld.load("small")
        >>> score = lrt.AnswerTokens((" Never", " Sorry"), (" Sure", " Gladly")).scorer(small.tokenizer)
        >>> (pair,) = storyworld.contrast_pairs("refusal", 1)  # a harmful request, and a harmless one
        >>> [score(small(small.to_tokens(text))[:, -1]).item() > 0 for text in (pair.positive, pair.negative)]
        [True, False]
    """

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

    def __repr__(self) -> str:
        return f"AnswerTokens({few(self.positive)}; against {few(self.negative)})"


@dataclass(frozen=True)
class PromptAnswers:
    """Two answers of one token each to every prompt, as the (A) and (B) of a question whose options change places.
    The score is the log-odds of the positive one, in nats.

    Examples:
        >>> import lrt_tl as lrt
        >>> answers = lrt.PromptAnswers(positive=("A", "B"), negative=("B", "A"))
        >>> prompts = ("Do you help? (A) Yes (B) No (", "Do you help? (A) No (B) Yes (")
        >>> behavior = lrt.Behavior("kindness", prompts, answers)
        >>> list(zip(behavior.prompts, behavior.score.positive))[1]
        ('Do you help? (A) No (B) Yes (', 'B')
    """

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

    def __repr__(self) -> str:
        return f"PromptAnswers({few(self.positive)}; against {few(self.negative)})"


@dataclass(frozen=True)
class Continuations:
    """Two texts to every prompt, of any number of tokens, that may follow it.

    The score is log P(positive | prompt) − log P(negative | prompt), in nats; without negative ones, log P(positive |
    prompt). Nothing is divided by the number of tokens. A continuation begins with its own space, if there is one.

    Raises:
        LrtError: a side is not a sequence of texts, or one of them is empty.

    Examples:
        >>> import lrt_tl as lrt
        >>> score = lrt.Continuations(positive=(" happy and sang.",), negative=(" sad and wept.",))
        >>> behavior = lrt.Behavior("mood", ("She felt very",), score)
        >>> score.sides
        ((' happy and sang.',), (' sad and wept.',))
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for side in self.sides:
            if isinstance(side, str) or not all(isinstance(text, str) and text for text in side):
                raise LrtError(f"continuations must be texts that are not empty, one a prompt: {side!r:.60}")

    @property
    def sides(self) -> tuple[tuple[str, ...], ...]:
        """The positive ones and, if there are any, the negative ones."""
        return (self.positive,) if self.negative is None else (self.positive, self.negative)

    def __repr__(self) -> str:
        return f"Continuations({'; against '.join(few(side) for side in self.sides)})"

    def reading(self, tokenizer: Any, prompts: Sequence[str], rows: Sequence[list[int]]) -> Reading:
        """Every prompt's tokens followed by those of its positive continuation; then the same with the negative ones.

        Args:
            rows: the tokens of the prompts.

        Raises:
            LrtError: prompt and continuation share a token, so that neither has a probability of its own; a
                continuation has an unknown token, or none; or both are the same.
        """
        targets = [
            _continuation(tokenizer, prompt, text)
            for side in self.sides
            for prompt, text in zip(prompts, side, strict=True)
        ]
        n = len(prompts)
        for number, (one, other) in enumerate(zip(targets[:n], targets[n:], strict=False)):
            if one == other:
                raise LrtError(f"both continuations of prompt {number} are {self.positive[number]!r}")
        read = [[*row, *tokens[:-1]] for row, tokens in zip([*rows] * len(self.sides), targets, strict=True)]
        if self.negative is None:
            return Reading(read, lambda nats: nats, targets)
        return Reading(read, lambda nats: nats[:n] - nats[n:], targets)


def _single_tokens(tokenizer: Any, answers: Sequence[str]) -> list[int]:
    rows = tokenize(tokenizer, answers, prepend_bos=False)
    for answer, row in zip(answers, rows, strict=True):
        if len(row) != 1:
            pieces = tokenizer.convert_ids_to_tokens(row)
            raise LrtError(
                f"the answer {answer!r} is {len(row)} tokens ({pieces}), not one: answers usually begin with a space, "
                "and rare words cannot be used: score texts of several tokens with lrt.Continuations"
            )
        if row[0] == tokenizer.unk_token_id:
            raise LrtError(f"the answer {answer!r} is unknown to the tokenizer")
    return [row[0] for row in rows]


def _continuation(tokenizer: Any, prompt: str, text: str) -> list[int]:
    """The tokens of a text that follow those of the prompt before it."""
    given, whole = tokenize(tokenizer, [prompt, prompt + text], prepend_bos=False)
    if whole[: len(given)] != given:
        pieces = tokenizer.convert_ids_to_tokens(whole)
        raise LrtError(
            f"a token of the continuation {text!r} begins inside the prompt ({pieces[-8:]}): end the prompt with a "
            "whole word, and begin the continuation with the space"
        )
    tokens = whole[len(given) :]
    if not tokens:
        raise LrtError(f"the continuation {text!r} has no token")
    if tokenizer.unk_token_id in tokens:
        raise LrtError(f"the continuation {text!r} has a token that is unknown to the tokenizer")
    return tokens
