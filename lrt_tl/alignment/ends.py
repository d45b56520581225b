"""Where maps begin and end: two models, and points of their residual streams."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from lrt_tl.alignment.harvest import Transform, fingerprint_of
from lrt_tl.errors import LrtError
from lrt_tl.models.deferred import DeferredModel, load_alone
from lrt_tl.models.hook_names import resolve_hook_name
from lrt_tl.models.identity import Site, site_of
from lrt_tl.models.protocol import HookedModel

Model = HookedModel | Callable[[], HookedModel]
"""A model, or what loads it."""
Layers = int | Sequence[int] | Literal["all"]
"""One layer, several, or all that the model has."""
HookNames = str | Sequence[str]


@dataclass(frozen=True)
class End:
    """One side of maps: a model, which is given or will be loaded, and where in it they begin or end."""

    model: HookedModel | DeferredModel
    hook_names: list[str]
    sites: list[Site]


def both_ends(
    layers: tuple[Layers, Layers] | None, hook_names: tuple[HookNames, HookNames] | None
) -> tuple[list[Any], list[Any]]:
    """The layers, or the hook names, of source and of target.

    Raises:
        LrtError: neither or both of layers and hook names are given.
    """
    if (layers is None) == (hook_names is None):
        raise LrtError(f"give layers or hook_names, and not both: layers={layers}, hook_names={hook_names}")
    ends: Any = hook_names if layers is None else layers
    if not isinstance(ends, (tuple, list)) or len(ends) != 2:
        raise LrtError(f"layers and hook_names are of source and target, as layers=(2, 3), not {ends!r}")
    source, target = ([*end] if isinstance(end, Iterable) and not isinstance(end, str) else [end] for end in ends)
    return source, target


def resolve_ends(
    source: HookedModel,
    target: HookedModel,
    layers: tuple[Layers, Layers] | None,
    hook_names: tuple[HookNames, HookNames] | None,
) -> tuple[list[str], list[str]]:
    """The hook names at which maps begin, one or several, and end.

    Raises:
        LrtError: neither or both of layers and hook names are given, or one does not exist, or is given twice.
    """
    begin, end = both_ends(layers, hook_names)
    by_layer = hook_names is None
    return _resolve(source, begin, by_layer=by_layer), _resolve(target, end, by_layer=by_layer)


def look_at(model: Model, end: Sequence[Any], *, by_layer: bool, sequential: bool) -> End:
    """Find the layers or hook names of one side in its model, which is loaded for it where it is a function.

    Raises:
        LrtError: a model is given where it should be loaded, or the other way round; or what `resolve_ends` refuses.
    """
    load: Any = None if isinstance(model, HookedModel) else model
    if (load is not None) != sequential:
        raise LrtError(
            "with sequential=True, source and target are functions that load the models, such as "
            'lambda: lrt_tl.load_model("gpt2"), so that one is in memory at a time; without it they are the models'
        )
    loaded: Any = load_alone(load) if sequential else model
    if not isinstance(loaded, HookedModel):
        raise LrtError(f"a TransformerLens model was to be loaded, not {type(loaded).__name__}")
    names = _resolve(loaded, end, by_layer=by_layer)
    known = DeferredModel(load, loaded.cfg, loaded.tokenizer) if sequential else loaded
    return End(known, names, [site_of(loaded, hook_name=name) for name in names])


def site_of_features(end: End, features: Transform) -> Site:
    """Where features of the source live: a site that is of their width and bears their name and a fingerprint.

    Raises:
        LrtError: there are several source layers, or `features` does not make rows of rows.
    """
    if len(end.sites) > 1:
        raise LrtError(f"features= is of one source layer, and there are {len(end.sites)}")
    cfg = end.model.cfg
    with torch.no_grad():
        example = features(torch.zeros(2, cfg.d_model, device=cfg.device))
    if not isinstance(example, torch.Tensor) or example.ndim != 2 or len(example) != 2:
        shape = tuple(getattr(example, "shape", ()))
        raise LrtError(f"features= must make [position, d_features] of [position, d_model], not {shape}")
    name = getattr(features, "__name__", type(features).__name__)
    fingerprint = fingerprint_of(features, cfg.d_model, cfg.device)
    return replace(end.sites[0], d_model=example.shape[1], features=f"{name} {fingerprint}")


def _resolve(model: HookedModel, end: Sequence[Any], *, by_layer: bool) -> list[str]:
    if by_layer and end == ["all"]:
        end = range(model.cfg.n_layers)
    found = [
        resolve_hook_name(model, layer=each if by_layer else None, hook_name=None if by_layer else each) for each in end
    ]
    if not found or len(set(found)) < len(found):
        raise LrtError(f"the layers of {model.cfg.model_name} must be one or more different ones, not {end}")
    return found
