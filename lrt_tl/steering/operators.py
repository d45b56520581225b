"""What is done to a state of the residual stream: four operators, each h ↦ h + coefficient · g(h) but for the last.

| operator | formula | coefficient |
|---|---|---|
| `add` | h + c v | lengths of v |
| `ablate` | h − c (h · u) u | 1 takes the component away (Arditi et al. 2024, arXiv 2406.11717, eq. 4) |
| `clamp` | h + c (a − h · u) u | 1 makes the component a |
| `rotate` | ‖h‖ (h + c v) / ‖h + c v‖ | lengths of v; the norm stays |

u = v/‖v‖. A clamp may be given a reader w · h + k: then it moves along v until *that* is a, which is what a clamp
becomes in another model: h + c (a − (w · h + k)) / (w · v) v.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.models.identity import Site
from lrt_tl.steering.probe import Probe
from lrt_tl.text.positions import Positions, check_positions

Operator = Literal["add", "ablate", "clamp", "rotate"]
Edit = Callable[[Tensor], Tensor]
"""States `[row, position, d_model]` → states of that shape and dtype."""
_SAME_DIRECTION = 0.999
"""Cosine above which two directions are taken for one."""


@dataclass(frozen=True, eq=False)
class Step:
    """One operator at one site.

    Attributes:
        direction: v; float32, on the CPU.
        coefficient: see the table of this module. At 0 nothing at all happens.
        value: a of a clamp, in the residual stream's units; None for the others.
        positions: where and when: see `text.positions`.
        when: steer only rows whose prompt this probe says yes to.
        reads: what a clamp reads; None for the component along the direction.
        provenance: how the direction was made.

    Raises:
        LrtError: the direction is no direction (see `check_direction`); the coefficient is not finite; positions or
            value cannot be; the reader is of another width, or does not notice the direction.
    """

    operator: Operator
    direction: Float[Tensor, "d_model"]
    site: Site
    coefficient: float = 1.0
    value: float | None = None
    positions: Positions = "all"
    when: Probe | None = None
    reads: Probe | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.operator not in get_args(Operator):
            raise LrtError(f"operator={self.operator!r} is none of {', '.join(get_args(Operator))}")
        check_direction(self.direction, self.site)
        check_number("coefficient", self.coefficient)
        check_number("value", 0.0 if self.value is None else self.value)
        if (self.value is None) == (self.operator == "clamp") or (self.reads and self.operator != "clamp"):
            raise LrtError(f"{self.operator} with value={self.value}: a clamp needs a value, and nothing else has one")
        check_positions(self.positions)
        if self.reads is not None and self.reads.weight.shape != self.direction.shape:
            raise LrtError(f"the clamp's reader has {len(self.reads.weight)} dimensions, not those of {self.site}")
        if self.reads is not None and abs(self._gain()) < 1e-6 * float(self.reads.weight.norm() * self.norm):
            raise LrtError("the clamp's reader does not notice its direction: no step along it reaches the value")

    @property
    def norm(self) -> float:
        """Euclidean length of the direction."""
        return float(self.direction.norm())

    @property
    def idle(self) -> bool:
        """Whether it does nothing."""
        return self.coefficient == 0

    def times(self, factor: float) -> "Step":
        """The same with another coefficient."""
        return replace(self, coefficient=factor * self.coefficient)

    def _gain(self) -> float:
        assert self.reads is not None
        return float(self.reads.weight @ self.direction)

    def __repr__(self) -> str:
        value = "" if self.value is None else f" to {self.value:g}"
        when = "" if self.when is None else " when a probe says yes"
        where = "" if self.positions == "all" else f" at {self.positions!r}"
        return f"{self.operator}{value} × {self.coefficient:g} on {self.site}{where}{when}"


def same_direction(step: Step, other: Step) -> bool:
    """Whether two steps of one width are along one line."""
    return bool(torch.cosine_similarity(step.direction, other.direction, dim=0).abs() > _SAME_DIRECTION)


def check_number(name: str, number: Any) -> None:
    """Raises:
    LrtError: it is not a finite number.
    """
    try:
        finite = math.isfinite(number)
    except TypeError as error:
        raise LrtError(f"{name}={number!r}: it must be a number, not of type {type(number).__name__}") from error
    if not finite:
        raise LrtError(f"{name}={number}: it must be a finite number")


def check_direction(direction: Tensor, site: Site) -> None:
    """Raises:
    LrtError: the direction is zero, not finite, not of the site's width, or not float32 on the CPU.
    """
    if direction.dtype != torch.float32 or direction.device.type != "cpu":
        raise LrtError(
            f"a steering vector is float32 on the CPU, not {direction.dtype} on {direction.device}: give it as "
            "direction.float().cpu()"
        )
    if direction.shape != (site.d_model,):
        raise LrtError(f"a vector of shape {tuple(direction.shape)} is not one of {site}")
    if not torch.isfinite(direction).all():
        raise LrtError("the steering vector holds NaN or infinity")
    if not direction.any():
        raise LrtError("the steering vector is zero: it points nowhere")


def edit_of(step: Step) -> Edit:
    """What a step does to states. It computes in float32 or above and gives back what it was given, but for `add`,
    which adds in the states' own precision, as a bare hook would."""
    v = step.direction
    if step.operator == "add":
        return _adding(step.coefficient * v)
    if step.operator == "rotate":
        return _in_float32(v, lambda h, v: _rotated(h, step.coefficient * v))
    if step.reads is not None:
        reader, bias = step.reads.weight / step._gain(), step.reads.bias / step._gain()
        offset = (step.value or 0.0) / step._gain() - bias
        both = torch.stack([reader, v])
        return _in_float32(both, lambda h, w: h + step.coefficient * (offset - h @ w[0])[..., None] * w[1])
    value = step.value or 0.0  # to ablate is to clamp to 0
    return _in_float32(v / v.norm(), lambda h, u: h + step.coefficient * (value - h @ u)[..., None] * u)


def _adding(delta: Tensor) -> Edit:
    there = _on_demand(delta)
    return lambda states: states + there(states, states.dtype)


def _in_float32(vectors: Tensor, edit: Callable[[Tensor, Tensor], Tensor]) -> Edit:
    there = _on_demand(vectors)

    def edited(states: Tensor) -> Tensor:
        wide = states if states.dtype == torch.float64 else states.float()
        return edit(wide, there(states, wide.dtype)).to(states.dtype)

    return edited


def _rotated(states: Tensor, delta: Tensor) -> Tensor:
    moved = states + delta
    norms = states.norm(dim=-1, keepdim=True)
    turned: Tensor = moved * (norms / moved.norm(dim=-1, keepdim=True).clamp(min=1e-30))
    return turned


def _on_demand(tensor: Tensor) -> Callable[[Tensor, torch.dtype], Tensor]:
    """The tensor where some states are, in a precision; moved there once."""
    moved: dict[tuple[Any, torch.dtype], Tensor] = {}

    def there(states: Tensor, dtype: torch.dtype) -> Tensor:
        key = (states.device, dtype)
        if key not in moved:
            with torch.inference_mode(False):  # `generate` runs in it, and what is made there has no gradients
                moved[key] = tensor.to(states.device, dtype, copy=True)
            if not torch.isfinite(moved[key]).all():
                raise LrtError(
                    f"the vector is too long for {dtype}: the largest number there is {torch.finfo(dtype).max:g}"
                )
        return moved[key]

    return there


def check_width(states: Tensor, step: Step) -> None:
    """Raises:
    MismatchError: the states are not as wide as the step's direction.
    """
    if states.shape[-1] != len(step.direction):
        raise MismatchError(
            f"a vector of {len(step.direction)} dimensions cannot be added to states of {states.shape[-1]}"
        )
