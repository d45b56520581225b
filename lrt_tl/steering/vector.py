"""The steering vector: a difference of residual-stream states, and where it lives."""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from lrt_tl.artifacts import load_artifact, rebuilding, save_artifact, typed
from lrt_tl.errors import LrtError
from lrt_tl.hub import OnHub
from lrt_tl.models.identity import Site, require_same_site
from lrt_tl.models.protocol import Hook, HookedModel
from lrt_tl.steering.handle import SteeringHandle
from lrt_tl.steering.operators import Operator, Step, check_direction, check_number
from lrt_tl.steering.probe import Probe
from lrt_tl.steering.provenance import in_words
from lrt_tl.steering.separation import ExtractionReport
from lrt_tl.steering.steering import Steering
from lrt_tl.tables import html_table
from lrt_tl.text.positions import Positions

KIND = "steering_vector"
Scale = Literal["vector", "unit", "residual"]
"""The unit of a coefficient: the vector itself, the vector at length 1, or the median norm of the residual stream at
its site."""


@dataclass(frozen=True, eq=False)
class SteeringVector(OnHub):
    """A direction at a site of a model.

    Raises:
        LrtError: the direction is zero, not finite, not of the site's width, or not float32 on the CPU; or the residual
            norm is no length above 0.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model = lrt.load_model("storyworld-small")
        >>> vector = lrt.mean_difference(model, storyworld.contrast_pairs("refusal", 8), layer=1)
        >>> print(vector.site, vector.direction.shape, f"norm {vector.norm:.1f}")
        storyworld-small L1 torch.Size([64]) norm 3.4
        >>> with vector.apply(model, coefficient=4.0) as handle:
        ...     logits = model("The capital of Norvia is")
        >>> handle.positions_touched
        6
    """

    direction: Float[Tensor, "d_model"]
    """float32, on the CPU."""
    site: Site
    residual_norm: float | None = None
    """Median norm of the residual stream at the site, over the text that the vector or its map came from."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """How it was made: the method, its data, and the map that carried it, if one did."""
    report: ExtractionReport | None = None
    """How well it tells contrast pairs apart, where it was found on some."""

    def __post_init__(self) -> None:
        check_direction(self.direction, self.site)
        if self.residual_norm is not None and not 0 < self.residual_norm < math.inf:
            raise LrtError(f"residual_norm={self.residual_norm}: it is a length above 0, or None where it is not known")

    @property
    def norm(self) -> float:
        """Euclidean length of the direction."""
        return float(self.direction.norm())

    def scaled_to(self, norm: float) -> "SteeringVector":
        """The same direction with another length; the opposite one, without the report, where that is negative."""
        return self * (norm / self.norm)

    def __mul__(self, factor: float) -> "SteeringVector":
        report = self.report if factor > 0 else None  # which is of this side
        return replace(self, direction=factor * self.direction, report=report)

    __rmul__ = __mul__

    def __neg__(self) -> "SteeringVector":
        return -1.0 * self

    def __add__(self, other: "SteeringVector") -> "SteeringVector":
        """The sum of two vectors of one site. Vectors of several sites go together as `a.add() + b.add()`."""
        if not isinstance(other, SteeringVector):
            return NotImplemented
        require_same_site(self.site, other.site, what="the other vector")
        sources = [vector.provenance for vector in (self, other)]
        return SteeringVector(
            self.direction + other.direction, self.site, self.residual_norm, {"method": "sum", "of": sources}
        )

    def __sub__(self, other: "SteeringVector") -> "SteeringVector":
        return self + -other if isinstance(other, SteeringVector) else NotImplemented

    def add(
        self,
        coefficient: float = 1.0,
        *,
        positions: Positions = "all",
        scale: Scale = "vector",
        when: Probe | None = None,
    ) -> Steering:
        """Add coefficient × vector to the residual stream at the vector's site.

        Args:
            coefficient: in units of `scale`.
            positions: where and when: see `text.positions`; right under padding and a KV cache.
            scale: `"vector"`; `"unit"` for the vector at length 1; `"residual"` for a fraction of the median residual
                norm there.
            when: steer only rows whose prompt this probe says yes to.

        Raises:
            LrtError: the coefficient is no finite number, the scale is unknown or not known here, or the positions
                cannot be.
        """
        return self.operate("add", coefficient, scale=scale, positions=positions, when=when)

    def rotate(
        self,
        coefficient: float = 1.0,
        *,
        positions: Positions = "all",
        scale: Scale = "vector",
        when: Probe | None = None,
    ) -> Steering:
        """Add, and give each state back the norm that it had. Arguments and refusals are those of `add`."""
        return self.operate("rotate", coefficient, scale=scale, positions=positions, when=when)

    def ablate(self, coefficient: float = 1.0, *, positions: Positions = "all", when: Probe | None = None) -> Steering:
        """Take the component along the vector away, or that share of it (Arditi et al. 2024, arXiv 2406.11717)."""
        return self.operate("ablate", coefficient, positions=positions, when=when)

    def clamp(
        self, value: float, coefficient: float = 1.0, *, positions: Positions = "all", when: Probe | None = None
    ) -> Steering:
        """Make the component along the unit vector `value`, in the residual stream's units, or go that share of the
        way."""
        return self.operate("clamp", coefficient, value=value, positions=positions, when=when)

    def operate(
        self,
        operator: Operator,
        coefficient: float = 1.0,
        *,
        value: float | None = None,
        scale: Scale = "vector",
        positions: Positions = "all",
        when: Probe | None = None,
    ) -> Steering:
        """The operator of that name: see `steering.operators`.

        Raises:
            LrtError: as of `add`; a value without a clamp, or the other way round; or a scale with an operator whose
                coefficient is a share.
        """
        if operator in ("add", "rotate"):
            coefficient = self.strength(coefficient, scale=scale)
        elif scale != "vector":
            raise LrtError(f"scale={scale!r}: the coefficient of {operator} is a share, and has no unit")
        options: dict[str, Any] = {"positions": positions, "when": when, "provenance": self.provenance}
        return Steering((Step(operator, self.direction, self.site, coefficient, value, **options),))

    def apply(
        self,
        model: HookedModel,
        coefficient: float = 1.0,
        *,
        positions: Positions = "all",
        scale: Scale = "vector",
        when: Probe | None = None,
        log: bool = False,
    ) -> AbstractContextManager[SteeringHandle]:
        """Steer a model inside a `with` block: `add(…).apply(model)`. See there, and `Steering.apply`."""
        return self.add(coefficient, positions=positions, scale=scale, when=when).apply(model, log=log)

    def attach(
        self,
        model: HookedModel,
        coefficient: float = 1.0,
        *,
        positions: Positions = "all",
        scale: Scale = "vector",
        when: Probe | None = None,
        log: bool = False,
    ) -> SteeringHandle:
        """Steer a model until the handle's `remove()`: `add(…).attach(model)`."""
        return self.add(coefficient, positions=positions, scale=scale, when=when).attach(model, log=log)

    def hooks(
        self,
        coefficient: float = 1.0,
        *,
        positions: Positions = "all",
        scale: Scale = "vector",
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        tokenizer: Any = None,
    ) -> list[tuple[str, Hook]]:
        """`[(name, hook)]` for `model.hooks(fwd_hooks=…)` and `model.run_with_hooks(…)`: `add(…).hooks(…)`."""
        steering = self.add(coefficient, positions=positions, scale=scale)
        return steering.hooks(tokens=tokens, mask=mask, tokenizer=tokenizer)

    def delta(self, coefficient: float, *, scale: Scale = "vector") -> Float[Tensor, "d_model"]:
        """What is added to a state.

        Raises:
            LrtError: the coefficient is no finite number, or the scale is unknown, or not known here.
        """
        return self.strength(coefficient, scale=scale) * self.direction

    def strength(self, coefficient: float, *, scale: Scale = "vector") -> float:
        """The coefficient in units of the vector. Arguments and refusals are those of `delta`."""
        check_number("coefficient", coefficient)
        if scale == "vector":
            return coefficient
        if scale == "unit":
            return coefficient / self.norm
        if scale != "residual":
            raise LrtError(f"scale={scale!r}: use 'vector', 'unit' or 'residual'")
        if self.residual_norm is None:
            raise LrtError("this vector does not know the residual norm at its site: use scale='vector'")
        return coefficient * self.residual_norm / self.norm

    def check_model(self, model: HookedModel) -> None:
        """Raises:
        MismatchError: the vector is not one of this model's.
        LrtError: the model lacks the vector's hook point, or does not let the residual stream be changed there.
        """
        self.add().check_model(model)

    def save(self, folder: str | Path) -> Path:
        """Write the vector to a new folder: `config.json`, `tensors.safetensors`, `README.md`.

        Raises:
            ArtifactError: the folder exists.
        """
        config = {"site": self.site.to_json(), "residual_norm": self.residual_norm, "provenance": self.provenance}
        config["report"] = None if self.report is None else self.report.to_json()
        return save_artifact(folder, kind=KIND, config=config, tensors={"direction": self.direction}, card=self._card())

    @classmethod
    def load(cls, folder: str | Path) -> "SteeringVector":
        """Read a vector back.

        Raises:
            ArtifactError: the folder is not a whole, unaltered steering vector.
        """
        config, tensors = load_artifact(folder, kind=KIND)
        with rebuilding(folder, "a whole steering vector"):
            site = Site.from_json(config["site"])
            report = config.get("report") and ExtractionReport.from_json(config["report"])
            return typed(cls(tensors["direction"], site, config["residual_norm"], config["provenance"], report))

    def summary(self) -> dict[str, str]:
        """Where it lives, how it was made or carried, and how well it tells its pairs apart, for a table."""
        share = (
            "" if self.residual_norm is None else f", {self.norm / self.residual_norm:.2f} × the median residual norm"
        )
        return {
            "vector": f"{self.site}, {self.site.d_model} dimensions",
            "norm": f"{self.norm:.3g}{share}",
            **in_words(self.provenance),
            **({} if self.report is None else self.report.summary()),
        }

    def _repr_html_(self) -> str:
        return html_table(self.summary())

    def __repr__(self) -> str:
        method = str(self.provenance.get("method", "given"))
        method += f" of {self.provenance['n_pairs']} pairs" if "n_pairs" in self.provenance else ""
        carried = ", transported" if "transported_through" in self.provenance else ""
        return f"SteeringVector({self.site}, {self.site.d_model} dimensions, norm {self.norm:.3g}, {method}{carried})"

    def _card(self) -> str:
        lines = [f"# Steering vector for {self.site}", "", f"`{self!r}`", "", "```python"]
        lines += ["import lrt_tl as lrt", 'vector = lrt.SteeringVector.from_pretrained("this folder")']
        lines += [
            "with vector.apply(model, coefficient=4.0):",
            '    model.generate("…")',
            "```",
            "",
            "How it was made:",
            "",
        ]
        return "\n".join([*lines, *(f"- {name}: {value}" for name, value in self.summary().items())])
