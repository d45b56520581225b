"""Which part of a predictor's representations its distribution depends on.

    F = span of f(x)    G = span of g(y) − g(y′)    M = P_F G    N = P_G F    k = dim M = dim N

With orthonormal bases, Q_Fᵀ Q_G = U S Vᵀ gives Q_M = Q_F U_k, Q_N = Q_G V_k, Q_Mᵀ Q_N = diag(S_k). In these coordinates
φ = Q_Mᵀ f and ψ = Q_Nᵀ g0, and f · g0 = φ · diag(S_k) ψ: what lies outside of M and N changes no probability (Marconato et al. 2025,
arXiv 2410.23501, the notation; the algebra was derived for this package).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.tables import html_table

_SMALLEST_COSINE = 1e-6
"""Of principal angles between F and G: below it two directions are orthogonal."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of the log-ratio matrix f(x) · (g(y) − ḡ), contexts by tokens, largest first, and how many of them
    count, by several rules."""

    singular_values: Float64[Tensor, "d_model"]
    floor: float
    """Rounding of the representations: below it a singular value is nothing."""

    @property
    def rank(self) -> int:
        """How many are above the floor."""
        return int((self.singular_values > self.floor).sum())

    def energy(self, share: float = 0.99) -> int:
        """How many of the largest hold that share of the sum of squares."""
        squares = self.singular_values.square()
        reached = squares.cumsum(0) / squares.sum() < share
        return min(int(reached.sum()) + 1, len(squares))

    @property
    def participation_ratio(self) -> float:
        """(Σσ²)²/Σσ⁴: as many equal ones would spread the energy as evenly."""
        squares = self.singular_values.square()
        return float(squares.sum().square() / squares.square().sum())

    @property
    def entropy_rank(self) -> float:
        """exp of the entropy of σ²/Σσ² (Roy and Vetterli 2007)."""
        shares = self.singular_values.square() / self.singular_values.square().sum()
        return float(torch.special.entr(shares).sum().exp())

    def summary(self) -> dict[str, str]:
        """Effective dimensions by each rule, for a table."""
        return {
            "above the noise floor": str(self.rank),
            "of 99 % of the energy": str(self.energy()),
            "participation ratio": f"{self.participation_ratio:.1f}",
            "by entropy": f"{self.entropy_rank:.1f}",
        }


@dataclass(frozen=True, eq=False)
class Subspaces:
    """The effective subspaces of one predictor, as orthonormal bases in columns."""

    F: Float64[Tensor, "d_model dim_f"]
    G: Float64[Tensor, "d_model dim_g"]
    M: Float64[Tensor, "d_model k"]
    N: Float64[Tensor, "d_model k"]
    cosines: Float64[Tensor, "k"]
    """Of the principal angles between F and G that are not right angles: S_k = Q_Mᵀ Q_N."""
    spectrum: Spectrum

    @property
    def k(self) -> int:
        """dim M = dim N: a lower bound, from finitely many contexts, of what the distribution has."""
        return int(self.M.shape[1])

    def summary(self) -> dict[str, str]:
        """Dimensions, for a table."""
        dimensions = {"F, of contexts": self.F, "G, of differences of tokens": self.G, "M and N, effective": self.M}
        rows = {f"dimension of {name}": str(basis.shape[1]) for name, basis in dimensions.items()}
        rows["smallest cosine between F and G"] = f"{float(self.cosines.min()):.3g}" if self.k else "none"
        return rows | {f"effective dimension, {name}": value for name, value in self.spectrum.summary().items()}

    def __repr__(self) -> str:
        return f"Subspaces(F {self.F.shape[1]}, G {self.G.shape[1]}, M and N {self.k} of {self.F.shape[0]} dimensions)"

    def _repr_html_(self) -> str:
        return html_table(self.summary())


def subspaces(predictor: Predictor) -> Subspaces:
    """F, G, M and N, and the spectrum of the log-ratios, from QR decompositions: d × d work after one pass over f and g,
    without their product, which is contexts × tokens."""
    g0 = centered_tokens(predictor)
    factors = [_triangle(states) for states in (predictor.f, g0)]
    rounding = float(torch.finfo(predictor.f.dtype).eps)
    (basis_f, basis_g) = (_row_space(factor, rounding) for factor in factors)
    left, cosines, right = torch.linalg.svd(basis_f.T @ basis_g, full_matrices=False)
    k = int((cosines > _SMALLEST_COSINE).sum())
    values = torch.linalg.svdvals(factors[0] @ factors[1].T)
    floor = rounding * len(factors[0]) ** 0.5 * float(values[0])
    return Subspaces(
        basis_f, basis_g, basis_f @ left[:, :k], basis_g @ right.T[:, :k], cosines[:k], Spectrum(values, floor)
    )


def canonical_form(
    predictor: Predictor, found: Subspaces
) -> tuple[Float64[Tensor, "context k"], Float64[Tensor, "token k"]]:
    """φ = Q_Mᵀ f of every context, and ψ = Q_Nᵀ (g − ḡ) of every token."""
    return predictor.f.double() @ found.M, centered_tokens(predictor) @ found.N


def centered_tokens(predictor: Predictor) -> Float64[Tensor, "token d_model"]:
    """g − ḡ: differences to the mean, which span what differences to any one token do."""
    g = predictor.g.double()
    return g - g.mean(0)


def _triangle(states: Float[Tensor, "row d_model"]) -> Float64[Tensor, "d_model d_model"]:
    """R of a QR decomposition, padded with rows of zeros where there are fewer rows than dimensions."""
    r = torch.linalg.qr(states.double(), mode="r").R
    whole = torch.zeros(states.shape[1], states.shape[1], dtype=torch.float64)
    whole[: len(r)] = r.cpu()
    return whole


def _row_space(factor: Float64[Tensor, "d_model d_model"], rounding: float) -> Float64[Tensor, "d_model dim"]:
    _, values, right = torch.linalg.svd(factor)
    rank = int((values > rounding * len(factor) ** 0.5 * values[0]).sum())
    return right[:rank].T
