"""The sufficient statistics of every fit: small, exact, mergeable, and all that is kept of the activations.

For each split (see `text.documents`): n, Σz and the products ΣzᵀZ′ of named activations, about one common shift near
their mean: in the activations' precision of at most 2048 positions at a time, and these are added up in float64.
Without the shift one channel at mean 3000, which real models have, costs up to all digits; float32 sums lose count at
16,777,217; and float32 products lose digits with the number of positions.

The products are most of the work. They are taken some rows of the result at a time, so that these are added while they
are in the cache, and of an activation with itself only from the diagonal on, which is little more than half of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int, Int64
from torch import Tensor

from lrt_tl.errors import LrtError

_POSITIONS_AT_ONCE = 2048
_ROWS_AT_ONCE = 512
Pair = tuple[str, str]


@dataclass(frozen=True)
class Centered:
    """Moments of a set of positions about their own mean, float64."""

    count: int
    source_mean: Float64[Tensor, "d_source"]
    target_mean: Float64[Tensor, "d_target"]
    source_source: Float64[Tensor, "d_source d_source"]
    source_target: Float64[Tensor, "d_source d_target"]
    target_target: Float64[Tensor, "d_target d_target"]


def pool(parts: Iterable[Centered]) -> Centered:
    """The moments of several sets of positions together (Chan et al. 1983): products add, and so do the means' own.

    Raises:
        LrtError: there is no position in them.
    """
    parts = [part for part in parts if part.count]
    n = sum(part.count for part in parts)
    if not n:
        raise LrtError("there is no position in these splits: there is too little text")
    shares = [part.count / n for part in parts]
    x = torch.stack([share * part.source_mean for share, part in zip(shares, parts, strict=True)]).sum(0)
    y = torch.stack([share * part.target_mean for share, part in zip(shares, parts, strict=True)]).sum(0)
    sums = [torch.zeros_like(getattr(parts[0], name)) for name in ("source_source", "source_target", "target_target")]
    for part in parts:
        dx, dy = part.source_mean - x, part.target_mean - y
        for total, own, a, b in zip(
            sums,
            (part.source_source, part.source_target, part.target_target),
            (dx, dx, dy),
            (dx, dy, dy),
            strict=True,
        ):
            total += own
            total.addr_(a, b, alpha=part.count)
    return Centered(n, x, y, *sums)


def fit_pairs(sources: Sequence[str], targets: Sequence[str], *, stacked: bool = False) -> list[Pair]:
    """The products that maps from `sources` to `targets` need: of each with itself, and of source with target.

    Args:
        stacked: also of the sources with one another, for maps from several of them at once.
    """
    among = [(a, b) for i, a in enumerate(sources) for b in sources[i:]] if stacked else [(a, a) for a in sources]
    return [*among, *((a, b) for a in sources for b in targets), *((b, b) for b in targets)]


def device_of_sums(device: torch.device) -> torch.device:
    """Where the sums of activations on a device are kept: there, or on the CPU if it has no float64 (Apple's MPS)."""
    return torch.device("cpu") if device.type == "mps" else device


@dataclass
class Moments:
    """Sums over positions, split by split, of activations less their shift, and of their products."""

    shifts: dict[str, Float64[Tensor, "_"]]
    """By name: any points near the means, float32 numbers kept in float64."""
    count: Int64[Tensor, "split"]
    sums: dict[str, Float64[Tensor, "split _"]]
    products: dict[Pair, Float64[Tensor, "split _ _"]]
    """Of an activation with itself only the upper triangle holds; the rest is to be mirrored (`between` does)."""

    @classmethod
    def empty(cls, n_splits: int, shifts: Mapping[str, Tensor], pairs: Iterable[Pair]) -> "Moments":
        """Moments of nothing.

        Args:
            shifts: near the mean of each activation; the device of the first decides that of the sums (see
                `device_of_sums`). They are rounded to float32, so that float32 activations are taken about the very
                shift that is kept.
            pairs: which products to keep.
        """
        device = device_of_sums(next(iter(shifts.values())).device)
        kept = {name: shift.float().to(device).double() for name, shift in shifts.items()}

        def zeros(*names: str) -> Tensor:
            return torch.zeros(n_splits, *(len(kept[name]) for name in names), dtype=torch.float64, device=device)

        count = torch.zeros(n_splits, dtype=torch.int64)
        return cls(kept, count, {name: zeros(name) for name in kept}, {pair: zeros(*pair) for pair in pairs})

    def update(self, activations: Mapping[str, Any], splits: Int[Tensor, "position"]) -> "Moments":
        """Add positions: activations `[position, d]` by name, float32 or float64, on any devices.

        Float32 products are taken on the device of the first activation, float64 ones on that of the sums.

        Raises:
            LrtError: the numbers of positions differ, or a width is not that of its shift.
        """
        for name, shift in self.shifts.items():
            if tuple(activations[name].shape) != (len(splits), len(shift)):
                raise LrtError(
                    f"activations {tuple(activations[name].shape)} of {name or 'no name'} in splits "
                    f"{tuple(splits.shape)} do not pair: they must be {(len(splits), len(shift))}"
                )
        states = {name: activations[name] for name in self.shifts}
        first, home = next(iter(states.values())).device, next(iter(self.sums.values())).device
        double = any(z.dtype == torch.float64 for z in states.values())
        device, dtype = (home, torch.float64) if double else (first, torch.float32)
        shifts = {name: shift.to(dtype).to(device) for name, shift in self.shifts.items()}
        for split in torch.unique(splits).tolist():
            here = (splits == split).nonzero().squeeze(1)
            for some in here.chunk(-(-len(here) // _POSITIONS_AT_ONCE)):
                chosen = {name: z[some.to(z.device)].to(device).to(dtype) for name, z in states.items()}
                self._add(split, {name: z - shifts[name] for name, z in chosen.items()}, len(some))
        return self

    def _add(self, split: int, shifted: Mapping[str, Tensor], n: int) -> None:
        self.count[split] += n
        for name, z in shifted.items():
            self.sums[name][split] += z.sum(0).to(self.sums[name].device)
        for (a, b), products in self.products.items():
            for start in range(0, products.shape[1], _ROWS_AT_ONCE):
                rows, columns = slice(start, start + _ROWS_AT_ONCE), slice(start if a == b else 0, None)
                total = products[split, rows, columns]
                total += (shifted[a][:, rows].T @ shifted[b][:, columns]).to(total.device)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets of positions, about this one's shifts.

        Raises:
            LrtError: the names, the widths or the numbers of splits differ.
        """
        ours, theirs = ({name: tuple(s.shape) for name, s in m.sums.items()} for m in (self, other))
        if ours != theirs or self.products.keys() != other.products.keys():
            raise LrtError(f"moments of {ours} and {theirs} (split, d) do not merge")
        other = other.to(next(iter(self.shifts.values())).device).shifted(self.shifts)
        return Moments(
            self.shifts,
            self.count + other.count,
            {name: total + other.sums[name] for name, total in self.sums.items()},
            {pair: total + other.products[pair] for pair, total in self.products.items()},
        )

    def to(self, device: torch.device) -> "Moments":
        """The same moments on another device."""
        shifts, sums = ({name: t.to(device) for name, t in of.items()} for of in (self.shifts, self.sums))
        return Moments(shifts, self.count, sums, {pair: t.to(device) for pair, t in self.products.items()})

    def shifted(self, shifts: Mapping[str, Tensor]) -> "Moments":
        """The same moments about other shifts."""
        moved = {name: shift - shifts[name] for name, shift in self.shifts.items()}
        if not any(d.any() for d in moved.values()):
            return self
        n = self.count.to(next(iter(moved.values())))[:, None]

        def product(a: str, b: str) -> Tensor:
            change = torch.einsum("si,j->sij", self.sums[a], moved[b])
            change += torch.einsum("i,sj->sij", moved[a], self.sums[b])
            return self.products[a, b] + change + n[..., None] * torch.outer(moved[a], moved[b])

        sums = {name: total + n * moved[name] for name, total in self.sums.items()}
        return Moments(dict(shifts), self.count, sums, {pair: product(*pair) for pair in self.products})

    def between(self, sources: Sequence[str], target: str) -> list[Centered]:
        """Split by split, the moments about its own mean of the sources, side by side, and the target."""
        return [self._centered(split, sources, target) for split in range(len(self.count))]

    def _centered(self, split: int, sources: Sequence[str], target: str) -> Centered:
        def mean(*names: str) -> Tensor:
            of = [self.shifts[name] + self.sums[name][split] / max(1, int(self.count[split])) for name in names]
            return torch.cat(of)

        xx = torch.cat([torch.cat([self._product(split, a, b) for b in sources], 1) for a in sources], 0)
        xy = torch.cat([self._product(split, a, target) for a in sources], 0)
        count = int(self.count[split])
        return Centered(count, mean(*sources), mean(target), xx, xy, self._product(split, target, target))

    def _product(self, split: int, a: str, b: str) -> Tensor:
        n = max(1, int(self.count[split]))
        own = self.products[a, b][split] if (a, b) in self.products else self.products[b, a][split].T
        own = own.triu() + own.triu(1).T if a == b else own
        return own - torch.outer(self.sums[a][split], self.sums[b][split]) / n
