"""Where a text's one state is read."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.call import Call
from lrt_tl.text.positions import check_given_texts, select

TextPosition = Literal["mean", "last"] | int | Mapping[str, Any]
"""Where a text's state is read: the mean over its non-special tokens, its last one, or the n-th (from 0; from the end
if negative); or the mean over what a selector of `text.positions` selects, such as `{"within": "word"}`."""


def check_text_position(position: object) -> None:
    """Raises:
    LrtError: it is none of these, or of what is generated.
    """
    if isinstance(position, Mapping):
        check_given_texts(position)
    elif not (position in ("mean", "last") or (isinstance(position, int) and not isinstance(position, bool))):
        raise LrtError(f"position={position!r}: use 'mean', 'last', a number, or a selector of positions")


def reading_weights(
    position: TextPosition, call: Call, content: Bool[Tensor, "row position"], tokenizer: Any = None
) -> Float[Tensor, "row position"]:
    """How much each position of each row counts towards its state: one in all, or nothing in a row that has no such
    position.

    Args:
        content: True at tokens that are not special; a selector selects among the special ones too.
    """
    if isinstance(position, Mapping):
        chosen = select(position, call, tokenizer) & ~call.generated
    else:
        lengths, place = content.sum(1), content.long().cumsum(1) - 1  # of each token among those of its row
        if position == "mean":
            chosen = content
        else:
            wanted = lengths - 1 if position == "last" else torch.full_like(lengths, int(position))
            chosen = content & (place == torch.where(wanted < 0, lengths + wanted, wanted)[:, None])
    return chosen / chosen.sum(1, keepdim=True).clamp(min=1)
