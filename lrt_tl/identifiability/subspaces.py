"""Which part of a predictor's representations its distribution depends on.

    F = span of f(x)    G = span of g(y) − g(y′)    M = P_F G    N = P_G F    k = dim M = dim N

With orthonormal bases, Q_Fᵀ Q_G = U S Vᵀ gives Q_M = Q_F U_k, Q_N = Q_G V_k, Q_Mᵀ Q_N = diag(S_k). In these coordinates
φ = Q_Mᵀ f and ψ = Q_Nᵀ g0, and f · g0 = φ · diag(S_k) ψ: what lies outside of M and N changes no probability (Marconato
et al. 2025, arXiv 2410.23501, the notation; the algebra was derived for this package).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.tables import html_table

_ROWS_AT_ONCE = 8192
_NOTHING = 1e-100
"""Smaller singular values are zero: their products underflow."""


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """Singular values of the log-ratio matrix f(x) · (g(y) − ḡ), contexts by tokens, largest first, and how many of
    them count, by several rules."""

    singular_values: Float64[Tensor, "d_model"]
    floor: float
    """What rounding the representations can add to a singular value: one below it is nothing."""

    @property
    def above_floor(self) -> Float64[Tensor, "rank"]:
        """Those that are more than rounding: what every rule counts, from 0 where there are none."""
        return self.singular_values[self.singular_values > self.floor]

    @property
    def rank(self) -> int:
        """How many are above the floor."""
        return len(self.above_floor)

    def energy(self, share: float = 0.99) -> int:
        """How many of the largest hold that share of the sum of squares."""
        squares = self.above_floor.square()
        reached = squares.cumsum(0) / squares.sum() < share
        return min(int(reached.sum()) + 1, len(squares))

    @property
    def participation_ratio(self) -> float:
        """(Σσ²)²/Σσ⁴: as many equal ones would spread the energy as evenly."""
        squares = self.above_floor.square()
        return float(squares.sum().square() / squares.square().sum()) if len(squares) else 0.0

    @property
    def entropy_rank(self) -> float:
        """exp of the entropy of σ/Σσ (Roy and Vetterli 2007, the effective rank)."""
        values = self.above_floor
        return float(torch.special.entr(values / values.sum()).sum().exp()) if len(values) else 0.0

    def summary(self) -> dict[str, str]:
        """Effective dimensions by each rule, for a table."""
        return {
            "above the noise floor": str(self.rank),
            "of 99 % of the energy": str(self.energy()),
            "participation ratio": f"{self.participation_ratio:.1f}",
            "by entropy": f"{self.entropy_rank:.1f}",
        }

    def to_json(self) -> dict[str, float | int | list[float]]:
        """The values, and the dimensions by each rule."""
        return {
            "singular_values": self.singular_values.tolist(),
            "floor": self.floor,
            "rank": self.rank,
            "energy_99": self.energy(),
            "participation_ratio": self.participation_ratio,
            "entropy_rank": self.entropy_rank,
        }

    def __repr__(self) -> str:
        return f"Spectrum(rank {self.rank} of {len(self.singular_values)}, 99 % of the energy in {self.energy()})"

    def _repr_html_(self) -> str:
        return html_table(self.summary())


@dataclass(frozen=True, eq=False, repr=False)
class Subspaces:
    """The effective subspaces of one predictor, as orthonormal bases in columns.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> generator = torch.Generator().manual_seed(0)
        >>> f, g = torch.randn(100, 5, generator=generator), torch.randn(30, 5, generator=generator)
        >>> g[:, 4] = 0  # what no token reads
        >>> found = lrt.subspaces(lrt.Predictor.from_arrays(f, g))
        >>> found.k, found.F.shape, found.M.shape
        (4, torch.Size([5, 5]), torch.Size([5, 4]))
    """

    F: Float64[Tensor, "d_model dim_f"]
    G: Float64[Tensor, "d_model dim_g"]
    M: Float64[Tensor, "d_model k"]
    N: Float64[Tensor, "d_model k"]
    cosines: Float64[Tensor, "k"]
    """Of the principal angles between F and G that are not right angles: S_k = Q_Mᵀ Q_N."""
    spectrum: Spectrum
    at_least: bool
    """Whether every further context, or token, that was given added a dimension, so that more of them might too."""

    @property
    def k(self) -> int:
        """dim M = dim N: a lower bound, from finitely many contexts, of what the distribution has."""
        return int(self.M.shape[1])

    def summary(self) -> dict[str, str]:
        """Dimensions, for a table."""
        dimensions = {"F, of contexts": self.F, "G, of differences of tokens": self.G, "M and N, effective": self.M}
        more = " or more: too few contexts, or tokens, to tell" if self.at_least else ""
        rows = {f"dimension of {name}": f"{basis.shape[1]}{more}" for name, basis in dimensions.items()}
        rows["smallest cosine between F and G"] = f"{float(self.cosines.min()):.3g}" if self.k else "none"
        return rows | {f"effective dimension, {name}": value for name, value in self.spectrum.summary().items()}

    def to_json(self) -> dict[str, object]:
        """Dimensions, cosines and the spectrum; not the bases."""
        return {
            "dim_f": self.F.shape[1],
            "dim_g": self.G.shape[1],
            "k": self.k,
            "at_least": self.at_least,
            "cosines": self.cosines.tolist(),
            "spectrum": self.spectrum.to_json(),
        }

    def __repr__(self) -> str:
        more = " or more" if self.at_least else ""
        dimensions = f"F {self.F.shape[1]}, G {self.G.shape[1]}, M and N {self.k}{more}"
        return f"Subspaces({dimensions} of {self.F.shape[0]} dimensions)"

    def _repr_html_(self) -> str:
        return html_table(self.summary())


def subspaces(predictor: Predictor) -> Subspaces:
    """F, G, M and N, and the spectrum of the log-ratios, from QR decompositions: d × d work after one pass over f and
    g, without their product, which is contexts × tokens.

    A direction of F or G counts if its singular value is above the rounding of the representations' precision, times
    √d; two directions are orthogonal if their cosine is under the square root of that precision.

    Raises:
        LrtError: all contexts, or all differences of tokens, are zero.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> generator = torch.Generator().manual_seed(0)
        >>> f, g = torch.randn(100, 5, generator=generator), torch.randn(30, 5, generator=generator)
        >>> g[:, 4] = 0  # what no token reads
        >>> lrt.subspaces(lrt.Predictor.from_arrays(f, g))
        Subspaces(F 5, G 4, M and N 4 of 5 dimensions)
    """
    rounding = float(torch.finfo(predictor.f.dtype).eps)
    factors = triangle(predictor.f), triangle(predictor.g, centered=True)
    (basis_f, largest_f), (basis_g, largest_g) = (_row_space(factor, rounding) for factor in factors)
    left, cosines, right = torch.linalg.svd(basis_f.T @ basis_g, full_matrices=False)
    k = int((cosines > rounding**0.5).sum())
    values = torch.linalg.svdvals(factors[0] @ factors[1].T)
    floor = rounding * len(factors[0]) ** 0.5 * largest_f * largest_g
    at_least = basis_f.shape[1] == len(predictor.f) or basis_g.shape[1] == len(predictor.g) - 1
    return Subspaces(
        basis_f, basis_g, basis_f @ left[:, :k], basis_g @ right.T[:, :k], cosines[:k].clamp(max=1),
        Spectrum(values, floor), at_least,
    )  # fmt: skip


def canonical_form(
    predictor: Predictor, found: Subspaces
) -> tuple[Float64[Tensor, "context k"], Float64[Tensor, "token k"]]:
    """φ = Q_Mᵀ f of every context, and ψ = Q_Nᵀ (g − ḡ) of every token."""
    return predictor.f.double() @ found.M, centered_tokens(predictor, found.N)


def centered_tokens(predictor: Predictor, onto: Float64[Tensor, "d_model k"]) -> Float64[Tensor, "token k"]:
    """(g − ḡ) · onto: differences to the mean span what differences to any one token do. Some tokens at a time, so that
    no float64 copy of all of g stands in memory."""
    mean = predictor.g.mean(0, dtype=torch.float64)
    return torch.cat([(some.double() - mean) @ onto for some in torch.split(predictor.g, _ROWS_AT_ONCE)])


def triangle(
    *parts: Float[Tensor, "row _"], centered: bool = False, rows: Bool[Tensor, "row"] | None = None
) -> Float64[Tensor, "d d"]:
    """R of the QR decomposition of matrices side by side, of all of their rows or of some, about the mean of all or as
    they are: RᵀR is their Gram matrix, without its squared condition. Some rows at a time, so that no copy of all
    stands in memory."""
    shift = torch.cat([part.mean(0, dtype=torch.float64) for part in parts]) if centered else None
    width = sum(part.shape[1] for part in parts)
    r = torch.zeros(width, width, dtype=torch.float64)
    for start in range(0, len(parts[0]), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        block = torch.cat([part[some].double() for part in parts], dim=1)
        block = block if shift is None else block.sub_(shift)
        r = torch.linalg.qr(torch.cat([r, block if rows is None else block[rows[some]]]), mode="r").R
    return r


def _row_space(
    factor: Float64[Tensor, "d_model d_model"], rounding: float
) -> tuple[Float64[Tensor, "d_model dim"], float]:
    """A basis, and the largest singular value."""
    _, values, right = torch.linalg.svd(factor)
    rank = int((values > max(rounding * len(factor) ** 0.5 * float(values[0]), _NOTHING)).sum())
    if not rank:
        raise LrtError("all contexts are zero, or all tokens the same: every distribution is uniform")
    return right[:rank].T, float(values[0])
