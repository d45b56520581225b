"""Texts → one state each at every hook point that is asked for, from one pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.models.call import call_from_mask
from lrt_tl.models.capture import capture
from lrt_tl.models.protocol import HookedModel
from lrt_tl.progress import BAR
from lrt_tl.steering.handle import require_at_rest
from lrt_tl.text.batches import pad, tokenize
from lrt_tl.text.reading import TextPosition, check_text_position, reading_weights

PairPosition = TextPosition | Literal["answer"]
"""Where a text's state is read: see `text.reading`; or `"answer"`, the last token at which it differs from the other
text of its pair, counted from their common end, such as the answer's letter."""


_Asked = tuple[str, str]
"""A text, and the other one of its pair where that decides the position, or else itself."""


@dataclass(frozen=True)
class SiteStates:
    """What texts left at one hook point, on the CPU."""

    states: Float[Tensor, "text d_model"]
    """float32, one a text."""
    residual_norm: float
    """Median norm over every non-special token of the texts, each text counted once."""


def check_pair_position(position: object) -> None:
    """Raises:
    LrtError: not a place in a text, nor a selector of given texts.
    """
    if position != "answer":
        check_text_position(position)


def text_states(
    model: HookedModel,
    texts: Sequence[str],
    hook_names: Sequence[str],
    *,
    position: PairPosition = "mean",
    partners: Sequence[str] | None = None,
    batch_size: int = 32,
    prepend_bos: bool = True,
) -> dict[str, SiteStates]:
    """One state a text by (resolved) hook name. Equal texts are run once, and have equal states, whatever their
    batches; the pass ends at the deepest hook point.

    Args:
        partners: the other text of each text's pair, which must itself be among the texts; for `position="answer"`.

    Raises:
        LrtError: the model is being steered, a text has nothing at the position or is too long for the model, or an
            activation is not finite.
    """
    check_pair_position(position)
    if batch_size < 1:
        raise LrtError(f"batch_size={batch_size}: it must be at least 1")
    if position == "answer" and partners is None:
        raise LrtError("position='answer' compares the two texts of a pair, and these texts are in none")
    require_at_rest(model)
    others = partners if position == "answer" and partners is not None else texts
    asked = list(zip(texts, others, strict=True))
    place = {read: number for number, read in enumerate(dict.fromkeys(asked))}
    reads: dict[str, list[_Asked]] = {}
    for read in place:
        reads.setdefault(read[0], []).append(read)
    rows = dict(zip(reads, tokenize(model.tokenizer, list(reads), prepend_bos=prepend_bos), strict=True))
    _require_room(rows, model)
    states = {name: torch.empty(len(place), model.cfg.d_model) for name in hook_names}
    norms: dict[str, list[Tensor]] = {name: [] for name in states}
    order = sorted(reads, key=lambda text: len(rows[text]))
    for start in tqdm(range(0, len(order), batch_size), desc="extract", unit=" batches", **BAR):
        batch = order[start : start + batch_size]
        chosen = [read for text in batch for read in reads[text]]
        places = [place[read] for read in chosen]
        for name, (found, lengths) in _read(model, batch, chosen, rows, list(states), position).items():
            states[name][places] = found
            norms[name].append(lengths)
    for name, found in states.items():
        _require_finite(found, list(place), name)
    index = [place[read] for read in asked]
    return {name: SiteStates(found[index], float(torch.cat(norms[name]).median())) for name, found in states.items()}


def _read(
    model: HookedModel,
    texts: Sequence[str],
    reads: Sequence[_Asked],
    rows: Mapping[str, list[int]],
    hook_names: Sequence[str],
    position: PairPosition,
) -> dict[str, tuple[Float[Tensor, "read d_model"], Float[Tensor, "token"]]]:
    """A forward pass over texts: by hook name, the state of each read, and the norms at all tokens that are not
    special."""
    tokens, mask, content = pad(model.tokenizer, [rows[text] for text in texts])
    if position == "answer":
        lines = torch.tensor([texts.index(text) for text, _ in reads])
        answers = _answers([(rows[text], rows[other]) for text, other in reads], tokens.shape[1])
        weights = (answers & content[lines]).float()
    else:
        lines = torch.arange(len(texts))
        call = call_from_mask(mask, n_positions=mask.shape[1], tokens=tokens)
        weights = reading_weights(position, call, content, model.tokenizer)
    _require_chosen(weights, position, reads)
    found = {}
    for name, activations in capture(model, tokens, mask, hook_names).items():
        device = activations.device
        of_reads = activations if len(lines) == len(texts) else activations[lines.to(device)]
        lengths = activations[content.to(device)].norm(dim=-1)
        found[name] = _means(of_reads, weights.to(device)).cpu(), lengths.cpu()
    return found


def _require_room(rows: Mapping[str, Sequence[int]], model: HookedModel) -> None:
    longest = max(rows, key=lambda text: len(rows[text]))
    if len(rows[longest]) > model.cfg.n_ctx:
        raise LrtError(
            f"a text has {len(rows[longest])} tokens, {model.cfg.model_name} reads {model.cfg.n_ctx}: shorten "
            f"{longest[:60]!r}"
        )


def _answers(rows: Sequence[tuple[Sequence[int], Sequence[int]]], width: int) -> Bool[Tensor, "read position"]:
    """True at the last token of each row at which it differs from the other, counted from their common end."""
    answers = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, (row, other) in enumerate(rows):
        backwards = enumerate(zip(reversed(row), reversed(other), strict=False))
        from_end = next((n for n, (ours, theirs) in backwards if ours != theirs), min(len(row), len(other)))
        if from_end < len(row):
            answers[number, len(row) - 1 - from_end] = True
    return answers


def _require_chosen(weights: Float[Tensor, "read position"], position: PairPosition, reads: Sequence[_Asked]) -> None:
    empty = ~weights.any(1)
    if not empty.any():
        return
    text, other = reads[int(empty.nonzero()[0])]
    if position == "answer":
        raise LrtError(f"position='answer': the text {text[:60]!r} has no token where it differs from {other[:60]!r}")
    if isinstance(position, Mapping):
        raise LrtError(f"position={position!r} selects nothing in the text {text[:60]!r}")
    raise LrtError(f"position={position!r}: the text {text[:60]!r} has too few tokens that are not special")


def _require_finite(states: Float[Tensor, "read d_model"], reads: Sequence[_Asked], hook_name: str) -> None:
    finite = torch.isfinite(states).all(1)
    if not finite.all():
        text, _ = reads[int((~finite).nonzero()[0])]
        raise LrtError(f"{hook_name}: an activation is NaN or infinite on the text {text[:60]!r}")


def _means(
    activations: Float[Tensor, "read position d_model"], weights: Float[Tensor, "read position"]
) -> Float[Tensor, "read d_model"]:
    """The weighted mean over positions; what those of weight zero have may be infinite."""
    return torch.einsum("rp,rpd->rd", weights, activations.masked_fill(weights[..., None] == 0, 0))
