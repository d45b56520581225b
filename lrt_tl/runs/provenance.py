"""What is needed to do a run again: versions, arguments, and fingerprints of models and data."""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from lrt_tl.models.identity import ModelIdentity, Site

PACKAGES = ("lrt-tl", "transformer-lens", "transformers", "torch")


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what a run finds."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def digest(texts: Iterable[str]) -> str:
    """SHA-256 of texts in their order, each with its length before it, so that no other division gives the same."""
    found = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", errors="surrogatepass")
        found.update(len(encoded).to_bytes(8, "big") + encoded)
    return f"sha256:{found.hexdigest()}"


def call_of(arguments: Mapping[str, Any], called: str = "transfer(\n    source, target, documents, tasks") -> str:
    """The command, or the call in Python, that does the run again."""
    if "command" in arguments:
        return str(arguments["command"])
    named = "".join(f"    {name}={value!r},\n" for name, value in arguments.items())
    return f"lrt_tl.{called},\n{named})"


def model_rows(models: Sequence[ModelIdentity]) -> list[dict[str, str]]:
    """One row for each model: its name and what it was recognized by."""
    return [_model_row(model) for model in models]


def models_of(sites: Sequence[Site]) -> list[ModelIdentity]:
    """The models that are known, of sites, each once."""
    return list({site.model.name: site.model for site in sites if site.model is not None}.values())


def _model_row(model: ModelIdentity) -> dict[str, str]:
    weights = hashlib.sha256(json.dumps(model.weights, sort_keys=True).encode()).hexdigest()
    return {
        "model": model.name,
        "revision": model.revision or "not known",
        "layers × width": f"{model.n_layers} × {model.d_model}",
        "dtype, basis": f"{model.dtype}, {model.basis}",
        "SHA-256 of the tokenizer": model.tokenizer,
        "SHA-256 of the weights' fingerprint": weights,
    }
