"""What cross-validation chooses, against explicit refits."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from lrt_tl.alignment.diagnostics import r_squared
from lrt_tl.alignment.moments import Centered, pool
from lrt_tl.alignment.selection import Method, add_sources, choose, narrowed, penalties_of, ridge_fold_r2
from lrt_tl.alignment.solvers import (
    Solution,
    least_squares,
    partial_least_squares,
    procrustes,
    reduced_rank,
    ridge,
    whitened,
)
from lrt_tl.errors import LrtError
from tests.alignment.planted import FOLDS, TEST, Sample, planted
from tests.unchecked import without_type_checks

PENALTIES = (1e-6, 1e-3, 0.1, 3.0, 100.0)


def explicit(sample: Sample, solve: Callable[[Centered], Solution], fold: int) -> float:
    """R² on a fold of the map that is solved on the others, from the rows themselves."""
    solution = solve(sample.centered([other for other in FOLDS if other != fold]))
    x, y = sample.part([fold])
    return float(r2_score(y, x @ solution.weight.numpy() + solution.bias.numpy(), multioutput="variance_weighted"))


def test_the_grid_is_in_units_of_the_mean_variance() -> None:
    sample = planted()
    variance = sample.part(FOLDS)[0].var(0).mean()
    grid = penalties_of(pool(sample.folds()), (1e-3, 2.0))
    np.testing.assert_allclose(grid.numpy(), [1e-3 * variance, 2 * variance], rtol=1e-12)


def test_ridge_equals_explicit_refits_of_scikit_learns() -> None:
    sample = planted()
    found = ridge_fold_r2(sample.folds(), torch.tensor(PENALTIES, dtype=torch.float64))
    for column, fold in enumerate(FOLDS):
        held_x, held_y = sample.part([fold])
        x, y = sample.part([other for other in FOLDS if other != fold])
        for row, penalty in enumerate(PENALTIES):
            predicted = Ridge(alpha=len(x) * penalty, solver="cholesky").fit(x, y).predict(held_x)
            refitted = r2_score(held_y, predicted, multioutput="variance_weighted")
            assert float(found[row, column]) == pytest.approx(refitted, abs=1e-10)


def solver_of(method: str, choice: Any, penalties: Any) -> Callable[[Centered], Solution]:
    """The solver with what was chosen."""
    solvers: dict[str, Callable[[Centered], Solution]] = {
        "ridge": lambda train: ridge(train, choice.ridge),
        "least_squares": least_squares,
        "reduced_rank": lambda train: reduced_rank(train, choice.ridge, choice.rank),
        "procrustes": procrustes,
        "whitened": lambda train: whitened(train, choice.relative_ridge),
        "partial_least_squares": lambda train: partial_least_squares(train, choice.rank),
    }
    return solvers[method]


@pytest.mark.parametrize(
    "method", ["ridge", "least_squares", "reduced_rank", "procrustes", "whitened", "partial_least_squares"]
)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_the_choice_is_the_best_of_explicit_refits(method: Any, shape: tuple[int, int]) -> None:
    sample = planted(noise=3.0, d_source=shape[0], d_target=shape[1])
    choice = choose(method, sample.folds(), PENALTIES)
    solve = solver_of(method, choice, PENALTIES)
    for fold in FOLDS:
        assert choice.fold_r2[fold] == pytest.approx(explicit(sample, solve, fold), abs=1e-9)
    final = solve(sample.centered(FOLDS))
    torch.testing.assert_close(choice.solution.weight, final.weight)
    torch.testing.assert_close(choice.solution.bias, final.bias)
    if choice.curve:
        assert np.mean(choice.fold_r2) == pytest.approx(max(r2 for _, r2 in choice.curve), abs=1e-12)


def test_the_curve_over_ranks_is_of_explicit_refits() -> None:
    sample = planted(noise=3.0)
    choice = choose("reduced_rank", sample.folds(), PENALTIES)
    penalty = choice.ridge
    assert penalty is not None
    assert [rank for rank, _ in choice.curve] == [1, 2, 3, 4]
    for rank, r2 in choice.curve:
        refits = [explicit(sample, lambda train, r=rank: reduced_rank(train, penalty, int(r)), f) for f in FOLDS]
        assert r2 == pytest.approx(np.mean(refits), abs=1e-10)


def test_a_penalty_for_each_target_dimension_is_a_choice_for_each() -> None:
    sample = planted(noise=3.0)
    sample.y[:, 0] = torch.randn(len(sample.y), dtype=torch.float64)  # nothing to find: the largest penalty is best
    choice = choose("ridge_per_target", sample.folds(), PENALTIES)
    for dimension in range(sample.y.shape[1]):
        alone = Sample(sample.x, sample.y[:, [dimension]], sample.splits)
        errors = [  # by squared error over all folds, as dimensions are added up
            sum(
                float(
                    np.square(
                        alone.part([fold])[1]
                        - Ridge(alpha=len(x) * penalty).fit(x, y).predict(alone.part([fold])[0]).reshape(-1, 1)
                    ).sum()
                )
                for fold in FOLDS
                for x, y in [alone.part([other for other in FOLDS if other != fold])]
            )
            for penalty in penalties_of(pool(alone.folds()), PENALTIES).tolist()
        ]
        best = penalties_of(pool(alone.folds()), PENALTIES)[int(np.argmin(errors))]
        wanted = ridge(alone.centered(FOLDS), float(best))
        torch.testing.assert_close(choice.solution.weight[:, [dimension]], wanted.weight)
    assert choice.ridge is None
    assert np.mean(choice.fold_r2) > max(r2 for _, r2 in choose("ridge", sample.folds(), PENALTIES).curve) - 1e-3


def test_the_planted_rank_is_found() -> None:
    sample = planted(n=4000, d_source=12, d_target=10, rank=3, noise=1.0)
    assert choose("reduced_rank", sample.folds(), PENALTIES).rank == 3
    ridge_r2, low_rank_r2 = (
        r_squared(choose(method, sample.folds(), PENALTIES).solution, sample.centered([TEST]))
        for method in ("ridge", "reduced_rank")
    )
    assert low_rank_r2 >= ridge_r2 - 1e-4


@pytest.mark.parametrize("penalty", [1e-12, 1e-9, 1e-6])
def test_the_centered_basis_in_float32_is_fitted_as_it_was_validated(penalty: float) -> None:
    """States of mean zero over d_model make Sxx singular; rounding leaves an eigenvalue near zero, of either sign."""
    sample = planted(dtype=torch.float32, n=4000)
    centered = Sample(100 * (sample.x - sample.x.mean(1, keepdim=True)), sample.y, sample.splits)
    found = ridge_fold_r2(centered.folds(), torch.tensor([penalty], dtype=torch.float64))[0]
    for fold in FOLDS:
        train = centered.centered([other for other in FOLDS if other != fold])
        assert r_squared(ridge(train, penalty), centered.centered([fold])) == pytest.approx(
            float(found[fold]), rel=1e-6
        )


def test_without_noise_r_squared_is_one_and_not_more() -> None:
    sample = planted(noise=0.0, dtype=torch.float32)
    found = ridge_fold_r2(sample.folds(), torch.tensor([1e-9], dtype=torch.float64)).flatten().tolist()
    assert max(found) <= 1
    assert min(found) > 1 - 1e-5


@pytest.mark.parametrize("relative", [(), (0.0,), (1e-3, -1.0), (float("nan"),), (float("inf"),)])
def test_ridges_that_cannot_be_are_refused(relative: tuple[float, ...]) -> None:
    with pytest.raises(LrtError, match="above zero"):
        choose("ridge", planted().folds(), relative)


def test_an_unknown_method_is_refused() -> None:
    with without_type_checks(), pytest.raises(LrtError, match="none of ridge, ridge_per_target"):
        choose("lasso", planted().folds(), PENALTIES)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", get_args(Method))
def test_states_that_do_not_vary_are_refused(method: Any) -> None:
    sample = planted()
    constant = Sample(torch.ones_like(sample.x), sample.y, sample.splits)
    with pytest.raises(LrtError, match="activations of one side do not vary"):
        choose(method, constant.folds(), (1e-3,))
    held_out = Sample(sample.x, torch.ones_like(sample.y), sample.splits)
    with pytest.raises(LrtError, match="do not vary"):
        choose(method, held_out.folds(), (1e-3,))


def test_wide_sources_with_few_positions_are_finite() -> None:
    sample = planted(n=40, d_source=30)
    for method in ("ridge", "ridge_per_target", "least_squares", "reduced_rank", "procrustes", "whitened"):
        choice = choose(method, sample.folds(), PENALTIES)  # type: ignore[arg-type]
        assert bool(torch.isfinite(choice.solution.weight).all())
        assert all(np.isfinite(choice.fold_r2))


def many_to_one(relevant: set[int], widths: tuple[int, ...] = (3, 5, 4, 2), n: int = 3000) -> Sample:
    """Sources side by side, correlated with one another, of which some alone make the target."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    common = normal(n, 2)
    sources = [normal(n, width) + common @ normal(2, width) for width in widths]
    y = sum((sources[number] @ normal(widths[number], 4) for number in relevant), 0.5 * normal(n, 4))
    return Sample(torch.cat(sources, 1), y, torch.randint(6, (n,), generator=generator))


@pytest.mark.parametrize("method", ["ridge", "least_squares", "reduced_rank"])
@pytest.mark.parametrize("relevant", [{2}, {0, 3}, {0, 1, 2, 3}])
def test_the_sources_that_make_the_target_are_selected(relevant: set[int], method: Any) -> None:
    chosen, steps = add_sources(method, many_to_one(relevant).folds(), (3, 5, 4, 2), PENALTIES)
    assert set(chosen) == relevant
    assert [len(step.sources) for step in steps] == [1, 2, 3, 4]
    assert all(set(before.sources) < set(after.sources) for before, after in pairwise(steps))


def test_each_source_added_is_the_best_one_by_explicit_refits() -> None:
    widths, sample = (3, 5, 4, 2), many_to_one({0, 3})
    starts = np.cumsum([0, *widths])

    def mean_r2(sources: tuple[int, ...]) -> float:
        columns = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in sources])
        found = []
        for fold in FOLDS:
            x, y = sample.part([other for other in FOLDS if other != fold])
            held_x, held_y = sample.part([fold])
            predicted = Ridge(alpha=1e-9).fit(x[:, columns], y).predict(held_x[:, columns])
            found.append(r2_score(held_y, predicted, multioutput="variance_weighted"))
        return float(np.mean(found))

    before: tuple[int, ...] = ()
    for step in add_sources("least_squares", sample.folds(), widths, PENALTIES)[1]:
        by_source = {new: mean_r2((*before, new)) for new in range(4) if new not in before}
        assert step.sources == (*before, max(by_source, key=lambda new: by_source[new]))
        assert np.mean(step.fold_r2) == pytest.approx(max(by_source.values()), abs=1e-8)
        before = step.sources


def test_the_moments_of_some_sources_are_theirs_alone() -> None:
    widths, sample = (3, 5, 4, 2), many_to_one({0})
    alone = Sample(sample.x[:, [3, 4, 5, 6, 7, 12, 13]], sample.y, sample.splits).folds()
    for found, wanted in zip(narrowed(sample.folds(), widths, (1, 3)), alone, strict=True):
        for name in ("source_mean", "source_source", "source_target", "target_target"):
            torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-9, atol=1e-9)
