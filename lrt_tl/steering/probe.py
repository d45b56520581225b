"""A probe: a direction that reads states, with a bias and a threshold."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lrt_tl.models.identity import Site
from lrt_tl.text.positions import positions_to_json
from lrt_tl.text.reading import TextPosition


@dataclass(frozen=True, eq=False)
class Probe:
    """w · h + c of the residual stream at a site; yes above a threshold."""

    weight: Float[Tensor, "d_model"]
    bias: float
    threshold: float
    site: Site
    position: TextPosition = "last"
    provenance: dict[str, Any] = field(default_factory=dict)

    def __call__(self, states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """The score of each state."""
        scores: Tensor = states @ self.weight.to(states) + self.bias
        return scores

    def parts(self) -> tuple[dict[str, Any], Tensor]:
        """What an artifact keeps of the probe: a configuration for JSON, and the weight."""
        config = {"bias": self.bias, "threshold": self.threshold, "site": self.site.to_json()}
        position = positions_to_json(self.position)
        return {**config, "position": position, "provenance": self.provenance}, self.weight

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], weight: Tensor) -> "Probe":
        """The probe of which these are the `parts`.

        Raises:
            KeyError, TypeError: something is missing.
        """
        site = Site.from_json(config["site"])
        return cls(weight, config["bias"], config["threshold"], site, config["position"], config["provenance"])
