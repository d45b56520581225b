"""Documents → batches of tokens with explicit masks.

Models are given tokens and a mask, never strings: TransformerLens's two classes pad, prepend and mask strings
differently. Padding is on the right, where no causal model sees it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.text.documents import Document, split_of

Layout = Literal["split", "truncate", "pack"]
"""What to do with the length of documents. `"split"`: a long one becomes several rows, each a text of its own to the
model; `"truncate"`: its end is dropped, and counted; `"pack"`: documents of one split share rows and see each other."""

_BATCHES_SORTED_TOGETHER = 32


@dataclass(frozen=True)
class TokenBatch:
    """Rows of tokens, padded on the right."""

    tokens: Int[Tensor, "row position"]
    mask: Bool[Tensor, "row position"]
    """True at tokens, False at padding."""
    content: Bool[Tensor, "row position"]
    """True at tokens that are text: not padding, not special."""
    names: list[str]
    """The document, or documents, of each row."""
    splits: Int[Tensor, "row"]
    """The split of each row."""


@dataclass(frozen=True)
class _Row:
    ids: list[int]
    name: str
    split: int


@dataclass
class BatchCounts:
    """What the batches were made of."""

    documents: int = 0
    tokens_truncated: int = 0


def tokenize(tokenizer: Any, texts: Sequence[str], *, prepend_bos: bool = True) -> list[list[int]]:
    """Token ids of each text, after the tokenizer's beginning-of-sequence token where it has one.

    The first position serves most models as an attention sink, also those that were trained without such a token, so it
    is better spent on a token that is no text.
    """
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    bos = tokenizer.bos_token_id
    return [[bos, *row] for row in ids] if prepend_bos and bos is not None else ids


def pad(tokenizer: Any, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of token ids → tokens, mask and content, each `[row, position]`, padded on the right."""
    width = max(map(len, rows))
    tokens = torch.tensor([row + [_filler(tokenizer)] * (width - len(row)) for row in rows])
    mask = torch.arange(width) < torch.tensor([[len(row)] for row in rows])
    special = torch.isin(tokens, torch.tensor(sorted(tokenizer.all_special_ids), dtype=torch.long))
    return tokens, mask, mask & ~special


def token_batches(
    tokenizer: Any,
    documents: Iterable[Document],
    *,
    batch_size: int,
    context_length: int,
    layout: Layout = "split",
    prepend_bos: bool = True,
    counts: BatchCounts | None = None,
) -> Iterator[TokenBatch]:
    """Stream documents as batches of at most `batch_size` rows of at most `context_length` tokens.

    Rows are sorted by length within a few batches' worth, so that little is padding.

    Raises:
        LrtError: a document tokenizes to nothing, `context_length` leaves no room for text, or another argument
            cannot be.
    """
    if context_length < 2:
        raise LrtError(f"context_length={context_length} leaves no room for text: it must be at least 2")
    if batch_size < 1:
        raise LrtError(f"batch_size={batch_size}: it must be at least 1")
    if layout not in get_args(Layout):
        raise LrtError(f"layout={layout!r} is none of {', '.join(get_args(Layout))}")
    counts = BatchCounts() if counts is None else counts
    chunk = batch_size * _BATCHES_SORTED_TOGETHER
    rows = _rows(tokenizer, documents, context_length, layout, prepend_bos, chunk, counts)
    while buffer := list(islice(rows, chunk)):
        buffer.sort(key=lambda row: len(row.ids))
        for start in range(0, len(buffer), batch_size):
            yield _batch(tokenizer, buffer[start : start + batch_size])


def _rows(
    tokenizer: Any,
    documents: Iterable[Document],
    context_length: int,
    layout: Layout,
    prepend_bos: bool,
    chunk: int,
    counts: BatchCounts,
) -> Iterator[_Row]:
    bos = [tokenizer.bos_token_id] if prepend_bos and tokenizer.bos_token_id is not None else []
    room = context_length - len(bos)
    open_rows: dict[int, list[_Row]] = {}
    stream = iter(documents)
    while group := list(islice(stream, chunk)):
        for document, ids in zip(group, tokenize(tokenizer, [d.text for d in group], prepend_bos=False), strict=True):
            if not ids:
                raise LrtError(f"{document.name} tokenizes to nothing ({document.text[:40]!r}): remove it")
            counts.documents += 1
            if layout == "truncate":
                counts.tokens_truncated += max(0, len(ids) - room)
                ids = ids[:room]
            pieces = (ids[start : start + room] for start in range(0, len(ids), room))
            rows = [_Row(bos + piece, document.name, split_of(document.text)) for piece in pieces]
            if layout == "pack":
                rows = [full for row in rows for full in _packed(open_rows, row, context_length)]
            yield from rows
    for waiting in open_rows.values():
        yield _joined(waiting)


def _packed(open_rows: dict[int, list[_Row]], row: _Row, context_length: int) -> list[_Row]:
    """Put a row with those of its split that wait; return the full row that it no longer fits into, if any."""
    waiting = open_rows.setdefault(row.split, [])
    full = []
    if waiting and sum(len(other.ids) for other in waiting) + len(row.ids) > context_length:
        full = [_joined(waiting)]
        waiting.clear()
    waiting.append(row)
    return full


def _joined(rows: list[_Row]) -> _Row:
    name = rows[0].name if len(rows) == 1 else f"{rows[0].name} … {rows[-1].name}"
    return _Row([token for row in rows for token in row.ids], name, rows[0].split)


def _batch(tokenizer: Any, rows: list[_Row]) -> TokenBatch:
    tokens, mask, content = pad(tokenizer, [row.ids for row in rows])
    return TokenBatch(tokens, mask, content, [row.name for row in rows], torch.tensor([row.split for row in rows]))


def _filler(tokenizer: Any) -> int:
    """Any token: padding is masked."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
