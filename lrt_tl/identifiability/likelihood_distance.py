"""d_LLV: a distance of distributions that, unlike KL, bounds a distance of representations.

Log-likelihoods are compared after each is scaled by how much its ratio to a pivot's varies. With labels y, contexts x,
a pivot y₀ of the labels, and sd over contexts (Nielsen et al. 2025, arXiv 2506.03784):

    ψ(y) = sd(log p(y|x) − log p(y₀|x))
    t₁ = max over y of sd(log p(y|x)/ψ(y) − log q(y|x)/ψ′(y)), also with y₀ in both numerators
    t₂: the same with labels and contexts exchanged
    t₃, t₄ = the largest |ψ − ψ′| of labels, of contexts
    d_LLV = max(t₁, t₂, λ t₃, λ t₄)
"""

import math
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.distribution import require_comparable
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.similarity import d_svd
from lrt_tl.tables import html_table

WEIGHT = 1e-5
"""λ of the paper."""
_MOST_TOKENS = 4096
"""Every pair of them is looked at."""


@dataclass(frozen=True)
class LikelihoodDistance:
    """d_LLV of two predictors, its terms, and the distances of representations that it bounds.

    Attributes:
        t1: of labels, for the pivot and the left-out label that make it smallest.
        t2: of contexts, for the best of the random sets.
        t3: largest difference of the labels' ψ,
        t4: and of the contexts'.
        weight: λ.
        dimension: of the representations, d.
        pivot: the label y₀.
        left_out: the label that t₁ leaves out.
        context_pivot: the context x₀.
        contexts: the d contexts of t₂.
        d_svd_contexts: d_SVD of f, projected on d of t₁'s labels less the pivot.
        d_svd_tokens: d_SVD of g, projected on t₂'s contexts less the pivot.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> generator = torch.Generator().manual_seed(0)
        >>> f, g, noise = (torch.randn(rows, 3, generator=generator) for rows in (100, 12, 100))
        >>> p, q = lrt.Predictor.from_arrays(f, g), lrt.Predictor.from_arrays(f + 0.01 * noise, g)
        >>> found = lrt.likelihood_distance(p, q)
        >>> found.value > 0, found.d_svd_contexts < found.bound < 1
        (True, True)
    """

    t1: float
    t2: float
    t3: float
    t4: float
    weight: float
    dimension: int
    pivot: int
    left_out: int
    context_pivot: int
    contexts: tuple[int, ...]
    d_svd_contexts: float
    d_svd_tokens: float

    @property
    def value(self) -> float:
        """d_LLV."""
        return max(self.t1, self.t2, self.weight * self.t3, self.weight * self.t4)

    @property
    def bound(self) -> float:
        """2 d · d_LLV, under which both d_SVD lie (the paper's theorem); it says nothing from 1 on."""
        return 2 * self.dimension * self.value

    @property
    def sharper_bounds(self) -> tuple[float, float]:
        """2 t₁², over d_SVD of contexts, and 2 t₂², over that of tokens: the correlation of two standardized columns is
        1 − ½ var(their difference). (Derived for this package.)"""
        return 2 * self.t1**2, 2 * self.t2**2

    def to_json(self) -> dict[str, float | int | list[int]]:
        """All figures."""
        return {**asdict(self), "contexts": list(self.contexts), "value": self.value, "bound": self.bound}

    def summary(self) -> dict[str, str]:
        """For a table."""
        bounds = self.sharper_bounds
        return {
            "d_LLV": f"{self.value:.3g}",
            "t1, t2, t3, t4": f"{self.t1:.3g}, {self.t2:.3g}, {self.t3:.3g}, {self.t4:.3g}",
            "d_SVD of contexts": f"{self.d_svd_contexts:.3g}, at most {min(1.0, self.bound, bounds[0]):.3g}",
            "d_SVD of tokens": f"{self.d_svd_tokens:.3g}, at most {min(1.0, self.bound, bounds[1]):.3g}",
        }

    def __repr__(self) -> str:
        terms = ", ".join(f"t{n} {getattr(self, f't{n}'):.3g}" for n in (1, 2, 3, 4))
        return f"LikelihoodDistance(d_LLV {self.value:.4g}: {terms})"

    def _repr_html_(self) -> str:
        return html_table(self.summary())


def likelihood_distance(
    p: Predictor, q: Predictor, *, n_sets: int = 150, weight: float = WEIGHT, seed: int = 0
) -> LikelihoodDistance:
    """d_LLV, with all pivots and left-out labels tried, and so many random sets of contexts.

    It takes the log-likelihoods of all contexts at once, and the covariance of all labels: choose some of a large
    vocabulary with `Predictor.among`.

    Raises:
        LrtError: the predictors are not of the same contexts and tokens, or differ in dimension; there are fewer than
            three tokens, more than 4096, or fewer contexts than dimensions and two; or for every pivot log-ratios do
            not vary.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> generator = torch.Generator().manual_seed(0)
        >>> f, g = torch.randn(100, 3, generator=generator), torch.randn(12, 3, generator=generator)
        >>> p, q = lrt.Predictor.from_arrays(f, g), lrt.Predictor.from_arrays(2 * f, g / 2)  # the same products
        >>> lrt.likelihood_distance(p, q).value < 1e-6
        True
    """
    require_comparable(p, q)
    d, n_tokens = p.d_model, len(p.g)
    if q.d_model != d:
        raise LrtError(f"d_LLV compares predictors of one dimension: {d} and {q.d_model}")
    if not 3 <= n_tokens <= _MOST_TOKENS or len(p.f) < d + 2:
        raise LrtError(
            f"{n_tokens} tokens and {len(p.f)} contexts: d_LLV needs 3 to {_MOST_TOKENS} tokens (choose some with "
            f"`among`), and {d + 2} contexts or more in {d} dimensions"
        )
    ours, theirs = (each.logits().log_softmax(1) for each in (p, q))
    still = float(torch.finfo(p.f.dtype).eps) * max(float(each.abs().max()) for each in (ours, theirs))
    t1, t3, pivot, left_out = _of_labels(ours, theirs, still)
    t2, t4, chosen = _of_contexts(ours, theirs, d, n_sets, seed, still)
    labels = torch.tensor([y for y in range(n_tokens) if y not in (pivot, left_out)][:d])
    contexts = [each.f.double() @ (each.g[labels] - each.g[pivot]).double().T for each in (p, q)]
    tokens = [each.g.double() @ (each.f[chosen[1:]] - each.f[chosen[0]]).double().T for each in (p, q)]
    return LikelihoodDistance(
        t1, t2, t3, t4, weight, d, pivot, left_out, int(chosen[0]), tuple(chosen[1:].tolist()),
        d_svd(*contexts), d_svd(*tokens),
    )  # fmt: skip


def _of_labels(ours: Tensor, theirs: Tensor, still: float) -> tuple[float, float, int, int]:
    """t₁, t₃, the pivot and the left-out label. A label whose ratio to the pivot's varies by no more than `still`
    cannot be standardized: it is left out, or the pivot is not used.

    Raises:
        LrtError: there is no such pivot.
    """
    best = (math.inf, 0.0, 0, 0)
    spreads = [_spreads_of_ratios(each) for each in (ours, theirs)]
    for pivot in range(ours.shape[1]):
        others = torch.tensor([y for y in range(ours.shape[1]) if y != pivot])
        psi, psi_other = (each[pivot, others] for each in spreads)
        terms = torch.maximum(
            (ours[:, others] / psi - theirs[:, others] / psi_other).std(0),
            (ours[:, [pivot]] / psi - theirs[:, [pivot]] / psi_other).std(0),
        )
        terms = terms.where((psi > still) & (psi_other > still), math.inf)
        order = terms.argsort()
        t1 = float(terms[order[-2]])
        if t1 < best[0]:
            t3 = float((psi - psi_other)[order[:-1]].abs().max())
            best = (t1, t3, pivot, int(others[order[-1]]))
    if best[0] == math.inf:
        raise LrtError("log-ratios of too many tokens are the same at all contexts: they cannot be standardized")
    return best


def _spreads_of_ratios(log_likelihoods: Float64[Tensor, "context token"]) -> Float64[Tensor, "token token"]:
    """sd over contexts of log p(y|x) − log p(y′|x), for all pairs of labels."""
    return torch.stack([(log_likelihoods - column[:, None]).std(0) for column in log_likelihoods.T])


def _of_contexts(
    ours: Tensor, theirs: Tensor, d: int, n_sets: int, seed: int, still: float
) -> tuple[float, float, Tensor]:
    """t₂, t₄, and the contexts of the best set, its pivot first; sets with a context like the pivot are not used.

    Raises:
        LrtError: no set can be.
    """
    generator = torch.Generator().manual_seed(seed)
    best = (math.inf, 0.0, torch.arange(d + 1))
    for _ in range(n_sets):
        chosen = torch.randperm(len(ours), generator=generator)[: d + 1]
        (one, one_pivot, psi), (other, other_pivot, psi_other) = (_against_pivot(x[chosen]) for x in (ours, theirs))
        terms = torch.maximum(
            (one / psi - other / psi_other).std(1), (one_pivot / psi - other_pivot / psi_other).std(1)
        )
        t2 = float(terms.max()) if float(min(psi.min(), psi_other.min())) > still else math.inf
        if t2 < best[0]:
            best = (t2, float((psi - psi_other).abs().max()), chosen)
    if best[0] == math.inf:
        raise LrtError("log-ratios of too many contexts are the same at all tokens: they cannot be standardized")
    return best


def _against_pivot(rows: Float64[Tensor, "context token"]) -> tuple[Tensor, Tensor, Tensor]:
    """The rows but the first, the first, and the sd over labels of their differences."""
    return rows[1:], rows[:1], (rows[1:] - rows[0]).std(1, keepdim=True)
