"""How a vector or a probe came about, in the words of a table."""

from collections.abc import Mapping
from typing import Any

from lrt_tl.tables import flattened

_IN_WORDS = {
    "n pairs": "contrast pairs",
    "n texts": "texts",
    "data": "hash of the texts",
    "position": "states read at",
    "prepend bos": "beginning of sequence in front",
    "chat template": "read through a chat template",
    "transported through": "carried through",
    "transported from": "carried from",
    "carried": "how well it was carried",
    "carried determined": "share in directions that the map knows",
    "carried gain": "length, of a typical difference's",
    "carried predicted cosine": "cosine with the target's own, predicted",
    "of": "made of",
    "model hint": "model that the file names",
}
"""What the package notes down, as a table says it."""


def in_words(provenance: Mapping[str, Any]) -> dict[str, str]:
    """For a table; what others noted down keeps its name."""
    return {_IN_WORDS.get(name, name): value for name, value in flattened(provenance).items()}
