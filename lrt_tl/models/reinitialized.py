"""A model that has learned nothing: the architecture of another, with weights drawn anew.

As a source it is no null, but a baseline to beat: what can be read off the words themselves survives random weights,
and is carried from there too.
"""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lrt_tl.errors import LrtError
from lrt_tl.models.loading import load_model
from lrt_tl.models.protocol import HookedModel


def reinitialized(model: HookedModel, *, seed: int = 0) -> HookedModel:
    """A copy of a model with weights drawn as before training: for a `TransformerBridge` as its Hugging Face model
    draws them, for a `HookedTransformer` by its `init_weights`, with gains 1 and biases 0.

    The copy is called "… (random weights)", and is another model to maps and vectors. The given model, and the state of
    PyTorch's random numbers, stay as they are.

    Raises:
        LrtError: the model cannot be made anew, as one of code of its own, or quantized.

    Examples:
        >>> import lrt_tl as lrt
        >>> model = lrt.load_model("storyworld-small")
        >>> untrained = lrt.reinitialized(model)
        >>> untrained.cfg.model_name, untrained.cfg.d_model == model.cfg.d_model
        ('storyworld-small (random weights)', True)
        >>> bool((untrained.W_E == model.W_E).all())
        False
    """
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            drawn = _bridge(model) if hasattr(model, "original_model") else _hooked_transformer(model)
    except Exception as error:
        raise LrtError(f"{model.cfg.model_name} cannot be made anew with random weights: {error}") from error
    drawn.cfg.model_name = f"{model.cfg.model_name} (random weights)"
    drawn.tokenizer = model.tokenizer
    evaluated: HookedModel = drawn.eval()
    return evaluated


def _bridge(model: Any) -> Any:
    """By way of a folder: a Bridge wraps, splits and may fold the weights of its Hugging Face model, all in place."""
    original = model.original_model
    fresh = type(original)(copy.deepcopy(original.config))
    with TemporaryDirectory() as root:
        folder = Path(root) / "model"
        fresh.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        return load_model(
            folder, processed=model.compatibility_mode, device=str(model.cfg.device), dtype=model.cfg.dtype
        )


@torch.no_grad()
def _hooked_transformer(model: Any) -> Any:
    """`init_weights` draws matrices alone, for it expects a new model, and would set the configuration's own seed."""
    drawn = copy.deepcopy(model)
    drawn.reset_hooks()
    drawn.cfg.seed = None
    for name, parameter in drawn.named_parameters():
        kind = name.split(".")[-1]
        if not kind.startswith("W_"):
            parameter.fill_(1.0 if kind == "w" else 0.0)
    drawn.init_weights()
    return drawn
