"""R² and CKA from moments, against the rows themselves."""

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from lrt_tl.alignment.diagnostics import debiased_cka, direction_r2, linear_cka, r_squared, squared_errors
from lrt_tl.alignment.moments import Moments, fit_pairs
from lrt_tl.alignment.solvers import Solution, ridge
from lrt_tl.errors import LrtError
from tests.alignment.planted import FOLDS, TEST, Sample, planted


@pytest.mark.parametrize("penalty", [1e-6, 0.1, 100.0])
@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_r_squared_is_scikit_learns(penalty: float, shift: float) -> None:
    """Also where the held-out text has another mean than the map expects, which is what the last term is for."""
    sample = planted()
    held_out = sample.centered([TEST])
    fitted = ridge(sample.centered(FOLDS), penalty)
    solution = Solution(fitted.weight, fitted.bias + shift)
    x, y = sample.part([TEST])
    predicted = x @ solution.weight.numpy() + solution.bias.numpy()
    wanted = r2_score(y, predicted, multioutput="variance_weighted")
    assert r_squared(solution, held_out) == pytest.approx(wanted, rel=1e-10, abs=1e-10)
    np.testing.assert_allclose(squared_errors(solution, held_out).numpy(), ((predicted - y) ** 2).sum(0), rtol=1e-8)
    directions = torch.randn(3, y.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    along = [r2_score(y @ d, predicted @ d) for d in directions.numpy()]
    np.testing.assert_allclose(direction_r2(solution, held_out, directions), along, rtol=1e-8)


def test_r_squared_needs_variance() -> None:
    sample = planted()
    held_out = Sample(sample.x, torch.ones_like(sample.y), sample.splits)
    with pytest.raises(LrtError, match="do not vary"):
        r_squared(ridge(held_out.centered(FOLDS), 1.0), held_out.centered([TEST]))


def test_r_squared_of_a_single_position_is_refused() -> None:
    sample = planted()
    one = sample.splits.where(sample.splits != TEST, torch.zeros_like(sample.splits))
    one[-1] = TEST
    single = Sample(sample.x.float(), sample.y.float(), one)
    with pytest.raises(LrtError, match="on 1 positions"):
        r_squared(ridge(single.centered(FOLDS), 1.0), single.centered([TEST]))


def test_linear_cka_is_that_of_the_gram_matrices() -> None:
    sample = planted()
    x, y = (some - some.mean(0) for some in sample.part(FOLDS))
    k, g = x @ x.T, y @ y.T
    assert linear_cka(sample.centered(FOLDS)) == pytest.approx((k * g).sum() / np.sqrt((k * k).sum() * (g * g).sum()))


def test_debiased_cka_is_that_of_the_gram_matrices() -> None:
    """HSIC as Song et al. 2012 write it, with the n × n matrices."""
    sample = planted(n=40)

    def hsic(x: np.ndarray, y: np.ndarray) -> float:
        k, g = (some @ some.T * (1 - np.eye(len(some))) for some in (x, y))
        n, one = len(x), np.ones(len(x))
        return float(
            np.trace(k @ g)
            + (one @ k @ one) * (one @ g @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ k @ g @ one)
        ) / (n * (n - 3))

    x, y = sample.x.numpy(), sample.y.numpy()
    wanted = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
    assert debiased_cka(sample.x, sample.y) == pytest.approx(wanted, rel=1e-9)


def test_debiased_cka_of_unrelated_states_is_zero_on_average_and_the_plain_one_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    found = [
        debiased_cka(*(torch.randn(30, 20, generator=generator, dtype=torch.float64) for _ in range(2)))
        for _ in range(200)
    ]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found)) + 1e-3
    x, y = (torch.randn(30, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    moments = Moments.empty(1, {"x": x.mean(0), "y": y.mean(0)}, fit_pairs(["x"], ["y"]))
    moments.update({"x": x, "y": y}, torch.zeros(30, dtype=torch.long))
    assert linear_cka(moments.between(["x"], "y")[0]) > 0.3


def test_debiased_cka_needs_four_positions() -> None:
    with pytest.raises(LrtError, match="four positions"):
        debiased_cka(torch.randn(3, 2), torch.randn(3, 2))
