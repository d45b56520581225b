"""How much text is enough: the map's R², and where it carries a vector, against the positions seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.counts import HarvestCounts
from lrt_tl.alignment.diagnostics import r_squared
from lrt_tl.alignment.ends import Model
from lrt_tl.alignment.fit import FOLDS, RELATIVE_RIDGES, prepare, solve
from lrt_tl.alignment.moments import Centered, Moments, fit_pairs
from lrt_tl.alignment.selection import Method, choose
from lrt_tl.alignment.solvers import Solution
from lrt_tl.errors import LrtError
from lrt_tl.report.style import SYMBOLS, layout
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.tables import html_table
from lrt_tl.text.documents import N_SPLITS, TEST

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class LearningCurve:
    """What maps fitted on more and more of a text are worth.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model, texts = storyworld.load("small"), storyworld.documents(60)
        >>> vector = lrt.mean_difference(model, storyworld.contrast_pairs("refusal", 8), layer=1)
        >>> curve = lrt.learning_curve(model, model, texts, layers=(1, 2), vector=vector, method="ridge")
        >>> curve.positions[0], curve.cosines[0] > 0.95  # so few fix where the vector goes
        (769, True)
    """

    positions: tuple[int, ...]
    """That each map was fitted on."""
    test_r2: tuple[float, ...]
    """On the same test documents, those of the whole text."""
    cv_r2: tuple[float, ...]
    cosines: tuple[float, ...] | None
    """Of the vector that each map carries with the one that the last map carries."""
    norms: tuple[float, ...] | None
    """Its length, over that of the last."""

    def rows(self) -> list[dict[str, str]]:
        """One row for each map, for a table."""
        rows = [
            {"positions": f"{n:,}", "R² on test documents": f"{test:.3f}", "R² in cross-validation": f"{cv:.3f}"}
            for n, test, cv in zip(self.positions, self.test_r2, self.cv_r2, strict=True)
        ]
        for row, cosine, norm in zip(rows, self.cosines or (), self.norms or (), strict=False):
            row |= {"cosine with the last vector": f"{cosine:.3f}", "its length": f"{norm:.2f}"}
        return rows

    def figure(self) -> "Figure":
        """R² and cosine against positions."""
        from plotly.graph_objects import Figure, Scatter

        curves = {
            "R² on test documents": self.test_r2,
            "R² in cross-validation": self.cv_r2,
            "cosine with the last vector": self.cosines,
        }
        figure = Figure(
            [
                Scatter(x=self.positions, y=y, name=name, mode="lines+markers", marker={"symbol": symbol, "size": 8})
                for (name, y), symbol in zip(curves.items(), SYMBOLS, strict=False)
                if y
            ]
        )
        positions = {"type": "log", "tickvals": self.positions, "ticktext": [f"{n:,}" for n in self.positions]}
        return figure.update_layout(
            layout(
                title="How much text is enough?",
                xaxis={"title": "positions that the map was fitted on", **positions},
                yaxis={"range": [min(0.0, *self.test_r2, *self.cv_r2, *(self.cosines or ())), 1.02]},
                margin={"l": 60, "r": 20, "t": 50, "b": 100},
            )
        )

    def __repr__(self) -> str:
        return (
            f"LearningCurve({self.positions[0]:,} to {self.positions[-1]:,} positions: R² {self.test_r2[0]:.2f} to "
            f"{self.test_r2[-1]:.2f})"
        )

    def _repr_html_(self) -> str:
        values = {
            row.pop("positions"): ", ".join(f"{name} {value}" for name, value in row.items()) for row in self.rows()
        }
        return html_table(values, caption="positions that the map was fitted on")


def learning_curve(
    source: Model,
    target: Model,
    documents: Any,
    *,
    vector: SteeringVector | Sequence[SteeringVector] | None = None,
    method: Method = "whitened",
    relative_ridges: Sequence[float] = RELATIVE_RIDGES,
    **options: Any,
) -> LearningCurve:
    """Fit a map whenever the positions seen have doubled, in one pass over the text.

    Where the curves have flattened, more text of the same kind does not help. Documents are taken in the order in which
    they come, not sorted by length as elsewhere: mix their kinds.

    Args:
        documents: whatever `read_documents` takes.
        vector: one of the source, or one at each source layer: how soon it is carried to the same place.
        method: which map.
        relative_ridges: candidates for its penalty.
        options: those of `fit_affine_map` that say what is read: layers, exclude, batch_size, …

    Raises:
        LrtError: what `fit_affine_map` refuses.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model, texts = storyworld.load("small"), storyworld.documents(60)
        >>> curve = lrt.learning_curve(model, model, texts, layers=(1, 2), method="ridge")
        >>> for positions, r2 in zip(curve.positions, curve.test_r2):
        ...     print(f"{positions:,} positions: R² {r2:.2f}")
        769 positions: R² 0.74
        1,461 positions: R² 0.77
        2,087 positions: R² 0.76
        2,604 positions: R² 0.77
    """
    harvest, sources, targets = prepare(source, target, documents, sorted_together=1, **options)
    if len(targets) > 1:
        raise LrtError(f"a learning curve is of one target layer, not {len(targets)}")
    calibration, counts = harvest.calibrate(), HarvestCounts()
    moments = Moments.empty(N_SPLITS, calibration.means, fit_pairs(*harvest.keys, stacked=True))
    d_source = sum(site.d_model for site in sources)
    found: list[Snapshot] = []
    next_at = 2 * d_source
    for batch in harvest.run(calibration, counts):
        moments.update(batch.states, batch.splits)
        if int(moments.count[: len(FOLDS)].sum()) >= next_at:
            folds = moments.between(harvest.keys[0], harvest.keys[1][0])[: len(FOLDS)]
            found += _snapshot(folds, method, relative_ridges)
            while found and next_at <= found[-1].positions:
                next_at *= 2
    parts = moments.between(harvest.keys[0], harvest.keys[1][0])
    whole = solve(parts, sources, targets[0], counts, method=method, relative_ridges=relative_ridges)
    if not found or found[-1].positions < whole.report.tokens:
        found += _snapshot(parts[: len(FOLDS)], method, relative_ridges)
    carried = None if vector is None else _carried(found, whole, vector)
    return LearningCurve(
        tuple(snapshot.positions for snapshot in found),
        tuple(r_squared(snapshot.solution, parts[TEST]) for snapshot in found),
        tuple(snapshot.cv_r2 for snapshot in found),
        None if carried is None else tuple(cosine_similarity(carried, carried[-1:]).tolist()),
        None if carried is None else tuple((carried.norm(dim=1) / carried[-1].norm()).tolist()),
    )


@dataclass(frozen=True)
class Snapshot:
    """The map of the text so far."""

    positions: int
    solution: Solution
    cv_r2: float


def _snapshot(folds: Sequence[Centered], method: Method, relative_ridges: Sequence[float]) -> list[Snapshot]:
    """One, or none where a fold, or all without the largest, is too small."""
    counts = [fold.count for fold in folds]
    if min(counts) < 2 or sum(counts) - max(counts) <= len(folds[0].source_mean):
        return []
    choice = choose(method, folds, relative_ridges)
    return [Snapshot(sum(counts), choice.solution, sum(choice.fold_r2) / len(folds))]


def _carried(
    found: Sequence[Snapshot], whole: AffineMap, vector: SteeringVector | Sequence[SteeringVector]
) -> Float[Tensor, "snapshot d_target"]:
    """The vector through each map."""
    whole.transport(vector)  # refuses one that does not belong here
    vectors = [vector] if isinstance(vector, SteeringVector) else vector
    at = {each.site.hook_name: each.direction for each in vectors}
    together = torch.cat([at[site.hook_name] for site in whole.sources]).double()
    return torch.stack([snapshot.solution.weight.T.cpu() @ together for snapshot in found]).float()
