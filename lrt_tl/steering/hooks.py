"""Steps of steering as TransformerLens hooks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.call import Call, call_from_mask
from lrt_tl.models.identity import special_tokens
from lrt_tl.models.protocol import Hook
from lrt_tl.steering.operators import Step, check_width, edit_of
from lrt_tl.steering.probe import Probe
from lrt_tl.text.positions import select
from lrt_tl.text.reading import reading_weights

CallOf = Callable[[Tensor], Call | None]
"""The call that an activation `[row, position, d_model]` is part of; None where nothing is to be done."""
OnChange = Callable[[int, Call, Tensor | None, Tensor, Tensor | None], None]
"""Told of each step, by its number, of each call: the columns `[row, position]` that it changes (None: all of them),
and the states before and after (None: nothing was changed)."""


def steering_hooks(
    steps: Sequence[Step], call_of: CallOf, tokenizer: Any = None, on_change: OnChange | None = None
) -> list[tuple[str, Hook]]:
    """`[(name, hook)]` for steps, in their order; those that read the conditions come first.

    Positions that are not selected stay bit-identical, and so does everything where a coefficient is 0.
    """
    probes = dict.fromkeys(step.when for step in steps if step.when is not None)
    readers = [(probe.site.hook_name, _reading_hook(probe, call_of, tokenizer)) for probe in probes]
    writers = [
        (step.site.hook_name, _step_hook(step, number, call_of, tokenizer, on_change))
        for number, step in enumerate(steps)
    ]
    return readers + writers


def _step_hook(step: Step, number: int, call_of: CallOf, tokenizer: Any, on_change: OnChange | None) -> Hook:
    edit = edit_of(step)

    def steer(activation: Tensor, hook: object) -> Tensor | None:
        check_width(activation, step)
        call = call_of(activation)
        if call is None:
            return None
        selected = None if step.idle else _selected(step, call, tokenizer)
        steered: Tensor | None = None if step.idle else edit(activation)
        if steered is not None and selected is not None:
            selected = selected.to(activation.device)
            steered = torch.where(selected[..., None], steered, activation)
        if on_change is not None:
            on_change(number, call, selected, activation, steered)
        return steered

    return steer


def _selected(step: Step, call: Call, tokenizer: Any) -> Bool[Tensor, "row position"] | None:
    """The columns that a step changes; None for all of them, which is said without looking."""
    if step.when is None:
        everything = step.positions == "all" and call.text_columns is None
        return None if everything else select(step.positions, call, tokenizer)
    said: Tensor | None = call.text.known.get(step.when)
    if said is None:
        raise LrtError(
            "a condition is read on the prompt, and this call goes on from a KV cache that was filled before the "
            "vector was attached: give the model the whole prompt"
        )
    chosen = select(step.positions, call, tokenizer)
    return chosen & said[:, None].to(chosen.device)


def _reading_hook(probe: Probe, call_of: CallOf, tokenizer: Any) -> Hook:
    """Note to which rows a condition says yes."""

    def read(activation: Tensor, hook: object) -> None:
        call = call_of(activation)
        if call is None or call.past > 0:  # then the prompt has been read
            return
        n_prompt = min(call.prompt_columns, call.n_positions)
        states = activation[:, :n_prompt].detach()
        weights = reading_weights(probe.position, call, _content(call, tokenizer), tokenizer)[:, :n_prompt]
        if not (weights.sum(1) > 0.5).all():
            row = int((weights.sum(1) <= 0.5).nonzero()[0])
            raise LrtError(f"a condition reads position={probe.position!r}, and the prompt of row {row} has none")
        weights = weights.to(states.device, torch.promote_types(states.dtype, torch.float32))
        read_at = torch.einsum("rp,rpd->rd", weights, states.to(weights.dtype).masked_fill(weights[..., None] == 0, 0))
        call.text.known[probe] = probe(read_at) > probe.threshold

    return read


def _content(call: Call, tokenizer: Any) -> Bool[Tensor, "row position"]:
    """The prompt's tokens that are not special."""
    if tokenizer is None:
        raise LrtError("a condition is read at tokens that are not special: that needs a tokenizer")
    special = torch.tensor(sorted(special_tokens(tokenizer)), dtype=torch.long, device=call.mask.device)
    return call.mask & ~call.generated & ~torch.isin(call.tokens, special)


def known_call(tokens: Tensor | None, mask: Tensor | None) -> CallOf:
    """For hooks that are handed to `model.hooks` or `run_with_hooks`, where nothing but activations is seen.

    Args:
        tokens: `[row, position]`, the batch that the model will be run on.
        mask: `[row, position]`, True or 1 at text; without it all of `tokens` is text.

    Raises:
        LrtError: the two differ in shape. When the hook runs: the activations are not of the batch that was given.
    """
    given = tokens if mask is None else mask
    if given is None:
        return lambda act: call_from_mask(
            torch.ones(act.shape[:2], dtype=torch.bool, device=act.device), n_positions=act.shape[1]
        )
    if given.ndim != 2 or (tokens is not None and tokens.shape != given.shape):
        shapes = {name: tuple(x.shape) for name, x in (("tokens", tokens), ("mask", mask)) if x is not None}
        raise LrtError(f"tokens and mask must both be [row, position], not {shapes}")
    text = torch.ones_like(given, dtype=torch.bool) if mask is None else mask.bool()

    def call_of(activation: Tensor) -> Call:
        if activation.shape[:2] != text.shape:
            raise LrtError(
                f"the hook saw {tuple(activation.shape[:2])} rows and positions, not the {tuple(text.shape)} that it "
                "was made for: make hooks for each batch, and steer generation with apply(model)"
            )
        return call

    call = call_from_mask(text, n_positions=text.shape[1], tokens=tokens)
    return call_of
