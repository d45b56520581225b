"""Carry linear features from a small language model to a large one: a plugin for TransformerLens.

To begin with: `load_model`; `fit_affine_map`, whose map has `transport`; `mean_difference`, whose vector has `apply`,
`attach` and `save`; `evaluate_transfer` and `decide`; `transfer`, all of that as one call; `compare`, which asks
whether two models are one distribution; and `from lrt_tl import storyworld`, models and texts to try it on.

The public names stand in `__init__.pyi`, and are imported when they are first used.
"""

import lazy_loader

_get, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """A public name; where there is none of that name, the error says which is nearest."""
    if name in __all__ or name.startswith("_"):
        return _get(name)
    from difflib import get_close_matches

    nearest = get_close_matches(name, __all__, n=1)
    hint = f": do you mean {nearest[0]}?" if nearest else ""
    raise AttributeError(f"lrt_tl has no attribute {name}{hint}", name=name)
