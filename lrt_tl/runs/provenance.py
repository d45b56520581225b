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


def call_of(arguments: Mapping[str, Any]) -> str:
    """The command, or the call in Python, that does the run again."""
    if "command" in arguments:
        return str(arguments["command"])
    called = "".join(f"    {name}={value!r},\n" for name, value in arguments.items())
    return f"lrt_tl.transfer(\n    source, target, documents, tasks,\n{called})"


def model_rows(sites: Sequence[Site]) -> list[dict[str, str]]:
    """One row for each model among the sites: its name and what it was recognized by."""
    models = {site.model.name: site.model for site in sites if site.model is not None}
    return [_model_row(model) for model in models.values()]


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
