"""What steering does to everything else: every vector against every behavior."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import Behavior
from lrt_tl.evaluation.effects import COEFFICIENTS, check_coefficients, dose_response, slopes
from lrt_tl.evaluation.intervals import percentiles, resamples
from lrt_tl.models.protocol import HookedModel
from lrt_tl.report.style import layout
from lrt_tl.steering.handle import require_at_rest
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.tables import html_columns

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


_MOST_SHARE = 2.0
"""The share at which colors end."""


@dataclass(frozen=True)
class OffTargetSlope:
    """How much a behavior's score rises with the coefficient of a vector, mean over prompts.

    Attributes:
        low, high: 95 %, by a bootstrap over prompts; None where there is but one prompt.
        share: of the slope that the behavior's own native vector has; None where it has none, or one that is not
            above zero beyond its prompts' scatter.
    """

    slope: float
    low: float | None
    high: float | None
    share: float | None

    def __str__(self) -> str:
        bounds = "" if self.low is None else f" [{self.low:+.3g}, {self.high:+.3g}]"
        share = "" if self.share is None else f", {self.share:+.2f} of its own"
        return f"{self.slope:+.3g}{bounds}{share}"


Matrix = Mapping[str, Mapping[str, OffTargetSlope]]
"""By vector, then by behavior."""


@dataclass(frozen=True)
class OffTarget:
    """Steer with vector i, measure behavior j.

    Attributes:
        native: of the target's own vectors.
        transferred: of those that were carried over, each at the length of the native vector of its name; None where
            none was given.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small, tasks = storyworld.load("small"), ("mood", "refusal")
        >>> vectors = {task: lrt.mean_difference(small, storyworld.contrast_pairs(task, 8), layer=2) for task in tasks}
        >>> behaviors = [storyworld.behavior(task, 8) for task in tasks]
        >>> found = lrt.off_target(small, vectors, behaviors, coefficients=(-1.0, 0.0, 1.0))
        >>> found.native["refusal"]["refusal"].share  # its own slope is the unit
        1.0
        >>> abs(found.native["mood"]["refusal"].share) < 0.5
        True
    """

    native: Matrix
    transferred: Matrix | None = None

    @property
    def arms(self) -> dict[str, Matrix]:
        """The matrices that there are, by name."""
        return {"native": self.native} | ({} if self.transferred is None else {"transferred": self.transferred})

    def spill(self, arm: str) -> float | None:
        """Mean of |share| over all pairs of a vector and *another* behavior: 0 moves nothing else, 1 moves the other
        behaviors as much as their own native vectors do. None where no share is known."""
        shares = [
            abs(found.share)
            for vector, row in self.arms[arm].items()
            for behavior, found in row.items()
            if found.share is not None and behavior != vector
        ]
        return sum(shares) / len(shares) if shares else None

    def rows(self) -> list[Mapping[str, str]]:
        """For a table, a row a vector of each arm."""
        return [
            {"arm": arm, "vector": vector, **{f"{behavior}, per coefficient": str(row[behavior]) for behavior in row}}
            for arm, matrix in self.arms.items()
            for vector, row in matrix.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON: `native`, `transferred` by vector and behavior, and `spill` of each."""
        found: dict[str, Any] = {
            arm: {
                vector: {behavior: dict(vars(slope)) for behavior, slope in row.items()}
                for vector, row in matrix.items()
            }
            for arm, matrix in self.arms.items()
        }
        return found | {"spill": {arm: self.spill(arm) for arm in self.arms}}

    def figure(self) -> "Figure":
        """A heat map of each matrix, native and transferred side by side: shares in color and in the cells, with the
        slopes below them. Where a behavior has no native slope to be a share of, the slope stands alone."""
        from plotly.subplots import make_subplots

        titles = {"native": "the target's own vectors", "transferred": "carried over"}
        figure = make_subplots(
            cols=len(self.arms), shared_yaxes=True, subplot_titles=[titles[arm] for arm in self.arms]
        )
        for column, matrix in enumerate(self.arms.values(), start=1):
            figure.add_trace(_heat_map(matrix), row=1, col=column)
        figure.update_xaxes(title="measured", side="bottom")
        figure.update_yaxes(autorange="reversed")
        figure.update_yaxes(title="steered", col=1)
        shades = {
            "colorscale": "RdBu",
            "reversescale": True,
            "cmin": -_MOST_SHARE,
            "cmax": _MOST_SHARE,
            "colorbar": {"title": "share of the<br>behavior's own<br>native slope"},
        }
        return figure.update_layout(layout(coloraxis=shades, height=180 + 56 * len(self.native)))

    def __repr__(self) -> str:
        spills = {arm: self.spill(arm) for arm in self.arms}
        said = ", ".join(f"{arm} {'unknown' if spill is None else f'{spill:.2f}'}" for arm, spill in spills.items())
        n_behaviors = len(next(iter(self.native.values())))
        return f"OffTarget({len(self.native)} vectors × {n_behaviors} behaviors; mean share of others: {said})"

    def _repr_html_(self) -> str:
        return html_columns(self.rows())


def off_target(
    target: HookedModel,
    vectors: Mapping[str, SteeringVector],
    behaviors: Mapping[str, Behavior] | Sequence[Behavior],
    *,
    transferred: Mapping[str, SteeringVector] | None = None,
    coefficients: Sequence[float] = COEFFICIENTS,
    batch_size: int = 256,
    prepend_bos: bool = True,
    seed: int = 0,
) -> OffTarget:
    """Measure every behavior under every vector: slopes per unit coefficient, as `evaluate_transfer` has them.

    Args:
        vectors: the target's own, by the name of the behavior that each is for: the slope of the vector of a
            behavior's name is the unit in which the others' are stated.
        behaviors: those vectors are for, and any others; by name, or named by themselves.
        transferred: vectors that were carried over, by the names of `vectors`; each is scaled to the native one's norm.
        coefficients: symmetric about 0.

    Raises:
        MismatchError: a vector is not one of the target's.
        LrtError: no vector or behavior, two behaviors of one name, transferred vectors of other names, bad
            coefficients, or a model that is being steered.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small, tasks = storyworld.load("small"), ("mood", "refusal")
        >>> vectors = {task: lrt.mean_difference(small, storyworld.contrast_pairs(task, 8), layer=2) for task in tasks}
        >>> behaviors = [storyworld.behavior(task, 8) for task in tasks]
        >>> lrt.off_target(small, vectors, behaviors, coefficients=(-1.0, 0.0, 1.0))  # doctest: +ELLIPSIS
        OffTarget(2 vectors × 2 behaviors; mean share of others: native 0.1...)
    """
    require_at_rest(target)
    check_coefficients(coefficients)
    measured = _by_name(behaviors)
    if not vectors or not measured:
        raise LrtError(f"{len(vectors)} vectors and {len(measured)} behaviors: at least one of each is needed")
    if transferred is not None and set(transferred) != set(vectors):
        raise LrtError(f"the transferred vectors are {sorted(transferred)}, the native ones {sorted(vectors)}")
    equal = {name: vector.scaled_to(vectors[name].norm) for name, vector in (transferred or {}).items()}
    arms = {("native", name): vector for name, vector in vectors.items()}
    arms |= {("transferred", name): equal[name] for name in (vectors if equal else ())}
    for vector in arms.values():
        vector.check_model(target)
    columns = {}
    for name, behavior in measured.items():
        scores = torch.empty(len(arms), len(coefficients), len(behavior.prompts), dtype=torch.float64)
        for hook_name, places in _by_site(arms.values()).items():
            directions = torch.stack([vector.direction for vector in arms.values()])[places]
            options: dict[str, Any] = {"batch_size": batch_size, "prepend_bos": prepend_bos}
            scores[places] = dose_response(target, hook_name, directions, behavior, coefficients, **options)
        own = list(vectors).index(name) if name in vectors else None
        columns[name] = dict(zip(arms, _column(slopes(scores, coefficients), own, seed), strict=True))
    matrices = [
        {name: {behavior: column[arm, name] for behavior, column in columns.items()} for name in vectors}
        for arm in dict.fromkeys(arm for arm, _ in arms)
    ]
    return OffTarget(*matrices)


def _by_name(behaviors: Mapping[str, Behavior] | Sequence[Behavior]) -> dict[str, Behavior]:
    if isinstance(behaviors, Mapping):
        return dict(behaviors)
    found = {behavior.name: behavior for behavior in behaviors}
    if len(found) < len(behaviors):
        raise LrtError(f"behaviors need different names: {[behavior.name for behavior in behaviors]}")
    return found


def _by_site(vectors: Iterable[SteeringVector]) -> dict[str, list[int]]:
    """The places of the vectors of each hook point: these share batches."""
    found: dict[str, list[int]] = {}
    for place, vector in enumerate(vectors):
        found.setdefault(vector.site.hook_name, []).append(place)
    return found


def _column(of_prompts: Float[Tensor, "arm prompt"], own: int | None, seed: int) -> list[OffTargetSlope]:
    """One behavior under every vector; `own` is the place of its own native one."""
    means = of_prompts.mean(1).tolist()
    bounds: list[tuple[float | None, float | None]] = [(None, None)] * len(means)
    if of_prompts.shape[1] > 1:
        weights = resamples(of_prompts.shape[1], seed=seed)
        bounds = [(low, high) for low, high in percentiles(weights @ of_prompts.T).T.tolist()]
    lowest = None if own is None else bounds[own][0]
    unit = means[own] if own is not None and lowest is not None and lowest > 0 else None
    return [
        OffTargetSlope(mean, low, high, None if unit is None else mean / unit)
        for mean, (low, high) in zip(means, bounds, strict=True)
    ]


def _heat_map(matrix: Matrix) -> Any:
    from plotly.graph_objects import Heatmap

    rows = [list(row.values()) for row in matrix.values()]
    return Heatmap(
        z=[[found.share for found in row] for row in rows],
        x=[html.escape(behavior) for behavior in next(iter(matrix.values()))],
        y=[html.escape(vector) for vector in matrix],
        text=[
            [
                f"{found.slope:+.3g}" if found.share is None else f"{found.share:+.2f}<br>({found.slope:+.3g})"
                for found in row
            ]
            for row in rows
        ],
        texttemplate="%{text}",
        coloraxis="coloraxis",
        hoverongaps=False,
    )
