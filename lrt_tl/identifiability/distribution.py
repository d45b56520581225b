"""How far apart two predictors' distributions are, at every context."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.progress import BAR
from lrt_tl.tables import html_table

_PRODUCTS_AT_ONCE, _LOGITS_AT_ONCE = 2**24, 2**19
"""Of each model: a product of f and g has so many logits, 64 MB of float32; so many are then looked at in float64."""
MEASURES = ("kl", "reverse_kl", "js", "total_variation", "hellinger", "logit_distance")
_INITIALS = {"kl": "KL", "reverse_kl": "reverse KL", "js": "JS", "hellinger": "Hellinger"}


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

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> found = lrt.distances_of_logits(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        >>> found
        Distances(KL 0.434, JS 0.0895 nats over 1 contexts)
        >>> round(found.mean("total_variation"), 3)
        0.381
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
        rows = {shown_measure(name): f"{self.mean(name):.4g}" for name in MEASURES}
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

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> models = storyworld.load("small"), storyworld.load("medium")
        >>> p, q = lrt.read_predictors(*models, storyworld.documents(20), n_contexts=500)
        >>> lrt.distances(p, q)  # doctest: +ELLIPSIS
        Distances(KL 0.1..., JS 0.01... nats over 500 contexts)
        >>> lrt.distances(p, p).mean("kl")
        0.0
    """
    require_comparable(p, q)
    n_contexts, n_tokens = len(p.f), len(p.g)
    at_once, rows = (max(1, size // n_tokens) for size in (_PRODUCTS_AT_ONCE, _LOGITS_AT_ONCE))
    measures = torch.empty(len(MEASURES), n_contexts, dtype=torch.float64)
    with tqdm(total=n_contexts, desc="distances", unit=" contexts", **BAR) as progress:
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

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> half, lopsided = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
        >>> lrt.distances_of_logits(half, lopsided)
        Distances(KL 0.511, JS 0.102 nats over 1 contexts)
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


def shown_measure(name: str) -> str:
    """One of `MEASURES` for people."""
    bare = name.removeprefix("largest_possible_")
    return name.replace(bare, _INITIALS.get(bare, bare)).replace("_", " ")


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
