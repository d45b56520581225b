"""What was measured of one transferred vector and one behavior."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.agreement import agreements
from lrt_tl.evaluation.curve import Curve, effect_curve
from lrt_tl.evaluation.effects import slopes
from lrt_tl.evaluation.prompted import Prompted
from lrt_tl.evaluation.recovery import Recovery, rank
from lrt_tl.evaluation.strength import Strength
from lrt_tl.tables import html_table

VECTORS = ("native", "transferred", "source_native")
"""The arms that are one vector each; all others are draws."""


@dataclass(frozen=True, eq=False)
class TransferResult:
    """The effect of a transferred vector on one behavior of the target, beside the native vector's and the nulls'.

    All vectors have the native vector's norm, which is the unit of the coefficients.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small, behavior = storyworld.load("small"), storyworld.behavior("refusal", 8)
        >>> vector = lrt.mean_difference(small, storyworld.contrast_pairs("refusal", 8), layer=2)
        >>> result = lrt.evaluate_transfer(small, vector, behavior, native=vector, n_draws=19)
        >>> result
        TransferResult(refusal: recovery 1.00 [1.00, 1.00], 8 prompts)
        >>> tuple(result.native.shape), tuple(result.controls["random"].shape)
        ((5, 8), (19, 5, 8))
        >>> result.slope("native") > float(result.control_slopes("random").max())
        True
    """

    behavior: str
    prompts: tuple[str, ...]
    coefficients: tuple[float, ...]
    native: Float[Tensor, "coefficient prompt"]
    """Scores."""
    transferred: Float[Tensor, "coefficient prompt"]
    controls: Mapping[str, Float[Tensor, "_draw coefficient prompt"]]
    source_native: Float[Tensor, "coefficient prompt"] | None
    """The source's own vector in the source, in units of its own norm."""
    recovery: Recovery
    """At matched norm."""
    recovery_matched_kl: Recovery
    """With every vector scaled to the native one's KL on neutral text."""
    cosine_with_native: float
    norm_over_native: float
    """Of the transferred vector as the map gave it, before it was scaled."""
    baselines: Mapping[str, Float[Tensor, "_draw coefficient prompt"]] = field(default_factory=dict)
    """Scores of vectors that are no nulls, but have to be beaten."""
    over_baseline: Mapping[str, Recovery] = field(default_factory=dict)
    """The transferred vector's share of the native effect that each baseline leaves."""
    baseline_recovery: Mapping[str, Recovery] = field(default_factory=dict)
    """Each baseline's own, over random vectors."""
    strength: Strength = field(default_factory=partial(Strength, reason="it was not measured"))
    """Effects at one coefficient, chosen on other prompts."""
    prompted: Prompted = field(default_factory=partial(Prompted, reason="it was not measured"))
    """The reference of a prompt alone."""
    cosine_with_mean: float | None = None
    """Of the transferred vector and the target's mean activation: one that is mostly that works like noise."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Controls and references of the default set that were not measured, and why."""

    def slope(self, arm: str) -> float:
        """Mean slope over the prompts, of an arm as `curve` takes it."""
        return float(slopes(self._scores(arm), self.coefficients).mean())

    def curve(self, arm: str) -> Curve:
        """The shape of a dose–response curve: of `"native"`, `"transferred"`, `"source_native"`, or of the mean draw of
        a control or a baseline.

        Raises:
            LrtError: there is no such arm, or the grid lacks 0.
        """
        return effect_curve(self._scores(arm), self.coefficients)

    def control_slopes(self, name: str) -> Float[Tensor, "draw"]:
        """Mean slope over the prompts of each draw of a control, or of a baseline."""
        return slopes(self._draws[name], self.coefficients).mean(-1)

    @property
    def _draws(self) -> Mapping[str, Float[Tensor, "_draw coefficient prompt"]]:
        return {**self.controls, **self.baselines}

    def _scores(self, arm: str) -> Float[Tensor, "coefficient prompt"]:
        scores: Tensor | None = getattr(self, arm) if arm in VECTORS else None
        if arm in self._draws:
            scores = self._draws[arm].mean(0)
        if scores is None:
            measured = [name for name in VECTORS if getattr(self, name) is not None] + list(self._draws)
            raise LrtError(f"no arm {arm!r} was measured, only {', '.join(measured)}")
        return scores

    def summary(self) -> dict[str, Any]:
        """Everything in numbers, ready for JSON.

        name, prompts: of the behavior; how many.
        native_slope, transferred_slope, source_native_slope: means over the prompts.
        CONTROL_slope, for each control: mean and spread over draws, and the ranks of both vectors among them.
        recovery, recovery_matched_kl: estimate, low and high, or the reason why there is none.
        baselines: of each its slope, its own recovery, and the transferred vector's over it.
        strength: effects at a coefficient that was chosen on other prompts: see `Strength`.
        prompted: what a prompt alone does: see `Prompted`.
        missing: what of the default set was not measured, and why.
        arms: propensity and slopes of each prompt, saturation and breakdown of each vector: see `Curve`.
        anti_steerable: share of the prompts that move the wrong way, of both vectors.
        agreement: the paper's r and MSE at each coefficient, with their nulls; None with fewer than three prompts.
        cosine_with_native, norm_over_native: of the transferred vector.
        coefficients, curves: mean scores of all arms, those of draws averaged.
        """
        vectors = [name for name in VECTORS if getattr(self, name) is not None]
        shapes = {name: self.curve(name).to_json() for name in vectors}
        enough = len(self.prompts) >= 3
        agreement = (
            agreements(self.native, self.transferred, self.controls["random"], self.coefficients) if enough else None
        )
        return {
            "name": self.behavior,
            "prompts": len(self.prompts),
            "source_native_slope": None if self.source_native is None else self.slope("source_native"),
            "native_slope": self.slope("native"),
            "transferred_slope": self.slope("transferred"),
            **{f"{name}_slope": self._control(name) for name in self.controls},
            "recovery": vars(self.recovery),
            "recovery_matched_kl": vars(self.recovery_matched_kl),
            "baselines": {name: self._baseline(name) for name in self.baselines},
            "strength": self.strength.to_json(),
            "prompted": self.prompted.to_json(),
            "missing": dict(self.missing),
            "arms": shapes,
            "anti_steerable": {name: shapes[name]["anti_steerable"] for name in ("native", "transferred")},
            "agreement": None if agreement is None else agreement.to_json(),
            "cosine_with_native": self.cosine_with_native,
            "norm_over_native": self.norm_over_native,
            "coefficients": list(self.coefficients),
            "curves": {name: self._scores(name).mean(-1).tolist() for name in (*vectors, *self._draws)},
        }

    def to_json(self) -> dict[str, Any]:
        """`summary`, by the name that all results have."""
        return self.summary()

    def _baseline(self, name: str) -> dict[str, Any]:
        return {
            "slope": self.slope(name),
            "n": len(self.baselines[name]),
            "recovery": vars(self.baseline_recovery[name]),
            "over_baseline": vars(self.over_baseline[name]),
        }

    def _control(self, name: str) -> dict[str, Any]:
        draws = self.control_slopes(name)
        return {
            "mean": float(draws.mean()),
            "std": float(draws.std()) if len(draws) > 1 else None,
            "n": len(draws),
            "rank_of_native": rank(self.slope("native"), draws),
            "rank_of_transferred": rank(self.slope("transferred"), draws),
        }

    def table(self) -> dict[str, str]:
        """The figures that a person needs, in words."""
        rows = {"recovery (transferred over native effect)": str(self.recovery)}
        rows["recovery at matched KL"] = str(self.recovery_matched_kl)
        for name, found in self.over_baseline.items():
            own = self.baseline_recovery[name].estimate
            has = "" if own is None else f"; the baseline's own recovery is {own:.2f}"
            rows[f"recovery over {name.replace('_', ' ')} (baseline)"] = f"{found}{has}"
        rows["slope, native vector"] = f"{self.slope('native'):+.4f}"
        rows["slope, transferred vector"] = f"{self.slope('transferred'):+.4f}"
        for name in self.controls:
            control = self._control(name)
            spread = "" if control["std"] is None else f" ± {control['std']:.4f} over {control['n']}"
            place = f"transferred ranks {control['rank_of_transferred']} of {control['n'] + 1}"
            rows[f"slope, {name.replace('_', ' ')} (null)"] = f"{control['mean']:+.4f}{spread}; {place}"
        if self.source_native is not None:
            rows["slope, source's vector in the source"] = f"{self.slope('source_native'):+.4f}"
        rows |= self.strength.table()
        if self.prompted.effect is not None:
            rows |= self.prompted.table()
        rows["cosine with the native vector"] = f"{self.cosine_with_native:.3f}"
        if self.cosine_with_mean is not None:
            rows["cosine with the target's mean activation"] = f"{self.cosine_with_mean:.3f}"
        shape = self.curve("transferred").table()
        rows |= {name: shape[name] for name in ("prompts that move the wrong way", "saturates at", "breaks down at")}
        rows |= {f"not measured: {name.replace('_', ' ')}": reason for name, reason in self.missing.items()}
        return rows

    def __repr__(self) -> str:
        return f"TransferResult({self.behavior}: recovery {self.recovery}, {len(self.prompts)} prompts)"

    def _repr_html_(self) -> str:
        return html_table(self.table(), caption=self.behavior)
