"""Copies of `large` that were moved away in controlled steps: quantized, pruned, trained on for a while; and its twin,
another model of the same distribution. What `one_distribution.py` and `middle.py` compare it with."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrt_tl import storyworld
from lrt_tl.models.loading import BUNDLED, load_model

TWIN, D_TWIN = "twin", 288
BITS, SHARES, STEPS = (8, 6, 5, 4, 3, 2), (0.1, 0.2, 0.3, 0.5, 0.7), (5, 20, 80, 320)
SEED = 78


@torch.no_grad()
def quantize(model: Any, bits: int) -> None:
    """Round every matrix to 2^bits − 1 levels, symmetric about 0, a scale a row."""
    for weight in (p for p in model.parameters() if p.ndim == 2):
        step = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
        weight.copy_((weight / step).round() * step)


@torch.no_grad()
def prune(model: Any, share: float) -> None:
    """Put that share of the weights of every matrix of the blocks, the smallest, to 0."""
    for weight in (p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name):
        weight.masked_fill_(weight.abs() <= weight.abs().flatten().kthvalue(int(share * weight.numel())).values, 0)


def train_on(model: Any, steps: int) -> None:
    """AdamW at 1e-4 on sad Spanish stories, 16 a step."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED / "storyworld-large")
    given = {"kind": "story", "mood": "sad", "language": "Spanish"}
    texts = [tokenizer.bos_token + each.text for each in storyworld.samples(16 * steps, seed=SEED, **given)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for start in range(0, len(texts), 16):
        batch = tokenizer(texts[start : start + 16], return_tensors="pt", padding=True, add_special_tokens=False)
        tokens, mask = batch["input_ids"], batch["attention_mask"]
        labels: Tensor = tokens.masked_fill(mask == 0, -100)
        loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


LADDERS: dict[str, dict[str, Callable[[Any], None]]] = {
    "quantized": {f"{bits} bits": partial(quantize, bits=bits) for bits in BITS},
    "pruned": {f"{share:.0%} pruned": partial(prune, share=share) for share in SHARES},
    "trained on": {f"{steps} steps": partial(train_on, steps=steps) for steps in STEPS},
}
"""What is done to copies of `large`, least first."""


def ladder_of(name: str) -> str:
    """The ladder on which a copy stands; "" for what is none of them."""
    return next((ladder for ladder, changes in LADDERS.items() if name in changes), "")


def copies() -> list[str]:
    """Their names, the twin's included."""
    return [TWIN, *(name for changes in LADDERS.values() for name in changes)]


def load_copy(name: str) -> Any:
    """The copy of that name."""
    if name == TWIN:
        return storyworld.widen(storyworld.load("large"), D_TWIN)
    with TemporaryDirectory() as root:
        folder = Path(root) / "storyworld-large"
        shutil.copytree(BUNDLED / "storyworld-large", folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        LADDERS[ladder_of(name)][name](model)
        model.save_pretrained(folder)
        return load_model(folder)
