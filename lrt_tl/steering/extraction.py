"""Steering vectors from contrast pairs."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.models.capture import capture
from lrt_tl.models.identity import site_of
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.contrast import data_hash, read_contrast_pairs
from lrt_tl.steering.handle import require_at_rest
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.text.batches import pad, tokenize

TextPosition = Literal["mean", "last"] | int
"""Where a text's state is read: the mean over its non-special tokens, its last one, or the n-th (from 0; from the end
if negative)."""

_ROUNDING = 1e-6
"""A difference of means smaller than this fraction of the residual norm is float32 rounding."""


def mean_difference(
    model: HookedModel,
    contrast_pairs: Any,
    *,
    layer: int | None = None,
    hook_name: str | None = None,
    position: TextPosition = "mean",
    batch_size: int = 32,
    prepend_bos: bool = True,
) -> SteeringVector:
    """Mean state of the positive texts minus mean state of the negative ones (Rimsky et al. 2023, arXiv 2312.06681).

    Args:
        contrast_pairs: whatever `read_contrast_pairs` takes.
        layer: the residual stream after this block; or `hook_name`.
        position: where each text's state is read. The mean over tokens transfers far better than the last token where
            the texts do not end alike.
        batch_size: texts in a forward pass.

    Returns:
        A vector in the units of the residual stream at that site.

    Raises:
        LrtError: bad pairs, a text with too few tokens or too long for the model, an activation that is not finite, or
            two sides that give the same mean (a zero vector).
    """
    if not (position in ("mean", "last") or (isinstance(position, int) and not isinstance(position, bool))):
        raise LrtError(f"position={position!r}: use 'mean', 'last' or a number")
    require_at_rest(model)
    pairs = read_contrast_pairs(contrast_pairs)
    site = site_of(model, layer=layer, hook_name=hook_name)
    sides = [pair.positive for pair in pairs] + [pair.negative for pair in pairs]
    texts = list(dict.fromkeys(sides))  # each once, so that equal texts have equal states, whatever their batches
    states, norms = text_states(
        model, texts, site.hook_name, position=position, batch_size=batch_size, prepend_bos=prepend_bos
    )
    place = {text: index for index, text in enumerate(texts)}
    states = states[[place[text] for text in sides]].cpu().double()
    direction = states[: len(pairs)].mean(0) - states[len(pairs) :].mean(0)
    residual_norm = float(norms.median())
    if direction.norm() < _ROUNDING * residual_norm:
        raise LrtError(
            "the two sides of the contrast pairs give the same mean state: there is no direction to steer in"
        )
    provenance = {
        "method": "mean_difference",
        "position": position,
        "n_pairs": len(pairs),
        "data": data_hash(pairs),
        "prepend_bos": prepend_bos,
    }
    return SteeringVector(direction.float(), site, residual_norm, provenance)


def text_states(
    model: HookedModel,
    texts: Sequence[str],
    hook_name: str,
    *,
    position: TextPosition,
    batch_size: int,
    prepend_bos: bool,
) -> tuple[Float[Tensor, "text d_model"], Float[Tensor, "token"]]:
    """One state a text, and the norm of every state at a non-special token, both on the CPU."""
    rows = tokenize(model.tokenizer, texts, prepend_bos=prepend_bos)
    longest = max(range(len(rows)), key=lambda index: len(rows[index]))
    if len(rows[longest]) > model.cfg.n_ctx:
        raise LrtError(
            f"a contrast text has {len(rows[longest])} tokens, {model.cfg.model_name} reads {model.cfg.n_ctx}: shorten "
            f"{texts[longest][:60]!r}"
        )
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    states = torch.empty(len(rows), model.cfg.d_model)
    norms: list[Tensor] = []
    for start in tqdm(range(0, len(rows), batch_size), desc="extract", unit=" batches", leave=False):
        chosen = order[start : start + batch_size]
        tokens, mask, content = pad(model.tokenizer, [rows[index] for index in chosen])
        activations = capture(model, tokens, mask, [hook_name])[hook_name].cpu()
        weights = _weights(content, position, [texts[index] for index in chosen])
        text = activations.masked_fill(~content[..., None], 0)  # what a special token has may be infinite
        states[chosen] = torch.einsum("rp,rpd->rd", weights, text)
        norms.append(activations[content].norm(dim=-1))
    if not torch.isfinite(states).all():
        bad = int((~torch.isfinite(states).all(1)).nonzero()[0])
        raise LrtError(f"{hook_name}: an activation is NaN or infinite on the text {texts[bad][:60]!r}")
    return states, torch.cat(norms)


def _weights(
    content: Bool[Tensor, "row position"], position: TextPosition, texts: Sequence[str]
) -> Float[Tensor, "row position"]:
    """How much each position of each row counts towards its state."""
    lengths = content.sum(1)
    needed = 1 if isinstance(position, str) else (position + 1 if position >= 0 else -position)
    if (lengths < needed).any():
        text = texts[int((lengths < needed).nonzero()[0])]
        raise LrtError(f"position={position!r}: the text {text[:60]!r} has too few tokens that are not special")
    if position == "mean":
        return content / lengths[:, None]
    place = content.long().cumsum(1) - 1  # of each non-special token among those of its row
    wanted = lengths - 1 if position == "last" else (lengths + position if position < 0 else torch.tensor(position))
    return (content & (place == wanted.reshape(-1, 1))).float()
