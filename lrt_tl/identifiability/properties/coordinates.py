"""Coordinates in which lengths and angles are those of log-ratios, and so are fixed by the distribution.

    log p(y|x)/p(ȳ|x) = φ(x) · diag(S) ψ(y),   ȳ the (geometric) mean token

With φ → φ diag(S) Rᵀ, R of a QR decomposition of ψ, the inner product of two contexts is that of their log-ratios over
all tokens; with ψ → ψ diag(S) Rᵀ, R of φ, that of two tokens is that of their log-ratios over all contexts. So what is
measured there, angles and penalized fits too, is equal in predictors whose distributions are. (Derived for this
package.)
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.subspaces import Subspaces, triangle


def context_coordinates(predictor: Predictor, found: Subspaces) -> Float64[Tensor, "d_model _"]:
    """The matrix that takes f to them, from the right."""
    factor: Tensor = torch.linalg.qr(triangle(predictor.g, centered=True) @ found.N, mode="r").R
    return found.M * found.cosines @ factor.T


def token_coordinates(predictor: Predictor, found: Subspaces) -> Float64[Tensor, "d_model _"]:
    """The matrix that takes g, or a difference of two, to them, from the right."""
    factor: Tensor = torch.linalg.qr(triangle(predictor.f) @ found.M, mode="r").R
    return found.N * found.cosines @ factor.T
