"""Distances between two predictors' representations, and the bounds that tie them to their distributions."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.distribution import require_comparable
from lrt_tl.identifiability.predictor import Predictor

_RELATIVE = 1e-10


def canonical_correlations(
    one: Float[Tensor, "row d_one"], other: Float[Tensor, "row d_other"]
) -> Float64[Tensor, "smaller"]:
    """Canonical correlations of two sets of states, both centered over rows, largest first; zero where one of them has
    no variance left."""
    bases = []
    for states in (one, other):
        u, values, _ = torch.linalg.svd(states.double() - states.double().mean(0), full_matrices=False)
        bases.append(u[:, values > _RELATIVE**0.5 * values[0]])
    found = torch.linalg.svdvals(bases[0].T @ bases[1]).clamp(max=1)
    padded = torch.zeros(min(one.shape[1], other.shape[1]), dtype=torch.float64)
    padded[: min(len(found), len(padded))] = found[: len(padded)]
    return padded


def mean_cca(one: Float[Tensor, "row d_one"], other: Float[Tensor, "row d_other"]) -> float:
    """Mean of the canonical correlations, 0 to 1. That of f and that of g can both be 1 while the distributions differ
    (turn them in opposite ways): the duality residual tells."""
    return float(canonical_correlations(one, other).mean())


def d_svd(one: Float[Tensor, "row d"], other: Float[Tensor, "row d"]) -> float:
    """1 − mean of the singular values of the matrix of correlations between columns (Nielsen et al. 2025, arXiv
    2506.03784): 0 if they agree up to a rotation after each column is standardized.

    Raises:
        LrtError: the widths differ, or a column does not vary.
    """
    if one.shape != other.shape:
        raise LrtError(f"d_SVD compares columns with columns: {tuple(one.shape)} and {tuple(other.shape)}")
    x, y = (_standardized(states) for states in (one, other))
    return 1 - float(torch.linalg.svdvals(x.T @ y / (len(x) - 1)).mean())


def d_rep(p: Predictor, q: Predictor) -> float:
    """Mean distance of the two representations of contexts after the best linear map of q's on p's, in units of p's
    own spread: √(1 − R²), fitted and judged on the same contexts, about their means."""
    x, y = (each.f.double() - each.f.double().mean(0) for each in (p, q))
    solution = torch.linalg.lstsq(y, x, driver="gelsd").solution
    left = (x - y @ solution).square().sum() / x.square().sum()
    return float(left.clamp(min=0).sqrt())


def cca_logit_bound(p: Predictor, q: Predictor) -> tuple[float, float]:
    """Both sides of Σ λᵢ (1 − ρᵢ²) ≤ d²_logit, which holds for any two predictors of any dimensions.

    λ are the eigenvalues of the covariance over contexts of p's logits, centered over tokens; ρ the canonical correlations of
    the two models' logits; both descending. d²_logit is the mean squared distance of the logits, centered over tokens and
    contexts. All from d × d matrices. (Derived for this package.)

    Returns:
        The left side and the right side.
    """
    require_comparable(p, q)
    n = len(p.f)
    states = [each.f.double() - each.f.double().mean(0) for each in (p, q)]
    tokens = [each.g.double() - each.g.double().mean(0) for each in (p, q)]
    # logits' second moments live on d × d: L = f gᵀ, so ‖L − L′‖² = tr(FᵀF GᵀG) + … − 2 tr(FᵀF′ G′ᵀG)
    own = [float(((x.T @ x) * (g.T @ g)).sum()) for x, g in zip(states, tokens, strict=True)]
    cross = float(((states[0].T @ states[1]) * (tokens[0].T @ tokens[1])).sum())
    right = (own[0] + own[1] - 2 * cross) / n
    factors = [torch.linalg.qr(g, mode="r").R for g in tokens]
    logits = [x @ r.T for x, r in zip(states, factors, strict=True)]
    values = torch.linalg.svdvals(logits[0]).square() / n
    rho = canonical_correlations(*logits)
    padded = torch.zeros_like(values)
    padded[: min(len(values), len(rho))] = rho[: len(values)]
    return float((values * (1 - padded.square())).sum()), right


def _standardized(states: Float[Tensor, "row d"]) -> Float64[Tensor, "row d"]:
    centered = states.double() - states.double().mean(0)
    spread = centered.std(0)
    if not bool((spread > 0).all()):
        raise LrtError("a column does not vary: it has no correlation with anything")
    return centered / spread
