"""Pure functions from moments to maps, and to how well a map does on moments that it was not fitted on.

The source's states are rows x, the target's rows y, W `[d_source, d_target]`, and the map is y ≈ Wᵀx + b. Ridge:

    W = (Sxx + nλ I)⁻¹ Sxy,   b = ȳ − Wᵀx̄

with the penalty λ *per position*, so that it means the same on K − 1 folds as on all, and the bias unpenalized.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from lrt_tl.alignment.moments import Centered, Moments
from lrt_tl.errors import LrtError


@dataclass(frozen=True)
class Solution:
    """An affine map: y ≈ weightᵀ x + bias."""

    weight: Float64[Tensor, "d_source d_target"]
    bias: Float64[Tensor, "d_target"]


@dataclass(frozen=True)
class CrossValidation:
    """Held-out R² for each penalty and fold."""

    penalties: Float64[Tensor, "penalty"]
    r2: Float64[Tensor, "penalty fold"]

    @property
    def best(self) -> int:
        """Index of the penalty whose mean R² over the folds is highest."""
        return int(self.r2.mean(1).argmax())


def penalty_grid(moments: Moments, splits: Sequence[int], relative: Sequence[float]) -> Float64[Tensor, "penalty"]:
    """Penalties λ = α · tr(Sxx)/(n d_source) per position: α in units of the mean variance of a source dimension.

    Raises:
        LrtError: there is no α, one is not above zero, or the source's states are all the same.
    """
    if not relative or not all(0 < alpha < float("inf") for alpha in relative):
        raise LrtError(f"relative ridges must be numbers above zero, not {tuple(relative)}")
    pooled = moments.centered(splits)
    if not pooled.source_source.diagonal().sum() > 0:
        raise LrtError("the source's activations are the same at all positions: there is nothing to map")
    scale = pooled.source_source.diagonal().sum() / (pooled.count * len(pooled.source_mean))
    return torch.tensor(relative, dtype=torch.float64, device=scale.device) * scale


def ridge(train: Centered, penalty: float) -> Solution:
    """The ridge map of one penalty λ (per position)."""
    eigenvalues, v = _spectrum(train)
    scaled = (v.T @ train.source_target) / (eigenvalues + train.count * penalty)[:, None]
    weight = v @ scaled
    return Solution(weight, train.target_mean - weight.T @ train.source_mean)


def _spectrum(train: Centered) -> tuple[Float64[Tensor, "direction"], Float64[Tensor, "d_source direction"]]:
    """Eigenvalues and eigenvectors of Sxx. Float32 products can leave an eigenvalue that is zero, as one is in the
    centered basis, below zero by more than a small penalty makes up for: so none is less than zero."""
    eigenvalues, v = torch.linalg.eigh(train.source_source)
    return eigenvalues.clamp(min=0), v


def squared_error(solution: Solution, held_out: Centered) -> float:
    """Σ‖Wᵀx + b − y‖² over the positions of `held_out`, from their moments about their own mean:

        Syy − 2⟨W, Sxy⟩ + ⟨W, Sxx W⟩ + n‖Wᵀx̄ + b − ȳ‖²

    clamped at 0, where a noise-free sum can fall by rounding."""
    w = solution.weight
    offset = w.T @ held_out.source_mean + solution.bias - held_out.target_mean
    spread = (w * (held_out.source_source @ w - 2 * held_out.source_target)).sum()
    total = held_out.target_target.diagonal().sum() + spread + held_out.count * offset.square().sum()
    return max(0.0, float(total))


def r_squared(solution: Solution, held_out: Centered) -> float:
    """1 − (squared error)/(squared distance from the held-out mean), all target dimensions together.

    Raises:
        LrtError: the held-out positions have no variance to explain.
    """
    return 1 - squared_error(solution, held_out) / _total(held_out)


def _total(held_out: Centered) -> float:
    total = float(held_out.target_target.diagonal().sum())
    if held_out.count < 2 or total <= 0:
        raise LrtError(
            f"R² cannot be taken on {held_out.count} positions at which the target's activations do not vary: "
            "give it more text"
        )
    return total


def cross_validate(moments: Moments, folds: Sequence[int], penalties: Float64[Tensor, "penalty"]) -> CrossValidation:
    """K-fold cross-validation of every penalty, from the moments alone. Equal to refitting on the other folds.

    One eigendecomposition of Sxx = VΛVᵀ a fold serves all penalties: with U = VᵀSxy and D = 1/(Λ + nλ), W = V D U, and
    the fold's error needs only VᵀSxy_f, VᵀSxx_f V and UUᵀ.
    """
    r2 = torch.stack([_fold_r2(moments, folds, fold, penalties) for fold in folds], dim=1)
    return CrossValidation(penalties.cpu(), r2.cpu())


def _fold_r2(
    moments: Moments, folds: Sequence[int], fold: int, penalties: Float64[Tensor, "penalty"]
) -> Float64[Tensor, "penalty"]:
    train = moments.centered([other for other in folds if other != fold])
    held = moments.centered([fold])
    eigenvalues, v = _spectrum(train)
    inverse = 1 / (eigenvalues + train.count * penalties[:, None])
    u = v.T @ train.source_target
    linear = (u * (v.T @ held.source_target)).sum(1)
    quadratic = (u @ u.T) * (v.T @ held.source_source @ v)
    shift = v.T @ (held.source_mean - train.source_mean)
    offset = (held.target_mean - train.target_mean) - (inverse * shift) @ u
    total = _total(held)
    error = (
        total
        - 2 * inverse @ linear
        + torch.einsum("pi,ij,pj->p", inverse, quadratic, inverse)
        + held.count * offset.square().sum(1)
    )
    r2: Tensor = 1 - error.clamp(min=0) / total
    return r2
