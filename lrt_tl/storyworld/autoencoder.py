"""Sparse autoencoders of the storyworld models: features of the residual stream, in the folder format of SAELens.

A state is written as the sum of a bias and of the decoder rows of at most k latents ("top-k", Gao et al. 2024, arXiv
2406.04093). SAELens reads the folder with `SAE.load_from_disk`; nothing of it is needed here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrt_tl.artifacts import new_folder, write_json
from lrt_tl.errors import ArtifactError, LrtError, MismatchError

_CONFIG, _WEIGHTS, _TRAINING = "cfg.json", "sae_weights.safetensors", "training.json"
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")
_FORMAT = "6.54.12"  # the SAELens whose format this is; it takes folders without a version for those of before 6.0
_FORWARD = {
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "rescale_acts_by_decoder_norm": False,
}
"""What SAELens calls the forward pass below. These are also its defaults."""


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """A top-k sparse autoencoder of one point of a model's residual stream.

    Attributes:
        W_enc: float32, on the CPU, like the others.
        W_dec: of each latent, the direction that it stands for. Of length 1 after training, so that a latent's value
            is a length in the residual stream.
        k: latents that can be active at once.
        hook_name: where the states are taken, as `blocks.1.hook_resid_post`.
        model_name: whose states they are, as `storyworld-small`.

    Raises:
        LrtError: the shapes do not fit together, a weight is not finite, or k is out of range.
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, "d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, "d_in"]
    k: int
    hook_name: str
    model_name: str

    def __post_init__(self) -> None:
        shapes = {name: tuple(getattr(self, name).shape) for name in TENSORS}
        d_in, d_sae = self.b_dec.numel(), self.b_enc.numel()
        if shapes != {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}:
            raise LrtError(f"these are not the shapes of one autoencoder's weights: {shapes}")
        if bad := [name for name in TENSORS if not torch.isfinite(getattr(self, name)).all()]:
            raise LrtError(f"the autoencoder's {', '.join(bad)} holds NaN or infinity")
        if not 1 <= self.k <= d_sae:
            raise LrtError(f"k={self.k} of {d_sae} latents cannot be active: it must be from 1 to {d_sae}")

    @property
    def d_in(self) -> int:
        """Width of the states."""
        return self.b_dec.numel()

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.b_enc.numel()

    def encode(self, states: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """The latents of states, 0 or above, all but k of them 0; dtype and device are the states'.

        Raises:
            MismatchError: the width is not that of the autoencoder.
        """
        self._check_width(states, self.d_in)
        return top((states - self.b_dec.to(states)) @ self.W_enc.to(states) + self.b_enc.to(states), self.k)

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
        weights = {name: as_stored(getattr(self, name)).detach().cpu().contiguous() for name in TENSORS}
        if large := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
            raise ArtifactError(f"{', '.join(large)} holds more than float16's 65,504: scale the matrix down")
        metadata = {
            "sae_lens_version": _FORMAT,
            "model_name": self.model_name,
            "hook_name": self.hook_name,
            "prepend_bos": True,
        }
        sizes = {"d_in": self.d_in, "d_sae": self.d_sae, "k": self.k}
        with new_folder(folder) as scratch:
            save_file(weights, scratch / _WEIGHTS)
            setting = {"architecture": "topk", **sizes, "dtype": "float32", "device": "cpu", **_FORWARD}
            write_json(scratch / _CONFIG, {**setting, "metadata": metadata})
            if training is not None:
                write_json(scratch / _TRAINING, training)
            for file in scratch.iterdir():
                file.chmod(0o644)  # safetensors makes files that nobody else may read
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Autoencoder":
        """Read and verify a folder of `save`, or of SAELens.

        Raises:
            ArtifactError: the folder is missing, incomplete or damaged, or holds another kind of autoencoder.
        """
        config, weights = _read(Path(folder))
        if config.get("architecture") != "topk":
            raise ArtifactError(f'{folder} is of the architecture {config.get("architecture")!r}, not "topk"')
        for field, needed in _FORWARD.items():
            if (found := config.get(field, needed)) != needed:
                raise ArtifactError(f"{folder} has {field}={found!r}, and only {needed!r} is read here")
        metadata = config.get("metadata")
        hook_name, model_name = (
            metadata.get(name) if isinstance(metadata, dict) else None for name in ("hook_name", "model_name")
        )
        k = config.get("k")
        if type(k) is not int or not isinstance(hook_name, str) or not isinstance(model_name, str):
            raise ArtifactError(f"{Path(folder) / _CONFIG} lacks k, or hook_name or model_name in its metadata")
        if set(weights) != set(TENSORS):
            raise ArtifactError(f"{folder} holds the tensors {sorted(weights)}, not {sorted(TENSORS)}")
        try:
            tensors = {name: weights[name].float() for name in TENSORS}
            loaded = cls(**tensors, k=k, hook_name=hook_name, model_name=model_name)
        except LrtError as error:
            raise ArtifactError(f"{folder}: {error}") from error
        sizes = {"d_in": loaded.d_in, "d_sae": loaded.d_sae}
        if (stated := {name: config.get(name) for name in sizes}) != sizes:
            raise ArtifactError(f"{folder}: the weights are of {sizes}, and {_CONFIG} says {stated}")
        return loaded

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
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        weights = load_file(folder / _WEIGHTS)
    except (ValueError, SafetensorError, OSError) as error:
        raise ArtifactError(f"{folder} cannot be read as an autoencoder: {error}") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{folder / _CONFIG} holds no settings")
    return config, weights
