"""Adding a vector to the residual stream, as TransformerLens hooks."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.attach import Attachment
from lrt_tl.models.calls import call_from_mask, watch
from lrt_tl.models.protocol import Hook, HookedModel
from lrt_tl.text.positions import Positions, check_positions, select

Selector = Callable[[Tensor], Bool[Tensor, "row position"]]
"""Which positions of an activation `[row, position, d_model]` a hook changes."""


def adding_hook(
    delta: Float[Tensor, "d_model"],
    selector: Selector,
    on_change: Callable[[int], None] = lambda positions: None,
) -> Hook:
    """A hook that adds `delta` at the selected positions and leaves the others bit-identical.

    `on_change` is told how many positions each call changed. A delta of zero changes nothing at all.
    """
    idle = not bool(delta.any())

    def add(activation: Tensor, hook: object) -> Tensor | None:
        if activation.shape[-1] != len(delta):
            raise LrtError(f"a vector of {len(delta)} dimensions cannot be added to states of {activation.shape[-1]}")
        selected = selector(activation).to(activation.device)
        on_change(0 if idle else int(selected.sum()))
        if idle:
            return None
        return torch.where(selected[..., None], activation + delta.to(activation), activation)

    return add


class SteeringHandle:
    """A vector at work on a model, until `remove()`."""

    def __init__(
        self,
        model: HookedModel,
        hook_name: str,
        delta: Float[Tensor, "d_model"],
        *,
        coefficient: float,
        positions: Positions,
    ) -> None:
        self.hook_name = hook_name
        self.coefficient = coefficient
        self.positions = positions
        self.calls = 0
        """Forward passes that reached the hook point."""
        self.positions_touched = 0
        """Positions changed, over all rows of all calls."""
        check_positions(positions)
        watcher = watch(model)
        self._release: Callable[[], None] | None = watcher.release
        try:
            hook = adding_hook(delta, lambda act: select(positions, watcher.current(act)), self._count)
            self._attachment = Attachment(model, [(hook_name, hook)])
        except BaseException:
            watcher.release()
            raise
        self._listed = _handles.setdefault(model, [])
        self._listed.append(self)

    def _count(self, positions: int) -> None:
        self.calls += 1
        self.positions_touched += positions

    def remove(self) -> None:
        """Take the vector off. A second time does nothing."""
        self._attachment.remove()
        if self._release is not None:
            self._release()
            self._release = None
            self._listed.remove(self)

    def is_at_work(self) -> bool:
        """False after `remove()`, and after `model.reset_hooks()`, which takes off everybody's hooks."""
        return self._attachment.is_on()

    def __repr__(self) -> str:
        state = "at work" if self.is_at_work() else "removed"
        return (
            f"SteeringHandle({self.hook_name} × {self.coefficient:g}, {self.positions!r}, {state}: "
            f"{self.calls} calls, {self.positions_touched} positions touched)"
        )


_handles: "WeakKeyDictionary[Any, list[SteeringHandle]]" = WeakKeyDictionary()


def steered(model: HookedModel) -> list[SteeringHandle]:
    """The handles of the vectors that are attached to a model now, also of those whose handle was lost.

    `for handle in steered(model): handle.remove()` takes all of them off.
    """
    for handle in list(_handles.get(model, [])):
        if not handle.is_at_work():
            handle.remove()
    return list(_handles.get(model, []))


def require_at_rest(model: HookedModel) -> None:
    """Refuse to measure a model that something would silently change.

    Raises:
        LrtError: a steering vector is attached to it, or it is a Bridge in training mode, with dropout.
    """
    if handles := steered(model):
        raise LrtError(
            f"{model.cfg.model_name} is being steered by {handles}: take that off first, with "
            "for handle in lrt_tl.steered(model): handle.remove()"
        )
    if getattr(getattr(model, "original_model", None), "training", False):
        raise LrtError(f"{model.cfg.model_name} is in training mode, where dropout is random: call model.eval() first")


def fixed_selector(positions: Positions, *, tokens: Tensor | None = None, mask: Tensor | None = None) -> Selector:
    """A selector for hooks that are handed to `model.hooks` or `run_with_hooks`, where nothing but activations is seen.

    Args:
        tokens: `[row, position]`, the batch that the model will be run on.
        mask: `[row, position]`, True or 1 at text; without it all of `tokens` is text.

    Raises:
        LrtError: what was asked for cannot be known there: what is generated, or positions without tokens or mask.
            When the hook runs: the activations are not of the batch that was given.
    """
    check_positions(positions)
    if positions == "generated":
        raise LrtError("a bare hook cannot tell what is generated: use vector.apply(model, positions='generated')")
    if mask is None and tokens is not None:
        mask = torch.ones_like(tokens)
    if mask is None:
        if positions == "all":
            return lambda activation: torch.ones(activation.shape[:2], dtype=torch.bool, device=activation.device)
        raise LrtError(f"positions={positions!r} needs tokens= or mask=, those that the model will be run on")
    if mask.ndim != 2 or (tokens is not None and tokens.shape != mask.shape):
        shapes = {name: tuple(x.shape) for name, x in (("tokens", tokens), ("mask", mask)) if x is not None}
        raise LrtError(f"tokens and mask must both be [row, position], not {shapes}")
    chosen = select(positions, call_from_mask(mask.bool(), n_positions=mask.shape[1]))

    def selector(activation: Tensor) -> Tensor:
        if activation.shape[:2] != chosen.shape:
            raise LrtError(
                f"the hook saw {tuple(activation.shape[:2])} rows and positions, not the {tuple(chosen.shape)} that it "
                "was made for: make hooks for each batch, and steer generation with vector.apply(model)"
            )
        return chosen

    return selector
