"""A predictor's twin: the same distribution in another dimension, with whatever else in its representations."""

from dataclasses import replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.predictor import Predictor

_STRETCH = 2.0
"""T's singular values lie between its inverse and it."""


def widen_predictor(
    predictor: Predictor,
    d_model: int,
    *,
    junk_f: Float[Tensor, "context a"] | None = None,
    junk_g: Float[Tensor, "token b"] | None = None,
    seed: int = 0,
) -> Predictor:
    """f′ = T [f; u; 0; 0] and g′ = T⁻ᵀ [g; 0; w; 0]: every f′ · g′ is f · g, whatever the junk u and w is.

    T is a random matrix of condition 4 or less. In float64. (Derived for this package.)

    Args:
        d_model: of the twin, d of the predictor and the junk's widths together or more.
        junk_f: u of each context: lies in F ∩ G^⊥, where no token reads it.
        junk_g: w of each token: lies in G ∩ F^⊥, where no context reaches it.

    Raises:
        LrtError: `d_model` is too small, or the junk is not of the predictor's contexts and tokens.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> p = lrt.Predictor.from_arrays(torch.randn(100, 4), torch.randn(20, 4))
        >>> twin = lrt.widen_predictor(p, 10, junk_f=torch.randn(100, 2))
        >>> twin.d_model, torch.allclose(p.logits(), twin.logits(), atol=1e-4)
        (10, True)
        >>> lrt.subspaces(twin)
        Subspaces(F 6, G 4, M and N 4 of 10 dimensions)
    """
    f, g = predictor.f.double(), predictor.g.double()
    u = f.new_zeros(len(f), 0) if junk_f is None else junk_f.double()
    w = g.new_zeros(len(g), 0) if junk_g is None else junk_g.double()
    if len(u) != len(f) or len(w) != len(g):
        raise LrtError(f"junk of {len(u)} contexts and {len(w)} tokens, for a predictor of {len(f)} and {len(g)}")
    widths = f.shape[1], u.shape[1], w.shape[1]
    if d_model < sum(widths):
        raise LrtError(f"d_model={d_model}: the predictor and its junk need {' + '.join(map(str, widths))} dimensions")
    stretch, dual = _dual_maps(d_model, seed)
    of_f, of_g = f.new_zeros(len(f), d_model), g.new_zeros(len(g), d_model)
    of_f[:, : widths[0] + widths[1]] = torch.cat([f, u], dim=1)
    of_g[:, : widths[0]] = g
    of_g[:, widths[0] + widths[1] : sum(widths)] = w
    return replace(predictor, f=of_f @ stretch.T, g=of_g @ dual.T, name=f"{predictor.name}, widened to {d_model}")


def _dual_maps(d: int, seed: int) -> tuple[Float64[Tensor, "d d"], Float64[Tensor, "d d"]]:
    """T and T⁻ᵀ."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    values = _STRETCH ** (2 * torch.rand(d, generator=generator, dtype=torch.float64) - 1)
    return left * values @ right, left / values @ right
