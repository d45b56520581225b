"""Ridge regression of many responses, in folds of whole groups, with the penalty chosen inside of each fold."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from lrt_tl.errors import LrtError

N_FOLDS = 5
PENALTIES = tuple(10.0**power for power in (-14, -12, -10, -8, -6, -5, -4, -3, -2, -1, 0))
"""Of the largest eigenvalue of the inputs' scatter."""


@dataclass(frozen=True, eq=False)
class Fold:
    """What was fitted without some rows. An arm is a set of responses of its own."""

    held_out: Bool[Tensor, "row"]
    weight: Float64[Tensor, "arm d response"]
    constant: Float64[Tensor, "arm response"]
    mean: Float64[Tensor, "arm response"]
    """Of the responses that were fitted: what a constant alone would say."""


def folds_of(groups: Int[Tensor, "row"], *, seed: int = 0) -> Int[Tensor, "row"]:
    """The fold of each row: groups are dealt out in a random order.

    Raises:
        LrtError: there are fewer groups than folds.
    """
    _, of = groups.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    n = int(of.max()) + 1
    if n < N_FOLDS:
        raise LrtError(f"{n} subjects: {N_FOLDS} or more are needed to hold some out")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return (order.argsort() % N_FOLDS)[of]


def shuffled(groups: Int[Tensor, "row"], n_draws: int, *, seed: int = 0) -> Int[Tensor, "draw row"]:
    """Rows in orders in which each group's rows take those of another group: the first order is the one there is.

    Rows of a group stand in for each other in turn, where one has more than the other.
    """
    generator = torch.Generator().manual_seed(seed)
    _, of = groups.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    members = [(of == group).nonzero()[:, 0] for group in range(int(of.max()) + 1)]
    place = torch.empty_like(of)
    for rows in members:
        place[rows] = torch.arange(len(rows))
    orders = [torch.arange(len(of))]
    for _ in range(n_draws):
        other = torch.randperm(len(members), generator=generator)[of]
        orders.append(
            torch.stack([members[into][at % len(members[into])] for into, at in zip(other, place, strict=True)])
        )
    return torch.stack(orders)


def ridge_folds(
    inputs: Float64[Tensor, "row d"],
    responses: Float64[Tensor, "arm row response"],
    groups: Int[Tensor, "row"],
    *,
    seed: int = 0,
) -> Iterator[Fold]:
    """Fit every arm without each fold in turn. Of each arm the penalty is the one that predicts best when one further
    fold of those that are left is held out, in turn: what is scored has no say in it.

    Raises:
        LrtError: there are fewer groups than folds.
    """
    fold = folds_of(groups, seed=seed)
    for out in range(N_FOLDS):
        kept = fold != out
        within = [inner for inner in range(N_FOLDS) if inner != out]
        errors = torch.stack([_errors(inputs, responses, kept & (fold != inner), fold == inner) for inner in within])
        best = torch.tensor(PENALTIES, dtype=torch.float64)[errors.sum(0).argmin(0)]
        fit = _decomposed(inputs, responses, kept)
        weight = torch.einsum("kd,akr->adr", fit.right, fit.shrunk(best[:, None]))
        yield Fold(~kept, weight, fit.constant - torch.einsum("d,adr->ar", fit.mean, weight), fit.constant)


@dataclass(frozen=True, eq=False)
class _Decomposed:
    mean: Float64[Tensor, "d"]
    constant: Float64[Tensor, "arm response"]
    values: Float64[Tensor, "k"]
    right: Float64[Tensor, "k d"]
    projected: Float64[Tensor, "arm k response"]

    def shrunk(self, penalty: Float64[Tensor, "#arm 1"]) -> Float64[Tensor, "arm k response"]:
        """Weights on the right singular vectors."""
        squares = self.values.square() + penalty * self.values[0].square()
        return (self.values / squares.clamp(min=torch.finfo(torch.float64).tiny))[..., None] * self.projected


def _decomposed(inputs: Tensor, responses: Tensor, fitted: Tensor) -> _Decomposed:
    x, y = inputs[fitted], responses[:, fitted]
    mean, constant = x.mean(0), y.mean(1)
    u, values, right = torch.linalg.svd(x - mean, full_matrices=False)
    return _Decomposed(mean, constant, values, right, torch.einsum("nk,anr->akr", u, y - constant[:, None]))


def _errors(inputs: Tensor, responses: Tensor, fitted: Tensor, judged: Tensor) -> Float64[Tensor, "penalty arm"]:
    """Squared errors on rows that were not fitted."""
    fit = _decomposed(inputs, responses, fitted)
    coordinates, wanted = (inputs[judged] - fit.mean) @ fit.right.T, responses[:, judged] - fit.constant[:, None]
    penalties = torch.tensor(PENALTIES, dtype=torch.float64)[:, None, None]
    return torch.stack([(coordinates @ fit.shrunk(each) - wanted).square().sum((-2, -1)) for each in penalties])
