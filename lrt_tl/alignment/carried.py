"""How well a map carries a direction, as far as the map alone can tell, before the target is looked at."""

import warnings
from dataclasses import dataclass

from jaxtyping import Float, Float64
from torch import Tensor

from lrt_tl.alignment.solvers import spectrum
from lrt_tl.tables import html_table

MOSTLY = 0.5
LITTLE_GAIN = 0.1
_NOISE = 1e-7
"""The noise floor of the moments: the rounding of float32 products, of the largest variance."""


@dataclass(frozen=True)
class Carried:
    """How well a map carries a vector.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> source, target = storyworld.load("small"), storyworld.load("medium")
        >>> affine_map = lrt.fit_affine_map(source, target, storyworld.documents(60), layers=(3, 5))
        >>> vector = lrt.mean_difference(source, storyworld.contrast_pairs("refusal", 8), layer=3)
        >>> carried = affine_map.carried(vector.direction)
        >>> print(f"{carried.determined:.1f} of it in known directions, {carried.gain:.1f} typical lengths")
        0.8 of it in known directions, 1.7 typical lengths
    """

    determined: float
    """The share of the vector's squared length in directions that the map knows: those eigenvectors of the source's
    covariance whose variance on the fitting text is above the map's penalty (s/(s + λ) > ½), or, where it has none,
    above the noise floor of the moments."""
    gain: float
    """How much longer or shorter the map makes the vector, ‖Av‖/‖v‖, in units of what it does to the difference of two
    states of the fitting text, √(tr(A Sxx Aᵀ)/tr Sxx)."""
    predicted_cosine: float
    """Of the carried vector and the target's own: ‖Av‖ / √(‖Av‖² + (vᵀ(Sxx + λ)⁻¹v / d_source) tr Σ), Σ the covariance
    of what the map leaves unexplained, tr Σ = (1 − R²) tr Syy. It supposes that the two sides of the contrast differ in
    what the map does not see by as many standard deviations a dimension as in what it sees. (Derived for this package.)

    Above 0.9 it can be believed, and below 0.8 it says nothing but that: between the bundled models, of 440 vectors
    those predicted above 0.9 measured 0.95 to 0.99 (quartiles), from 0.8 to 0.9 0.56 to 0.90, below 0.8 about 0 to
    under 0.50. It is too high for three of four; its mean error is 0.34, and its rank correlation with what is measured
    0.51 (0.74 through whitened maps from all layers, 0.33 through ridge from one; `benchmarks/predicted_cosine.py`)."""

    def __repr__(self) -> str:
        known = f"{self.determined:.0%} in directions that the map knows"
        return f"Carried({known}, {self.gain:.2f} typical lengths, predicted cosine {self.predicted_cosine:.2f})"

    def _repr_html_(self) -> str:
        return html_table(self.summary())

    def summary(self) -> dict[str, str]:
        """The figures, for a table."""
        return {
            "in directions that the map knows": f"{self.determined:.0%}",
            "length, of a typical difference's": f"{self.gain:.2f}",
            "cosine with the target's own, predicted": f"{self.predicted_cosine:.2f}",
        }


@dataclass(frozen=True)
class Known:
    """What a map knows of the directions of its source."""

    variances: Float64[Tensor, "d_source"]
    """Of the source's states along each direction."""
    directions: Float64[Tensor, "d_source d_source"]
    """Eigenvectors of their covariance, in columns."""
    penalty: float
    typical_gain: float
    unexplained: float
    """tr Σ."""

    @classmethod
    def of(
        cls,
        weight: Float[Tensor, "d_target d_source"],
        source_covariance: Float[Tensor, "d_source d_source"],
        target_covariance: Float[Tensor, "d_target d_target"],
        *,
        relative_ridge: float | None,
        r2: float,
    ) -> "Known":
        """From what a map keeps; one eigendecomposition of the source's covariance.

        Args:
            relative_ridge: the map's penalty, in units of the mean variance of a source dimension.
        """
        variances, directions = spectrum(source_covariance.double())
        mapped = weight.double() @ directions
        gain = ((mapped.square() @ variances).sum() / variances.sum()).sqrt()
        penalty = max((relative_ridge or 0.0) * float(variances.mean()), _NOISE * float(variances.max()))
        return cls(variances, directions, penalty, float(gain), (1 - r2) * float(target_covariance.double().trace()))

    def judge(self, direction: Float[Tensor, "d_source"], image: Float[Tensor, "d_target"]) -> Carried:
        """How well a direction is carried to its image."""
        along = (self.directions.T @ direction.double()).square()
        length, carried = float(along.sum()) ** 0.5, float(image.double().norm())
        deviations = float((along / (self.variances + self.penalty)).mean())
        unseen = deviations * self.unexplained
        return Carried(
            determined=float(along[self.variances > self.penalty].sum()) / length**2,
            gain=carried / length / self.typical_gain,
            predicted_cosine=carried / max(carried**2 + unseen, 1e-300) ** 0.5,
        )


def warn_of_little(carried: Carried | None, *, what: str, stacklevel: int = 3) -> None:
    """Warn where what was carried lies in directions that the map does not know, or does not carry."""
    if carried is None:
        return
    if carried.determined < MOSTLY:
        warnings.warn(
            f"only {carried.determined:.0%} of {what} lies in directions in which the source varied on the fitting "
            "text; where the rest goes is undetermined: fit the map on text that shows the feature, or on more text",
            stacklevel=stacklevel,
        )
    elif carried.gain < LITTLE_GAIN:
        warnings.warn(
            f"the map carries next to nothing of {what}: it makes it {carried.gain:.1g} times as long as it makes a "
            "typical difference of states. The target may not have the feature, or the map's rank is too low",
            stacklevel=stacklevel,
        )
