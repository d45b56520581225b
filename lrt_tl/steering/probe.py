"""The probe: a linear reader of residual-stream states, and where and when it reads."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.artifacts import load_artifact, rebuilding, save_artifact, typed
from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.hub import OnHub
from lrt_tl.models.identity import Site
from lrt_tl.steering.provenance import in_words
from lrt_tl.tables import html_table
from lrt_tl.text.positions import positions_to_json
from lrt_tl.text.reading import TextPosition, check_text_position

KIND = "probe"


@runtime_checkable
class _Vector(Protocol):
    """What of a steering vector a probe is made of: the steps of steering hold probes, and so must come later."""

    @property
    def direction(self) -> Tensor: ...
    @property
    def site(self) -> Site: ...
    @property
    def provenance(self) -> dict[str, Any]: ...


@dataclass(frozen=True, eq=False)
class Probe(OnHub):
    """w · h + b at a site of a model: yes where that is above the threshold.

    Raises:
        LrtError: the weight is zero, not of the site's width, or not float32 on the CPU; something is not finite; or
            the position is none.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model = lrt.load_model("storyworld-small")
        >>> probe = lrt.Probe.of_vector(lrt.mean_difference(model, storyworld.contrast_pairs("refusal", 8), layer=1))
        >>> probe
        Probe(storyworld-small L1, 64 dimensions, 'last' > 0, projection)
        >>> _, cache = model.run_with_cache("The capital of Norvia is")
        >>> probe(cache["blocks.1.hook_resid_post"]).shape
        torch.Size([1, 6])
    """

    weight: Float[Tensor, "d_model"]
    """float32, on the CPU."""
    bias: float
    threshold: float
    site: Site
    position: TextPosition = "last"
    """Where it reads the state of a text."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """How it was made, and how well it tells its texts apart."""

    def __post_init__(self) -> None:
        if self.weight.dtype != torch.float32 or self.weight.device.type != "cpu":
            raise LrtError(
                f"a probe's weight is float32 on the CPU, not {self.weight.dtype} on {self.weight.device}: give it as "
                "weight.float().cpu()"
            )
        if self.weight.shape != (self.site.d_model,):
            raise LrtError(f"a probe of shape {tuple(self.weight.shape)} does not read {self.site}")
        if not (torch.isfinite(self.weight).all() and math.isfinite(self.bias) and math.isfinite(self.threshold)):
            raise LrtError("the probe's weight, bias or threshold is NaN or infinite")
        if not self.weight.any():
            raise LrtError("the probe's weight is zero: it reads nothing")
        check_text_position(self.position)

    @classmethod
    def of_vector(cls, vector: _Vector, *, position: TextPosition = "last", threshold: float = 0.0) -> "Probe":
        """The probe that reads how far a state goes along a steering vector: its projection on the unit direction, in
        the units of the residual stream. What is much and what is little `choose_threshold` finds on texts."""
        provenance = {"method": "projection", "vector": dict(vector.provenance)}
        unit = vector.direction / vector.direction.norm()
        return cls(unit, 0.0, threshold, vector.site, position, provenance)

    def __call__(self, states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """w · h + b; dtype and device are the states'.

        Raises:
            MismatchError: the width is not the site's.
        """
        if states.shape[-1:] != self.weight.shape:
            raise MismatchError(
                f"the probe reads states of {self.site} with {self.site.d_model} dimensions, not a tensor of shape "
                f"{tuple(states.shape)}"
            )
        return states @ self.weight.to(states) + self.bias

    def equals(self, other: "Probe") -> bool:
        """Whether the other reads the same at the same place, and says yes to the same."""
        if self is other:
            return True
        (ours, weight), (theirs, other_weight) = self.parts(), other.parts()
        return ours == theirs and torch.equal(weight, other_weight)

    def save(self, folder: str | Path) -> Path:
        """Write the probe to a new folder: `config.json`, `tensors.safetensors`, `README.md`.

        Raises:
            ArtifactError: the folder exists.
        """
        config, weight = self.parts()
        return save_artifact(folder, kind=KIND, config=config, tensors={"weight": weight}, card=self._card())

    @classmethod
    def load(cls, folder: str | Path) -> "Probe":
        """Read a probe back.

        Raises:
            ArtifactError: the folder is not a whole, unaltered probe.
        """
        config, tensors = load_artifact(folder, kind=KIND)
        with rebuilding(folder, "a whole probe"):
            return cls.from_parts(config, tensors["weight"])

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
        return typed(cls(weight, config["bias"], config["threshold"], site, config["position"], config["provenance"]))

    def summary(self) -> dict[str, str]:
        """What the probe is and how well it does, for a table."""
        return {
            "probe": f"{self.site}, {self.site.d_model} dimensions",
            "reads": f"{self.position}",
            "says yes above": f"{self.threshold:.4g}",
            **in_words(self.provenance),
        }

    def __repr__(self) -> str:
        method = self.provenance.get("method", "given")
        return f"Probe({self.site}, {self.site.d_model} dimensions, {self.position!r} > {self.threshold:.3g}, {method})"

    def _repr_html_(self) -> str:
        return html_table(self.summary())

    def _card(self) -> str:
        lines = [f"# Probe of {self.site}", "", *(f"- {name}: {value}" for name, value in self.summary().items())]
        lines += ["", "```python", "import lrt_tl as lrt", 'probe = lrt.Probe.from_pretrained("this folder")']
        return "\n".join([*lines, "says_yes = probe(states) > probe.threshold", "```"])
