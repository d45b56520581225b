"""How likely a model finds what follows a text."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.models.protocol import HookedModel
from lrt_tl.progress import BAR
from lrt_tl.text.batches import pad, tokenize

_MOST_LOGITS = 2**28
"""How many logits of a batch may stand in memory at once: 1 GiB of float32."""

Pair = tuple[list[int], list[int]]
"""Token ids of a context and of its continuation."""


def encode_pairs(
    tokenizer: Any, contexts: Sequence[str], continuations: Sequence[str], *, prepend_bos: bool = True
) -> list[Pair]:
    """Token ids of contexts and continuations, read together and cut after as many tokens as the context has alone: as
    lm-eval (the language model evaluation harness) cuts them.

    Raises:
        LrtError: a continuation adds no token, or a context has none.
    """
    together = [context + continuation for context, continuation in zip(contexts, continuations, strict=True)]
    alone = tokenize(tokenizer, contexts, prepend_bos=prepend_bos)
    pairs = [
        (whole[: len(context)], whole[len(context) :])
        for context, whole in zip(alone, tokenize(tokenizer, together, prepend_bos=prepend_bos), strict=True)
    ]
    for text, (context_ids, continuation_ids) in zip(together, pairs, strict=True):
        if not context_ids or not continuation_ids:
            raise LrtError(f"{text[-60:]!r}: the tokenizer finds no token before its last part, or none in it")
    return pairs


@torch.no_grad()
def log_likelihoods(model: HookedModel, pairs: Sequence[Pair], *, batch_size: int = 64) -> list[tuple[float, bool]]:
    """Of each continuation after its context: the sum of its tokens' log-probabilities, in nats, and whether each of
    these is the likeliest token.

    A model reads all but the last token of a pair; pairs that are equal so far, as choices of one token are, share a
    row.

    Args:
        batch_size: rows in a forward pass; fewer where their logits would take more than 1 GiB.

    Raises:
        LrtError: a pair is longer than the model reads.
    """
    sharing: dict[tuple[int, ...], list[int]] = {}
    for place, (context, continuation) in enumerate(pairs):
        sharing.setdefault((*context, *continuation[:-1]), []).append(place)
    rows = sorted(sharing, key=len, reverse=True)
    longest = len(rows[0]) if rows else 1
    if longest > model.cfg.n_ctx:
        raise LrtError(
            f"text {sharing[rows[0]][0]} has {longest} tokens, {model.cfg.model_name} reads {model.cfg.n_ctx}"
        )
    batch_size = max(1, min(batch_size, _MOST_LOGITS // (longest * model.cfg.d_vocab)))
    found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    for start in tqdm(range(0, len(rows), batch_size), desc="log-likelihood", unit=" batches", **BAR):
        some = rows[start : start + batch_size]
        tokens, mask, _ = pad(model.tokenizer, [list(row) for row in some])
        logits = model(tokens.to(model.cfg.device), attention_mask=mask.to(model.cfg.device).long())
        for row, after in zip(some, logits, strict=True):
            for place in sharing[row]:
                found[place] = _of_continuation(after[: len(row)], pairs[place][1])
    return found


def _of_continuation(logits: Float[Tensor, "position d_vocab"], continuation: list[int]) -> tuple[float, bool]:
    after = logits[-len(continuation) :].float().log_softmax(-1)
    said = torch.tensor(continuation, device=after.device)
    likely = after.gather(-1, said[:, None]).double().sum()
    return float(likely), bool((after.argmax(-1) == said).all())
