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
    """Penalties λ = α · tr(Sxx)/(n d_source) per position: α in units of the mean variance of a source dimension."""
    pooled = moments.centered(splits)
    scale = pooled.source_source.diagonal().sum() / (pooled.count * len(pooled.source_mean))
    return torch.tensor(relative, dtype=torch.float64, device=scale.device) * scale


def ridge(train: Centered, penalty: float) -> Solution:
    """The ridge map of one penalty λ (per position)."""
    d_source = len(train.source_mean)
    gram = train.source_source + train.count * penalty * torch.eye(d_source).to(train.source_source)
    weight = torch.linalg.solve(gram, train.source_target)
    return Solution(weight, train.target_mean - weight.T @ train.source_mean)


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
    """1 − (squared error)/(squared distance from the held-out mean), all target dimensions together."""
    total = float(held_out.target_target.diagonal().sum())
    return 1 - squared_error(solution, held_out) / total


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
    eigenvalues, v = torch.linalg.eigh(train.source_source)
    inverse = 1 / (eigenvalues.clamp(min=0) + train.count * penalties[:, None])
    u = v.T @ train.source_target
    linear = (u * (v.T @ held.source_target)).sum(1)
    quadratic = (u @ u.T) * (v.T @ held.source_source @ v)
    shift = v.T @ (held.source_mean - train.source_mean)
    offset = (held.target_mean - train.target_mean) - (inverse * shift) @ u
    total = held.target_target.diagonal().sum()
    error = (
        total
        - 2 * inverse @ linear
        + torch.einsum("pi,ij,pj->p", inverse, quadratic, inverse)
        + held.count * offset.square().sum(1)
    )
    r2: Tensor = 1 - error.clamp(min=0) / total
    return r2
