"""Every solver against scikit-learn or a textbook solve."""

import numpy as np
import pytest
import torch
from scipy.linalg import inv, orthogonal_procrustes, sqrtm
from sklearn.cross_decomposition import PLSRegression
from sklearn.linear_model import LinearRegression, Ridge

from lrt_tl.alignment.diagnostics import r_squared
from lrt_tl.alignment.solvers import (
    Solution,
    canonical,
    components,
    least_squares,
    partial_least_squares,
    procrustes,
    reduced_rank,
    ridge,
    whitened,
)
from tests.alignment.planted import D_SOURCE, FOLDS, TEST, Sample, planted

PENALTIES = (1e-6, 1e-3, 0.1, 3.0, 100.0)
SHAPES = [(6, 4), (4, 6), (5, 5)]


def sample_of(shape: tuple[int, int]) -> Sample:
    return planted(d_source=shape[0], d_target=shape[1])


def sklearn_map(x: np.ndarray, y: np.ndarray, penalty: float) -> Ridge:
    return Ridge(alpha=len(x) * penalty, solver="cholesky").fit(x, y)


def assert_map(ours: Solution, weight: np.ndarray, bias: np.ndarray, tolerance: float = 1e-8) -> None:
    np.testing.assert_allclose(ours.weight.numpy(), weight, rtol=tolerance, atol=tolerance * np.abs(weight).max())
    np.testing.assert_allclose(ours.bias.numpy(), bias, rtol=tolerance, atol=tolerance * np.abs(bias).max())


def through_means(weight: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return y.mean(0) - x.mean(0) @ weight


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 2e-4)])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_ridge_is_scikit_learns_and_the_textbooks(
    penalty: float, dtype: torch.dtype, tolerance: float, shape: tuple[int, int]
) -> None:
    sample = planted(dtype=dtype, d_source=shape[0], d_target=shape[1])
    solution = ridge(sample.centered(FOLDS), penalty)
    x, y = sample.part(FOLDS)
    theirs = sklearn_map(x, y, penalty)
    assert_map(solution, theirs.coef_.T, theirs.intercept_, tolerance)
    # With the bias as a column of ones that is not penalized:
    ones = np.hstack([x, np.ones((len(x), 1))])
    penalties = np.diag([len(x) * penalty] * shape[0] + [0.0])
    textbook = np.linalg.solve(ones.T @ ones + penalties, ones.T @ y)
    assert_map(solution, textbook[:-1], textbook[-1], max(tolerance, 1e-7))


def test_a_penalty_for_each_target_dimension_is_a_ridge_for_each() -> None:
    sample = planted()
    penalties = torch.tensor([1e-3, 0.1, 1.0, 50.0], dtype=torch.float64)
    x, y = sample.part(FOLDS)
    theirs = Ridge(alpha=len(x) * penalties.numpy(), solver="cholesky").fit(x, y)
    assert_map(ridge(sample.centered(FOLDS), penalties), theirs.coef_.T, theirs.intercept_)


def test_the_penalty_is_per_position() -> None:
    sample = planted()
    doubled = Sample(sample.x.repeat(2, 1), sample.y.repeat(2, 1), sample.splits.repeat(2))
    once, twice = sample.centered(FOLDS), doubled.centered(FOLDS)
    assert twice.count == 2 * once.count
    torch.testing.assert_close(ridge(once, 0.7).weight, ridge(twice, 0.7).weight)


def test_more_ridge_is_a_shorter_map() -> None:
    centered = planted().centered(FOLDS)
    norms = [float(ridge(centered, penalty).weight.norm()) for penalty in PENALTIES]
    assert norms == sorted(norms, reverse=True)
    assert float(ridge(centered, 1e12).weight.norm()) < 1e-9
    torch.testing.assert_close(ridge(centered, 1e12).bias, centered.target_mean)


@pytest.mark.parametrize("shape", SHAPES)
def test_least_squares_is_scikit_learns(shape: tuple[int, int]) -> None:
    sample = sample_of(shape)
    theirs = LinearRegression().fit(*sample.part(FOLDS))
    assert_map(least_squares(sample.centered(FOLDS)), theirs.coef_.T, theirs.intercept_)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_least_squares_with_constant_and_duplicate_dimensions_is_as_without(
    dtype: torch.dtype, tolerance: float
) -> None:
    sample = planted(dtype=dtype)
    more = torch.cat([sample.x, torch.full_like(sample.x[:, :1], 3.0), sample.x[:, 1:3]], 1)
    solution = least_squares(Sample(more, sample.y, sample.splits).centered(FOLDS))
    plain = least_squares(sample.centered(FOLDS))
    weight = solution.weight[:D_SOURCE].clone()
    weight[1:3] += solution.weight[D_SOURCE + 1 :]
    torch.testing.assert_close(weight, plain.weight, rtol=tolerance, atol=tolerance)
    if dtype == torch.float64:
        assert not solution.weight[D_SOURCE].any()


@pytest.mark.parametrize(
    "solve", [least_squares, procrustes, lambda train: ridge(train, 1e-3), lambda train: whitened(train, 1e-10)]
)
def test_a_massive_channel_costs_no_accuracy(solve: object) -> None:
    """One channel × 3000, in float32, is as good as in float64 to 1e-5 of what is explained."""
    sample = planted(n=3000)
    massive = sample.x.clone()
    massive[:, 2] *= 3000
    single = Sample(massive.float(), sample.y.float(), sample.splits)
    double = Sample(single.x.double(), single.y.double(), sample.splits)
    found = [solve(some.centered(FOLDS)) for some in (single, double)]  # type: ignore[operator]
    assert r_squared(found[0], double.centered([TEST])) == pytest.approx(
        r_squared(found[1], double.centered([TEST])), abs=1e-6
    )
    assert float((found[0].weight - found[1].weight).norm() / found[1].weight.norm()) < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_reduced_rank_without_penalty_is_the_textbooks(shape: tuple[int, int], rank: int) -> None:
    """Least squares, its fitted values projected on their first principal directions (Izenman 1975)."""
    sample = sample_of(shape)
    x, y = sample.part(FOLDS)
    full = LinearRegression().fit(x, y).coef_.T
    fitted = (x - x.mean(0)) @ full
    v = np.linalg.svd(fitted, full_matrices=False)[2][:rank].T
    weight = full @ v @ v.T
    ours = reduced_rank(sample.centered(FOLDS), 1e-13, rank)
    assert_map(ours, weight, through_means(weight, x, y), 1e-7)
    assert int(torch.linalg.matrix_rank(ours.weight, rtol=1e-8)) == rank


def test_reduced_rank_with_penalty_minimizes_the_penalized_loss() -> None:
    """Against ridge on augmented rows (√(nλ) I, 0), cut as without a penalty."""
    sample, penalty, rank = planted(), 2.0, 2
    x, y = sample.part(FOLDS)
    n = len(x)
    xs = np.vstack([x - x.mean(0), np.sqrt(n * penalty) * np.eye(D_SOURCE)])
    ys = np.vstack([y - y.mean(0), np.zeros((D_SOURCE, y.shape[1]))])
    full = np.linalg.lstsq(xs, ys, rcond=None)[0]
    v = np.linalg.svd(xs @ full, full_matrices=False)[2][:rank].T
    weight = full @ v @ v.T
    assert_map(reduced_rank(sample.centered(FOLDS), penalty, rank), weight, through_means(weight, x, y))


@pytest.mark.parametrize("shape", SHAPES)
def test_procrustes_is_scipys_with_the_best_scale(shape: tuple[int, int]) -> None:
    sample = sample_of(shape)
    x, y = sample.part(FOLDS)
    cx, cy = x - x.mean(0), y - y.mean(0)
    d = max(shape)
    padded = [np.pad(some, ((0, 0), (0, d - some.shape[1]))) for some in (cx, cy)]
    rotation = orthogonal_procrustes(*padded)[0][: shape[0], : shape[1]]
    scale = ((cx @ rotation) * cy).sum() / np.square(cx @ rotation).sum()
    ours = procrustes(sample.centered(FOLDS))
    if shape[0] == shape[1]:  # else the padded rotation is not unique where it does not matter
        assert_map(ours, scale * rotation, through_means(scale * rotation, x, y))
    gain = float((ours.weight / ours.weight.norm() * sample.centered(FOLDS).source_target).sum())
    theirs = float((rotation / np.linalg.norm(rotation) * (cx.T @ cy)).sum())
    assert gain >= theirs * (1 - 1e-9)
    small = ours.weight @ ours.weight.T if shape[0] <= shape[1] else ours.weight.T @ ours.weight
    torch.testing.assert_close(small, small[0, 0] * torch.eye(min(shape), dtype=torch.float64))


def test_procrustes_recovers_a_rotation() -> None:
    sample = planted(d_target=D_SOURCE)
    rotation = torch.linalg.qr(torch.randn(D_SOURCE, D_SOURCE, dtype=torch.float64)).Q
    ours = procrustes(Sample(sample.x, 2.5 * sample.x @ rotation - 1, sample.splits).centered(FOLDS))
    torch.testing.assert_close(ours.weight, 2.5 * rotation)
    torch.testing.assert_close(ours.bias, torch.full((D_SOURCE,), -1.0, dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES)
def test_whitened_is_the_textbooks(shape: tuple[int, int]) -> None:
    sample = sample_of(shape)
    x, y = sample.part(FOLDS)
    cx, cy = np.cov(x.T, ddof=0), np.cov(y.T, ddof=0)
    cross = (x - x.mean(0)).T @ (y - y.mean(0)) / len(x)
    root_x, root_y = np.real(sqrtm(cx)), np.real(sqrtm(cy))
    u, _, vh = np.linalg.svd(inv(root_x) @ cross @ inv(root_y), full_matrices=False)
    weight = inv(root_x) @ u @ vh @ root_y
    ours = whitened(sample.centered(FOLDS), 1e-14)
    assert_map(ours, weight, through_means(weight, x, y), 1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_canonical_coordinates_have_unit_covariance_and_go_in_pairs(shape: tuple[int, int]) -> None:
    sample = sample_of(shape)
    x, y = (rows - rows.mean(0) for rows in sample.part(FOLDS))
    form = canonical(sample.centered(FOLDS), 1e-14)
    z_x, z_y = x @ form.of_source.numpy(), y @ form.of_target.numpy()
    unit, correlations = np.eye(min(shape)), np.diag(form.correlations.numpy())
    for product, wanted in ((z_x.T @ z_x, unit), (z_y.T @ z_y, unit), (z_x.T @ z_y, correlations)):
        np.testing.assert_allclose(product / len(x), wanted, atol=1e-7)
    if shape[1] <= shape[0]:
        np.testing.assert_allclose(z_y @ form.to_target.numpy(), y, atol=1e-6)


def test_whitened_with_constant_and_duplicate_dimensions_predicts_as_without() -> None:
    sample = planted(noise=2.0, dtype=torch.float32)
    more = torch.cat([sample.x, torch.full_like(sample.x[:, :1], 3.0), sample.x[:, 1:3]], 1)
    wide = Sample(more, sample.y, sample.splits)
    found = [r_squared(whitened(some.centered(FOLDS), 1e-6), some.centered([TEST])) for some in (sample, wide)]
    assert found[0] > 0.5
    assert found[1] == pytest.approx(found[0], abs=1e-4)


def test_whitened_keeps_the_variance_that_ridge_shrinks() -> None:
    sample = planted(noise=8.0, n=20_000, d_target=D_SOURCE)
    train = sample.centered(FOLDS)
    target = train.target_target / train.count
    for solution, lower, upper in ((whitened(train, 1e-12), 0.999, 1.001), (least_squares(train), 0.1, 0.9)):
        mapped = solution.weight.T @ train.source_source @ solution.weight / train.count
        assert lower < float(mapped.trace() / target.trace()) < upper


@pytest.mark.parametrize("shape", SHAPES)
def test_partial_least_squares_is_scikit_learns(shape: tuple[int, int]) -> None:
    sample = sample_of(shape)
    x, y = sample.part(FOLDS)
    train = sample.centered(FOLDS)
    for rank in range(1, min(shape) + 1):
        theirs = PLSRegression(rank, scale=False, tol=1e-14, max_iter=10_000).fit(x, y)
        ours = partial_least_squares(train, rank)
        assert_map(ours, theirs.coef_.T, theirs.predict(np.zeros((1, shape[0])))[0], 1e-6)
    if components(train, shape[0])[0].shape[1] == shape[0]:
        full = LinearRegression().fit(x, y)
        assert_map(partial_least_squares(train, shape[0]), full.coef_.T, full.intercept_, 1e-6)


def test_partial_least_squares_ends_where_nothing_is_left() -> None:
    sample = planted(noise=0.0)
    only = Sample(sample.x, sample.x[:, :1].repeat(1, 2), sample.splits)
    assert components(only.centered(FOLDS), 50)[0].shape[1] <= D_SOURCE
    assert r_squared(partial_least_squares(only.centered(FOLDS), 50), only.centered([TEST])) > 1 - 1e-9
