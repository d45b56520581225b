"""The blocks below a point of the residual stream, run once for many passes that differ above it only."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lrt_tl.models.hook_names import place_of
from lrt_tl.models.protocol import HookedModel

_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Below:
    """What the blocks below a point left."""

    n_blocks: int
    states: Float[Tensor, "text position d_model"]
    """The residual stream after the last of them."""
    rest: tuple[Any, ...] | None
    """What that block returned beside it; None where it returns a tensor alone."""


@torch.no_grad()
def run_below(
    model: HookedModel, hook_name: str, tokens: Int[Tensor, "text position"], mask: Bool[Tensor, "text position"]
) -> Below | None:
    """Run a model once, and keep what its blocks below a point left. None where a pass without them would not give the
    same: there are none, or the blocks above need more of them than the residual stream (which is tried out).
    """
    block, point = place_of(hook_name)
    n_blocks = block + (point == 2)
    if n_blocks == 0:
        return None
    kept: list[Any] = []
    hook = model.blocks[n_blocks - 1].register_forward_hook(lambda module, given, output: kept.append(output))
    device = model.cfg.device
    given = {"attention_mask": mask.to(device).long()}
    try:
        logits = model(tokens.to(device), **given)
    finally:
        hook.remove()
    output = kept[-1] if kept else None
    states, rest = (output[0], tuple(output[1:])) if isinstance(output, tuple) else (output, None)
    if not isinstance(states, Tensor) or any(isinstance(each, Tensor) for each in rest or ()):
        return None
    below = Below(n_blocks, states, rest)
    with skipped(model, below, states):
        again = model(tokens.to(device), **given)
    text = mask.to(device)
    error = float((again - logits)[text].abs().max())
    return below if error <= _TOLERANCE * float(logits[text].std()) else None


@contextmanager
def skipped(model: HookedModel, below: Below, states: Float[Tensor, "row position d_model"]) -> Iterator[None]:
    """Inside the `with` block, the blocks below do nothing but leave these states. Hooks on them do not run."""
    output = states if below.rest is None else (states, *below.rest)
    # in the instance's own dictionary, for a Bridge hands attributes that are set on it to the module that it wraps
    attributes = [vars(model.blocks[number]) for number in range(below.n_blocks)]
    before = [own.get("forward") for own in attributes]
    for own in attributes:
        own["forward"] = lambda *args, **kwargs: output
    try:
        yield
    finally:
        for own, forward in zip(attributes, before, strict=True):
            del own["forward"]
            if forward is not None:
                own["forward"] = forward
