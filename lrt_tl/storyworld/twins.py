"""Another model of the same distribution: its residual stream is that of the first, turned, in more dimensions."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.loading import load_model
from lrt_tl.models.protocol import HookedModel

_READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
"""By the norm whose output they read."""
_WRITERS = ("self_attn.o_proj", "mlp.down_proj")


def widen(model: HookedModel, d_model: int, *, seed: int = 0) -> HookedModel:
    """A twin of a storyworld model: the same distribution of the next token, exactly, from a residual stream of another
    width, h' = Q h with Q = `rotation(d_model, model.cfg.d_model, seed=seed)`.

    RMSNorm takes its mean over d' dimensions instead of d, so that with gain √(d/d') and ε d/d' it gives Q times what
    it gave; its own gains move into the weights that read from it. Those are W diag(g) Qᵀ then, and those that write
    Q W. Nothing is added in the further dimensions: RMSNorm sees every direction, so that junk there would have to be
    of one small norm at every position to change nothing (`widen_predictor` adds any, to plain arrays). Exact are the
    logits, but for rounding. A tied unembedding reads through the last norm's gains, so that the twin's is its own.
    (Derived here.)

    Args:
        model: a `TransformerBridge` of a Llama, as `storyworld.load` gives.
        d_model: at least the model's own, which turns it alone; a multiple of its heads, as Transformers asks.

    Returns:
        A `TransformerBridge` in the precision of the model, with its tokenizer, called `…-twin`.

    Raises:
        LrtError: there is no such width; or the model is no Llama, has biases, or its weights were processed.

    Examples:
        >>> import torch
        >>> from lrt_tl import storyworld
        >>> small = storyworld.load("small")
        >>> twin = storyworld.widen(small, 96)
        >>> twin.cfg.model_name, twin.cfg.d_model
        ('storyworld-small-twin', 96)
        >>> tokens = small.to_tokens("The capital of Norvia is")
        >>> torch.allclose(small(tokens), twin(tokens), atol=1e-3)
        True
    """
    own = getattr(model, "original_model", None)
    config: Any = getattr(own, "config", None)
    if own is None or getattr(config, "model_type", "") != "llama" or config.attention_bias or config.mlp_bias:
        raise LrtError(f"only a Llama without biases, loaded as a Bridge, has a twin; not {model.cfg.model_name}")
    if getattr(model, "compatibility_mode", False):
        raise LrtError(f"the weights of {model.cfg.model_name} were processed: load it without, and widen that")
    if d_model < config.hidden_size or d_model % config.num_attention_heads:
        raise LrtError(
            f"d_model={d_model}: a twin has at least the {config.hidden_size} dimensions of its model, and a multiple "
            f"of its {config.num_attention_heads} heads"
        )
    shrunk = config.hidden_size / d_model
    changes = {"hidden_size": d_model, "rms_norm_eps": config.rms_norm_eps * shrunk, "tie_word_embeddings": False}
    changes["output_attentions"] = False  # which a Bridge asks for, and which no folder can be saved with
    weights = _weights(own)
    turn = rotation(d_model, config.hidden_size, seed=seed)
    return _loaded(model, type(config)(**{**config.to_dict(), **changes}), dict(_turned(weights, turn)))


def rotation(d_model: int, d_own: int, *, seed: int = 0) -> Float64[Tensor, "d_model d_own"]:
    """Orthonormal columns, uniform over all such (QR of a normal matrix, signs set by R)."""
    normal = torch.randn(d_model, d_own, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    columns, triangle = torch.linalg.qr(normal)
    turn: Tensor = columns * triangle.diagonal().sign()
    return turn


def _weights(own: Any) -> dict[str, Float64[Tensor, "..."]]:
    """By Transformers' names, which a Bridge's wrappers stand between; a tied unembedding as well."""
    found = {
        name.replace("._original_component", ""): parameter.detach().cpu().double()
        for name, parameter in own.named_parameters()
    }
    return {"lm_head.weight": found["model.embed_tokens.weight"]} | found


def _turned(
    weights: Mapping[str, Float64[Tensor, "..."]], turn: Float64[Tensor, "d_model d_own"]
) -> Iterator[tuple[str, Float64[Tensor, "..."]]]:
    gain = torch.full((turn.shape[0],), (turn.shape[1] / turn.shape[0]) ** 0.5, dtype=torch.float64)
    yield "model.embed_tokens.weight", weights["model.embed_tokens.weight"] @ turn.T
    yield "lm_head.weight", weights["lm_head.weight"] * weights["model.norm.weight"] @ turn.T
    yield "model.norm.weight", gain
    for layer in sorted({name.split(".")[2] for name in weights if name.startswith("model.layers.")}):
        block = f"model.layers.{layer}."
        for norm, readers in _READERS.items():
            yield f"{block}{norm}.weight", gain
            for reader in readers:
                folded = weights[f"{block}{reader}.weight"] * weights[f"{block}{norm}.weight"]
                yield f"{block}{reader}.weight", folded @ turn.T
        for writer in _WRITERS:
            yield f"{block}{writer}.weight", turn @ weights[f"{block}{writer}.weight"]


def _loaded(model: HookedModel, config: Any, weights: Mapping[str, Float[Tensor, "..."]]) -> HookedModel:
    """Through a folder, as any model is."""
    from transformers import AutoModelForCausalLM

    twin = AutoModelForCausalLM.from_config(config).to(model.cfg.dtype)
    twin.load_state_dict(weights)
    with TemporaryDirectory() as root:
        folder = Path(root) / f"{model.cfg.model_name}-twin"
        twin.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        return load_model(folder, device=str(model.cfg.device), dtype=model.cfg.dtype)
