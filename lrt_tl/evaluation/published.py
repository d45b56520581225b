"""The measures of the paper that the hypothesis comes from (Bello et al. 2025, arXiv 2506.00653), with the nulls that
they lack.

Both compare like with like before anything is transferred: the same model on the same prompts, and unit rows that any
matrix of that shape would fit. So neither is shown here without its null.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.agreement import Agreements, agreements
from lrt_tl.evaluation.result import TransferResult
from lrt_tl.tables import html_table


def published_agreement(result: TransferResult) -> Agreements:
    """The paper's r and MSE between natively and transfer-steered scores, beside those of random vectors.

    Raises:
        LrtError: fewer than three prompts, over which there is no correlation to speak of.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small = storyworld.load("small")
        >>> vector = lrt.mean_difference(small, storyworld.contrast_pairs("refusal", 8), layer=2)
        >>> result = lrt.evaluate_transfer(small, vector, storyworld.behavior("refusal", 8), native=vector, n_draws=19)
        >>> at = lrt.published_agreement(result).rows_by_coefficient[-1]
        >>> at.coefficient, at.r, at.r_random > 0.9  # r is high for random vectors too
        (8.0, 1.0, True)
    """
    return agreements(result.native, result.transferred, result.controls["random"], result.coefficients)


def decoder_null(n_latents: int, d_source: int) -> tuple[float, float]:
    """What regressing one decoder's unit rows on another's gives where the two have nothing in common.

    n random unit rows, regressed on n unrelated rows of d dimensions, leave in expectation a share 1 − d/n of their
    squared norm, which is n: the residual's Frobenius norm is √(n − d), and R² is d/n. (Derived for this package; the
    rows must have no common mean direction, so beside it show `decoder_fit` of permuted rows.)

    Returns:
        The residual's Frobenius norm, and R².

    Raises:
        LrtError: there are not more rows than dimensions.
    """
    if not 0 < d_source < n_latents:
        raise LrtError(f"{n_latents} rows on {d_source} dimensions: a regression needs more rows than dimensions")
    return math.sqrt(n_latents - d_source), d_source / n_latents


def decoder_fit(
    source: Float[Tensor, "latent d_source"], target: Float[Tensor, "latent d_target"]
) -> tuple[float, float]:
    """Least squares, without a constant, of a target's decoder rows on a source's, all scaled to length 1: the
    residual's Frobenius norm, and 1 − ‖residual‖²/‖rows‖². Its null: the same of `source` with its rows permuted.

    Raises:
        LrtError: a row is zero, or there are not more rows than dimensions.
    """
    return _fits(source, target, [torch.arange(len(target))])[0]


def _fits(source: Tensor, target: Tensor, orders: Sequence[Tensor]) -> list[tuple[float, float]]:
    """With the target's rows in each of these orders, by one decomposition of the source."""
    if not (source.norm(dim=1).all() and target.norm(dim=1).all()) or len(source) <= source.shape[1]:
        raise LrtError(f"{tuple(source.shape)} decoder rows: none may be zero, and there must be more than dimensions")
    if len(source) != len(target):
        raise LrtError(f"{len(source)} decoder rows on {len(target)}: a row of one is to be a row of the other")
    x, y = (rows.double() / rows.double().norm(dim=1, keepdim=True) for rows in (source, target))
    basis, _ = torch.linalg.qr(x)
    fitted = [float((basis.T @ y[order]).square().sum()) for order in orders]
    whole = float(y.square().sum())
    return [(math.sqrt(max(whole - explained, 0.0)), explained / whole) for explained in fitted]


@dataclass(frozen=True)
class DecoderAgreement:
    """How well one autoencoder's decoder is a linear image of another's, beside what unrelated rows give.

    Attributes:
        residual: Frobenius norm of what least squares leaves, all rows at length 1.
        r2: 1 − residual²/number of rows.
        residual_permuted: with the rows permuted, mean over the permutations.
        r2_permuted: the same, of R².
        r2_permuted_high: the highest of the permutations: what R² has to beat.
        residual_unrelated: by `decoder_null`, for rows without a common mean direction.
        r2_unrelated: the same, of R².

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
        >>> found = lrt.decoder_agreement(rows, 2 * rows.flip(1))  # a linear image
        >>> round(found.r2, 3), found.r2_permuted_high < 0.1
        (1.0, True)
    """

    residual: float
    r2: float
    residual_permuted: float
    r2_permuted: float
    r2_permuted_high: float
    residual_unrelated: float
    r2_unrelated: float

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)

    def table(self) -> dict[str, str]:
        """The same for people."""
        return {
            "residual, R²": f"{self.residual:.2f}, {self.r2:.4f}",
            "with permuted rows": f"{self.residual_permuted:.2f}, {self.r2_permuted:.4f} "
            f"(highest {self.r2_permuted_high:.4f})",
            "expected of unrelated rows": f"{self.residual_unrelated:.2f}, {self.r2_unrelated:.4f}",
        }

    def __repr__(self) -> str:
        return f"DecoderAgreement(R² {self.r2:.4f}, permuted rows {self.r2_permuted:.4f})"

    def _repr_html_(self) -> str:
        return html_table(self.table())


def decoder_agreement(
    source: Float[Tensor, "latent d_source"],
    target: Float[Tensor, "latent d_target"],
    *,
    n_permutations: int = 20,
    seed: int = 0,
) -> DecoderAgreement:
    """`decoder_fit` of two autoencoders' decoders, as `load_autoencoder(…).W_dec`, whose rows are one list of latents,
    beside the same with permuted rows.

    Raises:
        LrtError: as of `decoder_fit`; or there is no permutation.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> rows, others = torch.randn(2, 200, 8, generator=torch.Generator().manual_seed(0))
        >>> lrt.decoder_agreement(rows, rows.flip(1)).r2 > 0.99, lrt.decoder_agreement(rows, others).r2 < 0.1
        (True, True)
    """
    if n_permutations < 1:
        raise LrtError(f"n_permutations={n_permutations}: the null needs one at least")
    generator = torch.Generator().manual_seed(seed)
    orders = [
        torch.arange(len(target)),
        *(torch.randperm(len(target), generator=generator) for _ in range(n_permutations)),
    ]
    (residual, r2), *permuted = _fits(source, target, orders)
    residuals, r2s = zip(*permuted, strict=True)
    return DecoderAgreement(
        residual,
        r2,
        sum(residuals) / n_permutations,
        sum(r2s) / n_permutations,
        max(r2s),
        *decoder_null(*source.shape),
    )
