"""One step of writing: the next token's logits, with what was read before kept in a cache."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lrt_tl.models.protocol import HookedModel


@torch.no_grad()
def next_logits(
    model: HookedModel, tokens: Int[Tensor, "row position"], n_new: int, cache: Any = None
) -> tuple[Float[Tensor, "row d_vocab"], Any]:
    """The logits after the last token of rows without padding, float32, and the cache with these tokens in it.

    Args:
        n_new: how many tokens, the last ones, are not in the cache yet.
        cache: what the step before gave; None at first, and from models that keep none: those read all tokens again.
    """
    new = tokens[:, -n_new:] if cache is not None else tokens
    if hasattr(model, "original_model"):  # a Bridge: the mask is of all columns, cached ones included
        logits, cache = model(
            new,
            attention_mask=torch.ones_like(tokens),
            past_key_values=cache,
            use_cache=True,
            return_type="logits_and_cache",
        )
    else:  # a HookedTransformer: it fills the cache that it is given, and appends the mask of the new columns
        cache = _empty_cache(model, len(tokens)) if cache is None else cache
        logits = model(new, attention_mask=torch.ones_like(new), past_kv_cache=cache)
    return logits[:, -1].float(), cache


def _empty_cache(model: HookedModel, rows: int) -> Any:
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    return TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, rows)
