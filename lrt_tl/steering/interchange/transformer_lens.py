"""Steering as TransformerLens 4's declarative interventions, for a `RemoteBridge`: a target served by vLLM or Inspect.

A remote model runs no hooks of ours. It takes one specification for each hook point, `{"op": "add", "value": […]}`, and
`"pos"` in it where it is not for all positions.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Protocol

from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.identity import Site
from lrt_tl.steering.interchange.directions import output_layer


class _Step(Protocol):
    @property
    def operator(self) -> str: ...
    @property
    def direction(self) -> Tensor: ...
    @property
    def site(self) -> Site: ...
    @property
    def coefficient(self) -> float: ...
    @property
    def positions(self) -> Any: ...
    @property
    def when(self) -> object: ...


class _Steering(Protocol):
    @property
    def steps(self) -> Sequence[_Step]: ...


def to_interventions(steering: _Steering) -> dict[str, dict[str, Any]]:
    """What does the same to a remote model: `remote(tokens, intervene=to_interventions(vector.add(4.0)))`.

    Steps at one hook point and the same positions are added up. `"pos"` counts from the first column of the batch, so
    give one row without padding; vLLM takes it only if booted with `enable_position_interventions=True`. The weights
    of a remote model cannot be read, so it is not checked that the steering is for it.

    Returns:
        Specifications by Bridge's hook names, such as `blocks.3.hook_out`, of plain numbers.

    Raises:
        LrtError: a step cannot be said so: it does more than add, has a condition, is elsewhere than at the output of a
            block, is for positions that depend on the text or on generation, or for others than a step at the same hook
            point. The message names it.
    """
    values: dict[str, Tensor] = {}
    at: dict[str, list[int] | None] = {}
    for number, step in enumerate(steering.steps):
        what = f"step {number} ({step.operator} at {step.site}, positions {step.positions!r})"
        if step.operator != "add":
            raise LrtError(f"{what} cannot be run remotely: of our operators only 'add' is one of TransformerLens's")
        if step.when is not None:
            raise LrtError(f"{what} cannot be run remotely: it has a condition, which is read off the model's states")
        name = f"blocks.{output_layer(step.site, what=f'{what} cannot be run remotely: a remote model')}.hook_out"
        places = _absolute(step.positions, what)
        if name in at and at[name] != places:
            raise LrtError(
                f"{what} cannot be run remotely: {name} takes one set of positions, and has {at[name]} already"
            )
        at[name] = places
        values[name] = values.get(name, 0) + step.coefficient * step.direction
    return {
        name: {"op": "add", "value": value.tolist()} | ({} if (places := at[name]) is None else {"pos": places})
        for name, value in values.items()
    }


def _absolute(positions: Any, what: str) -> list[int] | None:
    """Positions as numbers from 0; None for all."""
    if positions == "all":
        return None
    if isinstance(positions, dict) and len(positions) == 1:
        positions = range(positions["first"]) if "first" in positions else positions.get("at", positions)
    if isinstance(positions, Integral):
        positions = [positions]
    if isinstance(positions, str | dict) or not all(isinstance(p, Integral) and int(p) >= 0 for p in positions):
        raise LrtError(f"{what} cannot be run remotely: there positions are 'all', or numbers from 0")
    return sorted({int(place) for place in positions})
