"""How alike two ways of steering leave one model's scores: the paper's r and MSE, with the null that they lack."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.tables import html_columns


@dataclass(frozen=True)
class Agreement:
    """How alike two ways of steering leave the scores of one model on the same prompts, at one coefficient.

    Attributes:
        r: Pearson's correlation over prompts of the natively steered and the transfer-steered scores (section 3.4 of
            the paper's third version); at coefficient 0 it is 1, whatever was transferred.
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

    def to_json(self) -> list[dict[str, Any]]:
        """The figures, ready for JSON."""
        return [asdict(each) for each in self.rows_by_coefficient]

    def _repr_html_(self) -> str:
        return html_columns(self.rows())


def agreements(
    native: Float[Tensor, "coefficient prompt"],
    transferred: Float[Tensor, "coefficient prompt"],
    random: Float[Tensor, "draw coefficient prompt"],
    coefficients: Sequence[float],
) -> Agreements:
    """r and MSE between natively and transfer-steered scores, beside those of random vectors.

    Raises:
        LrtError: fewer than three prompts, over which there is no correlation to speak of.
    """
    n_prompts = native.shape[1]
    if n_prompts < 3:
        raise LrtError(f"{n_prompts} prompts have no correlation: give three or more")
    found = []
    for place, coefficient in enumerate(coefficients):
        own, carried, draws = native[place], transferred[place], random[:, place]
        of_random = torch.stack([correlation(own, draw) for draw in draws])
        found.append(
            Agreement(
                coefficient,
                float(correlation(own, carried)),
                float((own - carried).square().mean()),
                float(of_random.mean()),
                float(of_random.quantile(0.95)),
                float((own - draws).square().mean()),
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
