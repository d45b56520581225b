"""The obvious way to steer: Hugging Face's model, one row at a time without padding or cache, a loop over positions."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

Chosen = Callable[[int, int], bool]
"""Whether to steer a position, given the position and the length of the prompt."""

CHOSEN: dict[Any, Chosen] = {
    "all": lambda position, n_prompt: True,
    "prompt": lambda position, n_prompt: position < n_prompt,
    "generated": lambda position, n_prompt: position >= n_prompt,
    1: lambda position, n_prompt: position == 1,
    (0, 4, 6): lambda position, n_prompt: position in (0, 4, 6),
}
"""Every kind of `positions`, and what it means."""


@cache
def huggingface(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@torch.no_grad()
def residual_and_logits(
    folder: Path,
    row: Sequence[int],
    layer: int,
    edit: Callable[[int, Tensor], Tensor] = lambda position, state: state,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """The residual stream after a block, with each of its states edited, and the logits that follow."""
    model = huggingface(folder, dtype)
    inner = getattr(model, "gpt_neox", None) or model.transformer
    parts = [*inner.layers, inner.final_layer_norm] if hasattr(inner, "layers") else [*inner.h, inner.ln_f]
    seen = []

    def edit_all(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = torch.stack([edit(position, state) for position, state in enumerate(args[0][0])])
        seen.append(states)
        return (states[None], *args[1:])

    handle = parts[layer + 1].register_forward_pre_hook(edit_all)
    try:
        logits = model(torch.tensor([list(row)]), use_cache=False).logits[0]
    finally:
        handle.remove()
    return seen[0], logits


def steered_logits(
    folder: Path, row: Sequence[int], layer: int, delta: Tensor, chosen: Chosen, n_prompt: int | None = None
) -> Tensor:
    n_prompt = len(row) if n_prompt is None else n_prompt
    return residual_and_logits(folder, row, layer, lambda p, state: state + delta if chosen(p, n_prompt) else state)[1]


def steered_greedy(
    folder: Path, prompt: Sequence[int], layer: int, delta: Tensor, chosen: Chosen, n_new: int
) -> list[int]:
    row = list(prompt)
    for _ in range(n_new):
        row.append(int(steered_logits(folder, row, layer, delta, chosen, len(prompt))[-1].argmax()))
    return row
