"""The steering vector: a difference of residual-stream states, and where it lives."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.artifacts import load_artifact, save_artifact
from lrt_tl.errors import ArtifactError, LrtError, MismatchError
from lrt_tl.hub import OnHub
from lrt_tl.models.hook_names import check_writable, resolve_hook_name
from lrt_tl.models.identity import Site, identify, require_same_model
from lrt_tl.models.protocol import Hook, HookedModel
from lrt_tl.steering.hooks import SteeringHandle, adding_hook, fixed_selector
from lrt_tl.text.positions import Positions

KIND = "steering_vector"
Scale = Literal["vector", "residual"]
"""The unit of a coefficient: the vector itself, or the median norm of the residual stream at its site."""


@dataclass(frozen=True, eq=False)
class SteeringVector(OnHub):
    """A direction at a site of a model.

    Raises:
        LrtError: the direction is zero, not finite, or not of the site's width.
    """

    direction: Float[Tensor, "d_model"]
    """float32, on the CPU."""
    site: Site
    residual_norm: float | None = None
    """Median norm of the residual stream at the site, over the text that the vector or its map came from."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """How it was made: the method, its data, and the map that carried it, if one did."""

    def __post_init__(self) -> None:
        if self.direction.shape != (self.site.d_model,):
            raise LrtError(f"a vector of shape {tuple(self.direction.shape)} is not one of {self.site}")
        if not torch.isfinite(self.direction).all():
            raise LrtError("the steering vector holds NaN or infinity")
        if not self.direction.any():
            raise LrtError("the steering vector is zero: it points nowhere")

    @property
    def norm(self) -> float:
        """Euclidean length of the direction."""
        return float(self.direction.norm())

    def scaled_to(self, norm: float) -> "SteeringVector":
        """The same direction with another length."""
        return replace(self, direction=self.direction * (norm / self.norm))

    @contextmanager
    def apply(
        self,
        model: HookedModel,
        coefficient: float = 1.0,
        *,
        positions: Positions = "all",
        scale: Scale = "vector",
    ) -> Iterator[SteeringHandle]:
        """Steer a model inside a `with` block: add coefficient × vector to the residual stream at the vector's site.

        Args:
            coefficient: in units of `scale`.
            positions: `"all"`, `"prompt"`, `"generated"`, or absolute positions; right under padding and a KV cache.
            scale: `"vector"`, or `"residual"` for a fraction of the median residual norm there.

        Raises:
            MismatchError: the vector belongs to another model, basis or hook point.
            LrtError: the positions or the scale cannot be used.
        """
        handle = self.attach(model, coefficient, positions=positions, scale=scale)
        try:
            yield handle
        finally:
            handle.remove()

    def attach(
        self,
        model: HookedModel,
        coefficient: float = 1.0,
        *,
        positions: Positions = "all",
        scale: Scale = "vector",
    ) -> SteeringHandle:
        """Steer a model until the handle's `remove()`. Arguments and refusals are those of `apply`."""
        self.check_model(model)
        delta = self.delta(coefficient, scale=scale)
        return SteeringHandle(model, self.site.hook_name, delta, coefficient=coefficient, positions=positions)

    def hooks(
        self,
        coefficient: float = 1.0,
        *,
        positions: Positions = "all",
        scale: Scale = "vector",
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> list[tuple[str, Hook]]:
        """`[(name, hook)]` for `model.hooks(fwd_hooks=…)` and `model.run_with_hooks(…)`, together with other hooks.

        Args:
            tokens: `[row, position]`, the batch that the model will be run on; not needed for `positions="all"`.
            mask: `[row, position]`, True or 1 at text.

        Raises:
            LrtError: what is asked for cannot be decided from activations, `tokens` and `mask`. The model is not known
                here, so it is not checked.
        """
        selector = fixed_selector(positions, tokens=tokens, mask=mask)
        return [(self.site.hook_name, adding_hook(self.delta(coefficient, scale=scale), selector))]

    def delta(self, coefficient: float, *, scale: Scale = "vector") -> Float[Tensor, "d_model"]:
        """What is added to a state.

        Raises:
            LrtError: the coefficient is not finite, or the scale is unknown, or not known here.
        """
        return self.strength(coefficient, scale=scale) * self.direction

    def strength(self, coefficient: float, *, scale: Scale = "vector") -> float:
        """The coefficient in units of the vector. Arguments and refusals are those of `delta`."""
        if not math.isfinite(coefficient):
            raise LrtError(f"coefficient={coefficient}: it must be a finite number")
        if scale == "vector":
            return coefficient
        if scale != "residual":
            raise LrtError(f"scale={scale!r}: use 'vector' or 'residual'")
        if self.residual_norm is None:
            raise LrtError("this vector does not know the residual norm at its site: use scale='vector'")
        return coefficient * self.residual_norm / self.norm

    def check_model(self, model: HookedModel) -> None:
        """Raises:
        MismatchError: the vector is not one of this model's.
        LrtError: the model lacks the vector's hook point, or does not let the residual stream be changed there.
        """
        if self.site.d_model != model.cfg.d_model:
            raise MismatchError(
                f"the vector has {self.site.d_model} dimensions, {model.cfg.model_name} has {model.cfg.d_model}: carry "
                "it over with affine_map.transport(vector)"
            )
        check_writable(model, resolve_hook_name(model, hook_name=self.site.hook_name))
        if self.site.model is not None:
            require_same_model(self.site.model, identify(model), what="the vector")

    def save(self, folder: str | Path) -> Path:
        """Write the vector to a new folder: `config.json`, `tensors.safetensors`, `README.md`.

        Raises:
            ArtifactError: the folder exists.
        """
        config = {"site": self.site.to_json(), "residual_norm": self.residual_norm, "provenance": self.provenance}
        return save_artifact(folder, kind=KIND, config=config, tensors={"direction": self.direction}, card=self._card())

    @classmethod
    def load(cls, folder: str | Path) -> "SteeringVector":
        """Read a vector back.

        Raises:
            ArtifactError: the folder is not a whole, unaltered steering vector.
        """
        config, tensors = load_artifact(folder, kind=KIND)
        try:
            site = Site.from_json(config["site"])
            return cls(tensors["direction"], site, config["residual_norm"], config["provenance"])
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{folder} is not a whole steering vector: {error!r}") from error

    def __repr__(self) -> str:
        method = self.provenance.get("method", "given")
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
        return "\n".join([*lines, *(f"- {key}: {value}" for key, value in self.provenance.items())])
