"""Choose a map: candidates are tried by cross-validation over the folds, from their moments alone.

Equal to refitting on the other folds, one fold after another; the map is then solved on all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.alignment.diagnostics import squared_errors, total_variation
from lrt_tl.alignment.moments import Centered, pool
from lrt_tl.alignment.solvers import (
    Factors,
    Solution,
    components,
    least_squares,
    mean_variance,
    partial_least_squares,
    procrustes,
    rank_factors,
    reduced_rank,
    ridge,
    ridge_path,
    spectrum,
    whitened,
    whitened_path,
)
from lrt_tl.errors import LrtError
from lrt_tl.progress import BAR

Method = Literal[
    "ridge", "ridge_per_target", "least_squares", "reduced_rank", "procrustes", "whitened", "partial_least_squares"
]


@dataclass(frozen=True)
class Choice:
    """A map, and how it was chosen."""

    solution: Solution
    candidates: str
    """What the candidates differ in: "relative ridge", "rank", or "" where there was nothing to choose."""
    curve: tuple[tuple[float, float], ...]
    """(candidate, mean R² over the folds)."""
    fold_r2: tuple[float, ...]
    """Of the chosen candidate, each fold predicted from the others."""
    ridge: float | None = None
    """λ, per position."""
    relative_ridge: float | None = None
    """λ in units of the mean variance of a source dimension."""
    rank: int | None = None


def choose(method: Method, folds: Sequence[Centered], relative_ridges: Sequence[float]) -> Choice:
    """The map of a method, with its penalty or rank by cross-validation.

    Args:
        folds: the moments of each fold.
        relative_ridges: candidates for λ, per position, in units of the mean variance of a source dimension.

    Raises:
        LrtError: an unknown method, a penalty that is not above zero, or activations that do not vary.
    """
    if method not in _METHODS:
        raise LrtError(f"method {method!r} is none of {', '.join(_METHODS)}")
    if not relative_ridges or not all(0 < alpha < float("inf") for alpha in relative_ridges):
        raise LrtError(f"relative ridges must be numbers above zero, not {tuple(relative_ridges)}")
    train = pool(folds)
    mean_variance(train.source_source, train.count)  # refuses a source that does not vary
    return _METHODS[method](folds, relative_ridges)


def penalties_of(train: Centered, relative_ridges: Sequence[float]) -> Float64[Tensor, "penalty"]:
    """λ = α · (mean variance of a source dimension) for each α.

    Args:
        train: all folds together.
    """
    scale = mean_variance(train.source_source, train.count)
    return scale * torch.tensor(relative_ridges, dtype=torch.float64, device=train.source_source.device)


@dataclass(frozen=True)
class FoldSpectrum:
    """What the errors of ridge maps on one fold need of the source alone, in the eigenvectors of the other folds'
    Sxx = VΛVᵀ. It serves every target and every penalty."""

    eigenvalues: Float64[Tensor, "direction"]
    v: Float64[Tensor, "d_source direction"]
    held: Float64[Tensor, "direction direction"]
    """VᵀSxx_f V of the fold."""
    shift: Float64[Tensor, "direction"]
    """Vᵀ(x̄_f − x̄)."""

    @classmethod
    def of(cls, train: Centered, held: Centered) -> "FoldSpectrum":
        eigenvalues, v = spectrum(train.source_source)
        return cls(eigenvalues, v, v.T @ held.source_source @ v, v.T @ (held.source_mean - train.source_mean))

    def r2(self, train: Centered, held: Centered, penalties: Tensor) -> Float64[Tensor, "penalty"]:
        """R² on the fold of the ridge map of each penalty: with U = VᵀSxy and D = 1/(Λ + nλ), W = V D U, and the error
        needs only VᵀSxy_f, VᵀSxx_f V and UUᵀ."""
        inverse = 1 / (self.eigenvalues + train.count * penalties[:, None])
        u = self.v.T @ train.source_target
        linear = (u * (self.v.T @ held.source_target)).sum(1)
        offset = _offset(train, held) - (inverse * self.shift) @ u
        total = total_variation(held)
        error = total - 2 * inverse @ linear
        error += torch.einsum("pi,ij,pj->p", inverse, (u @ u.T) * self.held, inverse)
        return 1 - (error + held.count * offset.square().sum(1)).clamp(min=0) / total


def ridge_fold_r2(folds: Sequence[Centered], penalties: Float64[Tensor, "penalty"]) -> Float64[Tensor, "penalty fold"]:
    """Held-out R² of the ridge map of each penalty on each fold."""
    return _over_folds(folds, lambda train, held: FoldSpectrum.of(train, held).r2(train, held, penalties))


def _ridge(folds: Sequence[Centered], relative_ridges: Sequence[float]) -> Choice:
    train = pool(folds)
    penalties = penalties_of(train, relative_ridges)
    r2 = ridge_fold_r2(folds, penalties)
    best = int(r2.mean(1).argmax())
    penalty = float(penalties[best])
    return Choice(
        ridge(train, penalty),
        "relative ridge",
        _curve(relative_ridges, r2),
        tuple(r2[best].tolist()),
        ridge=penalty,
        relative_ridge=relative_ridges[best],
    )


def _ridge_per_target(folds: Sequence[Centered], relative_ridges: Sequence[float]) -> Choice:
    """Each target dimension with the penalty that serves it best. Its R² is of the choice, not of a single candidate,
    and so a little high: the choice saw the folds. The test split has not been seen."""
    whole = pool(folds)
    penalties = penalties_of(whole, relative_ridges)

    def of(train: Centered, held: Centered) -> Tensor:
        return torch.stack([squared_errors(solution, held) for solution in ridge_path(train, penalties.tolist())])

    errors = _over_folds(folds, of)  # [penalty, d_target, fold]
    totals = torch.tensor([total_variation(held) for held in folds], dtype=errors.dtype, device=errors.device)
    best = errors.sum(2).argmin(0)
    chosen = errors[best, torch.arange(len(best), device=best.device)]  # [d_target, fold]
    return Choice(
        ridge(whole, penalties[best]),
        "relative ridge",
        _curve(relative_ridges, 1 - errors.sum(1) / totals),
        tuple((1 - chosen.sum(0) / totals).tolist()),
    )


def _least_squares(folds: Sequence[Centered], relative_ridges: Sequence[float]) -> Choice:
    return _without_candidates(folds, least_squares)


def _procrustes(folds: Sequence[Centered], relative_ridges: Sequence[float]) -> Choice:
    return _without_candidates(folds, procrustes)


def _without_candidates(folds: Sequence[Centered], solve: Callable[[Centered], Solution]) -> Choice:
    r2 = _over_folds(folds, lambda train, held: _r2([solve(train)], held))
    return Choice(solve(pool(folds)), "", (), tuple(r2[0].tolist()))


def _reduced_rank(folds: Sequence[Centered], relative_ridges: Sequence[float]) -> Choice:
    """The penalty as for ridge, then the rank."""
    full = _ridge(folds, relative_ridges)
    assert full.ridge is not None
    penalty = full.ridge
    r2 = _over_folds(folds, lambda train, held: _rank_r2(train, held, rank_factors(train, penalty)))
    rank = int(r2.mean(1).argmax()) + 1
    return Choice(
        reduced_rank(pool(folds), penalty, rank),
        "rank",
        _curve(range(1, len(r2) + 1), r2),
        tuple(r2[rank - 1].tolist()),
        ridge=penalty,
        relative_ridge=full.relative_ridge,
        rank=rank,
    )


def _rank_r2(train: Centered, held: Centered, factors: Factors) -> Float64[Tensor, "rank"]:
    """R² of the maps of the first 1, 2, … of these factors: W = AB has the squared error

        Syy − 2⟨A, Sxy Bᵀ⟩ + ⟨AᵀSxx A, BBᵀ⟩ + n‖δy − BᵀAᵀδx‖²

    of which each further column of A and row of B adds its own part."""
    a, b = factors
    linear = ((held.source_target @ b.T) * a).sum(0).cumsum(0)
    square = ((a.T @ held.source_source @ a) * (b @ b.T)).cumsum(0).cumsum(1).diagonal()
    mapped = (((held.source_mean - train.source_mean) @ a)[:, None] * b).cumsum(0)
    offset = (_offset(train, held) - mapped).square().sum(1)
    total = total_variation(held)
    return 1 - (total - 2 * linear + square + held.count * offset).clamp(min=0) / total


def _whitened(folds: Sequence[Centered], relative_ridges: Sequence[float]) -> Choice:
    def of(train: Centered, held: Centered) -> Tensor:
        return _r2(list(whitened_path(train, relative_ridges)), held)

    r2 = _over_folds(folds, of)
    best = int(r2.mean(1).argmax())
    return Choice(
        whitened(pool(folds), relative_ridges[best]),
        "relative ridge",
        _curve(relative_ridges, r2),
        tuple(r2[best].tolist()),
        relative_ridge=relative_ridges[best],
    )


def _partial_least_squares(folds: Sequence[Centered], relative_ridges: Sequence[float]) -> Choice:
    """As many components as predict best, up to 512: more are slow to find, and ridge is then the better map."""
    ranks = min(512, len(folds[0].source_mean))
    found = [_rank_r2(train, held, components(train, ranks)) for train, held in held_out_folds(folds)]
    shared = min(map(len, found))
    r2 = torch.stack([one[:shared] for one in found], 1)
    rank = int(r2.mean(1).argmax()) + 1
    return Choice(
        partial_least_squares(pool(folds), rank),
        "rank",
        _curve(range(1, shared + 1), r2),
        tuple(r2[rank - 1].tolist()),
        rank=rank,
    )


@dataclass(frozen=True)
class Addition:
    """A step of `add_sources`: which sources there are after it, and R² on each fold predicted from the others."""

    sources: tuple[int, ...]
    fold_r2: tuple[float, ...]


def add_sources(
    method: Method, folds: Sequence[Centered], widths: Sequence[int], relative_ridges: Sequence[float]
) -> tuple[tuple[int, ...], list[Addition]]:
    """Which of the sources that stand side by side in `folds` a map needs, by forward selection.

    Begins with the best one, and adds each time the one that raises R² in cross-validation most. Chosen is the smallest
    of these sets that is no worse than the best of them by more than one standard error of their difference over the
    folds (the rule of Breiman et al. 1984). The choice has seen the folds; the test split is unseen. For L sources that
    is L(L + 1)/2 cross-validations, the last ones of nearly all of them: it is for a handful.

    Args:
        widths: dimensions of each source.

    Returns:
        The chosen sources, in order, and all steps.
    """
    steps: list[Addition] = []
    progress = tqdm(desc="select layers", total=len(widths) * (len(widths) + 1) // 2, **BAR)
    while len(steps) < len(widths):
        before = steps[-1].sources if steps else ()
        wider = [(*before, new) for new in range(len(widths)) if new not in before]
        tried = [
            Addition(sources, choose(method, narrowed(folds, widths, sorted(sources)), relative_ridges).fold_r2)
            for sources in wider
        ]
        steps.append(max(tried, key=lambda step: sum(step.fold_r2)))
        progress.update(len(tried))
    progress.close()
    r2 = torch.tensor([step.fold_r2 for step in steps], dtype=torch.float64)
    lost = r2[r2.mean(1).argmax()] - r2
    enough = lost.mean(1) <= lost.std(1) / len(folds) ** 0.5
    return tuple(sorted(steps[int(enough.nonzero()[0])].sources)), steps


def narrowed(parts: Sequence[Centered], widths: Sequence[int], sources: Sequence[int]) -> list[Centered]:
    """The moments of some of the sources that stand side by side."""
    starts = [sum(widths[:source]) for source in sources]
    columns = [torch.arange(start, start + widths[source]) for start, source in zip(starts, sources, strict=True)]
    kept = torch.cat(columns).to(parts[0].source_mean.device)
    return [
        replace(
            part,
            source_mean=part.source_mean[kept],
            source_source=part.source_source[kept][:, kept],
            source_target=part.source_target[kept],
        )
        for part in parts
    ]


_METHODS: dict[str, Callable[[Sequence[Centered], Sequence[float]], Choice]] = {
    "ridge": _ridge,
    "ridge_per_target": _ridge_per_target,
    "least_squares": _least_squares,
    "reduced_rank": _reduced_rank,
    "procrustes": _procrustes,
    "whitened": _whitened,
    "partial_least_squares": _partial_least_squares,
}


def held_out_folds(folds: Sequence[Centered]) -> list[tuple[Centered, Centered]]:
    """For each fold, the others together, and itself."""
    return [(pool([other for other in folds if other is not held]), held) for held in folds]


def _over_folds(folds: Sequence[Centered], score: Callable[[Centered, Centered], Tensor]) -> Tensor:
    """`score(train, held)` of each fold, along a last axis."""
    return torch.stack([score(train, held) for train, held in held_out_folds(folds)], -1)


def _offset(train: Centered, held: Centered) -> Float64[Tensor, "d_target"]:
    return held.target_mean - train.target_mean


def _r2(solutions: Sequence[Solution], held: Centered) -> Float64[Tensor, "candidate"]:
    total = total_variation(held)
    errors = torch.stack([squared_errors(solution, held).sum() for solution in solutions])
    return 1 - errors / total


def _curve(candidates: Sequence[int | float], r2: Float64[Tensor, "candidate fold"]) -> tuple[tuple[float, float], ...]:
    return tuple(zip(map(float, candidates), r2.mean(1).tolist(), strict=True))
