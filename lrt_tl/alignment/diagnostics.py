"""How well a map does, and how alike two residual streams are, from moments that the map was not fitted on."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lrt_tl.alignment.moments import Centered, device_of_sums
from lrt_tl.alignment.solvers import Solution
from lrt_tl.errors import LrtError


def squared_errors(solution: Solution, held_out: Centered) -> Float64[Tensor, "d_target"]:
    """Σ(Wᵀx + b − y)² of each target dimension over the positions of `held_out`, from their moments about their own
    mean:

        Syy − 2⟨W, Sxy⟩ + ⟨W, Sxx W⟩ + n(Wᵀx̄ + b − ȳ)²

    clamped at 0, where a noise-free sum can fall by rounding."""
    w = solution.weight
    offset = w.T @ held_out.source_mean + solution.bias - held_out.target_mean
    spread = (w * (held_out.source_source @ w - 2 * held_out.source_target)).sum(0)
    return (held_out.target_target.diagonal() + spread + held_out.count * offset.square()).clamp(min=0)


def r_squared(solution: Solution, held_out: Centered) -> float:
    """1 − (squared error)/(squared distance from the held-out mean), all target dimensions together.

    Raises:
        LrtError: the held-out positions have no variance to explain.
    """
    return 1 - float(squared_errors(solution, held_out).sum()) / total_variation(held_out)


def total_variation(held_out: Centered) -> float:
    """Σ‖y − ȳ‖².

    Raises:
        LrtError: it is zero, or there are fewer than two positions.
    """
    total = float(held_out.target_target.diagonal().sum())
    if held_out.count < 2 or total <= 0:
        raise LrtError(
            f"R² cannot be taken on {held_out.count} positions at which the target's activations do not vary: "
            "give it more text"
        )
    return total


def linear_cka(moments: Centered) -> float:
    """Linear CKA, ‖Sxy‖² / (‖Sxx‖ ‖Syy‖) (Kornblith et al. 2019, arXiv 1905.00414, eq. 5), 0 to 1. Biased upward where
    positions are few for the dimensions: see `debiased_cka`."""
    norms = [float(s.square().sum()) for s in (moments.source_target, moments.source_source, moments.target_target)]
    return norms[0] / math.sqrt(norms[1] * norms[2])


def debiased_cka(source: Float[Tensor, "position d_source"], target: Float[Tensor, "position d_target"]) -> float:
    """Linear CKA from the unbiased estimator of HSIC (Song et al. 2012, eq. 5; Murphy et al. 2024, arXiv 2405.01012),
    which is 0 on average for unrelated states, however few the positions; it can fall below.

    With K = XXᵀ less its diagonal, HSIC needs tr(KL), 1ᵀK1·1ᵀL1 and 1ᵀKL1, all of which follow from products of width
    d: no matrix of n × n is made. States are centered first, which changes nothing but rounding.

    Raises:
        LrtError: there are fewer than four positions.
    """
    if len(source) < 4:
        raise LrtError(f"debiased CKA needs four positions or more, not {len(source)}")
    wide = [states.to(device_of_sums(source.device)).double() for states in (source, target)]
    x, y = (states - states.mean(0) for states in wide)
    return _hsic(x, y) / math.sqrt(_hsic(x, x) * _hsic(y, y))


def _hsic(x: Tensor, y: Tensor) -> float:
    """n(n − 3) times the unbiased estimator."""
    n = len(x)
    k, g = x.square().sum(1), y.square().sum(1)
    row_k, row_g = x @ x.sum(0) - k, y @ y.sum(0) - g
    trace = (x.T @ y).square().sum() - k @ g
    return float(trace + row_k.sum() * row_g.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (row_k @ row_g))


def direction_r2(solution: Solution, held_out: Centered, directions: Sequence[Tensor] | Tensor) -> list[float]:
    """R² of the mapped state along each of these directions of the target, on held-out positions."""
    along = torch.stack(list(directions)).to(solution.weight).T
    reduced = Centered(
        held_out.count,
        held_out.source_mean,
        along.T @ held_out.target_mean,
        held_out.source_source,
        held_out.source_target @ along,
        along.T @ held_out.target_target @ along,
    )
    errors = squared_errors(Solution(solution.weight @ along, along.T @ solution.bias), reduced)
    totals = reduced.target_target.diagonal()
    return [float(1 - error / total) for error, total in zip(errors, totals, strict=True)]
