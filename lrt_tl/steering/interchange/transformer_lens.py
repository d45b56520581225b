"""Steering as TransformerLens 4's declarative interventions, for a `RemoteBridge`: a target served by vLLM or Inspect.

A remote model runs no hooks of ours. It takes one specification for each hook point, `{"op": "add", "value": […]}`, and
`"pos"` in it where it is not for all positions.
"""

from collections.abc import Mapping
from numbers import Integral
from typing import Any

from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.steering.interchange.directions import output_layer, require_one_model
from lrt_tl.steering.steering import Steering
from lrt_tl.text.positions import Positions


def to_interventions(steering: Steering) -> dict[str, dict[str, Any]]:
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
        MismatchError: the steps are of two models.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> vector = lrt.from_directions(lrt.load_model("storyworld-small"), torch.ones(64), layer=1)
        >>> ((name, intervention),) = lrt.to_interventions(vector.add(4.0, positions=[0, 2])).items()
        >>> name, intervention["op"], intervention["pos"], intervention["value"][:3]
        ('blocks.1.hook_out', 'add', [0, 2], [4.0, 4.0, 4.0])
    """
    require_one_model([step.site for step in steering.steps])
    values: dict[str, Tensor] = {}
    at: dict[str, list[int] | None] = {}
    for number, step in enumerate(steering.steps):
        what = f"step {number} ({step!r}) cannot be run remotely"
        if step.operator != "add":
            raise LrtError(f"{what}: of our operators only 'add' is one of TransformerLens's")
        if step.when is not None:
            raise LrtError(f"{what}: it has a condition, which is read off the model's states")
        name = f"blocks.{output_layer(step.site, what=f'{what}: a remote model')}.hook_out"
        places = _absolute(step.positions, what)
        if name in at and at[name] != places:
            raise LrtError(f"{what}: {name} takes one set of positions, and has {at[name]} already")
        at[name] = places
        values[name] = values.get(name, 0) + step.coefficient * step.direction
    return {
        name: {"op": "add", "value": value.tolist()} | ({} if (places := at[name]) is None else {"pos": places})
        for name, value in values.items()
    }


def _absolute(positions: Positions, what: str) -> list[int] | None:
    """Positions as numbers from 0; None for all."""
    if positions == "all":
        return None
    if isinstance(positions, Mapping) and "first" in positions:
        return list(range(positions["first"]))
    places: Any = positions.get("at") if isinstance(positions, Mapping) else positions
    if isinstance(places, Integral):
        return [int(places)]
    if places is None or isinstance(places, str):
        raise LrtError(f"{what}: there positions are 'all', or numbers from 0")
    return sorted({int(place) for place in places})
