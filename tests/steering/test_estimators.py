"""Each estimator on planted states against scikit-learn, numpy or Newton's method; what all their lengths mean."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.steering.estimators import (
    Estimator,
    linear_discriminant,
    logistic_probe,
    mean_difference,
    pca_of_differences,
    pca_of_states,
)

ALL = [mean_difference, pca_of_differences, pca_of_states, logistic_probe, linear_discriminant]
SIZES = [(60, 7), (12, 30), (10, 10), (5, 9)]
"""Pairs and dimensions: more states than dimensions, fewer, and in between."""


def planted(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pairs that share much, differ along one direction, and vary more along others."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spread = normal(d, d) / d**0.5
    shared, direction = 3 * normal(n, d) @ spread + 5 * normal(d), 2 * normal(d)
    return shared + direction + normal(n, d) @ spread, shared + 0.5 * normal(n, d) @ spread


def along(axis: np.ndarray, positive: Tensor, negative: Tensor) -> Tensor:
    """The mean difference projected on an axis of any length and sign."""
    unit = torch.from_numpy(axis / np.linalg.norm(axis))
    return unit * ((positive.mean(0) - negative.mean(0)) @ unit)


def labels(n: int) -> np.ndarray:
    return np.repeat([1, 0], n)


def of_scikit_pca(rows: Tensor) -> np.ndarray:
    axis: np.ndarray = PCA(n_components=1, svd_solver="full").fit(rows.numpy()).components_[0]
    return axis


@pytest.mark.parametrize(("n", "d"), SIZES)
def test_mean_difference(n: int, d: int) -> None:
    positive, negative = planted(n, d)
    expected = sum(p - q for p, q in zip(positive, negative, strict=True)) / n
    torch.testing.assert_close(mean_difference(positive, negative), expected)


@pytest.mark.parametrize(("n", "d"), [*SIZES, (700, 520)])
def test_pca_of_differences(n: int, d: int) -> None:
    """Of the differences and their negatives, so that the mean that scikit-learn subtracts is zero."""
    positive, negative = planted(n, d)
    differences = positive - negative
    axis = of_scikit_pca(torch.cat([differences, -differences]))
    torch.testing.assert_close(pca_of_differences(positive, negative), along(axis, positive, negative))


@pytest.mark.parametrize(("n", "d"), [*SIZES, (260, 530)])
def test_pca_of_states(n: int, d: int) -> None:
    positive, negative = planted(n, d)
    axis = of_scikit_pca(torch.cat([positive, negative]))
    torch.testing.assert_close(pca_of_states(positive, negative), along(axis, positive, negative))


@pytest.mark.parametrize(("n", "d"), SIZES)
def test_logistic_probe(n: int, d: int) -> None:
    positive, negative = planted(n, d)
    states = np.vstack([positive, negative])
    centred = states - states.mean(0)
    inputs = np.hstack([centred / np.sqrt((centred**2).mean()), np.ones((2 * n, 1))])
    penalty = np.diag([*np.ones(d), 0.0])
    weight = np.zeros(d + 1)
    for _ in range(30):  # Newton's method on the penalized log-likelihood
        told = 1 / (1 + np.exp(-inputs @ weight))
        gradient = inputs.T @ (told - labels(n)) + penalty @ weight
        weight -= np.linalg.solve(inputs.T @ (inputs * (told * (1 - told))[:, None]) + penalty, gradient)
    assert np.abs(gradient).max() < 1e-9
    expected = along(weight[:d], positive, negative)
    torch.testing.assert_close(logistic_probe(positive, negative), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n", "d"), [*SIZES, (3, 8)])
def test_linear_discriminant(n: int, d: int) -> None:
    positive, negative = planted(n, d)
    discriminant = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=LedoitWolf())
    axis = discriminant.fit(np.vstack([positive, negative]), labels(n)).coef_[0]
    expected = along(axis, positive, negative)
    torch.testing.assert_close(linear_discriminant(positive, negative), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize(("n", "d"), SIZES)
def test_the_length_is_the_distance_of_the_means_along_it(estimator: Estimator, n: int, d: int) -> None:
    positive, negative = planted(n, d)
    vector = estimator(positive, negative)
    unit = vector / vector.norm()
    assert float((positive.mean(0) - negative.mean(0)) @ unit) == pytest.approx(float(vector.norm()))
    torch.testing.assert_close(estimator(negative, positive), -vector, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_another_unit_gives_the_same_vector_in_that_unit(estimator: Estimator, factor: float) -> None:
    positive, negative = planted(12, 30)
    scaled = estimator(factor * positive, factor * negative)
    torch.testing.assert_close(scaled / factor, estimator(positive, negative), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("estimator", ALL)
def test_another_basis_gives_the_same_vector_in_that_basis(estimator: Estimator) -> None:
    positive, negative = planted(12, 30)
    rotation, _ = torch.linalg.qr(planted(30, 30, seed=1)[0])
    rotated = estimator(positive @ rotation, negative @ rotation)
    torch.testing.assert_close(rotated, estimator(positive, negative) @ rotation, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("estimator", ALL)
def test_a_wide_residual_stream_takes_no_matrix_of_its_width_squared(estimator: Estimator) -> None:
    """Which would be of 320 GB."""
    positive, negative = planted_wide()
    assert estimator(positive, negative).shape == (200_000,)


def planted_wide() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 4, 200_000, generator=generator, dtype=torch.float64)
    return states[0] + 1, states[1]


@pytest.mark.parametrize("estimator", ALL[:4])
def test_sides_of_one_mean_give_zero(estimator: Any) -> None:
    positive, _ = planted(12, 5)
    torch.testing.assert_close(estimator(positive, positive), torch.zeros(5, dtype=torch.float64))
    constant = torch.ones(3, 5, dtype=torch.float64)
    assert not estimator(constant, constant).any()


@pytest.mark.parametrize("pairs", [1, 2])
def test_a_discriminant_of_too_few_pairs_is_refused(pairs: int) -> None:
    positive, negative = planted(pairs, 6)
    with pytest.raises(LrtError, match=f"cannot tell from {pairs} pairs how the states vary: give three or more"):
        linear_discriminant(positive, negative)


def test_a_discriminant_of_states_that_do_not_vary_is_refused() -> None:
    positive = torch.ones(6, 4, dtype=torch.float64)
    with pytest.raises(LrtError, match="cannot tell from 6 pairs how the states vary"):
        linear_discriminant(positive, 2 * positive)
