"""The nulls: vectors that should do nothing in particular."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.errors import LrtError
from lrt_tl.steering.vector import SteeringVector

N_DRAWS = 64


def random_directions(n: int, d_model: int, *, seed: int = 0) -> Float[Tensor, "draw d_model"]:
    """Unit vectors, uniform over the sphere."""
    directions = torch.randn(n, d_model, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(directions, dim=1)


def shuffled_map_directions(affine_map: AffineMap, n: int, *, seed: int = 0) -> Float[Tensor, "draw d_model"]:
    """Where maps fitted on row-shuffled pairs of states would carry a vector, as unit vectors.

    A random permutation of n rows of y gives a cross product Sxy of mean zero and covariance, exactly,
    cov(Sxy[i, j], Sxy[k, l]) = Sxx[i, k] Syy[j, l] / (n − 1), and with n in the thousands it is normal. The vector v
    then lands on Sxyᵀ(Sxx + nλI)⁻¹v, whose covariance is Syy times a number. So the directions are those of N(0, Syy),
    whatever v is: no harvest and no fit is needed. So it is for a whitened map, which on shuffled rows is a random
    rotation and then Syy^(½); Procrustes maps and those of low rank lie between these directions and uniform ones or
    the largest of them. (Derived for this package; its tests check the ridge against maps that were
    fitted on shuffled rows.)

    Raises:
        LrtError: the target's covariance is not positive semidefinite.
    """
    eigenvalues, vectors = torch.linalg.eigh(affine_map.target_covariance.double())
    if eigenvalues[0] < -1e-4 * eigenvalues[-1]:
        raise LrtError("the map's target covariance is not positive semidefinite: the artifact is damaged")
    normal = torch.randn(n, len(eigenvalues), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    directions = (normal * eigenvalues.clamp(min=0).sqrt()) @ vectors.T
    return functional.normalize(directions, dim=1).float()


def random_map_directions(affine_map: AffineMap, n: int, *, seed: int = 0) -> Float[Tensor, "draw d_model"]:
    """Where random maps of the fitted one's singular values would carry a vector, as unit vectors.

    Such a map is U′ S V′ᵀ with U′ and V′ orthogonal and uniform (Haar). It carries v to U′(S V′ᵀv), and a uniform
    rotation takes whatever vector to a uniform direction: neither S nor v matters, and no matrix is needed. So at equal
    length this null is that of random vectors, in other draws. (Derived for this package; its tests check it against
    maps that were drawn.)
    """
    return random_directions(n, affine_map.target.d_model, seed=seed)


def padded_direction(source: SteeringVector, d_model: int) -> Float[Tensor, "1 d_model"]:
    """The source's vector as if its dimensions were the target's, zeros after them, or cut off: what no map at all
    would do.

    Raises:
        LrtError: nothing of the vector is left after it was cut off.
    """
    padded = functional.pad(source.direction, (0, d_model - len(source.direction)))  # negative: cuts off
    if not padded.any():
        raise LrtError(f"the first {d_model} dimensions of {source} are zero: it cannot be cut to the target's width")
    return padded[None]
