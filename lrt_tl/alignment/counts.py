"""What a pass over the text kept and left out, by which rule, and what that did to the norms."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lrt_tl.tables import html_table
from lrt_tl.text.batches import BatchCounts


@dataclass
class Norms:
    """Norms of the residual stream at so many positions, those that are NaN or infinite left out."""

    count: int = 0
    total: float = 0.0
    largest: float = 0.0

    @property
    def mean(self) -> float:
        return self.total / max(1, self.count)

    def add(self, norms: Float[Tensor, "position"]) -> None:
        """Count these, too."""
        finite = norms[norms.isfinite()]
        if len(finite):
            self.merge(Norms(len(finite), float(finite.double().sum()), float(finite.max())))

    def merge(self, other: "Norms") -> None:
        """Count what the other has counted, too."""
        self.count += other.count
        self.total += other.total
        self.largest = max(self.largest, other.largest)


@dataclass
class HarvestCounts(BatchCounts):
    """What was harvested, and what was not: every token of the source is a position that was kept, or is special, a
    sink, unpaired, not selected, or cut off."""

    documents_excluded: int = 0
    positions: int = 0
    sinks_dropped: int = 0
    tokens_not_selected: int = 0
    """Text that pairs, and that the positions asked for leave out."""
    median_norms: dict[str, float] = field(default_factory=dict)
    norms_before: dict[str, Norms] = field(default_factory=dict)
    """By `source:` or `target:` and the hook name: at all tokens of the rows, whether they were kept or not."""
    norms_kept: dict[str, Norms] = field(default_factory=dict)
    """By the same keys: at the positions kept."""
    settings: dict[str, Any] = field(default_factory=dict)
    """How the text was read: the documents' name, context length, layout and beginning-of-sequence token; and at which
    positions, if not at all."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "HarvestCounts":
        """What `asdict` made of counts."""
        norms = {name: value.get(name, {}) for name in ("norms_before", "norms_kept")}
        return cls(
            **{**value, **{name: {key: Norms(**of) for key, of in found.items()} for name, found in norms.items()}}
        )

    def restart(self) -> None:
        """Forget what a pass counts as it reads the text, which it does from the beginning even when it resumes."""
        for item in fields(BatchCounts):
            setattr(self, item.name, 0)
        self.documents_excluded = 0

    def add_norms(self, key: str, before: Float[Tensor, "token"], kept: Float[Tensor, "position"]) -> None:
        """The norms at one hook point, of all tokens and of the positions kept."""
        self.norms_before.setdefault(key, Norms()).add(before)
        self.norms_kept.setdefault(key, Norms()).add(kept)

    def merge(self, other: "HarvestCounts") -> "HarvestCounts":
        """The counts of both passes; medians and settings are this one's."""
        merged = HarvestCounts(median_norms=self.median_norms, settings=self.settings)
        for counts in (self, other):
            for name in (item.name for item in fields(HarvestCounts) if item.default == 0):
                setattr(merged, name, getattr(merged, name) + getattr(counts, name))
            for ours, theirs in ((merged.norms_before, counts.norms_before), (merged.norms_kept, counts.norms_kept)):
                for key, norms in theirs.items():
                    ours.setdefault(key, Norms()).merge(norms)
        return merged

    def summary(self) -> dict[str, str]:
        """The figures, for a table."""
        paired = self.positions + self.sinks_dropped + self.tokens_not_selected
        text = paired + self.tokens_unpaired
        tokens = text + self.special_dropped + self.tokens_truncated

        def share(n: int, of: int = tokens) -> str:
            return f"{n / max(1, of):.1%}"

        return {
            "documents": f"{self.documents:,}",
            "documents left out, for they contain a contrast or behavior text": f"{self.documents_excluded:,}",
            "tokens of the source": f"{tokens:,}",
            "positions kept": f"{self.positions:,} ({share(self.positions)})",
            "special tokens left out": f"{self.special_dropped:,} ({share(self.special_dropped)})",
            "sinks left out (norm over 10× the median)": f"{self.sinks_dropped:,} ({share(self.sinks_dropped)})",
            "tokens not selected": f"{self.tokens_not_selected:,} ({share(self.tokens_not_selected)})",
            "tokens that pair with none of the target": f"{self.tokens_unpaired:,} ({share(self.tokens_unpaired)}); "
            f"{share(paired, text)} of the text pairs",
            "tokens cut off": f"{self.tokens_truncated:,} ({share(self.tokens_truncated)})",
            **{f"norm, {key}": self._norms_at(key, median) for key, median in self.median_norms.items()},
        }

    def _norms_at(self, key: str, median: float) -> str:
        """Mean and largest norm at a hook point, of all tokens → of the positions kept."""
        typical = f"median {median:,.2f}"
        if key not in self.norms_before:
            return typical
        before, kept = self.norms_before[key], self.norms_kept[key]
        means, largest = (f"{a:,.2f} → {b:,.2f}" for a, b in ((before.mean, kept.mean), (before.largest, kept.largest)))
        return f"mean {means}, largest {largest} (all tokens → positions kept); {typical}"

    def _repr_html_(self) -> str:
        return html_table(self.summary())
