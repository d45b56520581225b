"""One batch of texts under many vectors at once: each row of the forward pass has its own."""

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lrt_tl.models.attach import attached
from lrt_tl.models.protocol import Hook, HookedModel

_MOST_LOGITS = 2**28
"""How many logits may stand in memory at once: 1 GiB of float32."""


def deltas_at_once(model: HookedModel, tokens: Int[Tensor, "text position"], most_rows: int) -> int:
    """How many vectors go through one forward pass of about `most_rows` rows: at least one."""
    fit_in_memory: int = _MOST_LOGITS // (tokens.numel() * model.cfg.d_vocab)
    return max(1, min(most_rows // len(tokens), fit_in_memory))


def adding(delta: Float[Tensor, "row position d_model"]) -> Hook:
    """A hook that adds to each row its own; of one position, to all."""

    def add(activation: Tensor, hook: object) -> Tensor:
        return activation + delta.to(activation)

    return add


@torch.no_grad()
def steered_logits(
    model: HookedModel,
    hook_name: str,
    tokens: Int[Tensor, "text position"],
    mask: Bool[Tensor, "text position"],
    deltas: Float[Tensor, "delta d_model"],
) -> Float[Tensor, "delta text position d_vocab"]:
    """The logits of every text with each delta added to the residual stream at all of its positions, on the model's
    device."""
    rows = repeat(tokens, "text position -> (delta text) position", delta=len(deltas)).to(model.cfg.device)
    text = repeat(mask, "text position -> (delta text) position", delta=len(deltas)).to(model.cfg.device)
    added = repeat(deltas, "delta d_model -> (delta text) 1 d_model", text=len(tokens)).to(model.cfg.device)
    with attached(model, [(hook_name, adding(text[..., None] * added))]):
        logits = model(rows, attention_mask=text.long())
    by_delta: Tensor = rearrange(
        logits, "(delta text) position d_vocab -> delta text position d_vocab", delta=len(deltas)
    )
    return by_delta
