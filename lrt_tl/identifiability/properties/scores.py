"""How far a property holds in one predictor: a number with its interval and its null, raw and in the effective part."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.subspaces import Subspaces
from lrt_tl.tables import html_columns

N_NULL = 20
"""Draws of a null: the least of which 5 % is one."""
_N_BOOTSTRAP, _LEVEL = 1000, 0.05


@dataclass(frozen=True)
class Score:
    """1 where a property holds exactly, about 0 where it does not; and what it would be by chance.

    Attributes:
        estimate: the figure.
        low: of its 95 % interval, by a bootstrap over what is independent (pairs of tokens, subjects).
        high: the other end.
        null: 95 % of the null's draws lie below.
    """

    estimate: float
    low: float
    high: float
    null: float

    @property
    def holds(self) -> bool:
        """Whether the interval lies above zero and above the null."""
        return self.low > max(self.null, 0.0)

    def to_json(self) -> dict[str, float | None]:
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}], null {self.null:.3f}"


@dataclass(frozen=True)
class PropertyScores:
    """A property of one predictor.

    Attributes:
        raw: on the representations as they are, whatever lies in them.
        effective: on what the distribution fixes. Predictors of equal distributions have equal ones, but for rounding.
        others: further forms of it, by name.
    """

    raw: Score
    effective: Score
    others: Mapping[str, Score] = field(default_factory=dict)

    def rows(self) -> list[dict[str, str]]:
        """For a table, a row a form."""
        forms = {"raw": self.raw, "effective": self.effective, **self.others}
        return [{"form": name.replace("_", " "), "score": str(score)} for name, score in forms.items()]

    def to_json(self) -> dict[str, Any]:
        return {
            "raw": self.raw.to_json(),
            "effective": self.effective.to_json(),
            **{name: score.to_json() for name, score in self.others.items()},
        }

    def __repr__(self) -> str:
        return f"PropertyScores(raw {self.raw}; effective {self.effective})"

    def _repr_html_(self) -> str:
        return html_columns(self.rows())


Property = Callable[[Predictor, Subspaces], PropertyScores]
"""What measures a property: `partial(parallelism, pairs=…)`, `partial(relational_linearity, facts=…)`, or your own."""


def ratio_score(
    values: Float64[Tensor, "row"],
    weights: Float64[Tensor, "row"],
    groups: Int[Tensor, "row"],
    null: Float64[Tensor, "draw"],
    *,
    seed: int = 0,
) -> Score:
    """Σ values/Σ weights, with a percentile bootstrap over groups of rows.

    Raises:
        LrtError: the weights sum to nothing: there is nothing to explain.
    """
    _, of = groups.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    n = int(of.max()) + 1
    sums, totals = (torch.zeros(n, dtype=torch.float64).index_add_(0, of, each) for each in (values, weights))
    if not float(totals.sum()) > 0:
        raise LrtError("nothing varies: there is nothing that a linear property could explain")
    drawn = torch.randint(n, (_N_BOOTSTRAP, n), generator=torch.Generator().manual_seed(seed))
    ratios = sums[drawn].sum(1) / totals[drawn].sum(1).clamp(min=torch.finfo(torch.float64).tiny)
    low, high = ratios.quantile(torch.tensor([_LEVEL / 2, 1 - _LEVEL / 2], dtype=torch.float64)).tolist()
    return Score(float(sums.sum() / totals.sum()), low, high, float(null.quantile(1 - _LEVEL)))


def share_score(
    left: Float64[Tensor, "arm row"], total: Float64[Tensor, "arm row"], groups: Int[Tensor, "row"], *, seed: int = 0
) -> Score:
    """1 − Σ left/Σ total of the first arm; the others are its null, 0 where one has nothing to explain."""
    whole = total[1:].sum(1)
    null = ((whole - left[1:].sum(1)) / whole).where(whole > 0, 0.0)
    return ratio_score(total[0] - left[0], total[0], groups, null, seed=seed)
