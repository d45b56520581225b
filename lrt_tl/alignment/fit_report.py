"""How a map was fitted, and how well it does."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lrt_tl.alignment.counts import HarvestCounts
from lrt_tl.artifacts import typed
from lrt_tl.tables import html_table


@dataclass(frozen=True)
class FitReport:
    """How a map was fitted and how well it does on text that it was not fitted on.

    R² is 1 − Σ‖error‖²/Σ‖y − ȳ‖² over all target dimensions together, ȳ the mean of the text that it is taken on.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> states = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
        >>> report = lrt.fit_activations(states, 2 * states[:, :5] + 1, torch.arange(4000) // 20).report
        >>> report.method, len(report.fold_r2), report.tokens_per_dimension > 20
        ('whitened', 5, True)
        >>> round(report.test_r2, 3)
        1.0
    """

    method: str
    """Which map: see `alignment.selection`."""
    test_r2: float
    """On the test split, which no choice has seen."""
    validation_r2: float
    cv_r2: float
    """Mean over the folds, each predicted from the others, of the candidate that was chosen."""
    fold_r2: tuple[float, ...]
    ridge: float | None
    """λ, per position; None where the method has none, or one for each target dimension."""
    relative_ridge: float | None
    """λ in units of the mean variance of a source dimension."""
    rank: int | None
    """None where the method does not limit it."""
    candidates: str
    """What was chosen by cross-validation: "relative ridge", "rank", or nothing."""
    curve: tuple[tuple[float, float], ...]
    """(candidate, mean R² over the folds) for each."""
    tokens: int
    """Positions that the map was fitted on."""
    tokens_per_dimension: float
    """The same per source dimension; under 20 the map is poorly determined."""
    harvest: dict[str, Any]
    """What was harvested and dropped, and norms of the residual stream at each hook point: see `HarvestCounts`."""
    layers_tried: tuple[tuple[str, float], ...] = ()
    """Where source layers were selected: each in the order in which it was added, and R² in cross-validation with it
    and those before it."""

    def described(self) -> str:
        """The method and what was chosen for it, such as `ridge λ=0.0013`."""
        chosen = [] if self.ridge is None else [f"λ={self.ridge:.2g}"]
        if self.ridge is None and self.relative_ridge is not None:
            chosen.append(f"λ={self.relative_ridge:.0e} of the variance")
        chosen += [] if self.rank is None else [f"rank {self.rank}"]
        return " ".join([self.method.replace("_", " "), *chosen])

    def harvested(self) -> Mapping[str, str]:
        """Positions kept and dropped, by which rule, and norms before and after, for a table."""
        return HarvestCounts.from_json(self.harvest).summary()

    def __repr__(self) -> str:
        text = f"{self.tokens:,} positions, {self.tokens_per_dimension:.0f} for each source dimension"
        return f"FitReport({self.described()}, R² {self.test_r2:.2f} on test documents, {text})"

    def _repr_html_(self) -> str:
        rows = {
            "map": self.described(),
            "R² on test documents": f"{self.test_r2:.3f}",
            "R² in cross-validation": f"{self.cv_r2:.3f} ({', '.join(f'{r2:.3f}' for r2 in self.fold_r2)})",
            "positions for each source dimension": f"{self.tokens_per_dimension:.0f}",
        }
        return html_table(rows | dict(self.harvested()))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "FitReport":
        tuples = {"fold_r2": tuple(value["fold_r2"]), "curve": tuple(map(tuple, value["curve"]))}
        tuples["layers_tried"] = tuple(map(tuple, value.get("layers_tried", ())))
        return typed(cls(**{**value, **tuples}))
