"""One batch of texts under many vectors at once: each row of the forward pass has its own."""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lrt_tl.models.attach import attached
from lrt_tl.models.below import run_below, skipped
from lrt_tl.models.hook_names import place_of
from lrt_tl.models.protocol import Hook, HookedModel

_UNEMBEDS = "unembed.hook_in"
MOST_LOGITS = 2**28
"""How many logits may stand in memory at once: 1 GiB of float32."""


def deltas_at_once(model: HookedModel, tokens: Int[Tensor, "text position"], most_rows: int) -> int:
    """How many vectors go through one forward pass of about `most_rows` rows: at least one."""
    fit_in_memory: int = MOST_LOGITS // (tokens.numel() * model.cfg.d_vocab)
    return max(1, min(most_rows // len(tokens), fit_in_memory))


def adding(delta: Float[Tensor, "row position d_model"]) -> Hook:
    """A hook that adds to each row its own; of one position, to all."""

    def add(activation: Tensor, hook: object) -> Tensor:
        return activation + delta.to(activation)

    return add


Steered = Callable[[Float[Tensor, "delta d_model"]], Float[Tensor, "delta text position d_vocab"]]
"""What is added to the residual stream, at all positions → the logits of every text, on the model's device."""


def steered_run(
    model: HookedModel,
    hook_name: str,
    tokens: Int[Tensor, "text position"],
    mask: Bool[Tensor, "text position"],
    *,
    last: int | None = None,
) -> Steered:
    """A function that runs the same texts under whatever is added. What lies below the hook point is run here, once.

    Args:
        last: give the logits of so many positions alone, the last of each text; a shorter one repeats its first.
    """
    below = run_below(model, hook_name, tokens, mask)
    at_end = below is not None and place_of(hook_name)[1] == 2  # then the hook point is among what is skipped
    device = model.cfg.device

    @torch.no_grad()
    def run(deltas: Tensor) -> Tensor:
        copies = len(deltas)
        text = repeat(mask, "text position -> (delta text) position", delta=copies).to(device)
        added = repeat(deltas, "delta d_model -> (delta text) 1 d_model", text=len(tokens)).to(device)
        hooks = [] if at_end else [(hook_name, adding(text[..., None] * added))]
        if last is not None:
            hooks.append((_UNEMBEDS, keeping(_last(text, last))))
        with attached(model, hooks), ExitStack() as stack:
            if below is not None:
                states = repeat(below.states, "text position d_model -> (delta text) position d_model", delta=copies)
                states = states + (text[..., None] * added).to(states) if at_end else states
                stack.enter_context(skipped(model, below, states))
            rows = repeat(tokens, "text position -> (delta text) position", delta=copies).to(device)
            logits = model(rows, attention_mask=text.long())
        by_delta: Tensor = rearrange(
            logits, "(delta text) position d_vocab -> delta text position d_vocab", delta=copies
        )
        return by_delta

    return run


def keeping(places: Int[Tensor, "row kept"]) -> Hook:
    """A hook that keeps these positions of each row, and drops the others."""

    def keep(activation: Tensor, hook: object) -> Tensor:
        rows = torch.arange(len(places), device=activation.device)[:, None]
        return activation[rows, places.to(activation.device)]

    return keep


def _last(text: Bool[Tensor, "row position"], n: int) -> Int[Tensor, "row kept"]:
    places = text.sum(1, keepdim=True) - n + torch.arange(n, device=text.device)
    return places.clamp(min=0)
