"""What the vectors do at one coefficient, chosen on one half of the prompts and scored on the other."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lrt_tl.evaluation.behavior import Behavior
from lrt_tl.evaluation.curve import effect_curve
from lrt_tl.evaluation.recovery import Effect, Recovery, mean_effect, recovery
from lrt_tl.tables import html_table


@dataclass(frozen=True)
class Strength:
    """Effects, score at the coefficient minus score at 0, on prompts that had no part in choosing it.

    Attributes:
        coefficient: in lengths of the native vector: where that vector's mean effect on the choosing prompts is
            largest, before it breaks down. The transferred vector has no say in it.
        native: mean effect on the scoring prompts, as of the others.
        random: of the mean draw.
        random_high: the 95 % quantile of the draws' mean effects.
        recovery: of these effects in place of slopes.
        choosing: the prompts it was chosen on, by number.
        scoring: the prompts it was scored on.
        reason: why there is no coefficient, or no interval.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small = storyworld.load("small")
        >>> vector = lrt.mean_difference(small, storyworld.contrast_pairs("refusal", 8), layer=2)
        >>> result = lrt.evaluate_transfer(small, vector, storyworld.behavior("refusal", 8), native=vector, n_draws=19)
        >>> result.strength  # doctest: +ELLIPSIS
        Strength(at 8: native +5.9... [...], transferred +5.9... [...])
        >>> len(result.strength.choosing), len(result.strength.scoring)
        (4, 4)
    """

    coefficient: float | None = None
    native: Effect | None = None
    transferred: Effect | None = None
    random: Effect | None = None
    random_high: float | None = None
    recovery: Recovery | None = None
    choosing: tuple[int, ...] = ()
    scoring: tuple[int, ...] = ()
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self) | {"choosing": list(self.choosing), "scoring": list(self.scoring)}

    def table(self) -> dict[str, str]:
        """The same for people."""
        if self.coefficient is None:
            return {"at a coefficient chosen on other prompts": f"none: {self.reason}"}
        rows = {
            "coefficient": f"{self.coefficient:g}, chosen on {len(self.choosing)} prompts, scored on "
            f"{len(self.scoring)} others",
            "effect, native vector": str(self.native),
            "effect, transferred vector": str(self.transferred),
            "effect, random vectors": f"{self.random}; 95 % of them under {self.random_high:+.3g}",
            "recovery there": str(self.recovery),
        }
        return rows if self.reason is None else rows | {"interval": f"none: {self.reason}"}

    def __repr__(self) -> str:
        if self.coefficient is None:
            return f"Strength(none: {self.reason})"
        return f"Strength(at {self.coefficient:g}: native {self.native}, transferred {self.transferred})"

    def _repr_html_(self) -> str:
        return html_table(self.table())


def chosen_strength(
    behavior: Behavior,
    coefficients: Sequence[float],
    native: Float[Tensor, "coefficient prompt"],
    transferred: Float[Tensor, "coefficient prompt"],
    random: Float[Tensor, "draw coefficient prompt"],
    *,
    seed: int = 0,
) -> Strength:
    """Choose the coefficient by the native vector's scores on one half of the prompts, and score all on the other."""
    choosing, scoring = behavior.halves(seed)
    chosen_by: dict[str, Any] = {"choosing": tuple(choosing), "scoring": tuple(scoring)}
    if not choosing:
        return Strength(**chosen_by, reason="one prompt, or one question in both orders, cannot be split in two")
    coefficient = _best(native[:, choosing], coefficients)
    if coefficient is None:
        return Strength(**chosen_by, reason="the native vector raises the score at no coefficient, on average")
    at, zero = list(coefficients).index(coefficient), list(coefficients).index(0)
    own, carried, draws = (
        (scores[..., at, :] - scores[..., zero, :])[..., scoring] for scores in (native, transferred, random)
    )
    return Strength(
        coefficient=coefficient,
        native=mean_effect(own, seed=seed),
        transferred=mean_effect(carried, seed=seed),
        random=mean_effect(draws.mean(0), seed=seed),
        random_high=float(draws.mean(1).quantile(0.95)),
        recovery=recovery(own, carried, draws, seed=seed),
        **chosen_by,
        reason=None if len(scoring) > 1 else "with one prompt to score on, no interval can be given",
    )


def _best(native: Float[Tensor, "coefficient prompt"], coefficients: Sequence[float]) -> float | None:
    """The coefficient above 0 of the largest mean effect before breakdown; None where none is above zero."""
    end = effect_curve(native, coefficients).breakdown
    zero = native[list(coefficients).index(0)]
    effects = {
        coefficient: float((scores - zero).mean())
        for coefficient, scores in zip(coefficients, native, strict=True)
        if coefficient > 0 and (end is None or coefficient < end)
    }
    best = max(effects, key=effects.__getitem__)
    return best if effects[best] > 0 else None
