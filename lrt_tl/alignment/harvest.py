"""Run both models over the same batches and yield what each had at its hook points, position by position.

Nothing is stored: memory does not grow with the number of documents. Left out, and counted, are special tokens and
*sinks*: positions whose norm is over ten times the median at any harvested hook point of either model. Attention sinks
and massive activations would otherwise dominate the least squares, and they are not only at the first token.
"""

import hashlib
import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.alignment.counts import HarvestCounts
from lrt_tl.alignment.forward import Seen, Side, one_at_a_time, rows_of, together
from lrt_tl.alignment.processes import bar
from lrt_tl.errors import LrtError
from lrt_tl.models.call import call_from_mask
from lrt_tl.models.deferred import DeferredModel
from lrt_tl.models.identity import same_tokenizer
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.handle import require_at_rest
from lrt_tl.text.batches import BATCHES_SORTED_TOGETHER, BatchCounts, Layout, TokenBatch, token_batches
from lrt_tl.text.documents import Document, Documents, Exclusion, hash_of
from lrt_tl.text.positions import Positions, check_given_texts, positions_to_json, select

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
    """By the same keys: the mean state without sinks. The moments are taken about it, so it must be near the
    mean of what is kept: one sink among hundreds of positions moves a channel by many of its standard deviations."""


@dataclass(frozen=True)
class Harvest:
    """Two models, their hook points, the documents, and how to batch them."""

    source: HookedModel | DeferredModel
    target: HookedModel | DeferredModel
    source_hooks: Sequence[str]
    target_hooks: Sequence[str]
    documents: Documents
    batch_size: int = 16
    context_length: int = 256
    layout: Layout = "split"
    prepend_bos: bool = True
    sorted_together: int = BATCHES_SORTED_TOGETHER
    """Batches whose rows are sorted by length: with 1, documents come in their own order, and more is padding."""
    exclude: Exclusion = field(default_factory=lambda: Exclusion(()))
    positions: Positions = "all"
    """Which of the source's tokens to read, of those that are text and pair: see `text.positions`. They are counted in
    each row, which begins with the beginning of sequence."""
    transforms: Mapping[str, Transform] = field(default_factory=dict)
    """By `source:` or `target:` and the hook name, after sinks are left out."""

    def __post_init__(self) -> None:
        check_given_texts(self.positions)
        if self.positions != "all" and self.layout == "pack":
            raise LrtError(f"positions={self.positions!r} are of one document, and layout='pack' puts several in a row")
        for model in (self.source, self.target):
            if not isinstance(model, DeferredModel):
                require_at_rest(model)
            if self.context_length > model.cfg.n_ctx:
                raise LrtError(
                    f"context_length={self.context_length} is more than {model.cfg.model_name} reads "
                    f"({model.cfg.n_ctx}): choose a smaller one"
                )

    @property
    def keys(self) -> tuple[list[str], list[str]]:
        """The names of the activations of both sides, `source:` or `target:` and the hook name."""
        return [f"source:{name}" for name in self.source_hooks], [f"target:{name}" for name in self.target_hooks]

    def calibrate(self) -> Calibration:
        """Medians and means over a fixed sample of documents, of each as much as is one row.

        Raises:
            LrtError: there is no document, or an activation is not finite.
        """
        sample = self.sample(_CALIBRATION_DOCUMENTS)
        states: dict[str, list[Tensor]] = {}
        for batch, (of_batch, _) in self._seen(self._batches(sample, BatchCounts(), layout="truncate")):
            selected = self._selected(batch)
            for key, activations in of_batch.items():
                states.setdefault(key, []).append(_at(activations, selected))
        pooled = {key: torch.cat(parts) for key, parts in states.items()}
        if not pooled or not all(map(len, pooled.values())):
            raise LrtError(
                f"{self.documents.name}: the documents hold special tokens only, or none at which tokens of both "
                "tokenizers end"
                + ("" if self.positions == "all" else f", or nothing that positions={self.positions!r} selects")
            )
        medians, means = {}, {}
        for key, activations in pooled.items():
            norms = activations.norm(dim=-1)
            medians[key] = float(norms.median())
            calm = activations[norms <= SINK_RATIO * medians[key]]
            means[key] = self._transformed(key, calm).float().mean(0)
        return Calibration(medians, means)

    def sample(self, n: int) -> list[Document]:
        """The documents whose hashes are lowest, whatever their order.

        Raises:
            LrtError: there is none.
        """
        kept = self._kept(HarvestCounts())
        documents = tqdm(kept, desc="read", unit=" documents", **bar())
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
        counts.restart()
        counts.median_norms = calibration.median_norms
        names = ("context_length", "layout", "prepend_bos")
        counts.settings = {"documents": self.documents.name, **{name: getattr(self, name) for name in names}}
        if self.positions != "all":
            counts.settings["positions"] = positions_to_json(self.positions)
        progress = tqdm(desc="harvest", unit=" positions", unit_scale=True, **bar())
        batches = self._batches(self._kept(counts), counts, layout=self.layout)
        for batch, (states, norms) in self._seen(islice(batches, rank + skip * size, None, size)):
            rows = batch.source.content.nonzero()[:, 0]
            splits = batch.splits[rows]
            at_text = {key: norm[rows_of(batch, key).content] for key, norm in norms.items()}
            selected = self._selected(batch)
            sink = torch.zeros(len(splits), dtype=torch.bool)
            for key, norm in at_text.items():
                sink |= selected & (norm > SINK_RATIO * calibration.median_norms[key])
            keep = selected & ~sink
            for key, norm in norms.items():
                counts.add_norms(key, norm[rows_of(batch, key).mask], at_text[key][keep])
            counts.sinks_dropped += int(sink.sum())
            counts.tokens_not_selected += int((~selected).sum())
            counts.positions += int(keep.sum())
            progress.update(len(splits))
            kept = {key: _at(activations, keep) for key, activations in states.items()}
            transformed = {key: self._transformed(key, activations) for key, activations in kept.items()}
            yield PairedActivations(transformed, splits[keep], rows[keep])
        progress.close()

    def _selected(self, batch: TokenBatch) -> Bool[Tensor, "position"]:
        """Which of the positions that are text, and pair, are to be read."""
        rows = batch.source
        if self.positions == "all":
            return torch.ones(int(rows.content.sum()), dtype=torch.bool)
        call = call_from_mask(rows.mask, n_positions=rows.mask.shape[1], tokens=rows.tokens)
        return select(self.positions, call, self.source.tokenizer)[rows.content]

    def _transformed(self, key: str, activations: Tensor) -> Tensor:
        if key not in self.transforms:
            return activations
        with torch.no_grad():
            made = self.transforms[key](activations).float()
        if made.ndim != 2 or len(made) != len(activations) or not torch.isfinite(made).all():
            raise LrtError(f"the features of {key} have shape {tuple(made.shape)}, or hold NaN or infinity")
        return made

    def _kept(self, counts: HarvestCounts) -> Iterator[Document]:
        for document in self.documents:
            if document.text in self.exclude:
                counts.documents_excluded += 1
            else:
                yield document

    def _batches(self, documents: Any, counts: BatchCounts, *, layout: Layout) -> Iterator[TokenBatch]:
        tokenizers = [self.source.tokenizer, self.target.tokenizer]
        return token_batches(
            tokenizers[:1] if same_tokenizer(*tokenizers) else tokenizers,
            documents,
            batch_size=self.batch_size,
            context_length=self.context_length,
            layout=layout,
            prepend_bos=self.prepend_bos,
            sorted_together=self.sorted_together,
            counts=counts,
        )

    def _seen(self, batches: Iterator[TokenBatch]) -> Iterator[tuple[TokenBatch, Seen]]:
        """Each batch, and what both models make of it."""
        sides = Side("source", self.source, self.source_hooks), Side("target", self.target, self.target_hooks)
        if any(isinstance(side.model, DeferredModel) for side in sides):
            return one_at_a_time(*sides, batches)
        return together(*sides, batches)


def _at(activations: Float[Tensor, "position _"], keep: Bool[Tensor, "position"]) -> Float[Tensor, "kept _"]:
    return activations if keep.all() else activations[keep.to(activations.device)]


def fingerprint_of(transform: Transform, d_model: int, device: Any) -> str:
    """A number for a function, from what it makes of some fixed states."""
    states = torch.randn(4, d_model, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        made = transform(states).float().cpu()
    return hashlib.sha256(made.numpy().tobytes()).hexdigest()[:8]
