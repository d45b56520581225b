"""Predictors whose distribution is planted, and twins of them in other dimensions."""

import torch
from torch import Tensor

from lrt_tl.identifiability.predictor import Predictor

K, CONTEXTS, TOKENS = 6, 300, 60


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(phi: Tensor | None = None, psi: Tensor | None = None) -> Predictor:
    """A predictor whose representations are its canonical coordinates; 60 documents of 5 contexts each."""
    phi = normal(CONTEXTS, K, seed=0) if phi is None else phi
    psi = normal(TOKENS, K, seed=1) if psi is None else psi
    return Predictor.from_arrays(phi, psi, documents=torch.arange(len(phi)) // 5, name="planted")
