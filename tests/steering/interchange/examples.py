"""Vectors of a model, and plain references of what other programs do with them."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lrt_tl.models.identity import site_of
from lrt_tl.steering.separation import ExtractionReport
from lrt_tl.steering.vector import SteeringVector


def vectors_of(model: Any, *layers: int) -> list[SteeringVector]:
    """One random vector a layer, the first with a report."""
    generator = torch.Generator().manual_seed(7)
    vectors = [
        SteeringVector(
            torch.randn(model.cfg.d_model, generator=generator), site_of(model, layer=layer), 2.5, {"n": layer}
        )
        for layer in layers
    ]
    report = ExtractionReport("pca", "large", "blocks.1.hook_resid_post", "mean", 9, "1f", 0.75, None, 0.5, 0.25)
    return [replace(vectors[0], report=report), *vectors[1:]]


def directions(vectors: list[SteeringVector]) -> dict[str, Tensor]:
    """By hook name."""
    return {vector.site.hook_name: vector.direction for vector in vectors}
