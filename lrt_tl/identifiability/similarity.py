"""Distances between two predictors' representations, and a bound that ties them to their distributions."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.distribution import require_comparable
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.subspaces import triangle

_SMALLEST = 1e-5
"""Of the largest singular value: directions of less spread are taken for rounding."""
_ROUNDING = 1e-13
"""A column's spread of so small a share of it is none."""


def canonical_correlations(
    one: Float[Tensor, "row d_one"], other: Float[Tensor, "row d_other"]
) -> Float64[Tensor, "smaller"]:
    """Canonical correlations of two sets of states, both centered over rows, largest first; zero where one of them has
    no variance left."""
    (ours, _), (theirs, _) = _principal(one, other)
    found = torch.linalg.svdvals(ours.T @ theirs).clamp(max=1)
    padded = torch.zeros(min(one.shape[1], other.shape[1]), dtype=torch.float64)
    padded[: len(found)] = found
    return padded


def mean_cca(one: Float[Tensor, "row d_one"], other: Float[Tensor, "row d_other"]) -> float:
    """Mean of the canonical correlations, 0 to 1. That of f and that of g can both be 1 while the distributions differ
    (turn them in opposite ways): the duality residual tells.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> one, other = torch.randn(2, 500, 4, generator=torch.Generator().manual_seed(0))
        >>> round(lrt.mean_cca(one, one @ other[:4]), 3)  # a linear image
        1.0
        >>> round(lrt.mean_cca(one, other), 2)
        0.06
    """
    return float(canonical_correlations(one, other).mean())


def d_svd(one: Float[Tensor, "row d"], other: Float[Tensor, "row d"]) -> float:
    """1 − mean of the singular values of the matrix of correlations between columns (Nielsen et al. 2025, arXiv
    2506.03784): 0 if they agree up to a rotation after each column is standardized.

    Raises:
        LrtError: the widths differ, or a column does not vary.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> one, other = torch.randn(2, 500, 4, generator=torch.Generator().manual_seed(0))
        >>> lrt.d_svd(one, 3 * one.flip(1)) < 1e-6  # turned and scaled
        True
        >>> round(lrt.d_svd(one, other), 2)
        0.94
    """
    if one.shape != other.shape:
        raise LrtError(f"d_SVD compares columns with columns: {tuple(one.shape)} and {tuple(other.shape)}")
    x, y = (_standardized(states) for states in (one, other))
    return max(0.0, 1 - float(torch.linalg.svdvals(x.T @ y / (len(x) - 1)).mean()))


def d_rep(p: Predictor, q: Predictor) -> float:
    """Distance of p's representations of contexts to the best linear image of q's, in units of p's own spread:
    √(1 − R²), both about their means, fitted and judged on the same contexts. 0 if q's determine p's linearly.

    Raises:
        LrtError: the predictors are not of the same contexts and tokens, or p's contexts are all alike.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> generator = torch.Generator().manual_seed(0)
        >>> f, g, noise = (torch.randn(rows, 4, generator=generator) for rows in (100, 20, 100))
        >>> p, noisy = lrt.Predictor.from_arrays(f, g), lrt.Predictor.from_arrays(f + noise, g)
        >>> lrt.d_rep(p, lrt.Predictor.from_arrays(2 * f.flip(1), g)) < 1e-3  # a linear image
        True
        >>> round(lrt.d_rep(p, noisy), 1)
        0.7
    """
    require_comparable(p, q)
    theirs, ours = torch.split(triangle(q.f, p.f, centered=True), [q.d_model, p.d_model], dim=1)
    spread = float(ours.norm())
    if not spread > _ROUNDING * float(p.f.abs().max()):
        raise LrtError(f"all contexts of {p.name} have one representation: there is no spread to measure in")
    left = ours - theirs @ torch.linalg.lstsq(theirs, ours, driver="gelsd").solution
    return float(left.norm()) / spread


def cca_logit_bound(p: Predictor, q: Predictor) -> tuple[float, float]:
    """Both sides of Σ λᵢ (1 − ρᵢ²) ≤ d²_logit, which holds for any two predictors of any dimensions.

    λ are the eigenvalues of the covariance over contexts of p's logits, centered over tokens; ρ the canonical
    correlations of the two models' logits; both descending. d²_logit is the mean over contexts of the squared distance
    of the logits, centered over tokens and contexts. Logits are held in an orthonormal basis of the two g's columns, so
    that nothing of contexts × tokens is made. (Derived for this package.)

    Returns:
        The left side and the right side.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> generator = torch.Generator().manual_seed(0)
        >>> f, g, noise = (torch.randn(rows, 4, generator=generator) for rows in (100, 20, 100))
        >>> p, q = lrt.Predictor.from_arrays(f, g), lrt.Predictor.from_arrays(f + noise, g)
        >>> left, right = lrt.cca_logit_bound(p, q)
        >>> 0 < left <= right
        True
    """
    require_comparable(p, q)
    bases = torch.split(triangle(p.g, q.g, centered=True), [p.d_model, q.d_model], dim=1)
    logits = [(each.f.double() - each.f.double().mean(0)) @ basis.T for each, basis in zip((p, q), bases, strict=True)]
    right = float((logits[0] - logits[1]).square().sum()) / len(p.f)
    (ours, values), (theirs, _) = _principal(*logits)
    sines = torch.linalg.svdvals(ours - theirs @ (theirs.T @ ours)).flip(0)  # √(1 − ρ²), which would cancel
    return float((values * sines).square().sum()) / len(p.f), right


def _principal(
    one: Float[Tensor, "row d_one"], other: Float[Tensor, "row d_other"]
) -> list[tuple[Float64[Tensor, "d rank"], Float64[Tensor, "rank"]]]:
    """Of both, centered over rows, the left singular vectors, in one basis, and the singular values."""
    found = []
    for part in torch.split(triangle(one, other, centered=True), [one.shape[1], other.shape[1]], dim=1):
        u, values, _ = torch.linalg.svd(part, full_matrices=False)
        kept = values > _SMALLEST * values[0]
        found.append((u[:, kept], values[kept]))
    return found


def _standardized(states: Float[Tensor, "row d"]) -> Float64[Tensor, "row d"]:
    centered = states.double() - states.double().mean(0)
    spread = centered.square().sum(0).div(max(1, len(states) - 1)).sqrt()
    still = ~(spread > _ROUNDING * states.abs().amax(0))
    if bool(still.any()):
        raise LrtError(f"column {int(still.nonzero()[0])} does not vary: it has no correlation with anything")
    return centered / spread
