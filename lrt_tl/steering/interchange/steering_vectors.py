"""Vectors of the package `steering-vectors`: an activation for each layer.

Of its layer types, `decoder_block` is the residual stream: its hook adds to what a decoder block of the Hugging Face
model returns, and layer L, counted from 0, is the L-th block. That is `blocks.L.hook_resid_post`.
"""

from collections.abc import Sequence
from typing import Any

from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.interchange.directions import by_output_layer, sites_at, vector_at
from lrt_tl.steering.vector import SteeringVector

_BLOCK = "decoder_block"


def to_steering_vectors(vectors: Sequence[SteeringVector]) -> Any:
    """One `steering_vectors.SteeringVector` with these vectors, for `apply` on a model of Hugging Face.

    Raises:
        LrtError: the package is not installed, there are no vectors, two at one layer, or one that is not at the output
            of a block.
        MismatchError: they are not of one model.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> model = lrt.load_model("storyworld-small")
        >>> vectors = [lrt.from_directions(model, torch.ones(64), layer=layer) for layer in (1, 2)]
        >>> print(*(vector.site for vector in vectors), sep=", ")
        storyworld-small L1, storyworld-small L2
        >>> theirs = lrt.to_steering_vectors(vectors)  # doctest: +SKIP
    """
    try:
        import steering_vectors
    except ImportError as error:
        raise LrtError("the package steering-vectors is not installed: pip install steering-vectors") from error
    found = by_output_layer(vectors, what="steering-vectors")
    return steering_vectors.SteeringVector({layer: vector.direction.clone() for layer, vector in found.items()}, _BLOCK)


def from_steering_vectors(theirs: Any, model: HookedModel) -> list[SteeringVector]:
    """The vectors of a `steering_vectors.SteeringVector`, one for each layer, in order.

    Args:
        model: the model that they are of; only the width and the number of layers can be checked.

    Raises:
        LrtError: it is no such object.
        MismatchError: it is of another layer type than `decoder_block`, of another width than the model, or of layers
            that the model lacks.
        ArtifactError: an activation is no row of finite floating-point numbers, or is all 0.

    Examples:
        >>> from types import SimpleNamespace
        >>> import torch
        >>> import lrt_tl as lrt
        >>> theirs = SimpleNamespace(layer_activations={1: torch.ones(64)}, layer_type="decoder_block")
        >>> lrt.from_steering_vectors(theirs, lrt.load_model("storyworld-small"))
        [SteeringVector(storyworld-small L1, 64 dimensions, norm 8, steering-vectors)]
    """
    activations, layer_type = (getattr(theirs, name, None) for name in ("layer_activations", "layer_type"))
    if not isinstance(activations, dict) or not activations:
        raise LrtError(f"a SteeringVector of steering-vectors is taken, with layer_activations, and not {theirs!r:.80}")
    if layer_type != _BLOCK:
        raise MismatchError(f"its activations are of {layer_type!r}; only {_BLOCK!r} is the residual stream")
    what = "the SteeringVector of steering-vectors"
    sites = sites_at(model, sorted(activations), what=what)
    return [
        vector_at(site, activations[layer], {"method": "steering-vectors"}, what=f"layer {layer} of {what}")
        for layer, site in zip(sorted(activations), sites, strict=True)
    ]
