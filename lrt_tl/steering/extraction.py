"""Steering vectors from texts: a pass of the model over contrast pairs, then an estimator on the states."""

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, overload, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.hook_names import resolve_hook_name
from lrt_tl.models.identity import Site, identify, site_of
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering import estimators
from lrt_tl.steering.contrast import ContrastPair, data_hash, read_contrast_pairs
from lrt_tl.steering.estimators import Estimator
from lrt_tl.steering.separation import report_separation
from lrt_tl.steering.states import PairPosition, SiteStates, check_pair_position, text_states
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.text.documents import hash_of, read_documents
from lrt_tl.text.positions import positions_to_json

_ROUNDING = 1e-6
"""A vector shorter than this fraction of the residual norm is float32 rounding."""

_ARGUMENTS = """
Args:
    contrast_pairs: whatever `read_contrast_pairs` takes.
    layer: the residual stream after this block, or these; or `hook_name`, one or several.
    position: where each text's state is read: see `PairPosition`. The mean over tokens transfers far better than the
        last token where the texts do not end alike.
    batch_size: texts in a forward pass.
    chat_template: a tokenizer with a chat template, through which all texts are read: see `read_contrast_pairs`.

Returns:
    A vector in the units of the residual stream at that site, with its `report`; for a list of layers or hook names,
    even of one, a list of vectors, all from one pass. See `steering.estimators` for what the length means.

Raises:
    LrtError: bad pairs, a text with nothing at the position or too long for the model, an activation that is not
        finite, or two sides with the same mean along what is found (a zero vector)."""


@runtime_checkable
class Extraction(Protocol):
    """A model and texts → a vector at a layer or hook name, or vectors at several."""

    @overload
    def __call__(self, model: HookedModel, data: Any, /, *, layer: int, **options: Any) -> SteeringVector: ...
    @overload
    def __call__(self, model: HookedModel, data: Any, /, *, hook_name: str, **options: Any) -> SteeringVector: ...
    @overload
    def __call__(
        self, model: HookedModel, data: Any, /, *, layer: Sequence[int], **options: Any
    ) -> list[SteeringVector]: ...
    @overload
    def __call__(
        self, model: HookedModel, data: Any, /, *, hook_name: list[str] | tuple[str, ...], **options: Any
    ) -> list[SteeringVector]: ...


def _overloaded(function: Any) -> Extraction:
    """The same function, of which type checkers know that one layer gives one vector, and several give a list."""
    return cast(Extraction, function)


def _from_pairs(estimator: Estimator) -> Extraction:
    """An estimator on states, as a function of a model and contrast pairs."""

    def extract(
        model: HookedModel,
        contrast_pairs: Any,
        *,
        layer: int | Sequence[int] | None = None,
        hook_name: str | Sequence[str] | None = None,
        position: PairPosition = "mean",
        batch_size: int = 32,
        prepend_bos: bool = True,
        chat_template: Any = None,
    ) -> SteeringVector | list[SteeringVector]:
        check_pair_position(position)
        sites = _sites(model, layer, hook_name)
        pairs = read_contrast_pairs(contrast_pairs, chat_template=chat_template)
        positive, negative = [pair.positive for pair in pairs], [pair.negative for pair in pairs]
        found = text_states(
            model,
            positive + negative,
            [site.hook_name for site in sites],
            position=position,
            partners=negative + positive,
            batch_size=batch_size,
            prepend_bos=prepend_bos,
        )
        provenance = {"n_pairs": len(pairs), "data": data_hash(pairs)}
        provenance |= _reading(position, prepend_bos, chat_template)
        vectors = [_vector(estimator, site, found[site.hook_name], pairs, provenance) for site in sites]
        return vectors if _are_several(layer, hook_name) else vectors[0]

    extract.__name__ = extract.__qualname__ = estimator.__name__
    extract.__doc__ = f"{inspect.getdoc(estimator)}\n{_ARGUMENTS}"
    return _overloaded(extract)


mean_difference = _from_pairs(estimators.mean_difference)
pca_of_differences = _from_pairs(estimators.pca_of_differences)
pca_of_states = _from_pairs(estimators.pca_of_states)
logistic_probe = _from_pairs(estimators.logistic_probe)
linear_discriminant = _from_pairs(estimators.linear_discriminant)

EXTRACTIONS: dict[str, Extraction] = {
    "mean_difference": mean_difference,
    "pca_of_differences": pca_of_differences,
    "pca_of_states": pca_of_states,
    "logistic_probe": logistic_probe,
    "linear_discriminant": linear_discriminant,
}
"""By name, those that take contrast pairs."""


@_overloaded
def mean_activation(
    model: HookedModel,
    texts: Any,
    *,
    layer: int | Sequence[int] | None = None,
    hook_name: str | Sequence[str] | None = None,
    position: PairPosition = "mean",
    batch_size: int = 32,
    prepend_bos: bool = True,
    chat_template: Any = None,
) -> SteeringVector | list[SteeringVector]:
    """Mean state of texts, each counting once: v = mean h. No difference, so that what all texts share is in it.

    Args:
        texts: whatever `read_documents` takes. All are held in memory, and each must fit into one forward pass.
        layer: the residual stream after this block, or these; or `hook_name`, one or several.
        position: where each text's state is read: see `PairPosition`; not `"answer"`, which takes pairs.
        batch_size: texts in a forward pass.
        chat_template: a tokenizer with a chat template, through which the texts are read.

    Returns:
        A vector in the units of the residual stream at that site, without a report; for a list of layers or hook names,
        a list of vectors, all from one pass.

    Raises:
        LrtError: bad texts, one with nothing at the position or too long for the model, or an activation that is not
            finite.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model = lrt.load_model("storyworld-small")
        >>> happy = [sample.text for sample in storyworld.samples(8, kind="story", mood="happy")]
        >>> of_happy = lrt.mean_activation(model, happy, layer=1)
        >>> of_all = lrt.mean_activation(model, storyworld.documents(8), layer=1)
        >>> print((of_happy - of_all).site, of_happy.report)
        storyworld-small L1 None
    """
    check_pair_position(position)
    sites = _sites(model, layer, hook_name)
    read = [document.text for document in read_documents(texts, chat_template=chat_template)]
    names = [site.hook_name for site in sites]
    found = text_states(model, read, names, position=position, batch_size=batch_size, prepend_bos=prepend_bos)
    provenance = {"method": "mean_activation", "n_texts": len(read), "data": f"{hash_of(json.dumps(read)):016x}"}
    provenance |= _reading(position, prepend_bos, chat_template)
    vectors = [
        SteeringVector(at.states.double().mean(0).float(), site, at.residual_norm, provenance)
        for site, at in ((site, found[site.hook_name]) for site in sites)
    ]
    return vectors if _are_several(layer, hook_name) else vectors[0]


def from_directions(
    model: HookedModel,
    directions: Float[Tensor, "*n d_model"],
    *,
    layer: int | None = None,
    hook_name: str | None = None,
    residual_norm: float | None = None,
    method: str = "given",
) -> SteeringVector | list[SteeringVector]:
    """Steering vectors from directions that came from elsewhere: rows of a sparse autoencoder's decoder, differences of
    unembedding columns, a published vector.

    Args:
        directions: one, or a row each; they keep their lengths.
        layer: the residual stream after this block, at which the directions live; or `hook_name`.
        residual_norm: median norm of the residual stream there, which `scale="residual"` takes.
        method: where they came from, to be noted down.

    Returns:
        A vector for `[d_model]`; a list, one for each row, for `[n, d_model]`.

    Raises:
        LrtError: a bad layer, another width than the model's, or a row that is zero or not finite (says which).

    Examples:
        >>> import lrt_tl as lrt
        >>> model = lrt.load_model("storyworld-small")
        >>> happy, sad = (model.to_single_token(word) for word in (" happy", " sad"))
        >>> lrt.from_directions(model, model.W_U[:, happy] - model.W_U[:, sad], layer=3, method="unembedding")
        SteeringVector(storyworld-small L3, 64 dimensions, norm 3.26, unembedding)
    """
    site = site_of(model, layer=layer, hook_name=hook_name)
    if directions.ndim not in (1, 2) or directions.shape[-1] != site.d_model or not directions.numel():
        raise LrtError(
            f"directions of shape {tuple(directions.shape)} are not [n, {site.d_model}] or [{site.d_model}], as "
            f"{model.cfg.model_name} needs them"
        )
    rows = directions.detach().cpu().float().reshape(-1, site.d_model)
    for number, row in enumerate(rows):
        if not torch.isfinite(row).all() or not row.any():
            raise LrtError(f"direction {number} is zero, or holds NaN or infinity: leave it out")
    vectors = [SteeringVector(row.clone(), site, residual_norm, {"method": method}) for row in rows]
    return vectors if directions.ndim == 2 else vectors[0]


def _sites(model: HookedModel, layer: Any, hook_name: Any) -> list[Site]:
    """The sites that are asked for, in that order.

    Raises:
        LrtError: one does not exist, or there is none.
    """
    several = hook_name if layer is None else layer
    places = several if _are_several(layer, hook_name) else [several]
    by = "hook_name" if layer is None else "layer"
    if not places or (layer is not None and hook_name is not None):
        raise LrtError(f"give layers or hook names, one at least, and not both: layer={layer}, hook_name={hook_name!r}")
    names = [resolve_hook_name(model, **{by: place}) for place in places]
    identity = identify(model)
    return [Site(name, model.cfg.d_model, identity) for name in names]


def _are_several(layer: Any, hook_name: Any) -> bool:
    return any(isinstance(place, Sequence) and not isinstance(place, str) for place in (layer, hook_name))


def _reading(position: PairPosition, prepend_bos: bool, chat_template: Any) -> dict[str, Any]:
    """How texts were read, for the provenance."""
    return {
        "position": positions_to_json(position),
        "prepend_bos": prepend_bos,
        "chat_template": chat_template is not None,
    }


def _vector(
    estimator: Estimator,
    site: Site,
    found: SiteStates,
    pairs: Sequence[ContrastPair],
    provenance: Mapping[str, Any],
) -> SteeringVector:
    """The vector of one site, with its report, from the states of all positive texts, then all negative ones.

    Raises:
        LrtError: the sides have one mean, but for rounding, along what the estimator finds.
    """
    method, states = estimator.__name__, found.states.double()
    sides = states[: len(pairs)], states[len(pairs) :]
    direction = estimator(*sides)
    if direction.norm() < _ROUNDING * found.residual_norm:
        along = "" if method == "mean_difference" else f" along what {method} finds at {site.hook_name}"
        raise LrtError(
            f"the two sides of the contrast pairs give the same mean state{along}: there is no direction to steer in"
        )
    report = report_separation(estimator, *sides, pairs, site=site, position=provenance["position"])
    return SteeringVector(direction.float(), site, found.residual_norm, {"method": method, **provenance}, report)
