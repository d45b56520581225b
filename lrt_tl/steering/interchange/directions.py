"""What all formats share: bare arrays of numbers become vectors of a model, and vectors the outputs of blocks."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lrt_tl.errors import ArtifactError, LrtError, MismatchError
from lrt_tl.models.hook_names import layer_of, resolve_hook_name, spelled_as_stored
from lrt_tl.models.identity import Site, identify, require_same_model
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.vector import SteeringVector

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def sites_at(model: HookedModel, places: Iterable[int | str], *, what: str) -> list[Site]:
    """The sites at layers (`resid_post`) or hook names of a model, which is identified once.

    Raises:
        MismatchError: the model has no such place.
    """
    identity = identify(model)
    try:
        names = [
            resolve_hook_name(model, hook_name=place)
            if isinstance(place, str)
            else resolve_hook_name(model, layer=place)
            for place in places
        ]
    except LrtError as error:
        raise MismatchError(f"{what}: {error}") from error
    return [Site(name, model.cfg.d_model, identity) for name in names]


def vector_at(site: Site, values: object, provenance: dict[str, Any], *, what: str) -> SteeringVector:
    """A vector with these values as its direction.

    Raises:
        ArtifactError: they are no tensor of floating-point numbers along one axis, or hold NaN or infinity, or are
            all 0.
        MismatchError: there are more or fewer of them than the site has dimensions.
    """
    if not isinstance(values, Tensor) or values.layout != torch.strided or values.device.type == "meta":
        raise ArtifactError(f"{what} is no tensor of numbers but {type(values).__name__}")
    if values.dtype not in _DTYPES:
        raise ArtifactError(f"{what} holds {values.dtype}, no floating-point numbers of 16 to 64 bits")
    if values.ndim != 1:
        raise ArtifactError(f"{what} has the shape {tuple(values.shape)}: a direction is one row of numbers, [d_model]")
    if len(values) != site.d_model:
        raise MismatchError(f"{what} has {len(values)} dimensions, and {site} has {site.d_model}")
    try:
        return SteeringVector(values.detach().to("cpu", torch.float32, copy=True), site, provenance=provenance)
    except LrtError as error:
        raise ArtifactError(f"{what}: {error}") from error


def by_output_layer(vectors: Iterable[SteeringVector], *, what: str) -> dict[int, SteeringVector]:
    """The vectors by the block to whose output they are added, in order, for formats that know nothing else.

    Raises:
        LrtError: there are none, or two at one place, or one is added elsewhere.
        MismatchError: they are not of one model.
    """
    found: dict[int, SteeringVector] = {}
    for vector in vectors:
        layer = output_layer(vector.site, what=what)
        if layer in found:
            raise LrtError(f"{what} takes one vector for each layer, and two are at {vector.site}: add them up first")
        found[layer] = vector
    if not found:
        raise LrtError(f"{what}: there are no vectors")
    require_one_model([vector.site for vector in found.values()])
    return dict(sorted(found.items()))


def output_layer(site: Site, *, what: str) -> int:
    """The block whose output is that point of the residual stream: `resid_post` of L, or `resid_pre` of L + 1.

    Raises:
        LrtError: it is the output of none.
    """
    point = spelled_as_stored(site.hook_name).rsplit("_", 1)[1] if site.hook_name else ""
    layer = layer_of(site.hook_name) if point else -1
    if point == "post":
        return layer
    if point == "pre" and layer > 0:
        return layer - 1
    raise LrtError(f"{what} takes vectors at the output of a block (hook_resid_post), and this one is at {site}")


def require_one_model(sites: Sequence[Site]) -> None:
    """Raises:
    MismatchError: they are sites of two models.
    """
    for site in sites[1:]:
        if site.d_model != sites[0].d_model:
            raise MismatchError(
                f"the vectors are of two models: {sites[0]} has {sites[0].d_model}, {site} {site.d_model}"
            )
        if site.model is not None and sites[0].model is not None:
            require_same_model(sites[0].model, site.model, what=f"the vector at {sites[0]}")
