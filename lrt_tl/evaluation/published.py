"""The measures of the paper that the hypothesis comes from (Bello et al. 2025, arXiv 2506.00653), with the nulls that
they lack.

Both compare like with like before anything is transferred: the same model on the same prompts, and unit rows that any
matrix of that shape would fit. So neither is shown here without its null.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.evaluate import TransferResult
from lrt_tl.tables import html_columns


@dataclass(frozen=True)
class Agreement:
    """How alike two ways of steering leave the scores of one model on the same prompts, at one coefficient.

    Attributes:
        r: Pearson's correlation over prompts of the natively steered and the transfer-steered scores (section 4 of the
            paper); at coefficient 0 it is 1, whatever was transferred.
        mse: mean squared difference of them.
        r_random: the same r with random vectors of that length in the transferred one's place, mean over the draws.
        r_random_high: its 95 % quantile: what r has to beat.
        mse_random: mean over the draws.
    """

    coefficient: float
    r: float
    mse: float
    r_random: float
    r_random_high: float
    mse_random: float

    def row(self) -> dict[str, str]:
        """For a table."""
        return {
            "coefficient": f"{self.coefficient:g}",
            "r, native and transferred": f"{self.r:.3f}",
            "r, native and random (95 %)": f"{self.r_random:.3f} ({self.r_random_high:.3f})",
            "MSE": f"{self.mse:.3g}",
            "MSE, random": f"{self.mse_random:.3g}",
        }


@dataclass(frozen=True)
class Agreements:
    """One for each coefficient."""

    rows_by_coefficient: tuple[Agreement, ...]

    def rows(self) -> list[Mapping[str, str]]:
        """For a table."""
        return [each.row() for each in self.rows_by_coefficient]

    def _repr_html_(self) -> str:
        return html_columns(self.rows())


def published_agreement(result: TransferResult) -> Agreements:
    """The paper's r and MSE between natively and transfer-steered scores, beside those of random vectors.

    Raises:
        LrtError: fewer than three prompts, over which there is no correlation to speak of.
    """
    if len(result.prompts) < 3:
        raise LrtError(f"{len(result.prompts)} prompts have no correlation: give three or more")
    found = []
    for place, coefficient in enumerate(result.coefficients):
        native, transferred = result.native[place], result.transferred[place]
        random = result.controls["random"][:, place]
        of_random = torch.stack([correlation(native, draw) for draw in random])
        found.append(
            Agreement(
                coefficient,
                float(correlation(native, transferred)),
                float((native - transferred).square().mean()),
                float(of_random.mean()),
                float(of_random.quantile(0.95)),
                float((native - random).square().mean()),
            )
        )
    return Agreements(tuple(found))


def correlation(one: Float[Tensor, "prompt"], other: Float[Tensor, "prompt"]) -> Float[Tensor, ""]:
    """Pearson's; 1 for two that are the same, and 0 where one of them does not vary."""
    if torch.equal(one, other):
        return torch.ones((), dtype=torch.float64)
    a, b = (each.double() - each.double().mean() for each in (one, other))
    norm = a.norm() * b.norm()
    return (a @ b) / norm if float(norm) > 0 else torch.zeros((), dtype=torch.float64)


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
    if not (source.norm(dim=1).all() and target.norm(dim=1).all()) or len(source) <= source.shape[1]:
        raise LrtError(f"{tuple(source.shape)} decoder rows: none may be zero, and there must be more than dimensions")
    x, y = (rows.double() / rows.double().norm(dim=1, keepdim=True) for rows in (source, target))
    basis, _ = torch.linalg.qr(x)
    left = y.square().sum() - (basis.T @ y).square().sum()
    return math.sqrt(max(float(left), 0.0)), 1 - float(left / y.square().sum())
