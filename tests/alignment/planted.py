"""Data with a known map, and its moments, for the tests of solvers and selection."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lrt_tl.alignment.moments import Centered, Moments, fit_pairs, pool

D_SOURCE, D_TARGET, FOLDS, TEST = 6, 4, (0, 1, 2, 3, 4), 5


@dataclass(frozen=True)
class Sample:
    x: Tensor
    y: Tensor
    splits: Tensor

    def part(self, splits: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        here = torch.isin(self.splits, torch.tensor(list(splits)))
        return self.x[here].double().numpy(), self.y[here].double().numpy()

    def moments(self) -> Moments:
        shifts = {"x": self.x.double().mean(0) + 0.3, "y": self.y.double().mean(0) - 0.2}
        return Moments.empty(6, shifts, fit_pairs(["x"], ["y"])).update({"x": self.x, "y": self.y}, self.splits)

    def centered(self, splits: Iterable[int]) -> Centered:
        parts = self.moments().between(["x"], "y")
        return pool([parts[split] for split in splits])

    def folds(self) -> Sequence[Centered]:
        return self.moments().between(["x"], "y")[: len(FOLDS)]


def planted(
    *,
    noise: float = 0.5,
    n: int = 400,
    dtype: torch.dtype = torch.float64,
    d_source: int = D_SOURCE,
    d_target: int = D_TARGET,
    rank: int | None = None,
) -> Sample:
    """y = xW + b + noise, x with correlated channels off the origin, splits of unequal size and unequal mean."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    splits = torch.randint(6, (n,), generator=generator).clamp(min=1) % 6
    splits[: n // 10] = 0
    x = normal(n, d_source) @ normal(d_source, d_source) + 5 * normal(d_source) + splits[:, None] * normal(d_source)
    weight = normal(d_source, d_target) if rank is None else normal(d_source, rank) @ normal(rank, d_target)
    y = x @ weight + normal(d_target) + noise * normal(n, d_target)
    return Sample(x.to(dtype), y.to(dtype), splits)
