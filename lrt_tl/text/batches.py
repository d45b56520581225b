"""Documents → batches of tokens with explicit masks.

Models are given tokens and a mask, never strings: TransformerLens's two classes pad, prepend and mask strings
differently. Padding is on the right, where no causal model sees it.
"""

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.identity import special_tokens
from lrt_tl.text.documents import Document, split_of
from lrt_tl.text.token_pairs import paired_pieces, tokens_with_ends

Layout = Literal["split", "truncate", "pack"]
"""What to do with the length of documents. `"split"`: a long one becomes several rows, each a text of its own to the
model; `"truncate"`: its end is dropped, and counted; `"pack"`: documents of one split share rows and see each other."""

BATCHES_SORTED_TOGETHER = 32


@dataclass(frozen=True)
class TokenRows:
    """What one model reads: rows of tokens, padded on the right."""

    tokens: Int[Tensor, "row position"]
    mask: Bool[Tensor, "row position"]
    """True at tokens, False at padding."""
    content: Bool[Tensor, "row position"]
    """True at tokens that are text: not padding, not special; and, with two tokenizers, that pair with one of the
    other's."""


@dataclass(frozen=True)
class TokenBatch:
    """Rows of the same texts for a source and a target: the k-th True of one's `content` pairs with the other's."""

    source: TokenRows
    target: TokenRows
    """The same object where both have one tokenizer."""
    names: list[str]
    """The document, or documents, of each row."""
    splits: Int[Tensor, "row"]
    """The split of each row."""


@dataclass(frozen=True)
class _Row:
    ids: tuple[list[int], ...]
    """Of the one tokenizer, or of each of the two."""
    content: tuple[list[int], ...] | None
    """The positions that pair; None where there is but one tokenizer, and all text does."""
    name: str
    split: int


@dataclass
class BatchCounts:
    """What the batches were made of. Tokens are the source's."""

    documents: int = 0
    tokens_truncated: int = 0
    tokens_unpaired: int = 0
    """With two tokenizers: tokens of text at whose last character no token of the target ends, or too long a piece."""
    special_dropped: int = 0
    """Among them the beginnings of sequence."""


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
    special = torch.isin(tokens, torch.tensor(sorted(special_tokens(tokenizer)), dtype=torch.long))
    return tokens, mask, mask & ~special


def token_batches(
    tokenizers: Sequence[Any],
    documents: Iterable[Document],
    *,
    batch_size: int,
    context_length: int,
    layout: Layout = "split",
    prepend_bos: bool = True,
    sorted_together: int = BATCHES_SORTED_TOGETHER,
    counts: BatchCounts | None = None,
) -> Iterator[TokenBatch]:
    """Stream documents as batches of at most `batch_size` rows of at most `context_length` tokens.

    Rows are sorted by length within `sorted_together` batches' worth, so that little is padding; the batches of these
    then come in a shuffled order, always the same, so that a part of a pass has long rows and short ones.

    Args:
        tokenizers: one, of both models; or the source's and the target's, if they differ: then each row holds the same
            piece of text for both, and `content` is True at the positions that pair (see `text.token_pairs`).

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
    chunk = batch_size * sorted_together
    rows = _rows(tokenizers, documents, context_length, layout, prepend_bos, chunk, counts)
    while buffer := list(islice(rows, chunk)):
        buffer.sort(key=lambda row: len(row.ids[0]))
        starts = [*range(0, len(buffer), batch_size)]
        random.Random(len(starts)).shuffle(starts)
        for start in starts:
            yield _batch(tokenizers, buffer[start : start + batch_size])


def _rows(
    tokenizers: Sequence[Any],
    documents: Iterable[Document],
    context_length: int,
    layout: Layout,
    prepend_bos: bool,
    chunk: int,
    counts: BatchCounts,
) -> Iterator[_Row]:
    bos = [[t.bos_token_id] if prepend_bos and t.bos_token_id is not None else [] for t in tokenizers]
    rooms = [context_length - len(begin) for begin in bos]
    open_rows: dict[int, list[_Row]] = {}
    stream = iter(documents)
    while group := list(islice(stream, chunk)):
        for document, pieces in zip(group, _pieces(tokenizers, group, rooms, layout, counts), strict=True):
            counts.documents += 1
            counts.special_dropped += len(pieces) * len(bos[0])
            rows = [_begun(piece, bos, document) for piece in pieces]
            if layout == "pack":
                rows = [full for row in rows for full in _packed(open_rows, row, context_length)]
            yield from rows
    for waiting in open_rows.values():
        yield _joined(waiting)


_Piece = tuple[tuple[list[int], ...], tuple[list[int], ...] | None]
"""Token ids of a piece of text, by each tokenizer, and the positions that pair."""


def _pieces(
    tokenizers: Sequence[Any], documents: Sequence[Document], rooms: Sequence[int], layout: Layout, counts: BatchCounts
) -> Iterator[list[_Piece]]:
    """Each document in pieces for which there is room."""
    texts = [document.text for document in documents]
    whole = _of_two(tokenizers, texts, rooms) if len(tokenizers) == 2 else _of_one(tokenizers[0], texts, rooms)
    special = special_tokens(tokenizers[0]).keys()
    for document, (pieces, ids) in zip(documents, whole, strict=True):
        if not ids:
            raise LrtError(f"{document.name} tokenizes to nothing ({document.text[:40]!r}): remove it")
        kept = pieces[:1] if layout == "truncate" else pieces
        _count(kept, [token for piece, _ in pieces[len(kept) :] for token in piece[0]], ids, special, counts)
        yield kept


def _count(
    kept: Sequence[_Piece], cut: Sequence[int], ids: Sequence[int], special: Collection[int], counts: BatchCounts
) -> None:
    """Every token of a document is cut off, special, paired or unpaired."""
    n_special = sum(token in special for token in ids) - sum(token in special for token in cut)
    counts.tokens_truncated += len(cut)
    counts.special_dropped += n_special
    if kept and kept[0][1] is None:  # one tokenizer: all text pairs
        return
    n_paired = sum(len(content[0]) for _, content in kept if content is not None)
    counts.tokens_unpaired += len(ids) - len(cut) - n_special - n_paired


def _of_one(tokenizer: Any, texts: Sequence[str], rooms: Sequence[int]) -> Iterator[tuple[list[_Piece], list[int]]]:
    room = rooms[0]
    for ids in tokenize(tokenizer, texts, prepend_bos=False):
        yield [((ids[start : start + room],), None) for start in range(0, len(ids), room)], ids


def _of_two(
    tokenizers: Sequence[Any], texts: Sequence[str], rooms: Sequence[int]
) -> Iterator[tuple[list[_Piece], list[int]]]:
    """Pieces, and the source's ids: none if either tokenizer has none."""
    for one, other in zip(*(tokens_with_ends(tokenizer, texts) for tokenizer in tokenizers), strict=True):
        pieces = paired_pieces(one, other, (rooms[0], rooms[1]))
        yield [(piece.ids, piece.paired) for piece in pieces], one.ids if other.ids else []


def _begun(piece: _Piece, bos: Sequence[list[int]], document: Document) -> _Row:
    """A row that begins with the beginning-of-sequence token."""
    ids, content = piece
    if content is not None:
        content = tuple([len(begin) + i for i in positions] for begin, positions in zip(bos, content, strict=True))
    begun = tuple(begin + tokens for begin, tokens in zip(bos, ids, strict=True))
    return _Row(begun, content, document.name, split_of(document.text))


def _packed(open_rows: dict[int, list[_Row]], row: _Row, context_length: int) -> list[_Row]:
    """Put a row with those of its split that wait; return the full row that it no longer fits into, if any."""
    waiting = open_rows.setdefault(row.split, [])
    full = []
    lengths = [sum(len(other.ids[side]) for other in waiting) + len(ids) for side, ids in enumerate(row.ids)]
    if waiting and max(lengths) > context_length:
        full = [_joined(waiting)]
        waiting.clear()
    waiting.append(row)
    return full


def _joined(rows: list[_Row]) -> _Row:
    name = rows[0].name if len(rows) == 1 else f"{rows[0].name} … {rows[-1].name}"
    sides = range(len(rows[0].ids))
    starts = [[0, *accumulate(len(row.ids[side]) for row in rows)] for side in sides]
    ids = tuple([token for row in rows for token in row.ids[side]] for side in sides)
    content = None
    if rows[0].content is not None:
        content = tuple(
            [start + i for start, row in zip(starts[side], rows, strict=False) for i in (row.content or ())[side]]
            for side in sides
        )
    return _Row(ids, content, name, rows[0].split)


def _batch(tokenizers: Sequence[Any], rows: list[_Row]) -> TokenBatch:
    sides = [_token_rows(tokenizer, rows, side) for side, tokenizer in enumerate(tokenizers)]
    return TokenBatch(sides[0], sides[-1], [row.name for row in rows], torch.tensor([row.split for row in rows]))


def _token_rows(tokenizer: Any, rows: list[_Row], side: int) -> TokenRows:
    tokens, mask, content = pad(tokenizer, [row.ids[side] for row in rows])
    if rows[0].content is not None:
        paired = torch.zeros_like(content)
        for number, row in enumerate(rows):
            paired[number, (row.content or ())[side]] = True
        content = paired
    return TokenRows(tokens, mask, content)


def _filler(tokenizer: Any) -> int:
    """Any token: padding is masked."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
