"""Run both models over the same batches and yield what each had at its hook points, position by position.

Nothing is stored: memory does not grow with the number of documents. Left out, and counted, are special tokens and
*sinks*: positions whose norm is over ten times the median at any harvested hook point of either model. Attention sinks
and massive activations would otherwise dominate the least squares, and they are not only at the first token.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.alignment.processes import is_first
from lrt_tl.errors import LrtError
from lrt_tl.models.capture import capture
from lrt_tl.models.identity import same_tokenizer
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.hooks import require_at_rest
from lrt_tl.text.batches import BatchCounts, Layout, TokenBatch, TokenRows, token_batches
from lrt_tl.text.documents import Document, Documents, Exclusion, hash_of

SINK_RATIO = 10.0
_CALIBRATION_DOCUMENTS = 64

Activations = Mapping[str, Float[Tensor, "position _"]]
"""Activations at the kept positions, by name."""


Transform = Callable[[Float[Tensor, "position d_model"]], Float[Tensor, "position _"]]
"""What to take of a residual stream instead of itself: a projection, or an SAE's features."""


@dataclass
class PairedActivations:
    """One batch of both models, at the same positions of the same text."""

    states: Activations
    """By `source:` or `target:` and the hook name, float32."""
    splits: Int[Tensor, "position"]
    rows: Int[Tensor, "position"]
    """The row of the batch that a position is in: one document, or a piece of it (unless packed)."""


@dataclass(frozen=True)
class Calibration:
    """What is fixed before the pass, from a sample of documents that depends on neither their order nor their batches
    (the 64 whose hashes are lowest)."""

    median_norms: dict[str, float]
    """By `source:` or `target:` and the hook name: the median norm of the residual stream at text."""
    means: dict[str, Float[Tensor, "_"]]
    """By the same keys: the mean state without sinks, float64. The moments are taken about it, so it must be near the
    mean of what is kept: one sink among hundreds of positions moves a channel by many of its standard deviations."""


@dataclass
class HarvestCounts:
    """What was harvested, and what was not."""

    documents: int = 0
    documents_excluded: int = 0
    tokens_truncated: int = 0
    positions: int = 0
    tokens_unpaired: int = 0
    """With two tokenizers: tokens of the source at whose last character no token of the target ends."""
    special_dropped: int = 0
    sinks_dropped: int = 0
    median_norms: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    """How the text was read: the documents' name, context length, layout and beginning-of-sequence token."""


@dataclass(frozen=True)
class Harvest:
    """Two models, their hook points, the documents, and how to batch them."""

    source: HookedModel
    target: HookedModel
    source_hooks: Sequence[str]
    target_hooks: Sequence[str]
    documents: Documents
    batch_size: int = 16
    context_length: int = 256
    layout: Layout = "split"
    prepend_bos: bool = True
    exclude: Exclusion = field(default_factory=lambda: Exclusion(()))
    transforms: Mapping[str, Transform] = field(default_factory=dict)
    """By `source:` or `target:` and the hook name, after sinks are left out."""

    def __post_init__(self) -> None:
        for model in (self.source, self.target):
            require_at_rest(model)
            if self.context_length > model.cfg.n_ctx:
                raise LrtError(
                    f"context_length={self.context_length} is more than {model.cfg.model_name} reads "
                    f"({model.cfg.n_ctx}): choose a smaller one"
                )

    def calibrate(self) -> Calibration:
        """Medians and means over a fixed sample of documents, of each as much as is one row.

        Raises:
            LrtError: there is no document, or an activation is not finite.
        """
        sample = self.sample(_CALIBRATION_DOCUMENTS)
        states: dict[str, list[Tensor]] = {}
        for batch in self._batches(sample, BatchCounts(), layout="truncate"):
            for key, activations in self._states(batch).items():
                states.setdefault(key, []).append(activations)
        pooled = {key: torch.cat(parts) for key, parts in states.items()}
        if not all(len(activations) for activations in pooled.values()):
            raise LrtError(f"{self.documents.name}: the documents hold special tokens only")
        medians, means = {}, {}
        for key, activations in pooled.items():
            norms = activations.norm(dim=-1)
            medians[key] = float(norms.median())
            calm = activations[norms <= SINK_RATIO * medians[key]]
            means[key] = self._transformed(key, calm).double().mean(0)
        return Calibration(medians, means)

    def sample(self, n: int) -> list[Document]:
        """The documents whose hashes are lowest, whatever their order.

        Raises:
            LrtError: there is none.
        """
        kept = self._kept(HarvestCounts())
        documents = tqdm(kept, desc="read", unit=" documents", leave=False, disable=not is_first())
        sample = heapq.nsmallest(n, documents, key=lambda document: hash_of(document.text))
        if not sample:
            raise LrtError(f"{self.documents.name}: every document contains a contrast or behavior text")
        return sample

    def run(
        self, calibration: Calibration, counts: HarvestCounts, *, skip: int = 0, rank: int = 0, size: int = 1
    ) -> Iterator[PairedActivations]:
        """One pass over the documents. `counts` is filled on the way.

        Args:
            skip: batches to pass over, for `counts` holds them already.
            rank: of the `size` processes that share the pass: the models run on every `size`-th batch only, from this
                one. All documents are read and tokenized in each, so that the batches are the same in any number of
                processes, and `counts` counts all documents, but the positions of these batches.

        Raises:
            LrtError: an activation is NaN or infinite (names the hook point and the document), or a document tokenizes
                to nothing.
        """
        counts.median_norms, counts.documents_excluded = calibration.median_norms, 0
        names = ("context_length", "layout", "prepend_bos")
        counts.settings = {"documents": self.documents.name, **{name: getattr(self, name) for name in names}}
        batch_counts = BatchCounts()
        progress = tqdm(desc="harvest", unit=" positions", unit_scale=True, disable=not is_first())
        batches = self._batches(self._kept(counts), batch_counts, layout=self.layout)
        for batch in islice(batches, rank + skip * size, None, size):
            states = self._states(batch)
            vars(counts).update(asdict(batch_counts))
            content = batch.source.content
            rows = content.nonzero()[:, 0]
            splits = batch.splits[rows]
            sink = torch.zeros(len(splits), dtype=torch.bool)
            for key, activations in states.items():
                sink |= (activations.norm(dim=-1) > SINK_RATIO * calibration.median_norms[key]).cpu()
            counts.special_dropped += int(batch.source.special.sum())
            counts.sinks_dropped += int(sink.sum())
            counts.positions += int((~sink).sum())
            progress.update(len(splits))
            kept = {key: a[~sink.to(a.device)] if sink.any() else a for key, a in states.items()}
            transformed = {key: self._transformed(key, activations) for key, activations in kept.items()}
            yield PairedActivations(transformed, splits[~sink], rows[~sink])
        vars(counts).update(asdict(batch_counts))  # the last batches may be another's
        progress.close()

    def _transformed(self, key: str, activations: Tensor) -> Tensor:
        return self.transforms[key](activations) if key in self.transforms else activations

    def _kept(self, counts: HarvestCounts) -> Iterator[Document]:
        for document in self.documents:
            if document.text in self.exclude:
                counts.documents_excluded += 1
            else:
                yield document

    def _batches(self, documents: Any, counts: BatchCounts, *, layout: Layout) -> Iterator[TokenBatch]:
        one = same_tokenizer(self.source, self.target)
        return token_batches(
            [self.source.tokenizer] if one else [self.source.tokenizer, self.target.tokenizer],
            documents,
            batch_size=self.batch_size,
            context_length=self.context_length,
            layout=layout,
            prepend_bos=self.prepend_bos,
            counts=counts,
        )

    def _states(self, batch: TokenBatch) -> dict[str, Float[Tensor, "position _"]]:
        """Both models' activations at the text of a batch, by `source:` or `target:` and the hook name."""
        sides = (
            ("source:", self.source, self.source_hooks, batch.source),
            ("target:", self.target, self.target_hooks, batch.target),
        )
        return {
            prefix + name: _at_text(rows, batch.names, activations, f"{model.cfg.model_name}, {name}")
            for prefix, model, hooks, rows in sides
            for name, activations in capture(model, rows.tokens, rows.mask, hooks).items()
        }


def _at_text(
    rows: TokenRows, names: Sequence[str], activations: Float[Tensor, "row position d_model"], where: str
) -> Float[Tensor, "kept d_model"]:
    states = activations[rows.content.to(activations.device)]
    if not torch.isfinite(states).all():
        bad = ~torch.isfinite(activations).all(-1).cpu() & rows.content
        row = int(bad.any(1).nonzero()[0])
        raise LrtError(f"{where}: an activation is NaN or infinite on {names[row]}")
    return states
