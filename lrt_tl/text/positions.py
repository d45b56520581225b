"""Where and when: which positions of a forward pass a vector is added to."""

from collections.abc import Sequence
from numbers import Integral
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.calls import Call

Positions = Literal["all", "prompt", "generated"] | int | Sequence[int]
"""`"all"` text, the `"prompt"` only, what is `"generated"` only, or absolute positions counted from the row's first
token (padding is never counted, nor selected)."""


def check_positions(positions: object) -> None:
    """Raises:
    LrtError: not one of the named selectors, and not whole numbers from 0.
    """
    if isinstance(positions, str):
        if positions not in ("all", "prompt", "generated"):
            raise LrtError(f"positions={positions!r}: use 'all', 'prompt', 'generated' or absolute positions from 0")
        return
    wanted = [positions] if isinstance(positions, Integral) else positions
    if (
        not isinstance(wanted, Sequence)
        or not wanted
        or not all(isinstance(p, Integral) and int(p) >= 0 for p in wanted)
    ):
        raise LrtError(f"positions={positions!r}: absolute positions are whole numbers from 0, and there must be one")


def select(positions: Positions, call: Call) -> Bool[Tensor, "row position"]:
    """The selected columns of a call."""
    if positions == "all":
        return call.mask
    if positions == "prompt":
        return call.mask & ~call.generated
    if positions == "generated":
        return call.mask & call.generated
    wanted = torch.as_tensor(positions, device=call.index.device).reshape(-1)
    return call.mask & torch.isin(call.index, wanted)
