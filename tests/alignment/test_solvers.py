"""Every solver against scikit-learn, a textbook solve, or explicit refits."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from torch import Tensor

from lrt_tl.alignment.moments import Moments
from lrt_tl.alignment.solvers import Solution, cross_validate, penalty_grid, r_squared, ridge, squared_error
from lrt_tl.errors import LrtError

D_SOURCE, D_TARGET, FOLDS, TEST = 6, 4, (0, 1, 2, 3, 4), 5
PENALTIES = (1e-6, 1e-3, 0.1, 3.0, 100.0)


@dataclass(frozen=True)
class Sample:
    x: Tensor
    y: Tensor
    splits: Tensor

    def part(self, splits: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        here = torch.isin(self.splits, torch.tensor(list(splits)))
        return self.x[here].double().numpy(), self.y[here].double().numpy()

    def moments(self) -> Moments:
        empty = Moments.empty(6, source_shift=self.x.double().mean(0) + 0.3, target_shift=self.y.double().mean(0) - 0.2)
        return empty.update(self.x, self.y, self.splits)


def planted(*, noise: float = 0.5, n: int = 400, dtype: torch.dtype = torch.float64) -> Sample:
    """y = xW + b + noise, x with correlated channels off the origin, splits of unequal size and unequal mean."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    splits = torch.randint(6, (n,), generator=generator).clamp(min=1) % 6
    splits[: n // 10] = 0
    x = normal(n, D_SOURCE) @ normal(D_SOURCE, D_SOURCE) + 5 * normal(D_SOURCE) + splits[:, None] * normal(D_SOURCE)
    y = x @ normal(D_SOURCE, D_TARGET) + normal(D_TARGET) + noise * normal(n, D_TARGET)
    return Sample(x.to(dtype), y.to(dtype), splits)


def sklearn_map(x: np.ndarray, y: np.ndarray, penalty: float) -> Ridge:
    return Ridge(alpha=len(x) * penalty, solver="cholesky").fit(x, y)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_ridge_is_scikit_learns_and_the_textbooks(penalty: float) -> None:
    sample = planted()
    solution = ridge(sample.moments().centered(FOLDS), penalty)
    x, y = sample.part(FOLDS)
    theirs = sklearn_map(x, y, penalty)
    np.testing.assert_allclose(solution.weight.numpy(), theirs.coef_.T, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(solution.bias.numpy(), theirs.intercept_, rtol=1e-8, atol=1e-8)
    # With the bias as a column of ones that is not penalized:
    ones = np.hstack([x, np.ones((len(x), 1))])
    penalties = np.diag([len(x) * penalty] * D_SOURCE + [0.0])
    textbook = np.linalg.solve(ones.T @ ones + penalties, ones.T @ y)
    np.testing.assert_allclose(solution.weight.numpy(), textbook[:-1], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(solution.bias.numpy(), textbook[-1], rtol=1e-8, atol=1e-7)


def test_the_penalty_is_per_position() -> None:
    sample = planted()
    moments = sample.moments()
    once, twice = moments.centered(FOLDS), moments.merge(moments).centered(FOLDS)
    assert twice.count == 2 * once.count
    torch.testing.assert_close(ridge(once, 0.7).weight, ridge(twice, 0.7).weight)
    grids = [penalty_grid(some, FOLDS, PENALTIES) for some in (moments, moments.merge(moments))]
    torch.testing.assert_close(grids[0], grids[1])


def test_the_grid_is_in_units_of_the_mean_variance() -> None:
    sample = planted()
    variance = sample.part(FOLDS)[0].var(0).mean()
    grid = penalty_grid(sample.moments(), FOLDS, (1e-3, 2.0))
    np.testing.assert_allclose(grid.numpy(), [1e-3 * variance, 2 * variance], rtol=1e-12)


def test_cross_validation_equals_explicit_refits() -> None:
    sample = planted()
    validated = cross_validate(sample.moments(), FOLDS, torch.tensor(PENALTIES, dtype=torch.float64))
    for column, fold in enumerate(FOLDS):
        held_x, held_y = sample.part([fold])
        train = sample.part([other for other in FOLDS if other != fold])
        for row, penalty in enumerate(PENALTIES):
            predicted = sklearn_map(*train, penalty).predict(held_x)
            refitted = r2_score(held_y, predicted, multioutput="variance_weighted")
            assert float(validated.r2[row, column]) == pytest.approx(refitted, abs=1e-10)
    assert validated.best == int(np.argmax(validated.r2.mean(1).numpy()))


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_r_squared_is_scikit_learns(penalty: float, shift: float) -> None:
    """Also where the held-out text has another mean than the map expects, which is what the last term is for."""
    sample = planted()
    centered = sample.moments().centered([TEST])
    fitted = ridge(sample.moments().centered(FOLDS), penalty)
    solution = Solution(fitted.weight, fitted.bias + shift)
    x, y = sample.part([TEST])
    predicted = x @ solution.weight.numpy() + solution.bias.numpy()
    wanted = r2_score(y, predicted, multioutput="variance_weighted")
    assert r_squared(solution, centered) == pytest.approx(wanted, rel=1e-10, abs=1e-10)
    assert squared_error(solution, centered) == pytest.approx(((predicted - y) ** 2).sum(), rel=1e-9)


def test_without_noise_r_squared_is_one_and_not_more() -> None:
    sample = planted(noise=0.0, dtype=torch.float32)
    moments = sample.moments()
    validated = cross_validate(moments, FOLDS, torch.tensor([1e-9], dtype=torch.float64))
    found = [
        *validated.r2.flatten().tolist(),
        r_squared(ridge(moments.centered(FOLDS), 1e-9), moments.centered([TEST])),
    ]
    assert max(found) <= 1
    assert min(found) > 1 - 1e-5


@pytest.mark.parametrize("penalty", [1e-12, 1e-9, 1e-6])
def test_the_centered_basis_in_float32_is_fitted_as_it_was_validated(penalty: float) -> None:
    """States of mean zero over d_model make Sxx singular; rounding leaves an eigenvalue near zero, of either sign."""
    sample = planted(dtype=torch.float32, n=4000)
    centered = sample.x - sample.x.mean(1, keepdim=True)
    moments = Sample(100 * centered, sample.y, sample.splits).moments()
    validated = cross_validate(moments, FOLDS, torch.tensor([penalty], dtype=torch.float64)).r2[0]
    for fold in FOLDS:
        train = moments.centered([other for other in FOLDS if other != fold])
        explicit = r_squared(ridge(train, penalty), moments.centered([fold]))
        assert explicit == pytest.approx(float(validated[fold]), rel=1e-6)


def test_more_ridge_is_a_shorter_map() -> None:
    centered = planted().moments().centered(FOLDS)
    norms = [float(ridge(centered, penalty).weight.norm()) for penalty in PENALTIES]
    assert norms == sorted(norms, reverse=True)
    assert float(ridge(centered, 1e12).weight.norm()) < 1e-9
    torch.testing.assert_close(ridge(centered, 1e12).bias, centered.target_mean)


@pytest.mark.parametrize("relative", [(), (0.0,), (1e-3, -1.0), (float("nan"),), (float("inf"),)])
def test_ridges_that_cannot_be_are_refused(relative: tuple[float, ...]) -> None:
    with pytest.raises(LrtError, match="above zero"):
        penalty_grid(planted().moments(), FOLDS, relative)


def test_states_that_do_not_vary_are_refused() -> None:
    sample = planted()
    constant = Sample(torch.ones_like(sample.x), torch.ones_like(sample.y), sample.splits)
    with pytest.raises(LrtError, match="source's activations are the same"):
        penalty_grid(constant.moments(), FOLDS, (1e-3,))
    held_out = Sample(sample.x, torch.ones_like(sample.y), sample.splits).moments()
    with pytest.raises(LrtError, match="do not vary"):
        r_squared(ridge(held_out.centered(FOLDS), 1.0), held_out.centered([TEST]))
    with pytest.raises(LrtError, match="do not vary"):
        cross_validate(held_out, FOLDS, torch.ones(1, dtype=torch.float64))


def test_r_squared_of_a_single_position_is_refused() -> None:
    sample = planted()
    one = sample.splits.where(sample.splits != TEST, torch.zeros_like(sample.splits))
    one[-1] = TEST
    moments = Sample(sample.x.float(), sample.y.float(), one).moments()
    with pytest.raises(LrtError, match="on 1 positions"):
        r_squared(ridge(moments.centered(FOLDS), 1.0), moments.centered([TEST]))
