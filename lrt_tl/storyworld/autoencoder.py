"""Sparse autoencoders of the storyworld models: features of the residual stream, in the folder format of SAELens.

A state is written as the sum of a bias and of the decoder rows of at most k latents ("top-k", Gao et al. 2024, arXiv
2406.04093). SAELens reads the folder with `SAE.load_from_disk`; nothing of it is needed here.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from lrt_tl.artifacts import new_folder, refuse_existing, write_json
from lrt_tl.errors import ArtifactError, LrtError, MismatchError
from lrt_tl.models.capture import capture
from lrt_tl.models.hook_names import resolve_hook_name
from lrt_tl.models.loading import load_model
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.hooks import require_at_rest
from lrt_tl.storyworld.language import documents
from lrt_tl.storyworld.recipe import AutoencoderRecipe, read_recipe
from lrt_tl.text.batches import token_batches
from lrt_tl.text.documents import read_documents

_CONFIG, _WEIGHTS, _TRAINING = "cfg.json", "sae_weights.safetensors", "training.json"
_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")
_FORMAT = "6.54.12"  # the SAELens whose format this is; it takes folders without a version for those of before 6.0
_FORWARD = {
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "rescale_acts_by_decoder_norm": False,
}
"""What SAELens calls the forward pass below. These are also its defaults."""

_CHUNK = 1000  # documents whose tokens are shuffled together
_LONG_PRIME = 1_000_003
_SILENT_STEPS = 100  # after so many steps without being active, a latent counts as dead in training
_REVIVAL = 1 / 32  # weight of the loss that revives dead latents


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
        shapes = {name: tuple(getattr(self, name).shape) for name in _TENSORS}
        d_in, d_sae = self.b_dec.numel(), self.b_enc.numel()
        if shapes != {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}:
            raise LrtError(f"these are not the shapes of one autoencoder's weights: {shapes}")
        if bad := [name for name in _TENSORS if not torch.isfinite(getattr(self, name)).all()]:
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
        return _top((states - self.b_dec.to(states)) @ self.W_enc.to(states) + self.b_enc.to(states), self.k)

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
        weights = {name: _as_stored(getattr(self, name)).detach().cpu().contiguous() for name in _TENSORS}
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
        if set(weights) != set(_TENSORS):
            raise ArtifactError(f"{folder} holds the tensors {sorted(weights)}, not {sorted(_TENSORS)}")
        try:
            tensors = {name: weights[name].float() for name in _TENSORS}
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


def make_autoencoder(recipe: AutoencoderRecipe, out: Path, threads: int | None = None) -> Path:
    """Train an autoencoder on `storyworld-<model>` in `out`, and save it there as `storyworld-<name>`.

    Args:
        threads: of the CPU; by default what torch takes.

    Raises:
        LrtError: it exists already, the model does not or has a permuted vocabulary, or lacks the recipe's layer.
    """
    if read_recipe(recipe.model).vocabulary != "plain":
        raise LrtError(f"{recipe.name}: {recipe.model} means other things by its words: choose another model")
    folder, model_folder = refuse_existing(out / f"storyworld-{recipe.name}"), out / f"storyworld-{recipe.model}"
    if not model_folder.is_dir():
        raise LrtError(f"there is no {model_folder}: first run python -m lrt_tl.storyworld.train {recipe.model}")
    if threads is not None:
        torch.set_num_threads(threads)
    autoencoder, training = train_autoencoder(recipe, load_model(model_folder))
    return autoencoder.save(folder, training)


def train_autoencoder(recipe: AutoencoderRecipe, model: HookedModel) -> tuple[Autoencoder, dict[str, Any]]:
    """Train an autoencoder on a model's residual stream at storyworld's documents.

    Returns:
        The autoencoder, its weights as they will be stored, and how it was made: the recipe, what it does on documents
        that it was not trained on (see `quality`), and the time it took.

    Raises:
        LrtError: the model lacks the layer, is being steered, or is in training mode, or a state is not finite.
    """
    hook_name = resolve_hook_name(model, layer=recipe.layer)
    require_at_rest(model)
    started = time.monotonic()
    chunks = (states_of(model, hook_name, recipe.data_seed * _LONG_PRIME + number) for number in count(1))
    autoencoder = fit(recipe, chunks, hook_name=hook_name, model_name=str(model.cfg.model_name))
    seconds = time.monotonic() - started
    held_out = states_of(model, hook_name, recipe.data_seed * _LONG_PRIME)
    setting = {"seconds": seconds, "threads": torch.get_num_threads(), "torch": torch.__version__}
    figures = {**quality(autoencoder, held_out), "held_out_tokens": len(held_out)}
    return autoencoder, {"recipe": recipe.as_dict(), **figures, **setting}


def states_of(model: HookedModel, hook_name: str, seed: int) -> Float[Tensor, "position d_in"]:
    """The states at every token, `<s>` aside, of the documents of a seed, on the CPU.

    Raises:
        LrtError: one is not finite.
    """
    texts = read_documents(documents(_CHUNK, seed=seed))
    kept = []
    for batch in token_batches([model.tokenizer], texts, batch_size=64, context_length=model.cfg.n_ctx):
        states = capture(model, batch.source.tokens, batch.source.mask, [hook_name])[hook_name].cpu()
        kept.append(states[batch.source.content])
    states = torch.cat(kept)
    if not torch.isfinite(states).all():
        raise LrtError(f"{model.cfg.model_name}, {hook_name}: a state is NaN or infinite: load the model in float32")
    return states


def quality(autoencoder: Autoencoder, states: Float[Tensor, "position d_in"]) -> dict[str, float]:
    """What an autoencoder does with states.

    Returns:
        `variance_explained`: 1 − squared error / squared distance from the mean state. `mean_l0`: active latents per
        state. `dead_share`: share of the latents that are never active.
    """
    error, active = 0.0, torch.zeros(autoencoder.d_sae, dtype=torch.long)
    for start in range(0, len(states), 4096):
        part = states[start : start + 4096]
        latents = autoencoder.encode(part)
        error += float((part - autoencoder.decode(latents)).square().sum())
        active += (latents > 0).sum(0)
    return {
        "variance_explained": 1 - error / float((states - states.mean(0)).square().sum()),
        "mean_l0": float(active.sum()) / len(states),
        "dead_share": float((active == 0).float().mean()),
    }


def fit(
    recipe: AutoencoderRecipe, chunks: Iterable[Float[Tensor, "position d_in"]], *, hook_name: str, model_name: str
) -> Autoencoder:
    """Train an autoencoder with Adam on states, of which each chunk is shuffled.

    In training, states are scaled so that their mean norm is √d_in. Latents that have not been active for long
    are made to explain what the others leave over, so that few die.

    Raises:
        LrtError: the chunks end before the recipe does.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    stream = iter(chunks)
    first = next(stream)
    scale = first.norm(dim=-1).mean() / first.shape[-1] ** 0.5
    variance = (first / scale).var(0).sum()
    W_dec = _rows_of_length_1(torch.randn(recipe.d_sae, first.shape[-1], generator=generator))
    weights = [W_dec.T.clone(), torch.zeros(recipe.d_sae), W_dec, first.mean(0) / scale]
    for tensor in weights:
        tensor.requires_grad_()
    adam = torch.optim.Adam(weights, lr=recipe.lr, fused=True)
    silent = torch.zeros(recipe.d_sae, dtype=torch.long)  # steps since a latent was active
    batches = islice(_shuffled(chain([first], stream), recipe.batch_tokens, generator), recipe.steps)
    taken = 0
    for taken, batch in enumerate(tqdm(batches, recipe.name, recipe.steps, unit=" steps"), 1):
        loss, active = _loss(weights, batch / scale, recipe.k, silent > _SILENT_STEPS)
        silent = torch.where(active, 0, silent + 1)
        for group in adam.param_groups:
            group["lr"] = recipe.lr * recipe.learning_rate_factor(taken - 1)
        adam.zero_grad()
        torch.autograd.backward(loss / variance)
        adam.step()
        with torch.no_grad():
            weights[2].copy_(_rows_of_length_1(weights[2]))
    if taken < recipe.steps:
        raise LrtError(f"the states end after {taken} of {recipe.steps} steps: give more chunks, or lower tokens")
    W_enc, b_enc, W_dec, b_dec = (tensor.detach() for tensor in weights)
    # Top-k commutes with scaling: only the biases have a length.
    folded = {"W_enc": W_enc, "b_enc": scale * b_enc, "W_dec": W_dec, "b_dec": scale * b_dec}
    rounded = {name: _as_stored(tensor).float() for name, tensor in folded.items()}
    return Autoencoder(**rounded, k=recipe.k, hook_name=hook_name, model_name=model_name)


def _loss(
    weights: list[Tensor], states: Float[Tensor, "position d_in"], k: int, dead: Bool[Tensor, "d_sae"]
) -> tuple[Float[Tensor, ""], Bool[Tensor, "d_sae"]]:
    """The squared error, with that of the dead latents at what the others leave over, and which latents were active."""
    W_enc, b_enc, W_dec, b_dec = weights
    before = (states - b_dec) @ W_enc + b_enc
    latents = _top(before, k)
    error = states - latents @ W_dec - b_dec
    loss = error.square().sum(-1).mean()
    if dead.any():
        revived = _top(before[:, dead], min(int(dead.sum()), states.shape[-1] // 2))
        loss = loss + _REVIVAL * (error.detach() - revived @ W_dec[dead]).square().sum(-1).mean()
    return loss, (latents > 0).any(0)


def _top(values: Float[Tensor, "*batch d_sae"], k: int) -> Float[Tensor, "*batch d_sae"]:
    """The k highest values of each row where they are above 0; 0 elsewhere."""
    highest, places = values.topk(k, sorted=False)
    return torch.zeros_like(values).scatter(-1, places, highest.relu())


def _as_stored(tensor: Tensor) -> Tensor:
    """Matrices in float16, which halves the file, biases in float32: they have the unit of the states."""
    return tensor.half() if tensor.ndim == 2 else tensor.float()


def _rows_of_length_1(rows: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
    return torch.nn.functional.normalize(rows, dim=-1)


def _shuffled(chunks: Iterable[Tensor], size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of states, each chunk in random order; the few that do not fill a batch wait for the next chunk."""
    left = None
    for chunk in chunks:
        states = chunk[torch.randperm(len(chunk), generator=generator)]
        states = states if left is None else torch.cat([left, states])
        whole = len(states) // size * size
        yield from (states[start : start + size] for start in range(0, whole, size))
        left = states[whole:]


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
