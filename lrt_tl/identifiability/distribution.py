"""How far apart two predictors' distributions are, at every context; and whether they can be called equal."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.tables import html_table

_LOGITS_AT_ONCE = 2**22
"""Of each model: 32 MB of float64, of which a pass holds about six."""
MEASURES = ("kl", "reverse_kl", "js", "total_variation", "hellinger", "logit_distance")


@dataclass(frozen=True, eq=False)
class Distances:
    """Distances of p (the first predictor's) and q (the second's) at every context, on the tokens that both give some
    probability, where both are renormalized. In nats where they are divergences.

    Attributes:
        kl: KL(p ‖ q) on the common support.
        reverse_kl: KL(q ‖ p).
        js: Jensen–Shannon divergence, at most log 2.
        total_variation: ½ Σ|p − q|.
        hellinger: √(1 − Σ√(pq)).
        logit_distance: √Σ(ℓ − ℓ′)² over tokens, ℓ the logits less their mean over tokens.
        coverage_p: the probability that p gives to the common support.
        coverage_q: that q gives it.
        infinite_kl: whether KL(p ‖ q) over all tokens is infinite, for q gives none to a token that p does.
        infinite_reverse_kl: the same of KL(q ‖ p).
        documents: which document each context is of.
    """

    kl: Float64[Tensor, "context"]
    reverse_kl: Float64[Tensor, "context"]
    js: Float64[Tensor, "context"]
    total_variation: Float64[Tensor, "context"]
    hellinger: Float64[Tensor, "context"]
    logit_distance: Float64[Tensor, "context"]
    coverage_p: Float64[Tensor, "context"]
    coverage_q: Float64[Tensor, "context"]
    infinite_kl: Tensor
    infinite_reverse_kl: Tensor
    documents: Int[Tensor, "context"]

    def mean(self, measure: str) -> float:
        """Over contexts."""
        return float(getattr(self, measure).mean())

    def summary(self) -> dict[str, str]:
        """The means, for a table."""
        rows = {name.replace("_", " "): f"{self.mean(name):.4g}" for name in MEASURES}
        rows["common support, of either's probability"] = (
            f"{float(self.coverage_p.mean()):.4g} and {float(self.coverage_q.mean()):.4g}"
        )
        infinite = int(self.infinite_kl.sum()), int(self.infinite_reverse_kl.sum())
        rows["contexts of infinite KL, either way"] = f"{infinite[0]} and {infinite[1]} of {len(self.kl)}"
        return rows

    def to_json(self) -> dict[str, float | int]:
        """The means and counts."""
        return {
            **{name: self.mean(name) for name in (*MEASURES, "coverage_p", "coverage_q")},
            "infinite_kl": int(self.infinite_kl.sum()),
            "infinite_reverse_kl": int(self.infinite_reverse_kl.sum()),
            "contexts": len(self.kl),
            "documents": len(self.documents.unique()),
        }

    def __repr__(self) -> str:
        return f"Distances(KL {self.mean('kl'):.3g}, JS {self.mean('js'):.3g} nats over {len(self.kl)} contexts)"

    def _repr_html_(self) -> str:
        return html_table(self.summary())


def distances(p: Predictor, q: Predictor) -> Distances:
    """All distances of two predictors at the same contexts and of the same tokens.

    Contexts are taken a few at a time, so that the logits of all never stand in memory together.

    Raises:
        LrtError: the contexts or tokens are not as many, or not the same.
    """
    require_comparable(p, q)
    parts = [distances_of_logits(p.logits(some), q.logits(some)) for some in _chunks(len(p.f), len(p.g))]
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    return Distances(**{**joined, "documents": p.documents})


def distances_of_logits(
    p: Float[Tensor, "context token"],
    q: Float[Tensor, "context token"],
    documents: Int[Tensor, "context"] | None = None,
) -> Distances:
    """The same from logits, or log-probabilities; −∞ is a token without probability, as `top_k` and `top_p` leave it.

    Raises:
        LrtError: a logit is NaN or +∞, or at some context no token has probability in both.
    """
    documents = torch.arange(len(p)) if documents is None else documents
    logits = [each.double() for each in (p, q)]
    for each in logits:
        if bool(torch.isnan(each).any()) or bool((each == math.inf).any()):
            raise LrtError("a logit is NaN or +∞")
    alive = [each > -math.inf for each in logits]
    if bool(alive[0].all()) and bool(alive[1].all()):
        ones, never = torch.ones(len(p), dtype=torch.float64), torch.zeros(len(p), dtype=torch.bool)
        return Distances(*_on_support(*logits, None), ones, ones, never, never, documents)
    common = alive[0] & alive[1]
    if not bool(common.any(1).all()):
        where = int((~common.any(1)).nonzero()[0, 0])
        raise LrtError(f"at context {where} no token has probability in both: KL is infinite, and nothing is left")
    coverage = [_log_softmax(each).exp().where(common, 0.0).sum(1) for each in logits]
    infinite = (alive[0] & ~alive[1]).any(1), (alive[1] & ~alive[0]).any(1)
    return Distances(*_on_support(*logits, common), *coverage, *infinite, documents)


@dataclass(frozen=True)
class Equality:
    """Whether two distributions can be called equal, to ε: the upper end of a one-sided 95 % interval of their mean
    distance lies under it. That a difference was not found would be no evidence.

    Attributes:
        measure: which distance.
        estimate: its mean.
        upper: 95 % of the bootstrap's means lie below.
        epsilon: what still counts as equal.
        contexts: how many there are,
        documents: and of how many documents, which are what is resampled.
    """

    measure: str
    estimate: float
    upper: float
    epsilon: float
    contexts: int
    documents: int

    @property
    def equal(self) -> bool:
        """Whether equality is supported."""
        return self.upper < self.epsilon

    def __str__(self) -> str:
        verdict = "equal" if self.equal else "not shown to be equal"
        return f"{verdict}: {self.measure} {self.estimate:.3g}, at most {self.upper:.3g}, against ε = {self.epsilon:g}"


def equality(
    found: Distances, epsilon: float, *, measure: str = "kl", n_bootstrap: int = 2000, seed: int = 0
) -> Equality:
    """Test that a mean distance is under ε, by a bootstrap over documents.

    Infinite KLs are not in the means: where there are any, the distributions are not equal, whatever ε is.

    Raises:
        LrtError: ε is not positive, there is no such measure, or there are fewer than five documents.
    """
    if measure not in MEASURES or not epsilon > 0:
        raise LrtError(f"measure={measure!r}, epsilon={epsilon}: one of {', '.join(MEASURES)}, and a positive number")
    values = getattr(found, measure)
    _, of = found.documents.unique(return_inverse=True)
    n = int(of.max()) + 1
    if n < 5:
        raise LrtError(f"{n} documents: their scatter cannot be known; give five or more, better hundreds")
    sums, counts = (
        torch.zeros(n, dtype=torch.float64).index_add_(0, of, each) for each in (values, torch.ones_like(values))
    )
    drawn = torch.randint(n, (n_bootstrap, n), generator=torch.Generator().manual_seed(seed))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    infinite = bool(found.infinite_kl.any()) or bool(found.infinite_reverse_kl.any())
    upper = math.inf if infinite else float(means.quantile(0.95))
    return Equality(measure, float(values.mean()), upper, epsilon, len(values), n)


def require_comparable(p: Predictor, q: Predictor) -> None:
    """Raises:
    LrtError: two predictors are not at the same contexts, or not of the same tokens, as far as can be told.
    """
    if len(p.f) != len(q.f) or len(p.g) != len(q.g) or not torch.equal(p.documents, q.documents):
        raise LrtError(
            f"{p} and {q} are not at the same contexts, or not of the same tokens: read both with `read_predictors`"
        )


def _chunks(n_contexts: int, n_tokens: int) -> Iterator[slice]:
    size = max(1, _LOGITS_AT_ONCE // n_tokens)
    for start in tqdm(range(0, n_contexts, size), desc="distances", unit=" chunks", leave=False):
        yield slice(start, start + size)


def _log_softmax(logits: Tensor) -> Tensor:
    return logits - logits.logsumexp(1, keepdim=True)


def _on_support(p: Tensor, q: Tensor, common: Tensor | None) -> tuple[Tensor, ...]:
    """The six distances, on the tokens that both have."""
    if common is not None:
        p, q = p.masked_fill(~common, -math.inf), q.masked_fill(~common, -math.inf)
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    likely_p, likely_q = log_p.exp(), log_q.exp()
    if common is not None:
        log_p, log_q = log_p.masked_fill(~common, 0.0), log_q.masked_fill(~common, 0.0)
    ratio = log_p - log_q
    kl, reverse = (likely_p * ratio).sum(1), -(likely_q * ratio).sum(1)
    # log((p + q)/2) = log p + log((1 + q/p)/2); the ratio is clamped where q/p would overflow, and p is nothing then
    middle = log_p + torch.log1p((-ratio).clamp(max=700).exp()) - math.log(2)
    middle = torch.where(ratio < -700, log_q - math.log(2), middle)
    js = ((likely_p * (log_p - middle)).sum(1) + (likely_q * (log_q - middle)).sum(1)) / 2
    variation = (likely_p - likely_q).abs().sum(1) / 2
    hellinger = (1 - (likely_p * likely_q).sqrt().sum(1)).clamp(min=0).sqrt()
    n = torch.full_like(kl, p.shape[1]) if common is None else common.sum(1).double()
    spread = (ratio.square().sum(1) - ratio.sum(1).square() / n).clamp(min=0).sqrt()
    return kl.clamp(min=0), reverse.clamp(min=0), js.clamp(min=0), variation, hellinger, spread
