"""Are two predictors linearly the same, where their distributions depend on it? Their dimensions may differ.

    p = p̃  ⇔  φ = W_f φ̃  and  ψ = W_g ψ̃,  with the duality  W_fᵀ C W_g = C̃,  C = Q_Mᵀ Q_N

(*All or None*'s extended linear equivalence, Marconato et al. 2025, arXiv 2410.23501; in coordinates: derived for this
package). Both are fitted by least squares without a constant, and judged on contexts and tokens that were not fitted.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.distribution import require_comparable
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.subspaces import Subspaces, subspaces, triangle
from lrt_tl.tables import html_table

_SMALLEST = 1e-5
"""Of the largest singular value: directions of less spread are taken for rounding, and not whitened."""


@dataclass(frozen=True, eq=False, repr=False)
class LinearFit:
    """One model's coordinates from the other's, on held-out rows."""

    weight: Float64[Tensor, "k k_other"]
    r2: float
    """1 − Σ‖error‖²/Σ‖coordinates‖², all directions together (about 0, since there is no constant)."""
    r2_by_direction: Float64[Tensor, "k"]
    """The same along each canonical direction (of the correlations between the two on the rows that were fitted),
    best first on those; 0 for the directions that have none in the other. A model that is near in distribution can have
    these fall to nothing while `r2` stays high."""

    @property
    def worst(self) -> float:
        """R² of the worst canonical direction."""
        return float(self.r2_by_direction.min())

    def __repr__(self) -> str:
        return f"LinearFit(R² {self.r2:.3f}, worst direction {self.worst:.3f} of {len(self.r2_by_direction)})"


@dataclass(frozen=True, eq=False, repr=False)
class Equivalence:
    """How nearly two predictors are linearly the same.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> generator = torch.Generator().manual_seed(0)
        >>> f, g = torch.randn(100, 4, generator=generator), torch.randn(30, 4, generator=generator)
        >>> p, q = lrt.Predictor.from_arrays(f, g), lrt.Predictor.from_arrays(f.flip(1), g)  # tokens stay
        >>> found = lrt.equivalence(p, q)
        >>> found.of_contexts.r2 > 0.99, found.of_tokens.r2 > 0.99, found.duality_residual > 0.5
        (True, True, True)
    """

    of_contexts: LinearFit
    """φ of the first from φ̃ of the second."""
    of_tokens: LinearFit
    """ψ from ψ̃."""
    duality_residual: float
    """‖W_fᵀ C W_g − C̃‖/‖C̃‖: whether contexts and tokens are turned the same way. Good fits of both do not imply it."""
    subspaces: tuple[Subspaces, Subspaces]

    def summary(self) -> dict[str, str]:
        """For a table."""
        k = [each.k for each in self.subspaces]
        return {
            "effective dimensions": f"{k[0]} and {k[1]}",
            "contexts: R², held out": f"{self.of_contexts.r2:.4f}",
            "contexts: R² of the worst direction": f"{self.of_contexts.worst:.4f}",
            "tokens: R², held out": f"{self.of_tokens.r2:.4f}",
            "tokens: R² of the worst direction": f"{self.of_tokens.worst:.4f}",
            "duality residual": f"{self.duality_residual:.3g}",
        }

    def to_json(self) -> dict[str, float | int]:
        """All figures."""
        return {
            "k": self.subspaces[0].k,
            "k_other": self.subspaces[1].k,
            "context_r2": self.of_contexts.r2,
            "context_worst_r2": self.of_contexts.worst,
            "token_r2": self.of_tokens.r2,
            "token_worst_r2": self.of_tokens.worst,
            "duality_residual": self.duality_residual,
        }

    def __repr__(self) -> str:
        return (
            f"Equivalence(contexts R² {self.of_contexts.r2:.3f}, worst direction {self.of_contexts.worst:.3f}; "
            f"duality residual {self.duality_residual:.2g})"
        )

    def _repr_html_(self) -> str:
        return html_table(self.summary())


def equivalence(p: Predictor, q: Predictor, *, held_out: float = 0.3, seed: int = 0) -> Equivalence:
    """Fit p's canonical coordinates from q's, for contexts and for tokens, and judge both where they were not fitted.

    Contexts are held out by document, tokens one by one. Fit the other way round by exchanging p and q.

    Raises:
        LrtError: the predictors are not of the same contexts and tokens, or these are too few for the dimensions; or
            one predictor's distributions are all uniform.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> generator = torch.Generator().manual_seed(0)
        >>> f, g = torch.randn(100, 4, generator=generator), torch.randn(30, 4, generator=generator)
        >>> p, q = lrt.Predictor.from_arrays(f, g), lrt.Predictor.from_arrays(2 * f, g / 2)  # the same products
        >>> found = lrt.equivalence(p, q)
        >>> found  # doctest: +ELLIPSIS
        Equivalence(contexts R² 1.000, worst direction 1.000; duality residual ...)
        >>> found.duality_residual < 1e-4
        True
    """
    require_comparable(p, q)
    found = subspaces(p), subspaces(q)
    for each, of in zip((p, q), found, strict=True):
        if not of.k:
            raise LrtError(
                f"{each.name}: no token reads a direction in which contexts lie (k = 0), so that every distribution is "
                "uniform: there is nothing to fit. Are f and g of one model?"
            )
    contexts, tokens = (held_out_rows(of, held_out, seed) for of in (p.documents, torch.arange(len(p.g))))
    of_contexts = linear_fit(p.f, q.f, contexts, onto=(found[0].M, found[1].M), rows="contexts")
    of_tokens = linear_fit(p.g, q.g, tokens, onto=(found[0].N, found[1].N), centered=True, rows="tokens")
    ours, theirs = (torch.diag(each.cosines) for each in found)
    residual = of_contexts.weight.T @ ours @ of_tokens.weight - theirs
    return Equivalence(of_contexts, of_tokens, float(residual.norm() / theirs.norm()), found)


def held_out_rows(groups: Int[Tensor, "row"], share: float, seed: int = 0) -> Bool[Tensor, "row"]:
    """A mask of rows that are held out: those of a random share of the groups.

    Raises:
        LrtError: fewer than two groups, of which one would have to be held out; or the share is none.
    """
    if not 0 < share < 1:
        raise LrtError(f"held_out={share}: the share of documents must lie between 0 and 1")
    _, of = torch.unique(groups, return_inverse=True)
    n = int(of.max()) + 1
    if n < 2:
        raise LrtError("one document only: nothing can be held out; give two or more, better hundreds")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[order[: max(1, round(share * n))]] = True
    return chosen[of]


def linear_fit(
    ours: Float[Tensor, "row d"],
    theirs: Float[Tensor, "row d_other"],
    held_out: Bool[Tensor, "row"],
    *,
    onto: tuple[Float64[Tensor, "d k"], Float64[Tensor, "d_other k_other"]] | None = None,
    centered: bool = False,
    rows: str = "rows",
) -> LinearFit:
    """Least squares of `ours` on `theirs`, without a constant.

    Both sets of rows are first reduced to triangles with the same Gram matrices, which is all that matters.

    Args:
        onto: bases in whose coordinates both are taken; as they are by default.
        centered: about the mean of all rows.
        rows: what they are, for a complaint.

    Raises:
        LrtError: fewer fitted rows than twice the dimensions, or none held out.
    """
    onto = onto or (torch.eye(ours.shape[1]).double(), torch.eye(theirs.shape[1]).double())
    widest, n_fitted = max(basis.shape[1] for basis in onto), int((~held_out).sum())
    if n_fitted < 2 * widest or n_fitted == len(held_out):
        raise LrtError(
            f"{n_fitted} {rows} to fit {widest} dimensions on, and {len(held_out) - n_fitted} held out: two or more to "
            f"fit a dimension are needed, so that this takes more {rows}. Distances need none of it: `lrt_tl.distances`"
        )
    factors = [triangle(ours, theirs, centered=centered, rows=mask) for mask in (~held_out, held_out)]
    d = ours.shape[1]
    (x, y), (x_held, y_held) = ((each[:, :d] @ onto[0], each[:, d:] @ onto[1]) for each in factors)
    weight = torch.linalg.lstsq(y, x, driver="gelsd").solution.T
    a, b = canonical_directions(x, y)
    slope = ((x @ a) * (y @ b)).sum(0) / (y @ b).square().sum(0)
    along = torch.zeros(x.shape[1], dtype=torch.float64)
    along[: len(slope)] = _r2(x_held @ a, y_held @ b * slope, dim=0)
    return LinearFit(weight, float(_r2(x_held, y_held @ weight.T)), along)


def canonical_directions(
    ours: Float64[Tensor, "row k"], theirs: Float64[Tensor, "row k_other"]
) -> tuple[Float64[Tensor, "k smaller"], Float64[Tensor, "k_other smaller"]]:
    """Directions, in columns, of the canonical correlations about 0, largest first."""
    whiten = [_whitening(each) for each in (ours, theirs)]
    u, _, v = torch.linalg.svd((ours @ whiten[0]).T @ (theirs @ whiten[1]), full_matrices=False)
    return whiten[0] @ u, whiten[1] @ v.T


def _r2(actual: Tensor, predicted: Tensor, dim: int | None = None) -> Tensor:
    """0 where there is nothing to predict: that would be no evidence."""
    total = actual.square().sum(dim)
    return ((total - (actual - predicted).square().sum(dim)) / total).where(total > 0, 0.0)


def _whitening(states: Float64[Tensor, "row k"]) -> Float64[Tensor, "k rank"]:
    """W such that (states W)ᵀ(states W) = 1."""
    _, values, right = torch.linalg.svd(states, full_matrices=False)
    kept = values > _SMALLEST * values[0]
    whitening: Tensor = right[kept].T / values[kept]
    return whitening
