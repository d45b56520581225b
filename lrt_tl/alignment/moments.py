"""The sufficient statistics of the fit: small, exact, mergeable, and all that is kept of the activations.

For each split (see `text.documents`): n, Σx, Σy, XᵀX, XᵀY and YᵀY, about one common shift near the mean, with products
in the activations' precision, of a thousand positions at a time, and sums in float64. Without the shift one channel at
mean 3000, which real models have, costs up to all digits; float32 sums lose count at 16,777,217.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float64, Int, Int64
from torch import Tensor

from lrt_tl.errors import LrtError

_POSITIONS_AT_ONCE = 1024


@dataclass(frozen=True)
class Centered:
    """Moments of a set of positions about their own mean, float64."""

    count: int
    source_mean: Float64[Tensor, "d_source"]
    target_mean: Float64[Tensor, "d_target"]
    source_source: Float64[Tensor, "d_source d_source"]
    source_target: Float64[Tensor, "d_source d_target"]
    target_target: Float64[Tensor, "d_target d_target"]


@dataclass
class Moments:
    """Sums over positions, split by split, of (x − source_shift) and (y − target_shift) and their products."""

    source_shift: Float64[Tensor, "d_source"]
    target_shift: Float64[Tensor, "d_target"]
    count: Int64[Tensor, "split"]
    source_sum: Float64[Tensor, "split d_source"]
    target_sum: Float64[Tensor, "split d_target"]
    source_source: Float64[Tensor, "split d_source d_source"]
    source_target: Float64[Tensor, "split d_source d_target"]
    target_target: Float64[Tensor, "split d_target d_target"]

    @classmethod
    def empty(
        cls,
        n_splits: int,
        *,
        source_shift: Float64[Tensor, "d_source"],
        target_shift: Float64[Tensor, "d_target"],
    ) -> "Moments":
        """Moments of nothing. The shifts are any points near the means; they fix the device of the sums.

        They are rounded to float32, so that float32 activations are taken about the very shift that is kept.
        """
        d_source, d_target = len(source_shift), len(target_shift)
        source_shift = source_shift.float().double()
        target_shift = target_shift.float().double().to(source_shift.device)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(n_splits, *shape, dtype=torch.float64, device=source_shift.device)

        return cls(
            source_shift,
            target_shift,
            torch.zeros(n_splits, dtype=torch.int64),
            zeros(d_source),
            zeros(d_target),
            zeros(d_source, d_source),
            zeros(d_source, d_target),
            zeros(d_target, d_target),
        )

    def update(
        self,
        source: Any,
        target: Any,
        splits: Int[Tensor, "position"],
    ) -> "Moments":
        """Add positions: `source` `[position, d_source]` and `target` `[position, d_target]`, float32 or float64.

        Raises:
            LrtError: the numbers of positions differ, or a width is not that of its shift.
        """
        widths = (len(self.source_shift), len(self.target_shift))
        if not len(source) == len(target) == len(splits) or (source.shape[1], target.shape[1]) != widths:
            raise LrtError(
                f"activations {tuple(source.shape)} and {tuple(target.shape)} in splits {tuple(splits.shape)} do not "
                f"pair: the numbers of positions must agree, and the widths be {widths[0]} and {widths[1]}"
            )
        device, dtype = self.source_shift.device, torch.promote_types(source.dtype, target.dtype)
        x = source.to(device, dtype) - self.source_shift.to(dtype)
        y = target.to(device, dtype) - self.target_shift.to(dtype)
        splits = splits.to(device)
        for split in torch.unique(splits).tolist():
            here = splits == split
            for xs, ys in zip(x[here].split(_POSITIONS_AT_ONCE), y[here].split(_POSITIONS_AT_ONCE), strict=True):
                self.count[split] += len(xs)
                self.source_sum[split] += xs.double().sum(0)
                self.target_sum[split] += ys.double().sum(0)
                self.source_source[split] += (xs.T @ xs).double()
                self.source_target[split] += (xs.T @ ys).double()
                self.target_target[split] += (ys.T @ ys).double()
        return self

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets of positions, about this one's shift.

        Raises:
            LrtError: the widths or the numbers of splits differ.
        """
        if self.source_target.shape != other.source_target.shape:
            raise LrtError(
                f"moments of shape {tuple(self.source_target.shape)} and {tuple(other.source_target.shape)} "
                "(split, d_source, d_target) do not merge"
            )
        other = other.shifted(self.source_shift, self.target_shift)
        names = [item.name for item in fields(self) if not item.name.endswith("_shift")]
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Moments(self.source_shift, self.target_shift, **sums)

    def shifted(
        self,
        source_shift: Float64[Tensor, "d_source"],
        target_shift: Float64[Tensor, "d_target"],
    ) -> "Moments":
        """The same moments about another shift."""
        dx, dy = self.source_shift - source_shift, self.target_shift - target_shift
        if not (dx.any() or dy.any()):
            return self
        n = self.count.to(dx)[:, None]

        def cross(sum_a: Tensor, da: Tensor, sum_b: Tensor, db: Tensor) -> Tensor:
            moved = torch.einsum("si,j->sij", sum_a, db) + torch.einsum("i,sj->sij", da, sum_b)
            return moved + n[..., None] * torch.outer(da, db)

        x, y = self.source_sum, self.target_sum
        return Moments(
            source_shift,
            target_shift,
            self.count,
            x + n * dx,
            y + n * dy,
            self.source_source + cross(x, dx, x, dx),
            self.source_target + cross(x, dx, y, dy),
            self.target_target + cross(y, dy, y, dy),
        )

    def centered(self, splits: Iterable[int]) -> Centered:
        """The pooled moments of some splits about their own mean.

        Raises:
            LrtError: there is no position in them.
        """
        chosen = list(splits)
        n = int(self.count[chosen].sum())
        if n == 0:
            raise LrtError(f"there is no position in the splits {chosen}: there is too little text")
        x, y = self.source_sum[chosen].sum(0), self.target_sum[chosen].sum(0)
        return Centered(
            n,
            self.source_shift + x / n,
            self.target_shift + y / n,
            self.source_source[chosen].sum(0) - torch.outer(x, x) / n,
            self.source_target[chosen].sum(0) - torch.outer(x, y) / n,
            self.target_target[chosen].sum(0) - torch.outer(y, y) / n,
        )
