"""Sparse autoencoders of a model's residual stream, in the folder format of SAELens: states as sums of few directions.

A state is written as a bias and a sum of decoder rows, each times its latent. Latents are the encoder's positive
values: all of them ("standard"), the k highest ("topk", Gao et al. 2024, arXiv 2406.04093), or those above a threshold
each ("jumprelu", Rajamanoharan et al. 2024, arXiv 2407.14435). SAELens reads and writes these folders; nothing of it is
needed here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrt_tl.artifacts import new_folder, reading, write_json
from lrt_tl.errors import ArtifactError, LrtError, MismatchError
from lrt_tl.models.identity import site_of
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.tables import html_table

_CONFIG, _WEIGHTS, _TRAINING = "cfg.json", "sae_weights.safetensors", "training.json"
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")
_STORED = {
    "standard": TENSORS,
    "topk": TENSORS,
    "jumprelu": (*TENSORS, "threshold"),
    "gated": ("W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec"),
}
"""The tensors of an architecture."""
_FORMAT = "6.54.12"  # the SAELens whose format this is; it takes folders without a version for those of before 6.0
_FORWARD = {"normalize_activations": "none", "reshape_activations": "none"}
"""What must hold for a decoder row to be a direction of the residual stream, in SAELens's words. Also its defaults."""


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """A sparse autoencoder of one point of a model's residual stream.

    Attributes:
        W_enc: float32, on the CPU, like the others.
        W_dec: of each latent, the direction that it stands for. Of length 1 after training, so that a latent's value
            is a length in the residual stream.
        k: latents that can be active at once, if it is of the architecture "topk".
        hook_name: where the states are taken, as `blocks.1.hook_resid_post`.
        model_name: whose states they are, as `storyworld-small`.
        threshold: above which a latent is active, if it is of the architecture "jumprelu".
        apply_b_dec_to_input: whether `b_dec` is taken off the states before they are encoded.

    Raises:
        LrtError: the shapes do not fit together, a weight is not finite, k is out of range, or there is a k as well as
            thresholds.

    Examples:
        >>> from lrt_tl import storyworld
        >>> autoencoder = storyworld.load_autoencoder("small")
        >>> autoencoder.hook_name, autoencoder.d_in, autoencoder.d_sae, autoencoder.k
        ('blocks.1.hook_resid_post', 64, 512, 12)
        >>> _, cache = storyworld.load("small").run_with_cache("The capital of Norvia is")
        >>> latents = autoencoder.encode(cache[autoencoder.hook_name])
        >>> latents.shape, int((latents[0, -1] > 0).sum())
        (torch.Size([1, 6, 512]), 12)
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, "d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, "d_in"]
    k: int | None
    hook_name: str
    model_name: str
    threshold: Float[Tensor, "d_sae"] | None = None
    apply_b_dec_to_input: bool = True

    def __post_init__(self) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in self._weights().items()}
        d_in, d_sae = self.b_dec.numel(), self.b_enc.numel()
        fitting = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        if shapes != fitting | ({} if self.threshold is None else {"threshold": (d_sae,)}):
            raise LrtError(f"these are not the shapes of one autoencoder's weights: {shapes}")
        if bad := [name for name, tensor in self._weights().items() if not torch.isfinite(tensor).all()]:
            raise LrtError(f"the autoencoder's {', '.join(bad)} holds NaN or infinity")
        if self.k is not None and not 1 <= self.k <= d_sae:
            raise LrtError(f"k={self.k} of {d_sae} latents cannot be active: it must be from 1 to {d_sae}")
        if self.k is not None and self.threshold is not None:
            raise LrtError(f"latents are active above a threshold or among the k={self.k} highest, and not both")

    @property
    def architecture(self) -> str:
        """SAELens's word for what makes a latent active: "standard", "topk" or "jumprelu"."""
        if self.k is not None:
            return "topk"
        return "standard" if self.threshold is None else "jumprelu"

    @property
    def d_in(self) -> int:
        """Width of the states."""
        return self.b_dec.numel()

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.b_enc.numel()

    def __repr__(self) -> str:
        kind = self.architecture if self.k is None else f"{self.architecture} {self.k}"
        return f"Autoencoder({self.model_name} at {self.hook_name}, {self.d_in} → {self.d_sae} latents, {kind})"

    def _repr_html_(self) -> str:
        rows = {"at": self.hook_name, "states": f"{self.d_in} wide", "latents": f"{self.d_sae}, {self.architecture}"}
        active = {} if self.k is None else {"active at once": str(self.k)}
        return html_table(rows | active, caption=f"Sparse autoencoder of {self.model_name}")

    def encode(self, states: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """The latents of states, 0 or above, most of them 0; dtype and device are the states'.

        Raises:
            MismatchError: the width is not that of the autoencoder.
        """
        self._check_width(states, self.d_in)
        inputs = states - self.b_dec.to(states) if self.apply_b_dec_to_input else states
        values = inputs @ self.W_enc.to(states) + self.b_enc.to(states)
        if self.k is not None:
            return top(values, self.k)
        return values.relu() if self.threshold is None else values.relu() * (values > self.threshold.to(states))

    def decode(self, latents: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """The states that latents stand for.

        Raises:
            MismatchError: there are more latents than the autoencoder's, or fewer.
        """
        self._check_width(latents, self.d_sae)
        return latents @ self.W_dec.to(latents) + self.b_dec.to(latents)

    def save(self, folder: str | Path, training: Mapping[str, Any] | None = None) -> Path:
        """Write `cfg.json` and `sae_weights.safetensors`, the matrices in float16, whole or not at all.

        Args:
            training: how it was made, for `training.json`.

        Raises:
            ArtifactError: `folder` exists already, or a matrix is too large for float16.
        """
        weights = {name: as_stored(tensor).detach().cpu().contiguous() for name, tensor in self._weights().items()}
        if large := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
            raise ArtifactError(f"{', '.join(large)} holds more than float16's 65,504: scale the matrix down")
        metadata = {
            "sae_lens_version": _FORMAT,
            "model_name": self.model_name,
            "hook_name": self.hook_name,
            "prepend_bos": True,
        }
        sizes = {"d_in": self.d_in, "d_sae": self.d_sae} | ({} if self.k is None else {"k": self.k})
        forward = {"apply_b_dec_to_input": self.apply_b_dec_to_input, **_FORWARD}
        forward |= {} if self.k is None else {"rescale_acts_by_decoder_norm": False}
        with new_folder(folder) as scratch:
            save_file(weights, scratch / _WEIGHTS)
            setting = {"architecture": self.architecture, **sizes, "dtype": "float32", "device": "cpu", **forward}
            write_json(scratch / _CONFIG, {**setting, "metadata": metadata})
            if training is not None:
                write_json(scratch / _TRAINING, training)
            for file in scratch.iterdir():
                file.chmod(0o644)  # safetensors makes files that nobody else may read
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Autoencoder":
        """Read and verify a folder of `save`, or of SAELens 6. A gated autoencoder (Rajamanoharan et al. 2024, arXiv
        2404.16014) becomes the "jumprelu" one that does the same; norms of decoder rows that a top-k one multiplies its
        values by are put into its encoder.

        Raises:
            ArtifactError: the folder is missing, incomplete or damaged, or holds an autoencoder of another kind: the
                message names the setting.
        """
        folder = Path(folder)
        config, stored = _read(folder)
        _check_config(config, folder)
        if set(stored) != set(_STORED[config["architecture"]]):
            wanted = sorted(_STORED[config["architecture"]])
            raise ArtifactError(f"{folder} holds the tensors {sorted(stored)}, not {wanted}")
        if strange := [name for name, tensor in stored.items() if not tensor.is_floating_point()]:
            raise ArtifactError(f"{folder}: {', '.join(strange)} holds no floating-point numbers")
        try:
            loaded = cls(
                **_simplified({name: tensor.float() for name, tensor in stored.items()}, config),
                k=config["k"] if config["architecture"] == "topk" else None,
                hook_name=config["metadata"]["hook_name"],
                model_name=config["metadata"]["model_name"],
                apply_b_dec_to_input=config.get("apply_b_dec_to_input", True),
            )
        except (LrtError, RuntimeError) as error:
            raise ArtifactError(f"{folder}: {error}") from error
        sizes = {"d_in": loaded.d_in, "d_sae": loaded.d_sae}
        if (stated := {name: config.get(name) for name in sizes}) != sizes:
            raise ArtifactError(f"{folder}: the weights are of {sizes}, and {_CONFIG} says {stated}")
        return loaded

    def _weights(self) -> dict[str, Tensor]:
        weights = {name: getattr(self, name) for name in TENSORS}
        return weights if self.threshold is None else weights | {"threshold": self.threshold}

    def _check_width(self, tensor: Tensor, width: int) -> None:
        if tensor.shape[-1] != width:
            raise MismatchError(
                f"the last axis is {tensor.shape[-1]}, not {width}: this autoencoder has {self.d_sae} latents of the "
                f"{self.d_in} dimensions of {self.model_name}, {self.hook_name}"
            )


def top(values: Float[Tensor, "*batch d_sae"], k: int) -> Float[Tensor, "*batch d_sae"]:
    """The k highest values of each row where they are above 0; 0 elsewhere."""
    highest, places = values.topk(k, sorted=False)
    return torch.zeros_like(values).scatter(-1, places, highest.relu())


def as_stored(tensor: Tensor) -> Tensor:
    """Matrices in float16, which halves the file, biases in float32: they have the unit of the states."""
    return tensor.half() if tensor.ndim == 2 else tensor.float()


def load_autoencoder(folder: str | Path) -> Autoencoder:
    """Read a sparse autoencoder that SAELens saved, or `Autoencoder.save`. Refusals are those of `Autoencoder.load`.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> with TemporaryDirectory() as folder:
        ...     saved = storyworld.load_autoencoder("small").save(Path(folder) / "sae")
        ...     autoencoder = lrt.load_autoencoder(saved)
        >>> autoencoder.model_name, autoencoder.architecture
        ('storyworld-small', 'topk')
    """
    return Autoencoder.load(folder)


def decoder_vectors(autoencoder: Autoencoder, latents: Sequence[int], model: HookedModel) -> list[SteeringVector]:
    """What latents stand for, as steering vectors: their decoder rows, at the point of which the autoencoder is.

    Added `c` times, a vector does to a state what a rise of its latent by `c` does to the reconstruction.

    Args:
        latents: numbers from 0.
        model: that of the autoencoder. Folders name models freely, so only the width can be checked.

    Raises:
        MismatchError: the model has another width.
        LrtError: there is no such latent, its row is zero, or the autoencoder is not of the residual stream.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> autoencoder = storyworld.load_autoencoder("small")
        >>> (vector,) = lrt.decoder_vectors(autoencoder, [14], storyworld.load("small"))
        >>> vector, vector.provenance["latent"]
        (SteeringVector(storyworld-small L1, 64 dimensions, norm 1, autoencoder), 14)
    """
    if autoencoder.d_in != model.cfg.d_model:
        raise MismatchError(
            f"the autoencoder is of {autoencoder.d_in} dimensions of {autoencoder.model_name}; {model.cfg.model_name} "
            f"has {model.cfg.d_model}"
        )
    if outside := [latent for latent in latents if not 0 <= latent < autoencoder.d_sae]:
        raise LrtError(f"there are no latents {outside}: the autoencoder has 0 to {autoencoder.d_sae - 1}")
    site = site_of(model, hook_name=autoencoder.hook_name)
    made = {"method": "autoencoder", "autoencoder": f"{autoencoder.model_name} {autoencoder.hook_name}"}
    return [
        SteeringVector(autoencoder.W_dec[latent].detach().cpu().clone(), site, provenance={**made, "latent": latent})
        for latent in latents
    ]


def _check_config(config: dict[str, Any], folder: Path) -> None:
    """Raises:
    ArtifactError: the settings are not those of an autoencoder that can be read, or lack something.
    """
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or architecture not in _STORED:
        read = ", ".join(_STORED)
        raise ArtifactError(f"{folder} is of the architecture {architecture!r}; those read here are {read}")
    for field, needed in _FORWARD.items():
        if (found := config.get(field, needed)) != needed:
            raise ArtifactError(f"{folder} has {field}={found!r}, and only {needed!r} is read here")
    for field in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"):
        if not isinstance(found := config.get(field, False), bool):
            raise ArtifactError(f"{folder} has {field}={found!r}, which is neither true nor false")
    if architecture == "topk" and type(config.get("k")) is not int:
        raise ArtifactError(f"{folder / _CONFIG} lacks k, the number of latents that can be active at once")
    metadata = config.get("metadata")
    for name in ("hook_name", "model_name"):
        if not isinstance(metadata, dict) or not isinstance(metadata.get(name), str):
            raise ArtifactError(f"{folder / _CONFIG} lacks {name} in its metadata (before SAELens 6: save it anew)")


def _simplified(weights: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of the same function, without gates and rescaling."""
    if config["architecture"] == "gated":  # x W + b_gate > 0 just where e^r (x W) + b_mag is above this threshold
        scale = weights["r_mag"].exp()
        threshold = weights["b_mag"] - scale * weights["b_gate"]
        encoder = {"W_enc": weights["W_enc"] * scale, "b_enc": weights["b_mag"], "threshold": threshold}
        return encoder | {name: weights[name] for name in ("W_dec", "b_dec")}
    if config["architecture"] == "topk" and config.get("rescale_acts_by_decoder_norm", False):
        norms = weights["W_dec"].norm(dim=-1)
        scaled = {"W_enc": weights["W_enc"] * norms, "b_enc": weights["b_enc"] * norms}
        return weights | scaled | {"W_dec": weights["W_dec"] / norms[:, None]}
    return weights


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a folder.

    Raises:
        ArtifactError: one is missing or cannot be read.
    """
    if not folder.is_dir():
        raise ArtifactError(f"there is no folder {folder}")
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder} holds no {name}: no autoencoder in SAELens's format, or an incomplete one")
    with reading(folder, "an autoencoder"):
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        weights = load_file(folder / _WEIGHTS)
    if not isinstance(config, dict):
        raise ArtifactError(f"{folder / _CONFIG} holds no settings")
    return config, weights
