"""How well a direction tells the two sides of contrast pairs apart, on pairs that it was not found on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lrt_tl.artifacts import typed
from lrt_tl.errors import LrtError
from lrt_tl.models.identity import Site
from lrt_tl.steering.contrast import ContrastPair, data_hash
from lrt_tl.steering.estimators import Estimator
from lrt_tl.tables import html_table

NEEDED = 4
"""Pairs that share no text, for figures on held-out ones: three are left to find a direction on."""
_FOLDS = 5
_TOO_FEW = f"none: it takes {NEEDED} pairs that share no text, and a direction without each fold of them"


@dataclass(frozen=True)
class ExtractionReport:
    """How well the pairs are told apart at a site, by directions found on other pairs of theirs.

    The pairs are dealt to as many as 5 folds, those that share a text to the same one; the direction is found anew
    without each fold, and each state h of the fold scores (h − ½(mean₊ + mean₋))·u, means and unit direction u being
    those of the other folds. None where there are fewer than 4 pairs that share no text, or the others give no
    direction.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model = lrt.load_model("storyworld-small")
        >>> report = lrt.mean_difference(model, storyworld.contrast_pairs("refusal", 8), layer=1).report
        >>> report.method, report.n_pairs, report.position
        ('mean_difference', 8, 'mean')
        >>> report.auc > 0.9, report.agreement > 0.5
        (True, True)
    """

    method: str
    model: str
    hook_name: str
    position: Any
    n_pairs: int
    data: str
    """Hash of the pairs, in order."""
    auc: float | None
    """Of a positive and a negative state of any pairs, how often the positive one scores higher; 0.5 is chance."""
    d_prime: float | None
    """(mean₊ − mean₋) / √(½(var₊ + var₋)) of the scores. None, too, where they do not vary."""
    accuracy: float | None
    """The share of states whose score has the sign of their side."""
    agreement: float | None
    """Mean cosine of two pairs' differences: of cos(dᵢ, dⱼ) over i ≠ j, dᵢ = positiveᵢ − negativeᵢ, which is
    (‖Σ uᵢ‖² − Σ ‖uᵢ‖²) / (n(n − 1)), uᵢ = dᵢ/‖dᵢ‖ (a difference of zero counts as a cosine of zero). None of one
    pair."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ExtractionReport":
        return typed(cls(**value))

    def summary(self) -> dict[str, str]:
        """The figures, for a table."""
        return {
            "method": self.method,
            "model": f"{self.model}, {self.hook_name}",
            "states read at": str(self.position),
            "pairs": f"{self.n_pairs:,} (data {self.data})",
            "AUC on held-out pairs": _TOO_FEW if self.auc is None else f"{self.auc:.3f}",
            "d′ on held-out pairs": _shown(self.d_prime),
            "accuracy on held-out pairs": _shown(self.accuracy),
            "agreement (mean cosine of two pairs' differences)": _shown(self.agreement),
        }

    def __repr__(self) -> str:
        figures = {"AUC": self.auc, "d′": self.d_prime, "accuracy": self.accuracy, "agreement": self.agreement}
        shown = ", ".join(f"{name} {_shown(value)}" for name, value in figures.items())
        return f"ExtractionReport({self.method} of {self.n_pairs} pairs at {self.model} {self.hook_name}: {shown})"

    def _repr_html_(self) -> str:
        return html_table(self.summary(), caption="How well held-out pairs are told apart")


def report_separation(
    estimator: Estimator,
    positive: Float[Tensor, "pair d_model"],
    negative: Float[Tensor, "pair d_model"],
    pairs: Sequence[ContrastPair],
    *,
    site: Site,
    position: Any,
) -> ExtractionReport:
    """The report of an estimator on the states of pairs, which are all that it needs: no model is run."""
    scores = _held_out_scores(estimator, positive, negative, _groups(pairs))
    return ExtractionReport(
        method=estimator.__name__,
        model="" if site.model is None else site.model.name,
        hook_name=site.hook_name,
        position=position,
        n_pairs=len(pairs),
        data=data_hash(pairs),
        auc=None if scores is None else _auc(*scores),
        d_prime=None if scores is None else d_prime(*scores),
        accuracy=None if scores is None else float(torch.cat([scores[0] > 0, scores[1] < 0]).double().mean()),
        agreement=agreement(positive - negative),
    )


def d_prime(positive: Float[Tensor, "positive"], negative: Float[Tensor, "negative"]) -> float | None:
    """(mean₊ − mean₋) / √(½(var₊ + var₋)), variances with n − 1; None where nothing varies."""
    spread = float(((positive.var() + negative.var()) / 2).sqrt())
    return float(positive.mean() - negative.mean()) / spread if spread > 0 else None


def agreement(differences: Float[Tensor, "pair d_model"]) -> float | None:
    """Mean cosine of two different rows, in O(n d); None of one row."""
    n = len(differences)
    if n < 2:
        return None
    units = differences / differences.norm(dim=1, keepdim=True).clamp(min=torch.finfo(differences.dtype).tiny)
    return float(units.sum(0).square().sum() - units.square().sum()) / (n * (n - 1))


def _held_out_scores(
    estimator: Estimator,
    positive: Float[Tensor, "pair d_model"],
    negative: Float[Tensor, "pair d_model"],
    groups: Int[Tensor, "pair"],
) -> tuple[Float[Tensor, "pair"], Float[Tensor, "pair"]] | None:
    """The score of every state, by the direction that was found without its fold."""
    n_groups = int(groups.max()) + 1
    if n_groups < NEEDED:
        return None
    n_folds = min(_FOLDS, n_groups)
    folds = groups % n_folds
    scores = torch.empty(2, len(groups), dtype=positive.dtype)
    for fold in range(n_folds):
        held, kept = folds == fold, folds != fold
        try:
            direction = estimator(positive[kept], negative[kept])
        except LrtError:
            return None
        if not direction.any():
            return None
        unit = direction / direction.norm()
        middle = (positive[kept].mean(0) + negative[kept].mean(0)) / 2
        scores[:, held] = torch.stack([(states[held] - middle) @ unit for states in (positive, negative)])
    return scores[0], scores[1]


def _groups(pairs: Sequence[ContrastPair]) -> Int[Tensor, "pair"]:
    """A number from 0 for each pair: the same for pairs that share a text, or each share one with a third."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    texts = {text: number for number, text in enumerate(dict.fromkeys(t for p in pairs for t in _texts(p)))}
    nodes = len(pairs) + len(texts)
    edges = torch.tensor([(n, len(pairs) + texts[text]) for n, pair in enumerate(pairs) for text in _texts(pair)])
    links = coo_array(([1] * len(edges), (edges[:, 0].numpy(), edges[:, 1].numpy())), shape=(nodes, nodes))
    return torch.from_numpy(connected_components(links, directed=False)[1][: len(pairs)]).long()


def _texts(pair: ContrastPair) -> tuple[str, str]:
    return pair.positive, pair.negative


def _auc(positive: Float[Tensor, "positive"], negative: Float[Tensor, "negative"]) -> float:
    from sklearn.metrics import roc_auc_score

    sides = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))])
    return float(roc_auc_score(sides.numpy(), torch.cat([positive, negative]).numpy()))


def _shown(figure: float | None) -> str:
    return "none" if figure is None else f"{figure:.3f}"
