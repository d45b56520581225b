"""The nulls: uniform directions, and those of maps that were fitted on shuffled rows."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lrt_tl.alignment.activations import fit_activations
from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.errors import LrtError
from lrt_tl.evaluation.controls import (
    padded_direction,
    random_directions,
    random_map_directions,
    shuffled_map_directions,
)
from lrt_tl.models.identity import Site
from lrt_tl.steering.vector import SteeringVector

D_SOURCE, D_TARGET, N = 8, 6, 1500


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def activations() -> tuple[Tensor, Tensor]:
    """Anisotropic on both sides, related, and off the origin."""
    x = normal(N, D_SOURCE, seed=0) @ normal(D_SOURCE, D_SOURCE, seed=1) + 3
    spread = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.1])
    y = (x @ normal(D_SOURCE, D_TARGET, seed=2) / 4 + normal(N, D_TARGET, seed=3)) * spread + 7
    return x, y


@pytest.fixture(scope="module")
def affine_map(activations: tuple[Tensor, Tensor]) -> AffineMap:
    return fit_activations(*activations, [position // 10 for position in range(N)])


def second_moment(directions: Tensor) -> Tensor:
    return directions.T @ directions / len(directions)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_directions_are_those_of_maps_fitted_on_shuffled_rows(
    affine_map: AffineMap, activations: tuple[Tensor, Tensor], seed: int
) -> None:
    """For two vectors and ridges: the null depends on neither."""
    x, y = activations
    vector = normal(D_SOURCE, seed=10 + seed)
    centered, penalty = x - x.mean(0), (1e-4, 3.0)[seed] * N
    reader = torch.linalg.solve(centered.T @ centered + penalty * torch.eye(D_SOURCE), vector)
    generator = torch.Generator().manual_seed(seed)
    fitted = torch.stack([y[torch.randperm(N, generator=generator)].T @ (centered @ reader) for _ in range(1500)])
    actual = torch.nn.functional.normalize(fitted, dim=1)
    drawn = shuffled_map_directions(affine_map, 1500)
    assert drawn.mean(0).norm() < 4 / 1500**0.5
    assert actual.mean(0).norm() < 4 / 1500**0.5
    # Each entry is a mean of 1500 numbers at most 1 in size:
    torch.testing.assert_close(second_moment(drawn), second_moment(actual), rtol=0, atol=0.04)
    assert float(second_moment(drawn).diagonal().max()) > 0.5  # far from uniform, which is 1/6
    # Before normalizing, the spread along the target's principal directions is that of its covariance:
    eigenvalues, vectors = torch.linalg.eigh(affine_map.target_covariance)
    variance = (fitted @ vectors).var(0)
    torch.testing.assert_close(variance / variance.sum(), eigenvalues / eigenvalues.sum(), rtol=0.2, atol=1e-3)


def test_random_directions_are_uniform() -> None:
    directions = random_directions(20_000, 5)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(20_000))
    torch.testing.assert_close(directions.mean(0), torch.zeros(5), rtol=0, atol=0.02)
    torch.testing.assert_close(second_moment(directions), torch.eye(5) / 5, rtol=0, atol=0.01)
    fourth = directions.pow(4).mean(0)  # E u⁴ = 3/(d(d + 2)): not only the covariance is that of the sphere
    torch.testing.assert_close(fourth, torch.full((5,), 3 / 35), rtol=0.05, atol=0)


def test_random_maps_of_equal_singular_values_carry_a_vector_anywhere(affine_map: AffineMap) -> None:
    """U′ S V′ᵀ v with orthogonal matrices drawn from the Haar measure, and v not spread over the singular values."""
    values = torch.diag(torch.linalg.svdvals(affine_map.weight))
    assert float(values[0, 0] / values[-1, -1]) > 3

    def haar(n: int) -> Tensor:
        q, r = torch.linalg.qr(torch.randn(4000, n, n, generator=generator))
        return q * r.diagonal(dim1=1, dim2=2).sign()[:, None]

    generator = torch.Generator().manual_seed(0)
    vector = torch.tensor([1.0, *[0.0] * (D_SOURCE - 1)])
    carried = haar(D_TARGET) @ values @ haar(D_SOURCE)[:, :, :D_TARGET].mT @ vector
    actual = torch.nn.functional.normalize(carried, dim=1)
    drawn = random_map_directions(affine_map, 4000)
    for moment in (second_moment(actual), second_moment(drawn)):
        torch.testing.assert_close(moment, torch.eye(D_TARGET) / D_TARGET, rtol=0, atol=0.015)
    torch.testing.assert_close(actual.pow(4).mean(0), drawn.pow(4).mean(0), rtol=0.2, atol=0)
    assert drawn.mean(0).norm() < 4 / 4000**0.5


def test_draws_are_seeded(affine_map: AffineMap) -> None:
    for draw in (
        lambda n, seed: random_directions(n, 5, seed=seed),
        lambda n, seed: shuffled_map_directions(affine_map, n, seed=seed),
        lambda n, seed: random_map_directions(affine_map, n, seed=seed),
    ):
        assert torch.equal(draw(4, 0), draw(4, 0))
        assert not torch.isclose(draw(4, 0), draw(4, 1)).any()
        assert draw(4, 0).dtype == torch.float32
        torch.testing.assert_close(draw(4, 0).norm(dim=1), torch.ones(4))


def test_a_covariance_that_is_none_is_refused(affine_map: AffineMap) -> None:
    damaged = replace(affine_map, target_covariance=-affine_map.target_covariance)
    with pytest.raises(LrtError, match="not positive semidefinite"):
        shuffled_map_directions(damaged, 2)


def vector_of(values: list[float]) -> SteeringVector:
    return SteeringVector(torch.tensor(values), Site("blocks.0.hook_resid_post", len(values)))


def test_a_vector_is_padded_or_cut_to_the_width() -> None:
    assert padded_direction(vector_of([5.0, 6]), 4).tolist() == [[5, 6, 0, 0]]
    assert padded_direction(vector_of([5.0, 6, 7, 8, 9]), 4).tolist() == [[5, 6, 7, 8]]
    with pytest.raises(LrtError, match=r"the first 4 dimensions of .* are zero"):
        padded_direction(vector_of([0.0, 0, 0, 0, 9]), 4)
