"""Predictors with known answers: of one distribution in different dimensions, and nearly of one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lrt_tl.identifiability.predictor import Predictor

N_CONTEXTS, N_TOKENS, K = 300, 120, 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predictor(n_contexts: int, n_tokens: int, d: int, *, seed: int = 0, scale: float = 1.0) -> Predictor:
    """Of random representations."""
    return Predictor.from_arrays(
        scale * normal(n_contexts, d, seed=seed), scale * normal(n_tokens, d, seed=seed + 1) / d**0.5
    )


@dataclass(frozen=True)
class Junk:
    """Dimensions that change no probability: a of contexts that no token reads, b of tokens that no context reaches."""

    a: int
    b: int
    seed: int


def embedded(phi: Tensor, psi: Tensor, d: int, junk: Junk) -> Predictor:
    """A predictor in d dimensions whose log-ratios are φ · (ψ − ψ′), by construction:
    f = T[φ; u; 0], g = T⁻ᵀ[ψ; 0; w] + a constant."""
    k, seed = phi.shape[1], junk.seed
    one, other = (torch.linalg.qr(normal(d, d, seed=seed + place)).Q for place in (4, 5))
    transform = one @ torch.diag(torch.logspace(0, 1, d).double()) @ other
    dual = torch.linalg.inv(transform).T
    f = phi @ transform[:, :k].T + normal(len(phi), junk.a, seed=seed + 1) @ transform[:, k : k + junk.a].T
    rest = dual[:, k + junk.a : k + junk.a + junk.b]
    g = psi @ dual[:, :k].T + normal(len(psi), junk.b, seed=seed + 2) @ rest.T + normal(d, seed=seed + 3)
    return Predictor.from_arrays(f, g)


def equal_pair(*, k: int = K, d: tuple[int, int] = (12, 20)) -> tuple[Predictor, Predictor]:
    """Of one distribution, with junk of their own."""
    phi, psi = normal(N_CONTEXTS, k, seed=1), normal(N_TOKENS, k, seed=2)
    return embedded(phi, psi, d[0], Junk(3, 2, 10)), embedded(phi, psi, d[1], Junk(6, 7, 20))


def log_probabilities(p: Predictor) -> Tensor:
    return (p.f.double() @ p.g.double().T).log_softmax(1)
