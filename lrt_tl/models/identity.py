"""What a model *is*, as far as its residual stream goes, and whether another one is the same.

A map fitted on one residual stream is silently wrong on another: of another model, of other weights, or of the same
weights in another basis. TransformerLens's `center_writing_weights`, the default of `HookedTransformer.from_pretrained`
and part of a Bridge's `enable_compatibility_mode`, subtracts from every state its mean over `d_model`. Folding
LayerNorm leaves the residual stream as it is. So an identity holds what makes a difference there, is the same for both
classes of model, and is read off the weights, since nothing else records what was done to them.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.artifacts import typed
from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.models.hook_names import resolve_hook_name, spelled_as_stored
from lrt_tl.models.protocol import HookedModel

Basis = Literal["raw", "centered"]
_SAMPLED_ROWS = 512
_ROUNDING = {"bfloat16": 1e-2, "float16": 1e-3}
"""More than rounding weights, before or after they are centered, moves a fingerprint; in other precisions 1e-4 is."""


@dataclass(frozen=True)
class ModelIdentity:
    """What a model is. `name`, `revision` and `dtype` are for people; the rest must agree for use."""

    name: str
    revision: str | None
    n_layers: int
    d_model: int
    tokenizer: str
    """SHA-256 of the tokenizer's rules and vocabulary."""
    dtype: str
    basis: Basis
    """`"centered"` if everything that writes to the residual stream has mean zero over `d_model`."""
    weights: dict[str, float]
    """Fingerprint: a number for the embedding, and for each block's attention and MLP, from what they write to the
    residual stream. The same for both classes, folded or not, centered or not; another for other weights. (What they
    *read* with changes when LayerNorm is folded, so that a change there alone goes unnoticed.)"""

    def __repr__(self) -> str:
        return f"ModelIdentity({self.name}, {self.n_layers} layers of width {self.d_model}, {self.dtype}, {self.basis})"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ModelIdentity":
        """Raises:
        TypeError: it is not what `to_json` gives.
        """
        return typed(cls(**value))


@dataclass(frozen=True)
class Site:
    """A point of the residual stream of a model: where a map begins or ends, and where a vector lives."""

    hook_name: str
    """Empty for activations that came without one: then nothing that has a place can be carried from or to there."""
    d_model: int
    model: ModelIdentity | None = None
    """None for activations that came without their model: then only the width can be checked."""
    features: str = ""
    """What was made of the states, such as `encode` of an autoencoder, where they are not the states themselves."""

    def __str__(self) -> str:
        return f"{self._place()} {self.features}".strip()

    def __repr__(self) -> str:
        return f"Site({self}, {self.d_model} dimensions)"

    def _place(self) -> str:
        name = "unknown model" if self.model is None else self.model.name
        if not self.hook_name:
            return name
        layer, point = self.hook_name.split(".")[1:]
        return f"{name} L{layer}" + ("" if point == "hook_resid_post" else f" {point.removeprefix('hook_')}")

    def to_json(self) -> dict[str, Any]:
        model = None if self.model is None else self.model.to_json()
        return {"hook_name": self.hook_name, "d_model": self.d_model, "model": model, "features": self.features}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Site":
        """Raises:
        KeyError, TypeError, LrtError: it is not what `to_json` gives.
        """
        model = None if value["model"] is None else ModelIdentity.from_json(value["model"])
        site = typed(cls(value["hook_name"], value["d_model"], model, value.get("features", "")))
        if site.hook_name:
            spelled_as_stored(site.hook_name)
        return site


def describe_sites(sites: Sequence[Site]) -> str:
    """`small L2`; several of one model as `small L0 + L1 + L2`."""
    names = [str(site) for site in sites] or ["nowhere"]
    model = names[0].rsplit(" L", 1)[0]
    if any(name.rsplit(" L", 1)[0] != model for name in names):
        return " + ".join(names)
    return " + ".join([names[0], *(name.removeprefix(f"{model} ") for name in names[1:])])


def site_of(model: HookedModel, *, layer: int | None = None, hook_name: str | None = None) -> Site:
    """The site at a layer (`resid_post`) or hook name of a model.

    Raises:
        LrtError: the layer is out of range or the hook point does not exist.
    """
    return Site(resolve_hook_name(model, layer=layer, hook_name=hook_name), model.cfg.d_model, identify(model))


def identify(model: HookedModel) -> ModelIdentity:
    """Read a model's identity off its configuration, tokenizer and weights.

    That takes milliseconds for a small model, and a second for a large one, so what the weights say is kept until one
    of them is replaced or changed in place. (PyTorch does not tell of changes through `weight.data`.)
    """
    basis, weights = _read_off_weights(model)
    return ModelIdentity(
        name=str(model.cfg.model_name).rstrip("/").split("/")[-1],
        revision=getattr(model.cfg, "revision", None),
        n_layers=model.cfg.n_layers,
        d_model=model.cfg.d_model,
        tokenizer=tokenizer_fingerprint(model.tokenizer),
        dtype=str(model.cfg.dtype).removeprefix("torch."),
        basis=basis,
        weights=weights,
    )


_known: "WeakKeyDictionary[Any, tuple[list[tuple[int, int]], Basis, dict[str, float]]]" = WeakKeyDictionary()


def _read_off_weights(model: HookedModel) -> tuple[Basis, dict[str, float]]:
    """The basis, and a fingerprint of each weight that writes to the residual stream."""
    modules = [each for each in (model, getattr(model, "original_model", model)) if isinstance(each, torch.nn.Module)]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    state = [(p.data_ptr(), -1 if p.is_inference() else p._version) for p in parameters]
    if model not in _known or _known[model][0] != state or not state:
        weights = dict(_writing_weights(model))
        basis: Basis = "centered" if all(map(_is_centered, weights.values())) else "raw"
        _known[model] = state, basis, {name: round(_fingerprint(weight), 6) for name, weight in weights.items()}
    return _known[model][1], dict(_known[model][2])


def require_same_model(expected: ModelIdentity, actual: ModelIdentity, *, what: str) -> None:
    """Refuse to use an artifact on a model that it was not made on.

    Args:
        what: the artifact and how it relates to `expected`, as the subject of the message.

    Raises:
        MismatchError: names the fields that differ and how to load the model so that it fits.
    """
    fields = ("d_model", "n_layers", "tokenizer", "basis")
    differences = [
        f"{field} is {_short(getattr(actual, field))}, not {_short(getattr(expected, field))}"
        for field in fields
        if getattr(actual, field) != getattr(expected, field)
    ]
    differences += _weight_differences(expected, actual)
    if not differences:
        return
    message = f"{what} belongs to {expected.name}; this model, {actual.name}, differs: {'; '.join(differences)}."
    if expected.basis != actual.basis:
        message += " " + _HOW_TO_LOAD[expected.basis]
    raise MismatchError(message)


def require_same_site(expected: Site, actual: Site, *, what: str) -> None:
    """Refuse a site that is not the one expected.

    Raises:
        MismatchError: says in what they differ.
    """
    if (expected.hook_name, expected.d_model, expected.features) != (actual.hook_name, actual.d_model, actual.features):
        raise MismatchError(
            f"{what} is at {expected} ({expected.d_model} dimensions), not at {actual} ({actual.d_model} dimensions)"
        )
    if expected.model is not None and actual.model is not None:
        require_same_model(expected.model, actual.model, what=what)


_HOW_TO_LOAD = {
    "raw": "Load it without processing: TransformerBridge.boot_transformers(...) as it comes (what "
    "enable_compatibility_mode() has done cannot be undone), or HookedTransformer.from_pretrained_no_processing(...).",
    "centered": "Load it with centered weights: HookedTransformer.from_pretrained(...), or a TransformerBridge after "
    "enable_compatibility_mode().",
}


def same_tokenizer(source: Any, target: Any) -> bool:
    """Whether the positions of two tokenizers' tokens pair one to one.

    Special tokens count: a chat model's role markers are plain text to the model that it was made from. The models'
    `d_vocab` does not: models of one family pad their embeddings to different sizes.
    """
    same_rules = tokenizer_fingerprint(source) == tokenizer_fingerprint(target)
    same_begin = source.bos_token_id == target.bos_token_id
    return same_rules and same_begin and special_tokens(source) == special_tokens(target)


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """By id, the tokens that stand for no text: those with a part to play (beginning of sequence, padding …), and all
    others that the vocabulary marks as special, as it does most chat templates' role markers."""
    marked = getattr(tokenizer, "added_tokens_decoder", {})
    named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return named | {number: token.content for number, token in marked.items() if token.special}


_tokenizers: "WeakKeyDictionary[Any, str]" = WeakKeyDictionary()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's rules and vocabulary; padding, truncation and special-token settings are left out, for
    TransformerLens changes them.

    Raises:
        LrtError: there is no tokenizer.
    """
    if tokenizer is None:
        raise LrtError("the model has no tokenizer: load it with one, since documents are text")
    if tokenizer not in _tokenizers:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            rules: Any = sorted(tokenizer.get_vocab().items())
        else:
            whole = json.loads(backend.to_str())
            rules = {key: whole[key] for key in ("model", "normalizer", "pre_tokenizer")}
            rules["added_tokens"] = [token for token in whole["added_tokens"] if not token["special"]]
        _tokenizers[tokenizer] = hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
    return _tokenizers[tokenizer]


def _writing_weights(model: HookedModel) -> Iterator[tuple[str, Float[Tensor, "row d_model"]]]:
    """A sample of the rows of what writes to the residual stream: the embedding, and each block's attention and MLP
    (but not the MLP of a mixture of experts, which is not one matrix)."""
    yield "embed", _sample(model.W_E)
    for layer, block in enumerate(model.blocks):
        writers = {"attn": getattr(block.attn, "W_O", None), "mlp": getattr(getattr(block, "mlp", None), "W_out", None)}
        for name, weight in writers.items():
            if weight is not None:
                yield f"blocks.{layer}.{name}", _sample(weight)


def _sample(weight: Tensor) -> Float[Tensor, "row d_model"]:
    rows = weight.detach().reshape(-1, weight.shape[-1])
    return rows[:: max(1, len(rows) // _SAMPLED_ROWS)][:_SAMPLED_ROWS].cpu().double()


def _is_centered(weight: Float[Tensor, "row d_model"]) -> bool:
    """Rows of mean zero. The row means of independent entries are about 1/√d_model of their size, and training can
    bring that down to a fifth, since LayerNorm does not see the mean; centering, and rounding to bfloat16, leaves 0.003
    of it."""
    size = weight.square().mean().sqrt()
    means = weight.mean(1).square().mean().sqrt()
    return bool(means * math.sqrt(weight.shape[1]) < 0.02 * size)


def _fingerprint(weight: Float[Tensor, "row d_model"]) -> float:
    """r·(Wc)/‖Wc‖ for fixed vectors r and c with Σc = 0: centering W over d_model, or a factor, changes nothing."""
    rows = torch.arange(weight.shape[0], dtype=torch.float64, device=weight.device)
    columns = torch.arange(weight.shape[1], dtype=torch.float64, device=weight.device)
    c = torch.cos(columns * math.sqrt(2))
    written = weight @ (c - c.mean())
    return float((torch.cos(rows * math.sqrt(3)) @ written) / written.norm().clamp(min=1e-300))


def _weight_differences(expected: ModelIdentity, actual: ModelIdentity) -> list[str]:
    if expected.n_layers != actual.n_layers:
        return []  # named already
    if expected.weights.keys() != actual.weights.keys():
        return ["the weights are others"]
    tolerance = max(_ROUNDING.get(dtype, 1e-4) for dtype in (expected.dtype, actual.dtype))
    different = [name for name, ours in expected.weights.items() if abs(ours - actual.weights[name]) > tolerance]
    return [f"the weights of {', '.join(different)} are others"] if different else []


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 20 else f"{text[:12]}…"
