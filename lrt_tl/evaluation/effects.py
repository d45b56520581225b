"""Dose–response: a behavior's score against the coefficient of a vector, and the slope of that curve."""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import Behavior, score_of
from lrt_tl.evaluation.steered import MOST_LOGITS, deltas_at_once, steered_run
from lrt_tl.evaluation.written import WrittenText, judged, written_texts
from lrt_tl.models.protocol import HookedModel
from lrt_tl.progress import BAR
from lrt_tl.text.batches import pad, tokenize

COEFFICIENTS = (-8.0, -4.0, 0.0, 4.0, 8.0)
_PADDED = 1.2


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
        LrtError: an answer that is not one token, a continuation that shares a token with its prompt, a scorer or a
            judge that fails, or a text too long for the model.
    """
    rows = tokenize(model.tokenizer, behavior.prompts, prepend_bos=prepend_bos)
    if not all(rows):
        raise LrtError(f"a prompt of {behavior.name!r} tokenizes to nothing")
    measured = _written if isinstance(behavior.score, WrittenText) else _read
    measure, at_once = measured(model, hook_name, behavior, rows, batch_size)
    doses = [(arm, place) for place, value in enumerate(coefficients) for arm in range(len(directions) if value else 1)]
    scores = torch.empty(len(directions), len(coefficients), len(rows), dtype=torch.float64)
    for start in tqdm(range(0, len(doses), at_once), desc=behavior.name, unit=" batches", **BAR):
        some = doses[start : start + at_once]
        deltas = torch.stack([coefficients[place] * directions[arm] for arm, place in some])
        for (arm, place), found in zip(some, measure(deltas), strict=True):
            scores[arm if coefficients[place] else slice(None), place] = found
    return scores


def slopes(
    scores: Float[Tensor, "*arm coefficient prompt"], coefficients: Sequence[float]
) -> Float[Tensor, "*arm prompt"]:
    """Least-squares slope of each prompt's score against the coefficient."""
    x = torch.tensor(coefficients, dtype=torch.float64)
    x = x - x.mean()
    return torch.einsum("c,...cp->...p", x / x.square().sum(), scores.double())


Measure = Callable[[Float[Tensor, "dose d_model"]], Iterable[Float[Tensor, "prompt"]]]
"""What is added to the residual stream → the scores of each dose."""


def _read(
    model: HookedModel, hook_name: str, behavior: Behavior, rows: list[list[int]], batch_size: int
) -> tuple[Measure, int]:
    """Scores from the logits, and how many doses share a forward pass."""
    reading = behavior.reading(model.tokenizer, rows)
    _check_lengths(model, behavior, reading.rows)
    batch_size = max(1, min(batch_size, MOST_LOGITS // (max(map(len, reading.rows)) * model.cfg.d_vocab)))
    groups = _of_like_lengths(reading.rows, batch_size)
    batches = [pad(model.tokenizer, [reading.rows[row] for row in group])[:2] for group in groups]
    runs = [steered_run(model, hook_name, *batch, last=reading.last) for batch in batches]
    at_once = [deltas_at_once(model, tokens, batch_size) for tokens, _ in batches]
    back = torch.tensor([row for group in groups for row in group]).argsort()

    def measure(deltas: Tensor) -> Iterable[Tensor]:
        kept = [
            torch.cat([reading.kept(group, run(some)) for some in torch.split(deltas, n)])
            for group, run, n in zip(groups, runs, at_once, strict=True)
        ]
        return (score_of(behavior, reading.score, of_dose) for of_dose in torch.cat(kept, dim=1)[:, back])

    return measure, max(1, min(max(at_once), MOST_LOGITS // (len(reading.rows) * model.cfg.d_vocab)))


def _of_like_lengths(rows: Sequence[list[int]], batch_size: int) -> list[list[int]]:
    """The numbers of the rows in groups of at most `batch_size`, none longer than `_PADDED` of the group's shortest: so
    that little is padding."""
    groups: list[list[int]] = []
    for row in sorted(range(len(rows)), key=lambda row: len(rows[row])):
        if groups and len(groups[-1]) < batch_size and len(rows[row]) <= _PADDED * len(rows[groups[-1][0]]):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _written(
    model: HookedModel, hook_name: str, behavior: Behavior, rows: list[list[int]], batch_size: int
) -> tuple[Measure, int]:
    """Scores from what is written; as many doses at once as a batch has rows, so that even a prompt whose length no
    other has fills one."""
    how = behavior.score
    assert isinstance(how, WrittenText)
    _check_lengths(model, behavior, rows, how.max_new_tokens)

    def measure(deltas: Tensor) -> Iterable[Tensor]:
        texts = written_texts(model, hook_name, behavior.prompts, rows, deltas, how, batch_size=batch_size)
        return judged(behavior.name, behavior.prompts, texts, how.judge)

    return measure, batch_size


def _check_lengths(model: HookedModel, behavior: Behavior, rows: list[list[int]], n_new: int = 0) -> None:
    n_ctx = model.cfg.n_ctx
    if max(map(len, rows)) + n_new > n_ctx:
        more = f", with {n_new} new tokens," if n_new else ""
        raise LrtError(f"a text of {behavior.name!r}{more} is longer than {model.cfg.model_name} reads ({n_ctx})")
