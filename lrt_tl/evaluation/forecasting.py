"""Forecasts of recovery, learnt from transfers whose outcome is known, and what they are worth on pairs of models that
they were not learnt on.

A line, for there are few pairs of models. Whatever two models have in common is in all of their transfers, so that a
pair is left out whole: all behaviors, maps and both directions. What is then predicted of it gives the error, the rank
correlation and, by the errors' quantile, the interval (conformal prediction: Vovk et al. 2005). That holds for pairs
like those that it was learnt on, and is silent about others.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from lrt_tl.artifacts import typed
from lrt_tl.errors import ArtifactError, LrtError

FORMAT_VERSION = 1
LEVEL = 0.9
"""Of the interval."""
FEATURES = ("stitched", "predicted_cosine", "auc")
"""Those of `features.Features` that are learnt from: whether the target works with mapped states, how well the map
carries this vector, and whether the source has the feature at all. A transfer needs all three, so what is learnt from
is their geometric mean. (A ridge regression on them, or on ten features, forecast pairs left out worse, most of all
where one feature alone is bad, as through shuffled maps. This was chosen with those results in sight.)"""
LEAST, MOST = -0.2, 1.2
"""Recoveries are clipped to this range: beyond it, how far is chance."""
FEWEST_PAIRS = 4
_ROUNDING = 1e-3
"""Of what transfers are kept with."""
_FILE = Path(__file__).with_name("forecast.json")


@dataclass(frozen=True)
class KnownTransfer:
    """A transfer whose outcome was measured."""

    pair: str
    """Its two models, in either direction: what is left out together."""
    features: Mapping[str, float | None]
    recovery: float


@dataclass(frozen=True, eq=False)
class Line:
    """Recovery as a line in the geometric mean of the features."""

    known: Float64[Tensor, "feature"]
    """Their means, which is what a feature that is not known is taken to be."""
    slope: float
    intercept: float

    @classmethod
    def fit(cls, x: Float64[Tensor, "transfer feature"], y: Float64[Tensor, "transfer"]) -> "Line":
        """By least squares.

        Args:
            x: NaN where a feature is not known.
        """
        known = x.nanmean(0).nan_to_num(1.0)
        along = geometric_mean(x, known)
        along, mean = along - along.mean(), float(along.mean())
        slope = float(along @ y / along.square().sum()) if along.any() else 0.0
        return cls(known, slope, float(y.mean()) - slope * mean)

    def __call__(self, x: Float64[Tensor, "transfer feature"]) -> Float64[Tensor, "transfer"]:
        """Predicted recovery, within what recoveries are clipped to."""
        return (self.intercept + self.slope * geometric_mean(x, self.known)).clamp(LEAST, MOST)


def geometric_mean(
    x: Float64[Tensor, "transfer feature"], unknown: Float64[Tensor, "feature"]
) -> Float64[Tensor, "transfer"]:
    """Of each row, what is below 0 taken as 0.

    Args:
        unknown: what to take where there is NaN.
    """
    product: Tensor = torch.where(x.isnan(), unknown, x).clamp(min=0).prod(1)
    return product ** (1 / x.shape[1])


@dataclass(frozen=True, eq=False)
class Forecaster:
    """What forecasts recovery, and how well it did on pairs that were left out."""

    line: Line
    ranges: Mapping[str, tuple[float, float]]
    """The least and the largest value of each feature, learnt from or not, in the transfers."""
    error: float
    """Mean absolute error on pairs left out."""
    error_of_mean: float
    """The same of the forecast that knows nothing: the mean recovery of the other pairs."""
    rank_correlation: float
    """Spearman's, of what was forecast of pairs left out and what was measured."""
    coverage: float
    """How often the interval held what was measured, made from the errors on the pairs that were not left out."""
    half_width: float
    """Of the interval: what the errors on pairs left out exceed one time in ten."""
    n_pairs: int
    n_transfers: int

    def forecast(self, features: Mapping[str, float | None]) -> tuple[float, float, float]:
        """Expected recovery, and the ends of its interval."""
        estimate = float(self.line(_table([features]))[0])
        return estimate, estimate - self.half_width, estimate + self.half_width

    def extrapolates(self, features: Mapping[str, float | None]) -> tuple[str, ...]:
        """Which features are beyond what all those transfers had, in words."""
        found = []
        for name, (low, high) in self.ranges.items():
            value, slack = features.get(name), _ROUNDING * max(abs(low), abs(high))
            if value is not None and not low - slack <= value <= high + slack:
                side = f"under {low:.3g}" if value < low else f"over {high:.3g}"
                found.append(f"{name.replace('_', ' ')} {value:.3g}, {side}")
        return tuple(found)


def learn(transfers: Sequence[KnownTransfer]) -> Forecaster:
    """Learn from transfers, and try it on each pair of models with that pair left out.

    Raises:
        LrtError: there are fewer than four pairs.
    """
    predicted, mean = out_of_pair(transfers)
    x, y = _table([each.features for each in transfers]), clipped([each.recovery for each in transfers])
    errors, pairs = (predicted - y).abs(), _pairs(transfers)
    return Forecaster(
        Line.fit(x, y),
        _ranges(transfers),
        error=float(errors.mean()),
        error_of_mean=float((mean - y).abs().mean()),
        rank_correlation=rank_correlation(predicted, y),
        coverage=_coverage(errors, pairs),
        half_width=conformal_quantile(errors),
        n_pairs=len(torch.unique(pairs)),
        n_transfers=len(transfers),
    )


def out_of_pair(
    transfers: Sequence[KnownTransfer],
) -> tuple[Float64[Tensor, "transfer"], Float64[Tensor, "transfer"]]:
    """What is forecast of each pair of models from all others, and the mean recovery of these.

    Raises:
        LrtError: there are fewer than four pairs.
    """
    x, y = _table([each.features for each in transfers]), clipped([each.recovery for each in transfers])
    pairs = _pairs(transfers)
    if len(torch.unique(pairs)) < FEWEST_PAIRS:
        raise LrtError(f"{len(torch.unique(pairs))} pairs of models are too few to learn from: it takes {FEWEST_PAIRS}")
    predicted, mean = torch.empty_like(y), torch.empty_like(y)
    for pair in torch.unique(pairs):
        out = pairs == pair
        predicted[out] = Line.fit(x[~out], y[~out])(x[out])
        mean[out] = y[~out].mean()
    return predicted, mean


def clipped(recoveries: Sequence[float]) -> Float64[Tensor, "transfer"]:
    """Recoveries as they are learnt."""
    return torch.tensor(recoveries, dtype=torch.float64).clamp(LEAST, MOST)


def conformal_quantile(errors: Float64[Tensor, "transfer"]) -> float:
    """The ⌈(n + 1) level⌉-th smallest error, which a further one exceeds with a probability of at most 1 − level. The
    largest, where there are too few for that."""
    place = min(len(errors), math.ceil((len(errors) + 1) * LEVEL))
    return float(errors.sort().values[place - 1])


def rank_correlation(one: Float64[Tensor, "transfer"], other: Float64[Tensor, "transfer"]) -> float:
    """Spearman's: Pearson's correlation of the ranks, the mean rank where several are equal. 0 where one of them does
    not vary."""
    ranks = [_ranks(each) for each in (one, other)]
    a, b = (each - each.mean() for each in ranks)
    length = float(a.norm() * b.norm())
    return float(a @ b) / length if length > 0 else 0.0


@cache
def learnt() -> Forecaster:
    """The forecaster that comes with the package, learnt anew from its transfers, in milliseconds.

    Raises:
        ArtifactError: their file is missing or damaged.
    """
    return learn(read_transfers(_FILE))


def read_transfers(path: Path) -> list[KnownTransfer]:
    """Transfers from a file that `benchmarks/forecast_campaign.py` wrote.

    Raises:
        ArtifactError: it is missing, of another format, or not whole.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {held['format_version']}, not {FORMAT_VERSION}")
        if missing := set(FEATURES) - set(held["features"]):
            raise ValueError(f"no {', '.join(sorted(missing))}")
        found = [
            KnownTransfer(row["pair"], _features(held["features"], row["features"]), row["recovery"])
            for row in held["transfers"]
        ]
        return [typed(transfer) for transfer in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} does not hold transfers to learn forecasts from: {error}") from error


def _ranges(transfers: Sequence[KnownTransfer]) -> dict[str, tuple[float, float]]:
    known: dict[str, list[float]] = {}
    for transfer in transfers:
        for name, value in transfer.features.items():
            if value is not None:
                known.setdefault(name, []).append(value)
    return {name: (min(values), max(values)) for name, values in known.items()}


def _features(names: Sequence[str], values: Sequence[float | None]) -> dict[str, float | None]:
    for name, value in zip(names, values, strict=True):
        if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value)):
            raise ValueError(f"{name} cannot be {value!r}")
    return dict(zip(names, values, strict=True))


def _table(rows: Sequence[Mapping[str, float | None]]) -> Float64[Tensor, "transfer feature"]:
    """NaN where a feature is not known."""
    values = [[math.nan if (value := row.get(name)) is None else value for name in FEATURES] for row in rows]
    return torch.tensor(values, dtype=torch.float64).reshape(len(rows), len(FEATURES))


def _pairs(transfers: Sequence[KnownTransfer]) -> Int[Tensor, "transfer"]:
    names = sorted({each.pair for each in transfers})
    return torch.tensor([names.index(each.pair) for each in transfers])


def _coverage(errors: Float[Tensor, "transfer"], pairs: Int[Tensor, "transfer"]) -> float:
    held: list[Bool[Tensor, _]] = []
    for pair in torch.unique(pairs):
        out = pairs == pair
        held.append(errors[out] <= conformal_quantile(errors[~out]))
    return float(torch.cat(held).double().mean())


def _ranks(values: Float64[Tensor, "transfer"]) -> Float64[Tensor, "transfer"]:
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = (counts.cumsum(0) - (counts - 1) / 2.0)[place].double()
    return ranks
