"""Two tokenizers, one text: which positions belong together.

A state after a token has read the text up to the token's last character. So a position of one tokenization pairs with
the position of the other whose token ends on the same character of the document, as the tokenizers' own offsets say:
these count characters of the original text, whatever was normalized (lower-cased, composed, prefixed) on the way.

Normalizers compose: `e` and an accent, two characters, become the one `é`, and the offsets then name the `e` alone. So
what joins the characters before it belongs to their token, and no token that ends in between pairs.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lrt_tl.errors import LrtError
from lrt_tl.models.identity import special_tokens

_COMPOSED_AT_MOST = 8
"""Characters that are looked back on to see whether the next one joins them."""


@dataclass(frozen=True)
class Tokens:
    """A tokenization: ids, how many characters of the text have been read after each, and where that is known: not
    after tokens that stand for no character or are special, nor in the middle of a character that is cut into bytes, or
    that is composed of several."""

    ids: list[int]
    ends: list[int]
    is_end: list[bool]


@dataclass(frozen=True)
class PairedTokens:
    """A piece of a text in two tokenizations, and at which positions they pair: the k-th of one with the k-th of the
    other."""

    ids: tuple[list[int], list[int]]
    paired: tuple[list[int], list[int]]


def tokens_with_ends(tokenizer: Any, texts: Sequence[str]) -> list[Tokens]:
    """Tokenize without special tokens.

    Raises:
        LrtError: the tokenizer has no offsets, or they do not lie in the text one after another.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise LrtError(
            f"{type(tokenizer).__name__} does not say which characters its tokens stand for, so its positions cannot "
            "be paired with another tokenizer's: load the fast version of it (use_fast=True)"
        )
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    special = special_tokens(tokenizer).keys()
    found = []
    for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        ends = [end for _, end in offsets]
        if ends != sorted(ends) or (ends and ends[-1] > len(text)):
            raise LrtError(f"the offsets of {type(tokenizer).__name__} do not follow the text {text[:40]!r}")
        next_starts = [*(start for start, _ in offsets), len(text)][1:]
        is_end = [
            start < end <= next_start and token not in special
            for token, (start, end), next_start in zip(ids, offsets, next_starts, strict=True)
        ]
        if not text.isascii():
            ends = [_end_with_marks(text, end, stop) for end, stop in zip(ends, next_starts, strict=True)]
            is_end = [known and not _joins(text, end) for end, known in zip(ends, is_end, strict=True)]
        found.append(Tokens(list(ids), ends, is_end))
    return found


def _end_with_marks(text: str, end: int, next_start: int) -> int:
    """`end`, after the characters that join those before it and that no other token stands for."""
    while end < next_start and _joins(text, end):
        end += 1
    return end


def _joins(text: str, index: int) -> bool:
    """Whether normalizing may merge a character with those before it, or move it among them: accents and other
    combining marks, parts of a Hangul syllable."""
    if not 0 < index < len(text) or text[index] < "\u0300":
        return False
    before, apart = text[max(0, index - _COMPOSED_AT_MOST) : index], unicodedata.normalize("NFKC", text[index])
    if unicodedata.combining(apart[0]):
        return True
    return unicodedata.normalize("NFKC", before + text[index]) != unicodedata.normalize("NFKC", before) + apart


def pair_positions(one: Tokens, other: Tokens) -> list[tuple[int, int]]:
    """Positions whose tokens end on the same character, in order."""
    ours, theirs = (
        {end: i for i, (end, is_end) in enumerate(zip(t.ends, t.is_end, strict=True)) if is_end} for t in (one, other)
    )
    return [(ours[end], theirs[end]) for end in sorted(ours.keys() & theirs.keys())]


def paired_pieces(one: Tokens, other: Tokens, rooms: tuple[int, int]) -> Iterator[PairedTokens]:
    """Cut a text at characters on which both tokenizations end a token, into pieces with room for both.

    What lies between two such characters and is longer than a piece is left out.
    """
    pairs = pair_positions(one, other)
    start, next_pair = (0, 0), 0
    while next_pair < len(pairs):
        fitting = next_pair
        while fitting < len(pairs) and all(
            position - first < room for position, first, room in zip(pairs[fitting], start, rooms, strict=True)
        ):
            fitting += 1
        if fitting == next_pair:  # not even the first fits: begin after it
            start, next_pair = (pairs[next_pair][0] + 1, pairs[next_pair][1] + 1), next_pair + 1
            continue
        stop = pairs[fitting - 1]
        chosen = pairs[next_pair:fitting]
        yield PairedTokens(
            (one.ids[start[0] : stop[0] + 1], other.ids[start[1] : stop[1] + 1]),
            ([i - start[0] for i, _ in chosen], [j - start[1] for _, j in chosen]),
        )
        start, next_pair = (stop[0] + 1, stop[1] + 1), fitting
