"""Run a model up to the deepest point of the residual stream that is asked for, and return what was there."""

from collections.abc import Sequence
from contextlib import suppress

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lrt_tl.models.attach import attached
from lrt_tl.models.protocol import Hook, HookedModel


class _CapturedError(Exception):
    """Everything that was asked for has been seen: the rest of the forward pass is not needed."""


@torch.no_grad()
def capture(
    model: HookedModel,
    tokens: Int[Tensor, "row position"],
    mask: Bool[Tensor, "row position"],
    hook_names: Sequence[str],
) -> dict[str, Float[Tensor, "row position _"]]:
    """Activations in float32, or float64 where the model is, by (resolved) hook name, on the model's device.

    The forward pass ends, by an exception, at the last hook point that is needed. `stop_at_layer` would not do: a
    Bridge told `n_layers` runs on through the unembedding, and told L it returns an empty cache for layer L, and says
    nothing.
    """
    found: dict[str, Tensor] = {}

    def keeper(name: str) -> Hook:
        def keep(activation: Tensor, hook: object) -> None:
            kept = activation.detach()
            found[name] = kept if kept.dtype == torch.float64 else kept.float()
            if len(found) == len(wanted):
                raise _CapturedError

        return keep

    wanted = list(dict.fromkeys(hook_names))
    device = model.cfg.device
    with attached(model, [(name, keeper(name)) for name in wanted]), suppress(_CapturedError):
        model(tokens.to(device), attention_mask=mask.to(device).long())
    return found
