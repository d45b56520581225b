"""Pure functions from moments to maps.

The source's states are rows x, the target's rows y, W `[d_source, d_target]`, and the map is y ≈ Wᵀx + b, with
b = ȳ − Wᵀx̄ in every one. S are sums of products about the means, n the number of positions.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from lrt_tl.alignment.moments import Centered
from lrt_tl.errors import LrtError


@dataclass(frozen=True)
class Solution:
    """An affine map: y ≈ weightᵀ x + bias."""

    weight: Float64[Tensor, "d_source d_target"]
    bias: Float64[Tensor, "d_target"]


def through_the_means(weight: Float64[Tensor, "d_source d_target"], train: Centered) -> Solution:
    """The map of that weight that takes the mean to the mean."""
    return Solution(weight, train.target_mean - weight.T @ train.source_mean)


def spectrum(matrix: Float64[Tensor, "d d"]) -> tuple[Float64[Tensor, "d"], Float64[Tensor, "d d"]]:
    """Eigenvalues, ascending, and eigenvectors of a covariance. Float32 products can leave an eigenvalue that is zero,
    as one is in the centered basis, below zero by more than a small penalty makes up for: so none is less than zero."""
    eigenvalues, v = torch.linalg.eigh(matrix)
    return eigenvalues.clamp(min=0), v


def mean_variance(products: Float64[Tensor, "d d"], count: int) -> float:
    """Mean over the dimensions of their variance: the unit of relative penalties.

    Raises:
        LrtError: it is zero.
    """
    variance = float(products.diagonal().mean()) / count
    if not variance > 0:
        raise LrtError("the activations of one side do not vary: they are the same at all positions")
    return variance


def ridge(train: Centered, penalty: float | Float64[Tensor, "d_target"]) -> Solution:
    """W = (Sxx + nλ I)⁻¹ Sxy: the least squares with a penalty on W (Hoerl & Kennard 1970).

    Args:
        penalty: λ, *per position*, so that it means the same on K − 1 folds as on all; one for all target dimensions
            or one for each.
    """
    return next(ridge_path(train, [penalty]))


def ridge_path(train: Centered, penalties: Iterable[float | Float64[Tensor, "d_target"]]) -> Iterator[Solution]:
    """The ridge map of each of these penalties, from one decomposition."""
    eigenvalues, v = spectrum(train.source_source)
    u = v.T @ train.source_target
    for penalty in penalties:
        yield through_the_means(v @ (u / (eigenvalues[:, None] + train.count * penalty)), train)


def least_squares(train: Centered, tolerance: float = 1e-7) -> Solution:
    """W = Sxx⁺ Sxy: ordinary least squares.

    Source dimensions are first scaled to unit variance, so that a massive channel hides no other; eigenvalues of their
    correlation matrix below `tolerance` times the largest (the rounding of float32 products) count as zero. So constant
    dimensions (variance below 1e-12 of the largest) get weight zero, and duplicates share theirs.
    """
    variance = train.source_source.diagonal()
    unit = torch.where(variance > 1e-12 * variance.max(), variance.clamp(min=1e-300).rsqrt(), 0.0)
    eigenvalues, v = spectrum(unit[:, None] * train.source_source * unit)
    inverse = torch.where(eigenvalues > tolerance * eigenvalues[-1], 1 / eigenvalues, 0.0)
    weight = unit[:, None] * (v @ (inverse[:, None] * (v.T @ (unit[:, None] * train.source_target))))
    return through_the_means(weight, train)


def reduced_rank(train: Centered, penalty: float, rank: int) -> Solution:
    """The best map of rank r under the ridge's own loss (Izenman 1975; with the penalty, Mukherjee & Zhu 2011)."""
    factor, directions = rank_factors(train, penalty)
    return through_the_means(factor[:, :rank] @ directions[:rank], train)


Factors = tuple[Float64[Tensor, "d_source rank"], Float64[Tensor, "rank d_target"]]
"""A and B of a weight AB, of which the first columns and rows make the maps of lower ranks."""


def rank_factors(train: Centered, penalty: float) -> Factors:
    """The ridge map as A Vᵀ, V orthonormal directions of the target, those that it explains best first.

    The ridge map cut to rank r is W V_r V_rᵀ with V_r the first right singular vectors of G^(−½) Sxy, G = Sxx + nλ I.
    """
    eigenvalues, v = spectrum(train.source_source)
    root = (eigenvalues + train.count * penalty).sqrt()[:, None]
    u, s, vh = torch.linalg.svd((v.T @ train.source_target) / root, full_matrices=False)
    return v @ (u * s / root), vh


def procrustes(train: Centered) -> Solution:
    """W = s Q, Q = UVᵀ from the singular vectors of Sxy: a rotation, between means, with one scale s (Schönemann 1966).

    Where the widths differ, Q has orthonormal rows or columns. It maximizes ⟨Q, Sxy⟩, which is the least squares where
    the source is not the wider one; s is the least squares given Q.
    """
    u, _, vh = torch.linalg.svd(train.source_target, full_matrices=False)
    rotation = u @ vh
    scale = (rotation * train.source_target).sum() / (rotation * (train.source_source @ rotation)).sum()
    return through_the_means(scale * rotation, train)


@dataclass(frozen=True)
class Canonical:
    """Two streams in coordinates in which each has unit covariance, and one coordinate of the one goes with one of the
    other (Hotelling 1936)."""

    correlations: Float64[Tensor, "direction"]
    """Of the coordinates, descending."""
    of_source: Float64[Tensor, "d_source direction"]
    """A source state x about its mean has the coordinates of_sourceᵀ x."""
    of_target: Float64[Tensor, "d_target direction"]
    to_target: Float64[Tensor, "direction d_target"]
    """The target state of coordinates z is to_targetᵀ z."""


def canonical(moments: Centered, relative: float = 1e-6) -> Canonical:
    """Canonical correlation analysis.

    Args:
        relative: α; the covariances are Sxx/n + α·(mean variance of x)·I, and that of y alike.
    """
    return next(canonical_path(moments, [relative]))


def canonical_path(moments: Centered, relatives: Iterable[float]) -> Iterator[Canonical]:
    """The same for each of these α, from one decomposition of each covariance."""
    (ex, vx), (ey, vy) = (spectrum(s / moments.count) for s in (moments.source_source, moments.target_target))
    units = [mean_variance(s, moments.count) for s in (moments.source_source, moments.target_target)]
    cross = vx.T @ moments.source_target @ vy / moments.count
    for relative in relatives:
        root_x, root_y = ((e + relative * unit).sqrt()[:, None] for e, unit in zip((ex, ey), units, strict=True))
        u, correlations, vh = torch.linalg.svd(cross / root_x / root_y.T, full_matrices=False)
        yield Canonical(correlations, vx @ (u / root_x), vy @ (vh.T / root_y), (vh * root_y.T) @ vy.T)


def whitened(train: Centered, relative: float) -> Solution:
    """W = Cx^(−½) UVᵀ Cy^(½): the rotation between whitened states that takes each canonical coordinate to its partner.

    Every coordinate keeps its whole variance, where least squares shrinks it by its correlation ρ: so this map explains
    less (2ρ − 1 of the variance along a coordinate, not ρ²), and does not weaken in a vector what is little correlated.

    Args:
        relative: α, as of `canonical`.
    """
    return next(whitened_path(train, [relative]))


def whitened_path(train: Centered, relatives: Iterable[float]) -> Iterator[Solution]:
    """The whitened map of each of these α."""
    for form in canonical_path(train, relatives):
        yield through_the_means(form.of_source @ form.to_target, train)


def partial_least_squares(train: Centered, rank: int) -> Solution:
    """PLS2 regression of so many components, unscaled (Wold 1983), or of as many as there are."""
    rotations, answers = components(train, rank)
    return through_the_means(rotations @ answers, train)


def components(train: Centered, rank: int) -> Factors:
    """The components of partial least squares, from the products alone (Dayal & MacGregor 1997).

    Each is the direction of x that covaries most with y in what the ones before have not explained. Ends early where
    nothing is left.
    """
    d_source, d_target = train.source_target.shape
    rank = min(rank, d_source)
    left, new = train.source_target.clone(), train.source_target.new_zeros
    rotations, loadings, answers = new(d_source, rank), new(d_source, rank), new(rank, d_target)
    floor, found = 1e-12 * float(left.norm()), 0
    while found < rank and float(left.norm()) > floor:
        direction = _dominant_left(left)
        direction = direction - rotations[:, :found] @ (loadings[:, :found].T @ direction)
        scores = train.source_source @ direction
        size = direction @ scores
        loading, answer = scores / size, (direction @ train.source_target) / size
        left.addr_(loading, answer, alpha=-float(size))
        rotations[:, found], loadings[:, found], answers[found] = direction, loading, answer
        found += 1
    return rotations[:, :found], answers[:found]


def _dominant_left(matrix: Tensor) -> Tensor:
    """The left singular vector of the largest singular value."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    vector: Tensor = torch.linalg.eigh(gram).eigenvectors[:, -1]
    if matrix.shape[0] > matrix.shape[1]:
        vector = matrix @ vector
    unit: Tensor = vector / vector.norm()
    return unit
