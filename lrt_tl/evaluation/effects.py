"""Dose–response: a behavior's score against the coefficient of a vector, and the slope of that curve."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import Behavior, check_scores
from lrt_tl.evaluation.steered import deltas_at_once, steered_logits
from lrt_tl.models.protocol import HookedModel
from lrt_tl.text.batches import pad, tokenize

COEFFICIENTS = (-8.0, -4.0, 0.0, 4.0, 8.0)


def check_coefficients(coefficients: Sequence[float]) -> None:
    """Raises:
    LrtError: fewer than three, or not symmetric about 0 (then a curve's bend would pass for its slope).
    """
    ordered = sorted(coefficients)
    symmetric = all(abs(low + high) < 1e-9 for low, high in zip(ordered, reversed(ordered), strict=True))
    if len(set(ordered)) < 3 or len(set(ordered)) != len(ordered) or not symmetric:
        raise LrtError(f"coefficients {list(coefficients)} must be at least three, all different and symmetric about 0")


def dose_response(
    model: HookedModel,
    hook_name: str,
    directions: Float[Tensor, "arm d_model"],
    behavior: Behavior,
    coefficients: Sequence[float] = COEFFICIENTS,
    *,
    batch_size: int = 256,
    prepend_bos: bool = True,
) -> Float[Tensor, "arm coefficient prompt"]:
    """Scores with coefficient × direction added to the residual stream at all positions. float64, on the CPU.

    Many vectors share a batch of `batch_size` rows: each row has its own. Coefficient 0 is run once for all.

    Raises:
        LrtError: an answer that is not one token, a scorer that fails, or a prompt too long for the model.
    """
    scorer = behavior.scorer(model.tokenizer)
    rows = tokenize(model.tokenizer, behavior.prompts, prepend_bos=prepend_bos)
    if not all(rows):
        raise LrtError(f"a prompt of {behavior.name!r} tokenizes to nothing")
    if max(map(len, rows)) > model.cfg.n_ctx:
        raise LrtError(f"a prompt of {behavior.name!r} is longer than {model.cfg.model_name} reads ({model.cfg.n_ctx})")
    batches = [pad(model.tokenizer, rows[start : start + batch_size])[:2] for start in range(0, len(rows), batch_size)]
    doses = [(arm, place) for place, value in enumerate(coefficients) for arm in range(len(directions) if value else 1)]
    at_once = min(deltas_at_once(model, tokens, batch_size) for tokens, _ in batches)
    scores = torch.empty(len(directions), len(coefficients), len(rows), dtype=torch.float64)
    for start in tqdm(range(0, len(doses), at_once), desc=behavior.name, unit=" batches", leave=False):
        some = doses[start : start + at_once]
        deltas = torch.stack([coefficients[place] * directions[arm] for arm, place in some])
        after = torch.cat([_after_last_token(model, hook_name, *batch, deltas) for batch in batches], dim=1)
        for (arm, place), logits in zip(some, after, strict=True):
            found = check_scores(scorer(logits), len(rows), behavior)
            scores[arm if coefficients[place] else slice(None), place] = found
    return scores


def slopes(
    scores: Float[Tensor, "*arm coefficient prompt"], coefficients: Sequence[float]
) -> Float[Tensor, "*arm prompt"]:
    """Least-squares slope of each prompt's score against the coefficient."""
    x = torch.tensor(coefficients, dtype=torch.float64)
    x = x - x.mean()
    return torch.einsum("c,...cp->...p", x / x.square().sum(), scores.double())


def _after_last_token(
    model: HookedModel,
    hook_name: str,
    tokens: Int[Tensor, "prompt position"],
    mask: Bool[Tensor, "prompt position"],
    deltas: Float[Tensor, "dose d_model"],
) -> Float[Tensor, "dose prompt d_vocab"]:
    logits = steered_logits(model, hook_name, tokens, mask, deltas)
    return logits[:, torch.arange(len(tokens)), mask.sum(1) - 1].float()
