"""What one forward pass is looking at: which columns are text, which tokens, and whether the model wrote them."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lrt_tl.errors import LrtError


@dataclass(eq=False)
class Text:
    """The rows that a model is at work on: a prompt and what continues it, over as many forward passes as that takes.

    Attributes:
        prompt_columns: leading columns that are the prompt, padding included.
        tokens: of all columns so far `[row, column]`, where they are known.
        known: whatever was found out about the prompt once, such as where a substring ends in each row.
        from_its_start: False where the first pass that was seen went on from a KV cache, so that what is the prompt is
            a guess.
    """

    prompt_columns: int
    tokens: Tensor | None = None
    from_its_start: bool = True
    known: dict[Any, Any] = field(default_factory=dict)

    def extend(self, tokens: Tensor | None, *, past: int) -> None:
        """After the first `past` columns come these; None where the model was given embeddings."""
        before, self.tokens = self.tokens, None
        if tokens is not None and not past:
            self.tokens = tokens
        elif tokens is not None and before is not None and before.shape[1] >= past and len(before) == len(tokens):
            self.tokens = torch.cat([before[:, :past], tokens], dim=1)


@dataclass(frozen=True, eq=False)
class Call:
    """The columns of one forward pass.

    Attributes:
        rows: number of texts.
        n_positions: columns of this pass, the last ones of the text.
        past: columns before them, in the KV cache.
        text_columns: True at text, False at padding, cached columns included; None where all of it is text.
        prompt_columns: how many of all columns are the prompt.
        text: the same object in all passes over one prompt and its continuation.
    """

    rows: int
    n_positions: int
    past: int
    text_columns: Bool[Tensor, "row column"] | None
    prompt_columns: int
    text: Text
    device: Any = None

    @cached_property
    def _columns(self) -> Bool[Tensor, "row column"]:
        if self.text_columns is not None:
            return self.text_columns
        return torch.ones(self.rows, self.past + self.n_positions, dtype=torch.bool, device=self.device)

    @cached_property
    def mask(self) -> Bool[Tensor, "row position"]:
        """True at text, False at padding."""
        return self._columns[:, self.past :]

    @cached_property
    def index(self) -> Int[Tensor, "row position"]:
        """Place in the row's own text: 0 at its first token, wherever padding and the KV cache have put it."""
        return (self._columns.long().cumsum(1) - 1).clamp(min=0)[:, self.past :]

    @cached_property
    def generated(self) -> Bool[Tensor, "row position"]:
        """True where the model wrote the token: inside `generate`, all that comes after the prompt; outside, what
        continues a KV cache."""
        columns = torch.arange(self.past, self.past + self.n_positions, device=self._columns.device)
        return (columns >= self.prompt_columns).expand(self.rows, -1)

    @cached_property
    def prompt_length(self) -> Int[Tensor, "row"]:
        """Tokens of each row's own prompt."""
        return self._columns[:, : self.prompt_columns].sum(1)

    @cached_property
    def tokens(self) -> Int[Tensor, "row position"]:
        """Token ids.

        Raises:
            LrtError: the model was given embeddings or states, and its tokens are not known.
        """
        return self._all_tokens()[:, self.past :].to(self._columns.device)

    def prompts(self) -> list[list[int]]:
        """Token ids of each row's prompt, without padding.

        Raises:
            LrtError: as of `tokens`.
        """
        ids = self._all_tokens()[:, : self.prompt_columns].cpu()
        mask = self._columns[:, : self.prompt_columns].cpu()
        return [row[text].tolist() for row, text in zip(ids, mask, strict=True)]

    def whole(self) -> tuple[Int[Tensor, "row column"], Bool[Tensor, "row column"]] | None:
        """Tokens and mask of all columns, cached ones included, where they are known."""
        ids = self.text.tokens
        return None if ids is None or ids.shape != self._columns.shape else (ids, self._columns)

    def _all_tokens(self) -> Tensor:
        whole = self.whole()
        if whole is None:
            raise LrtError(
                "the tokens of this call are not known: it began with embeddings, inside the model, or from a KV cache "
                "that was filled before; choose positions that need no tokens"
            )
        return whole[0]


def call_from_mask(
    mask: Bool[Tensor, "row column"],
    *,
    n_positions: int,
    prompt_length: int | None = None,
    tokens: Int[Tensor, "row column"] | None = None,
) -> Call:
    """The last `n_positions` columns of a batch whose mask covers all columns, cached ones included.

    Args:
        prompt_length: the number of leading columns that are the prompt; by default all that this pass or the one that
            filled the cache began with.
        tokens: of all columns, for positions that are chosen by them.
    """
    rows, columns = mask.shape
    past = columns - n_positions
    boundary = prompt_length if prompt_length is not None else (past if past > 0 else columns)
    return Call(rows, n_positions, past, mask, boundary, Text(boundary, tokens), mask.device)
