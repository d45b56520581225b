"""The states of both sides of contrast pairs → a direction: pure functions of `[pair, d_model]` in float64.

All give the length the same meaning. An estimator finds an axis, with u its unit direction, and its vector is the
difference of the two sides' mean states projected on it: v = (δ·u) u, δ = mean₊ − mean₋. So coefficient 1 of any of
them moves a state along u by as much as lies between the sides' means there, and v points from the negative side to the
positive one, whichever way u came out.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.errors import LrtError

Estimator = Callable[[Float[Tensor, "pair d_model"], Float[Tensor, "pair d_model"]], Float[Tensor, "d_model"]]

_PENALTY, _ITERATIONS = 1.0, 10_000
_DENSE = 500
"""Up to this size, all eigenvectors are found."""


def mean_difference(
    positive: Float[Tensor, "pair d_model"], negative: Float[Tensor, "pair d_model"]
) -> Float[Tensor, "d_model"]:
    """Mean state of the positive texts minus mean state of the negative ones (Rimsky et al. 2023, arXiv 2312.06681).

    v = δ = mean₊ − mean₋.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model = lrt.load_model("storyworld-small")
        >>> vector = lrt.mean_difference(model, storyworld.contrast_pairs("refusal", 8), layer=1)
        >>> vector
        SteeringVector(storyworld-small L1, 64 dimensions, norm 3.4, mean_difference of 8 pairs)
        >>> vector.report.auc > 0.9
        True
    """
    return positive.mean(0) - negative.mean(0)


def pca_of_differences(
    positive: Float[Tensor, "pair d_model"], negative: Float[Tensor, "pair d_model"]
) -> Float[Tensor, "d_model"]:
    """First principal component of the pairs' differences, about zero.

    u maximizes Σ (dᵢ·u)² over the pairs' dᵢ = positiveᵢ − negativeᵢ, which are not centred: what all pairs have in
    common counts. v = (δ·u) u, δ = mean₊ − mean₋. The axis is that of `pca_aggregator` in steering-vectors and of
    `method="pca_center"` in repeng; repeng's default, `"pca_diff"`, subtracts the mean difference first, and so finds
    in what the pairs' differences vary. Both give unit vectors.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model, pairs = lrt.load_model("storyworld-small"), storyworld.contrast_pairs("refusal", 16)
        >>> vector = lrt.pca_of_differences(model, pairs, layer=1)
        >>> mean = lrt.mean_difference(model, pairs, layer=1)
        >>> bool(torch.cosine_similarity(vector.direction, mean.direction, dim=0) > 0.99)
        True
    """
    return _along(_first_component(positive - negative), positive, negative)


def pca_of_states(
    positive: Float[Tensor, "pair d_model"], negative: Float[Tensor, "pair d_model"]
) -> Float[Tensor, "d_model"]:
    """First principal component of the states of both sides together, about their common mean.

    u maximizes Σ ((hᵢ − h̄)·u)² over all states hᵢ, whichever side or pair they are of: the direction in which the texts
    vary most, be it the property or something else, which the report tells. v = (δ·u) u, δ = mean₊ − mean₋.
    (Zou et al. 2023, arXiv 2310.01405, with `n_difference=0` in their code, but for the length.)

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model, pairs = lrt.load_model("storyworld-small"), storyworld.contrast_pairs("mood", 16)
        >>> vector = lrt.pca_of_states(model, pairs, layer=1)
        >>> mean = lrt.mean_difference(model, pairs, layer=1)
        >>> vector.norm < 0.1 * mean.norm  # these texts vary most in something else than mood
        True
    """
    states = torch.cat([positive, negative])
    return _along(_first_component(states - states.mean(0)), positive, negative)


def logistic_probe(
    positive: Float[Tensor, "pair d_model"], negative: Float[Tensor, "pair d_model"]
) -> Float[Tensor, "d_model"]:
    """Normal of the plane by which logistic regression tells the sides apart (scikit-learn's, C = 1).

    u ∝ w, the minimum of Σ log(1 + exp(−yᵢ(w·xᵢ + b))) + ‖w‖²/2 over both sides, y = ±1, where x are the states about
    their common mean, over one common scale, their root mean square: so no dimension is favoured, and the penalty means
    the same at every site. v = (δ·u) u, δ = mean₊ − mean₋. What reads a property well need not be what writes it.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model, pairs = lrt.load_model("storyworld-small"), storyworld.contrast_pairs("mood", 16)
        >>> for vector in lrt.logistic_probe(model, pairs, layer=[0, 2], position="last"):
        ...     print(f"{vector.site}: AUC {vector.report.auc:.1f}")
        storyworld-small L0: AUC 0.8
        storyworld-small L2: AUC 0.9
    """
    from sklearn.linear_model import LogisticRegression

    states = torch.cat([positive, negative])
    centred = states - states.mean(0)
    scaled = centred / centred.square().mean().sqrt().clamp(min=torch.finfo(centred.dtype).tiny)
    labels = torch.arange(len(states)) < len(positive)
    probe = LogisticRegression(C=_PENALTY, tol=1e-8, max_iter=_ITERATIONS).fit(scaled.numpy(), labels.numpy())
    return _along(torch.from_numpy(probe.coef_[0]), positive, negative)


def linear_discriminant(
    positive: Float[Tensor, "pair d_model"], negative: Float[Tensor, "pair d_model"]
) -> Float[Tensor, "d_model"]:
    """Fisher's linear discriminant, with the covariance of each side shrunk as Ledoit and Wolf (2004) do.

    u ∝ Σ⁻¹δ, δ = mean₊ − mean₋, Σ = ½ Σ₊ + ½ Σ₋, each side's covariance shrunk towards the multiple of the identity
    that has its trace; v = (δ·u) u. The axis is that of scikit-learn's `LinearDiscriminantAnalysis(solver="lsqr",
    covariance_estimator=LedoitWolf())`, without the `[d_model, d_model]` matrix where there are fewer states. (Its
    `shrinkage="auto"` shrinks after it has scaled every dimension for itself, so that the basis would matter.)

    Raises:
        LrtError: the pairs are too few, or too much alike, to tell how the states vary: three or more are needed.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model, pairs = lrt.load_model("storyworld-small"), storyworld.contrast_pairs("refusal", 16)
        >>> discriminant = lrt.linear_discriminant(model, pairs, layer=1)
        >>> mean = lrt.mean_difference(model, pairs, layer=1)
        >>> discriminant.report.d_prime > mean.report.d_prime, discriminant.norm < mean.norm
        (True, True)
    """
    rows, ridge = [], 0.0
    for side in (positive, negative):
        centred = side - side.mean(0)
        shrinkage, variance = _ledoit_wolf(centred)
        rows.append(centred * ((1 - shrinkage) / (2 * len(side))) ** 0.5)
        ridge += shrinkage * variance / 2
    axis = _solve(torch.cat(rows), ridge, mean_difference(positive, negative))
    if axis is None:
        raise LrtError(
            f"linear_discriminant cannot tell from {len(positive)} pairs how the states vary: give three or more, of "
            "texts that differ from pair to pair"
        )
    return _along(axis, positive, negative)


def _along(
    axis: Float[Tensor, "d_model"], positive: Float[Tensor, "pair d_model"], negative: Float[Tensor, "pair d_model"]
) -> Float[Tensor, "d_model"]:
    """The mean difference projected on an axis; zero where there is no axis."""
    unit: Tensor = axis / axis.norm().clamp(min=torch.finfo(axis.dtype).tiny)
    return unit * (mean_difference(positive, negative) @ unit)


def _gram(rows: Float[Tensor, "n d"]) -> Float[Tensor, "m m"]:
    """The smaller of XXᵀ and XᵀX, whose eigenvalues but for zeros, and so whose norms, are the same."""
    return rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows


def _first_component(rows: Float[Tensor, "n d"]) -> Float[Tensor, "d"]:
    """The first right singular vector, of any length."""
    from scipy.linalg import eigh
    from scipy.sparse.linalg import eigsh

    gram = _gram(rows).numpy()
    if len(gram) <= _DENSE:
        top = eigh(gram)[1][:, -1]
    else:  # Lanczos, from a fixed start: over ten times as fast at 4,000
        start = torch.randn(len(gram), generator=torch.Generator().manual_seed(0), dtype=rows.dtype)
        top = eigsh(gram, k=1, v0=start.numpy())[1][:, 0]
    component: Tensor = torch.from_numpy(top)
    return rows.T @ component if len(rows) < rows.shape[1] else component


def _ledoit_wolf(centred: Float[Tensor, "n d"]) -> tuple[float, float]:
    """How far to shrink the covariance S = XᵀX/n towards μI, and μ (Ledoit and Wolf 2004, section 3.2)."""
    n, d = centred.shape
    squares = centred.square().sum(1)
    mu = float(squares.sum()) / (n * d)
    of_covariance = float((_gram(centred) / n).square().sum())
    distance = of_covariance / d - mu**2
    error = (float(squares.square().sum()) / n - of_covariance) / (n * d)
    return (min(error, distance) / distance if distance > 0 else 1.0), mu


def _solve(rows: Float[Tensor, "n d"], ridge: float, right: Float[Tensor, "d"]) -> Float[Tensor, "d"] | None:
    """(XᵀX + λI)⁻¹ right, through the smaller Gram matrix; None where that is singular."""
    wide = len(rows) < rows.shape[1]
    gram = _gram(rows)
    size = float(gram.trace())
    if wide and ridge <= torch.finfo(gram.dtype).eps * size:
        return None
    factor, failed = torch.linalg.cholesky_ex(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
    if failed:
        return None
    if not wide:
        return torch.cholesky_solve(right[:, None], factor)[:, 0]
    return (right - rows.T @ torch.cholesky_solve((rows @ right)[:, None], factor)[:, 0]) / ridge
