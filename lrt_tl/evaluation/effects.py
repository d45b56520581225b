"""Dose–response: a behavior's score against the coefficient of a vector, and the slope of that curve."""

from collections.abc import Iterator, Sequence

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import Behavior, check_scores
from lrt_tl.models.attach import attached
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


@torch.no_grad()
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

    Many vectors share a batch: each row has its own. Coefficient 0 is run once for all.

    Raises:
        LrtError: an answer that is not one token, a scorer that fails, or a prompt too long for the model.
    """
    scorer = behavior.scorer(model.tokenizer)
    rows = tokenize(model.tokenizer, behavior.prompts, prepend_bos=prepend_bos)
    if not all(rows):
        raise LrtError(f"a prompt of {behavior.name!r} tokenizes to nothing")
    if max(map(len, rows)) > model.cfg.n_ctx:
        raise LrtError(f"a prompt of {behavior.name!r} is longer than {model.cfg.model_name} reads ({model.cfg.n_ctx})")
    tokens, mask, _ = pad(model.tokenizer, rows)
    doses = [(arm, place) for place, value in enumerate(coefficients) for arm in range(len(directions) if value else 1)]
    scores = torch.empty(len(directions), len(coefficients), len(rows), dtype=torch.float64)
    at_once = max(1, batch_size // len(rows))
    batches = range(0, len(doses), at_once)
    for start in tqdm(batches, desc=behavior.name, unit=" batches", leave=False):
        chosen = doses[start : start + at_once]
        deltas = torch.stack([coefficients[place] * directions[arm] for arm, place in chosen])
        logits = _last_logits(model, hook_name, tokens, mask, deltas)
        for (arm, place), dose in zip(chosen, logits, strict=True):
            found = check_scores(scorer(dose), len(rows), behavior)
            scores[arm if coefficients[place] else slice(None), place] = found
    return scores


def slopes(
    scores: Float[Tensor, "*arm coefficient prompt"], coefficients: Sequence[float]
) -> Float[Tensor, "*arm prompt"]:
    """Least-squares slope of each prompt's score against the coefficient."""
    x = torch.tensor(coefficients, dtype=torch.float64)
    x = x - x.mean()
    return torch.einsum("c,...cp->...p", x / x.square().sum(), scores.double())


def _last_logits(
    model: HookedModel,
    hook_name: str,
    tokens: Int[Tensor, "prompt position"],
    mask: Bool[Tensor, "prompt position"],
    deltas: Float[Tensor, "dose d_model"],
) -> Iterator[Float[Tensor, "prompt d_vocab"]]:
    """For each delta, the logits after each prompt's last token with the delta added at all of its positions."""
    device, n_doses = model.cfg.device, len(deltas)
    rows = repeat(tokens, "prompt position -> (dose prompt) position", dose=n_doses).to(device)
    text = repeat(mask, "prompt position -> (dose prompt) position", dose=n_doses).to(device)
    per_row = repeat(deltas, "dose d_model -> (dose prompt) 1 d_model", prompt=len(tokens)).to(device)

    def add(activation: Tensor, hook: object) -> Tensor:
        return activation + (text[..., None] * per_row).to(activation)

    with attached(model, [(hook_name, add)]):
        logits = model(rows, attention_mask=text.long())
    last = text.sum(1) - 1
    picked = logits[torch.arange(len(last), device=logits.device), last.to(logits.device)].float()
    return iter(rearrange(picked, "(dose prompt) d_vocab -> dose prompt d_vocab", dose=n_doses))
