"""A model that is in memory only while it is needed, for two that do not fit together."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lrt_tl.models.protocol import HookedModel


@dataclass(frozen=True)
class DeferredModel:
    """How to load a model, and what is known of it without its weights."""

    load: Callable[[], HookedModel]
    cfg: Any
    tokenizer: Any


@contextmanager
def present(model: HookedModel | DeferredModel) -> Iterator[HookedModel]:
    """The model itself; a deferred one is loaded.

    It is let go when nothing refers to it any longer: whoever uses this must not keep it in a variable.
    """
    yield load_alone(model.load) if isinstance(model, DeferredModel) else model


def load_alone(load: Callable[[], HookedModel]) -> HookedModel:
    """Load a model, after the memory of one before it, which may wait in a circle of references, has been freed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return load()
