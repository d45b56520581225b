"""A layer or a hook name → the one name by which the package knows that point of the residual stream.

A `TransformerBridge` calls the residual stream after block L `blocks.L.hook_out` and keeps the `HookedTransformer` name
`blocks.L.hook_resid_post` as an alias. Both are accepted; the second, which both classes have, is what artifacts carry.
TransformerLens 3.9's Bridge ignores unknown hook names in silence, so every name is checked here.
"""

import operator
import re
from collections.abc import Iterable

from lrt_tl.errors import LrtError
from lrt_tl.models.protocol import HookedModel, HookPoint

_SPELLINGS = {"in": "resid_pre", "out": "resid_post"}
_RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_(in|out|resid_pre|resid_mid|resid_post)")


def resolve_hook_name(model: HookedModel, *, layer: int | None = None, hook_name: str | None = None) -> str:
    """The name of a point of the residual stream, checked against the model.

    Args:
        layer: the residual stream after this block, 0-based (`resid_post`).
        hook_name: instead of `layer`; `blocks.2.hook_resid_post`, `.hook_resid_pre`, `.hook_resid_mid`, or a Bridge's
            `blocks.2.hook_out`, `.hook_in`.

    Raises:
        LrtError: neither or both are given, the layer is out of range, or the model has no such hook point.
    """
    if (layer is None) == (hook_name is None):
        raise LrtError(f"give a layer or a hook name, and not both: layer={layer}, hook_name={hook_name!r}")
    n_layers = model.cfg.n_layers
    if layer is not None:
        if isinstance(layer, bool) or not hasattr(layer, "__index__"):
            raise LrtError(f"a layer is a number, not {layer!r}")
        layer = operator.index(layer)
        if not 0 <= layer < n_layers:
            raise LrtError(f"layer {layer} is out of range: {model.cfg.model_name} has layers 0 to {n_layers - 1}")
        return f"blocks.{layer}.hook_resid_post"
    assert hook_name is not None
    name = _in_range(model, hook_name)
    hook_point(model, name)
    return name


def _in_range(model: HookedModel, hook_name: str) -> str:
    name, n_layers = spelled_as_stored(hook_name), model.cfg.n_layers
    if layer_of(name) >= n_layers:
        raise LrtError(f"{hook_name!r} is out of range: {model.cfg.model_name} has layers 0 to {n_layers - 1}")
    return name


def spelled_as_stored(hook_name: str) -> str:
    """The spelling that artifacts carry: a Bridge's `hook_in` and `hook_out` become `hook_resid_pre` and `_post`.

    Raises:
        LrtError: it is not a point of the residual stream.
    """
    match = _RESIDUAL.fullmatch(str(hook_name))
    if match is None:
        raise LrtError(
            f"{hook_name!r} is not a point of the residual stream: these are blocks.L.hook_resid_pre and "
            "blocks.L.hook_resid_post, and blocks.L.hook_resid_mid where the model has it"
        )
    return f"blocks.{match[1]}.hook_{_SPELLINGS.get(match[2], match[2])}"


def hook_points(model: HookedModel, hook_names: Iterable[str]) -> list[HookPoint]:
    """The hook points of these (resolved) names. A Bridge of TransformerLens 3 makes its `hook_dict` anew, in
    milliseconds, whenever it is asked for it, so the blocks are asked first.

    Raises:
        LrtError: the model lacks one, such as `hook_resid_mid` where attention and MLP run in parallel.
    """
    return [_of_block(model, name) or _of_dict(model, name) for name in hook_names]


def _of_block(model: HookedModel, hook_name: str) -> HookPoint | None:
    match = _RESIDUAL.fullmatch(hook_name)
    if match is None or match[1] not in map(str, range(len(model.blocks))):
        return None
    found = getattr(model.blocks[int(match[1])], f"hook_{match[2]}", None)
    return found if isinstance(found, HookPoint) else None


def _of_dict(model: HookedModel, hook_name: str) -> HookPoint:
    named = model.hook_dict
    if hook_name not in named:
        raise LrtError(f"{model.cfg.model_name} ({type(model).__name__}) has no hook point {hook_name!r}")
    point: HookPoint = named[hook_name]
    return point


def hook_point(model: HookedModel, hook_name: str) -> HookPoint:
    """The hook point of that (resolved) name.

    Raises:
        LrtError: the model has none.
    """
    return hook_points(model, [hook_name])[0]


def check_writable(model: HookedModel, hook_name: str) -> None:
    """Raises:
    LrtError: the model has no such point of the residual stream, or what is added there does not stay in it. A Bridge's
        `hook_resid_mid` is where the second norm reads: a change there reaches the MLP, and goes round the skip
        connection.
    """
    point = hook_point(model, _in_range(model, hook_name))
    if _RESIDUAL.fullmatch(point.name or hook_name) is None:
        raise LrtError(
            f"{hook_name!r} can be read but not steered on {model.cfg.model_name} ({type(model).__name__}), where it "
            f"is {point.name!r}, the input of one part of the block: use hook_resid_pre or hook_resid_post"
        )


def layer_of(hook_name: str) -> int:
    """The block that a resolved hook name belongs to."""
    return int(spelled_as_stored(hook_name).split(".")[1])


def place_of(hook_name: str) -> tuple[int, int]:
    """Where a resolved hook name stands in the forward pass: block, and point within it."""
    points = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")
    return layer_of(hook_name), points.index(spelled_as_stored(hook_name).split(".")[2])
