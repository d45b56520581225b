"""Which layers to pair: every pair of them, from one pass over the text, beside a null that is searched the same way.

A search inflates what it finds: the best of many pairs of unrelated layers looks related, too. So the search is done
again on data in which the target's positions are shuffled within their texts, and the best of each such search is what
the best pair must beat.
"""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.alignment.accumulation import accumulate
from lrt_tl.alignment.counts import HarvestCounts
from lrt_tl.alignment.diagnostics import debiased_cka, r_squared
from lrt_tl.alignment.ends import Layers, Model
from lrt_tl.alignment.fit import FOLDS, RELATIVE_RIDGES, prepare
from lrt_tl.alignment.harvest import Calibration, Harvest, PairedActivations, Transform
from lrt_tl.alignment.moments import Moments, fit_pairs, pool
from lrt_tl.alignment.processes import bar, shared
from lrt_tl.alignment.selection import FoldSpectrum, held_out_folds, penalties_of
from lrt_tl.alignment.solvers import ridge
from lrt_tl.errors import LrtError
from lrt_tl.models.hook_names import layer_of
from lrt_tl.report.style import OTHERS, layout
from lrt_tl.tables import html_table
from lrt_tl.text.batches import Layout
from lrt_tl.text.documents import N_SPLITS, TEST, Documents
from lrt_tl.text.positions import Positions

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

N_NULLS = 20
SAMPLE_DOCUMENTS = 256


@dataclass(frozen=True)
class LayerSearch:
    """How well each source layer maps to each target layer.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model, texts = storyworld.load("small"), storyworld.documents(60)
        >>> found = lrt.search_layers(model, model, texts, source_layers=[0, 1], target_layers=[2, 3], n_nulls=2)
        >>> found.best
        (1, 2)
        >>> found.sample_best > max(found.null_best)
        True
    """

    source: str
    target: str
    source_layers: tuple[int, ...]
    target_layers: tuple[int, ...]
    cv_r2: Float[Tensor, "source_layer target_layer"]
    """Of the best ridge, mean over the folds. The best pair is chosen by it."""
    test_r2: Float[Tensor, "source_layer target_layer"]
    """On test documents, which no choice has seen."""
    cka: Float[Tensor, "source_layer target_layer"]
    """Debiased linear CKA, on the sample."""
    sample_best: float
    """The highest R² in cross-validation on the sample, which is what the null is to be compared with."""
    null_best: tuple[float, ...]
    """The same, where the target's positions were shuffled within their texts."""
    sample_positions: int
    positions: int
    sketch: int | None
    """Dimensions of the random projection that both sides were seen through, if any."""

    @property
    def best(self) -> tuple[int, int]:
        """The pair of layers with the highest R² in cross-validation."""
        row, column = divmod(int(self.cv_r2.argmax()), len(self.target_layers))
        return self.source_layers[row], self.target_layers[column]

    def summary(self) -> dict[str, str]:
        """The best pair and the null, for a table."""
        source, target = self.best
        row, column = self.source_layers.index(source), self.target_layers.index(target)
        null = torch.tensor(self.null_best)
        rank = 1 + sum(best >= self.sample_best for best in self.null_best)
        of = "" if self.sketch is None else f", seen through a random projection to {self.sketch} dimensions"
        return {
            "best pair": f"{self.source} L{source} → {self.target} L{target}{of}",
            "R² in cross-validation": f"{float(self.cv_r2[row, column]):.3f}",
            "R² on test documents": f"{float(self.test_r2[row, column]):.3f}",
            "debiased linear CKA": f"{float(self.cka[row, column]):.3f}",
            f"the same search on {self.sample_positions:,} positions": f"{self.sample_best:.3f}",
            f"and on {len(null)} shuffles of them": f"{float(null.mean()):.3f}, at most {float(null.max()):.3f} "
            f"(rank {rank} of {len(null) + 1})",
            "positions": f"{self.positions:,}",
        }

    def rows(self, what: str = "test_r2") -> list[dict[str, str]]:
        """One row for each source layer and one column for each target layer, of `test_r2`, `cv_r2` or `cka`."""
        return [
            {"": f"{self.source} L{layer}"}
            | {f"L{to}": f"{float(value):.3f}" for to, value in zip(self.target_layers, values, strict=True)}
            for layer, values in zip(self.source_layers, getattr(self, what), strict=True)
        ]

    def figure(self, what: str = "test_r2") -> "Figure":
        """A heat map of `test_r2`, `cv_r2` or `cka`, the best pair marked."""
        from plotly.graph_objects import Figure, Heatmap

        names = {"test_r2": "R² on test documents", "cv_r2": "R² in cross-validation", "cka": "debiased linear CKA"}
        values = getattr(self, what)
        heat = Heatmap(
            z=values.tolist(),
            x=[f"L{layer}" for layer in self.target_layers],
            y=[f"L{layer}" for layer in self.source_layers],
            text=[[f"{float(value):.2f}" for value in row] for row in values],
            texttemplate="%{text}",
            colorscale="Viridis",
            zmin=min(0.0, float(values.min())),
            zmax=1.0,
            colorbar={"title": names[what]},
        )
        figure = Figure(heat)
        source, target = self.best
        row, column = self.source_layers.index(source), self.target_layers.index(target)
        figure.add_shape(
            type="rect",
            x0=column - 0.5,
            x1=column + 0.5,
            y0=row - 0.5,
            y1=row + 0.5,
            line={"color": OTHERS[1], "width": 3},
        )
        ends = html.escape(self.source), html.escape(self.target)
        return figure.update_layout(
            layout(
                title=f"{names[what]}, {ends[0]} → {ends[1]}",
                xaxis_title=f"target layer ({ends[1]})",
                yaxis_title=f"source layer ({ends[0]})",
                height=140 + 44 * len(self.source_layers),
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        tables = {name: getattr(self, name).tolist() for name in ("cv_r2", "test_r2", "cka")}
        return {**vars(self), **tables, "best": list(self.best)}

    def __repr__(self) -> str:
        source, target = self.best
        row, column = self.source_layers.index(source), self.target_layers.index(target)
        r2 = float(self.test_r2[row, column])
        return (
            f"LayerSearch({self.source} L{source} → {self.target} L{target}, R² {r2:.2f}; "
            f"on a sample {self.sample_best:.2f}, shuffled at most {max(self.null_best):.2f})"
        )

    def _repr_html_(self) -> str:
        return html_table(self.summary())


@shared
def search_layers(
    source: Model,
    target: Model,
    documents: Any,
    *,
    source_layers: Sequence[int] | None = None,
    target_layers: Sequence[int] | None = None,
    exclude: Iterable[str] = (),
    n_nulls: int = N_NULLS,
    sketch: int | None = None,
    batch_size: int = 16,
    context_length: int | None = None,
    layout: Layout = "split",
    positions: Positions = "all",
    prepend_bos: bool = True,
    sequential: bool = False,
    relative_ridges: Sequence[float] = RELATIVE_RIDGES,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    distributed: bool = False,
) -> LayerSearch:
    """Fit a ridge map between every pair of layers, in one pass over the text. (The map
    that predicts best is ridge's; for the pair that was found, `fit_affine_map` may make another.)

    Args:
        documents: whatever `read_documents` takes.
        source_layers: which layers (`resid_post`) to try; by default all.
        target_layers: the same of the target.
        exclude: texts that the map will be tried on: documents that contain one are dropped.
        n_nulls: searches on shuffled positions, on a fixed sample of documents.
        sketch: see both sides through a random projection to so many dimensions, where all of them do not fit into
            memory. R² is then that of the projected target from the projected source.
        positions: which of the source's tokens to read, as in `fit_affine_map`.
        sequential: have one model in memory at a time, as in `fit_affine_map`.
        checkpoint: a folder to keep the moments in every minute, so that a search that was killed goes on from there.
        seed: of the shuffles and the projection.
        distributed: share the pass, as in `fit_affine_map`.

    Raises:
        LrtError: the moments need more memory than there is, or what `fit_affine_map` refuses.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> source, target = storyworld.load("small"), storyworld.load("medium")
        >>> layers = {"source_layers": [1, 3], "target_layers": [2, 5]}
        >>> found = lrt.search_layers(source, target, storyworld.documents(60), **layers, n_nulls=2)
        >>> found.best
        (3, 5)
        >>> found.test_r2.shape
        torch.Size([2, 2])
    """
    ends: tuple[Layers, Layers] = (
        "all" if source_layers is None else source_layers,
        "all" if target_layers is None else target_layers,
    )
    harvest, *sites = prepare(
        source,
        target,
        documents,
        layers=ends,
        exclude=exclude,
        batch_size=batch_size,
        context_length=context_length,
        layout=layout,
        positions=positions,
        prepend_bos=prepend_bos,
        sequential=sequential,
    )
    if n_nulls < 1:
        raise LrtError(f"a search needs a null to be compared with: n_nulls={n_nulls} must be 1 or more")
    keys, d_models = harvest.keys, [of[0].d_model for of in sites]
    widths = [d_model if sketch is None else min(sketch, d_model) for d_model in d_models]
    _check_memory((len(keys[0]), len(keys[1])), (widths[0], widths[1]))
    if sketch is not None:
        harvest = replace(harvest, transforms=_projections(keys, d_models, widths, seed))
    harvested = accumulate(
        harvest, sites[0], sites[1], fit_pairs(*keys), checkpoint=checkpoint, distributed=distributed
    )
    calibration = Calibration(harvested.counts.median_norms, harvested.moments.shifts)
    cv_r2, test_r2 = _all_pairs(harvested.moments, keys, relative_ridges)
    sample = _sample(harvest, calibration)
    null_best, sample_best = _null(sample, calibration, keys, relative_ridges, n_nulls, seed)
    return LayerSearch(
        harvest.source.cfg.model_name,
        harvest.target.cfg.model_name,
        tuple(layer_of(site.hook_name) for site in sites[0]),
        tuple(layer_of(site.hook_name) for site in sites[1]),
        cv_r2,
        test_r2,
        torch.tensor([[debiased_cka(sample.states[a], sample.states[b]) for b in keys[1]] for a in keys[0]]),
        sample_best,
        null_best,
        len(sample.splits),
        harvested.counts.positions,
        sketch,
    )


def memory_needed(layers: tuple[int, int], widths: tuple[int, int]) -> int:
    """Bytes of the moments of all pairs of so many layers of these widths."""
    (s, t), (d, e) = layers, widths
    return 8 * N_SPLITS * (s * d * d + s * t * d * e + t * e * e)


def _check_memory(layers: tuple[int, int], widths: tuple[int, int]) -> None:
    needed, free = 2 * memory_needed(layers, widths), psutil.virtual_memory().available
    pairs = f"{layers[0]} × {layers[1]} pairs of layers"
    if needed > 0.8 * free:
        raise LrtError(
            f"the moments of {pairs}, and of a null, take {needed / 1e9:.2g} GB, and {free / 1e9:.2g} are free: give "
            "fewer source_layers and target_layers, or a random projection (sketch=512)"
        )


def _projections(
    keys: Sequence[Sequence[str]], d_models: Sequence[int], widths: Sequence[int], seed: int
) -> dict[str, Transform]:
    """Orthonormal random directions, the same for all layers of a model."""
    generator = torch.Generator().manual_seed(seed)
    transforms: dict[str, Transform] = {}
    for of, d_model, width in zip(keys, d_models, widths, strict=True):
        directions = torch.linalg.qr(torch.randn(d_model, width, generator=generator)).Q
        transforms |= dict.fromkeys(of, partial(_project, directions))
    return transforms


def _project(directions: Tensor, states: Tensor) -> Tensor:
    return states @ directions.to(states)


def _all_pairs(
    moments: Moments, keys: Sequence[Sequence[str]], relative_ridges: Sequence[float], *, test: bool = True
) -> tuple[Tensor, Tensor]:
    """R² in cross-validation, and on the test split, of the best ridge between each source and target."""
    cv_r2, test_r2 = (torch.zeros(len(keys[0]), len(keys[1])) for _ in range(2))
    for row, a in enumerate(keys[0]):
        spectra: list[FoldSpectrum] = []
        for column, b in enumerate(keys[1]):
            parts = moments.between([a], b)
            folds = [parts[fold] for fold in FOLDS]
            held_out = held_out_folds(folds)
            spectra = spectra or [FoldSpectrum.of(train, held) for train, held in held_out]
            whole = pool(folds)
            penalties = penalties_of(whole, relative_ridges)
            r2 = torch.stack([s.r2(*of, penalties) for s, of in zip(spectra, held_out, strict=True)]).mean(0)
            cv_r2[row, column] = float(r2.max())
            if test:
                test_r2[row, column] = r_squared(ridge(whole, float(penalties[r2.argmax()])), parts[TEST])
    return cv_r2, test_r2


def _sample(harvest: Harvest, calibration: Calibration) -> PairedActivations:
    """The positions of a fixed sample of documents, with a number for each text."""
    documents = harvest.sample(SAMPLE_DOCUMENTS)
    few = replace(harvest, documents=Documents(harvest.documents.name, lambda: iter(documents)))
    batches, first = [], 0
    for batch in few.run(calibration, HarvestCounts()):
        batches.append(PairedActivations(batch.states, batch.splits, batch.rows + first))
        first = int(batches[-1].rows.max()) + 1 if len(batch.rows) else first
    return PairedActivations(
        {key: torch.cat([batch.states[key] for batch in batches]) for key in batches[0].states},
        torch.cat([batch.splits for batch in batches]),
        torch.cat([batch.rows for batch in batches]),
    )


def _null(
    sample: PairedActivations,
    calibration: Calibration,
    keys: Sequence[Sequence[str]],
    relative_ridges: Sequence[float],
    n_nulls: int,
    seed: int,
) -> tuple[tuple[float, ...], float]:
    """The best R² of each search on shuffled positions, and that of the sample as it is."""

    def best(order: Tensor) -> float:
        moments = Moments.empty(N_SPLITS, calibration.means, fit_pairs(*keys))
        shuffled = {key: states[order.to(states.device)] for key, states in sample.states.items() if key in keys[1]}
        moments.update({**sample.states, **shuffled}, sample.splits)
        return float(_all_pairs(moments, keys, relative_ridges, test=False)[0].max())

    generator = torch.Generator().manual_seed(seed)
    draws = tqdm(range(n_nulls), desc="null", unit=" searches", **bar())
    nulls = tuple(best(shuffle_within(sample.rows, generator)) for _ in draws)
    return nulls, best(torch.arange(len(sample.rows)))


def shuffle_within(rows: Tensor, generator: torch.Generator) -> Tensor:
    """A permutation of positions that leaves each in its row."""
    random = torch.rand(len(rows), generator=generator, dtype=torch.float64)
    shuffled = torch.argsort(rows.double() + random)  # random within each row
    order = torch.empty_like(shuffled)
    order[torch.argsort(rows, stable=True)] = shuffled
    return order
