"""How far apart two predictors' distributions are, at every context; and whether they can be called equal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.tables import html_table

_PRODUCTS_AT_ONCE, _LOGITS_AT_ONCE = 2**24, 2**19
"""Of each model: a product of f and g has so many logits, 64 MB of float32; so many are then looked at in float64."""
_RESAMPLES_AT_ONCE = 2**22
MEASURES = ("kl", "reverse_kl", "js", "total_variation", "hellinger", "logit_distance")


@dataclass(frozen=True, eq=False, repr=False)
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
        coverage_p: the probability that p gives to the common support; of two tokenizers, to the tokens of both.
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
    infinite_kl: Bool[Tensor, "context"]
    infinite_reverse_kl: Bool[Tensor, "context"]
    documents: Int[Tensor, "context"]

    def mean(self, measure: str) -> float:
        """Over contexts, of one of `MEASURES` or a coverage."""
        return float(getattr(self, measure).mean())

    @property
    def n_infinite(self) -> tuple[int, int]:
        """At how many contexts KL(p ‖ q) over all tokens is infinite, and KL(q ‖ p)."""
        return int(self.infinite_kl.sum()), int(self.infinite_reverse_kl.sum())

    def summary(self) -> dict[str, str]:
        """The means, for a table."""
        rows = {name.replace("_", " "): f"{self.mean(name):.4g}" for name in MEASURES}
        rows["common support, of either's probability"] = (
            f"{self.mean('coverage_p'):.4g} and {self.mean('coverage_q'):.4g}"
        )
        there, back = self.n_infinite
        rows["contexts of infinite KL, either way"] = f"{there} and {back} of {len(self.kl)}"
        return rows

    def to_json(self) -> dict[str, float | int]:
        """The means and counts."""
        there, back = self.n_infinite
        return {
            **{name: self.mean(name) for name in (*MEASURES, "coverage_p", "coverage_q")},
            "infinite_kl": there,
            "infinite_reverse_kl": back,
            "contexts": len(self.kl),
            "documents": len(set(self.documents.tolist())),
        }

    def __repr__(self) -> str:
        return f"Distances(KL {self.mean('kl'):.3g}, JS {self.mean('js'):.3g} nats over {len(self.kl)} contexts)"

    def _repr_html_(self) -> str:
        return html_table(self.summary())


def distances(p: Predictor, q: Predictor) -> Distances:
    """All distances of two predictors at the same contexts and of the same tokens.

    Contexts are taken a few at a time, so that the logits of all never stand in memory together. Products of f and g
    have the precision of these; all that comes after is float64.

    Raises:
        LrtError: the contexts or tokens are not as many, or not the same; or a logit overflows.
    """
    require_comparable(p, q)
    n_contexts, n_tokens = len(p.f), len(p.g)
    at_once, rows = (max(1, size // n_tokens) for size in (_PRODUCTS_AT_ONCE, _LOGITS_AT_ONCE))
    measures = torch.empty(len(MEASURES), n_contexts, dtype=torch.float64)
    with tqdm(total=n_contexts, desc="distances", unit=" contexts", leave=False) as progress:
        for start in range(0, n_contexts, at_once):
            products = [each.f[start : start + at_once] @ each.g.T for each in (p, q)]
            for first in range(0, len(products[0]), rows):
                ours, theirs = (each[first : first + rows].double() for each in products)
                found = torch.stack(_measures(ours, theirs))
                measures[:, start + first : start + first + len(ours)] = found  # kept apart they would pin the heap
            progress.update(len(products[0]))
    if not bool(torch.isfinite(measures).all()):
        raise LrtError(
            f"logits of {p.name} or {q.name} overflow {p.f.dtype}: give representations in a wider precision"
        )
    whole, never = torch.ones(n_contexts, dtype=torch.float64), torch.zeros(n_contexts, dtype=torch.bool)
    coverage = [whole if each.coverage is None else each.coverage for each in (p, q)]
    return _distances(measures.unbind(), [*coverage, never, never], p.documents)


def distances_of_logits(
    p: Float[Tensor, "context token"],
    q: Float[Tensor, "context token"],
    documents: Int[Tensor, "context"] | None = None,
) -> Distances:
    """The same from logits, or log-probabilities; −∞ is a token without probability, as `top_k` and `top_p` leave it.

    Args:
        documents: by default every context is a document of its own.

    Raises:
        LrtError: the shapes differ, a logit is NaN or +∞, or at some context no token has probability in both.
    """
    if p.shape != q.shape or p.shape[1] < 2:
        raise LrtError(f"logits {tuple(p.shape)} and {tuple(q.shape)}: they must be of the same two tokens or more")
    documents = torch.arange(len(p)) if documents is None else documents
    logits = [each.double() for each in (p, q)]
    for each in logits:
        if bool(torch.isnan(each).any()) or bool((each == math.inf).any()):
            raise LrtError("a logit is NaN or +∞")
    alive = [each > -math.inf for each in logits]
    common = alive[0] & alive[1]
    if not bool(common.any(1).all()):
        where = int((~common.any(1)).nonzero()[0, 0])
        raise LrtError(f"at context {where} no token has probability in both: KL is infinite, and nothing is left")
    coverage = [each.softmax(1).where(common, 0.0).sum(1) for each in logits]
    infinite = [(one & ~common).any(1) for one in alive]
    p_here, q_here = (each.masked_fill(~common, -math.inf) for each in logits)
    measures = _measures(p_here, q_here, common)
    return _distances(measures, [*coverage, *infinite], documents)


@dataclass(frozen=True)
class Equality:
    """Whether two distributions can be called equal, to ε: the upper end of a one-sided 95 % interval of their mean
    distance lies under it. That a difference was not found would be no evidence.

    Attributes:
        measure: which distance.
        estimate: its mean.
        upper: the upper end; infinite where a KL is.
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

    def summary(self) -> dict[str, str]:
        """For a table."""
        return {
            "verdict": "equal" if self.equal else "not shown to be equal",
            f"mean {self.measure.replace('_', ' ')}": f"{self.estimate:.3g}",
            "at most, with 95 % confidence": f"{self.upper:.3g}",
            "ε": f"{self.epsilon:g}",
            "contexts, documents": f"{self.contexts}, {self.documents}",
        }

    def to_json(self) -> dict[str, str | float | int | bool | None]:
        """All figures; an infinite bound is None."""
        return {**vars(self), "upper": self.upper if math.isfinite(self.upper) else None, "equal": self.equal}

    def __str__(self) -> str:
        verdict = "equal" if self.equal else "not shown to be equal"
        return f"{verdict}: {self.measure} {self.estimate:.3g}, at most {self.upper:.3g}, against ε = {self.epsilon:g}"

    def _repr_html_(self) -> str:
        return html_table(self.summary())


def equality(
    found: Distances, epsilon: float, *, measure: str = "kl", n_bootstrap: int = 2000, seed: int = 0
) -> Equality:
    """Test that a mean distance is under ε, by a studentized bootstrap over documents.

    Distances are skewed: a few contexts hold most of a mean. So each resample's mean is measured in its own standard
    error (Efron and Tibshirani 1993, section 12.5), without which the bound lies too low.
    Infinite KLs are not in the means: where there are any, the distributions are not equal, whatever ε is.

    Raises:
        LrtError: ε is not positive, there is no such measure, or there are fewer than five documents.
    """
    if measure not in MEASURES:
        raise LrtError(f"measure={measure!r}: it must be one of {', '.join(MEASURES)}")
    tested = equality_of_values(getattr(found, measure), found.documents, epsilon, measure, n_bootstrap, seed)
    return replace(tested, upper=math.inf) if any(found.n_infinite) else tested


def equality_of_values(
    values: Float64[Tensor, "context"],
    documents: Int[Tensor, "context"],
    epsilon: float,
    measure: str,
    n_bootstrap: int,
    seed: int,
) -> Equality:
    """The same of any distance, by the name `measure`. Raises: as `equality` does."""
    if not epsilon > 0:
        raise LrtError(f"epsilon={epsilon}: it must be a positive number")
    sums, counts = _by_document(values, documents)
    if len(sums) < 5:
        raise LrtError(f"{len(sums)} documents: their scatter cannot be known; give five or more, better hundreds")
    upper = _upper_bound(sums, counts, n_bootstrap, seed)
    return Equality(measure, float(values.mean()), upper, epsilon, len(values), len(sums))


def documents_needed(found: Distances, epsilon: float, *, measure: str = "kl", power: float = 0.8) -> int | None:
    """About how many documents, of as many contexts each, `equality` needs to find two distributions equal to ε with
    this probability, if the mean distance and its scatter are what they are here:

        n = ((z₀.₉₅ + z_power) · s / (ε − mean))²,  s the standard deviation of a document's part in the mean

    (of a normal mean; where it comes to fewer than fifty, take twice as many, for distances are skewed).

    Returns:
        None where the mean is not under ε, or a KL is infinite: no number would do.
    """
    sums, counts = _by_document(getattr(found, measure), found.documents)
    mean, error = _mean_and_error(sums, counts)
    gap = epsilon - float(mean)
    if gap <= 0 or any(found.n_infinite):
        return None
    z = torch.special.ndtri(torch.tensor([0.95, power], dtype=torch.float64)).sum()
    return max(5, math.ceil(len(sums) * float(z * error / gap) ** 2))


def require_comparable(p: Predictor, q: Predictor) -> None:
    """Raises:
    LrtError: two predictors are not at the same contexts, or not of the same tokens, as far as can be told.
    """
    if len(p.f) != len(q.f) or len(p.g) != len(q.g) or not torch.equal(p.documents, q.documents):
        raise LrtError(
            f"{p} and {q} are not at the same contexts, or not of the same tokens: read both with `read_predictors`"
        )


def _distances(measures: Sequence[Tensor], support: Sequence[Tensor], documents: Tensor) -> Distances:
    names = (*MEASURES, "coverage_p", "coverage_q", "infinite_kl", "infinite_reverse_kl")
    return Distances(**dict(zip(names, [*measures, *support], strict=True)), documents=documents)


def _measures(p: Tensor, q: Tensor, common: Tensor | None = None) -> tuple[Tensor, ...]:
    """The six distances from float64 logits, which are overwritten: −∞ outside of the common support, if any.

    √p and √q first: 1 − Σ√(pq) = ½ Σ(√p − √q)², which does not cancel. JS is the entropy of the middle, less the mean
    of the entropies.
    """
    (log_p, root_p), (log_q, root_q) = _log_softmax(p), _log_softmax(q)
    if common is not None:
        for each in (log_p, log_q):
            each.masked_fill_(~common, 0.0)
    hellinger = torch.linalg.vector_norm(root_p - root_q, dim=1) / math.sqrt(2)
    likely_p, likely_q = root_p.square_(), root_q.square_()
    variation = torch.linalg.vector_norm(likely_p - likely_q, ord=1, dim=1) / 2
    entropies = -(_dot(likely_p, log_p) + _dot(likely_q, log_q))
    ratio = log_p.sub_(log_q)
    kl, reverse = _dot(likely_p, ratio), -_dot(likely_q, ratio)
    middle = likely_p.add_(likely_q).div_(2)
    js = -_dot(middle, middle.clamp(min=torch.finfo(middle.dtype).tiny).log_()) - entropies / 2
    n = p.shape[1] if common is None else common.sum(1, keepdim=True)
    ratio.sub_(ratio.sum(1, keepdim=True) / n)
    if common is not None:
        ratio.masked_fill_(~common, 0.0)
    spread = torch.linalg.vector_norm(ratio, dim=1)
    return kl.clamp(min=0), reverse.clamp(min=0), js.clamp(min=0), variation, hellinger, spread


def _log_softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities, in the place of the logits, and square roots of probabilities."""
    shifted = logits.sub_(logits.amax(1, keepdim=True))
    roots = (shifted / 2).exp_()
    norm = torch.linalg.vector_norm(roots, dim=1, keepdim=True)
    return shifted.sub_(2 * norm.log()), roots.div_(norm)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return torch.einsum("ct,ct->c", one, other)


def _by_document(values: Tensor, documents: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and number of the values of each document."""
    _, of = torch.unique(documents, return_inverse=True)
    n = int(of.max()) + 1
    sums, counts = (torch.zeros(n, dtype=torch.float64).index_add_(0, of, x) for x in (values, torch.ones_like(values)))
    return sums, counts


def _mean_and_error(sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over contexts, and its standard error from the scatter of documents (in the last dimension)."""
    n = counts.sum(-1)
    mean = sums.sum(-1) / n
    return mean, (sums - mean[..., None] * counts).norm(dim=-1) / n


def _upper_bound(sums: Tensor, counts: Tensor, n_bootstrap: int, seed: int) -> float:
    mean, error = _mean_and_error(sums, counts)
    generator = torch.Generator().manual_seed(seed)
    ratios = []
    at_once = max(1, _RESAMPLES_AT_ONCE // len(sums))
    for start in range(0, n_bootstrap, at_once):
        size = min(at_once, n_bootstrap - start)
        drawn = torch.randint(len(sums), (size, len(sums)), generator=generator)
        means, errors = _mean_and_error(sums[drawn], counts[drawn])
        ratios.append((means - mean) / errors)
    found = torch.cat(ratios).nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)  # no scatter at all: 0/0
    return float(mean - error * found.quantile(0.05, interpolation="lower")) if float(error) > 0 else float(mean)
