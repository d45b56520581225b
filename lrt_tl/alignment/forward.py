"""What both models make of each batch: run one after the other on it, or, where they do not fit into memory together,
on a group of batches, with the activations of the first on disk until the second has passed."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.capture import capture
from lrt_tl.models.deferred import DeferredModel, present
from lrt_tl.models.protocol import HookedModel
from lrt_tl.text.batches import TokenBatch, TokenRows

_BYTES_AT_A_TIME = 4_000_000_000

Seen = tuple[dict[str, Float[Tensor, "position _"]], dict[str, Float[Tensor, "row _"]]]
"""Activations at the text of a batch, and norms at all of it (on the CPU), by `source:` or `target:` and hook name."""


@dataclass(frozen=True)
class Side:
    """One of the two models, and where it is read."""

    name: str
    """`source` or `target`."""
    model: HookedModel | DeferredModel
    hook_names: Sequence[str]


def together(source: Side, target: Side, batches: Iterator[TokenBatch]) -> Iterator[tuple[TokenBatch, Seen]]:
    """Run both models on each batch."""
    with present(source.model) as first, present(target.model) as second:
        for batch in batches:
            yield batch, _joined(_seen(source, first, batch), _seen(target, second, batch))


def one_at_a_time(source: Side, target: Side, batches: Iterator[TokenBatch]) -> Iterator[tuple[TokenBatch, Seen]]:
    """The same, with one model at a time: each is loaded once for as many batches as make 4 GB of the source's
    activations (4 bytes a position, dimension and hook point), which are kept in a temporary folder meanwhile."""
    for group in _groups(batches, 4 * source.model.cfg.d_model * len(source.hook_names)):
        with tempfile.TemporaryDirectory(prefix="lrt_tl-") as folder:
            files = [Path(folder, f"{number}.safetensors") for number in range(len(group))]
            _write(source, group, files)
            yield from _read_beside(target, group, files, source.model.cfg.device)


def _groups(batches: Iterator[TokenBatch], bytes_of_token: int) -> Iterator[list[TokenBatch]]:
    group: list[TokenBatch] = []
    size = 0
    for batch in batches:
        group.append(batch)
        size += bytes_of_token * batch.source.mask.numel()
        if size >= _BYTES_AT_A_TIME:
            yield group
            group, size = [], 0
    if group:
        yield group


def rows_of(batch: TokenBatch, key: str) -> TokenRows:
    """The rows of the model that a key begins with."""
    return batch.source if key.startswith("source") else batch.target


def _write(side: Side, batches: Sequence[TokenBatch], files: Sequence[Path]) -> None:
    with present(side.model) as model:
        for batch, file in zip(batches, files, strict=True):
            states, norms = _seen(side, model, batch)
            save_file({f"{kind} {key}": t for kind, of in (("s", states), ("n", norms)) for key, t in of.items()}, file)


def _read_beside(
    side: Side, batches: Sequence[TokenBatch], files: Sequence[Path], device: Any
) -> Iterator[tuple[TokenBatch, Seen]]:
    with present(side.model) as model:
        for batch, file in zip(batches, files, strict=True):
            kept = load_file(file)
            file.unlink()
            states, norms = ({key[2:]: t for key, t in kept.items() if key[0] == kind} for kind in "sn")
            on_device = {key: state.to(device) for key, state in states.items()}
            yield batch, _joined((on_device, norms), _seen(side, model, batch))


def _joined(one: Seen, other: Seen) -> Seen:
    return {**one[0], **other[0]}, {**one[1], **other[1]}


def _seen(side: Side, model: HookedModel, batch: TokenBatch) -> Seen:
    states, norms, rows = {}, {}, rows_of(batch, side.name)
    for name, activations in capture(model, rows.tokens, rows.mask, side.hook_names).items():
        key, lengths = f"{side.name}:{name}", activations.norm(dim=-1).cpu()
        if not torch.isfinite(lengths[rows.content]).all():
            _require_finite(rows, batch.names, activations, f"{model.cfg.model_name}, {name}")
        states[key], norms[key] = activations[rows.content.to(activations.device)], lengths
    return states, norms


def _require_finite(
    rows: TokenRows, names: Sequence[str], activations: Float[Tensor, "row position d_model"], where: str
) -> None:
    """Name the first text at which an activation is NaN or infinite. (A length can overflow where none is.)"""
    bad = ~torch.isfinite(activations).all(-1).cpu() & rows.content
    if bad.any():
        raise LrtError(f"{where}: an activation is NaN or infinite on {names[int(bad.any(1).nonzero()[0])]}")
