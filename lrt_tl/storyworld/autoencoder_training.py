"""Train a sparse autoencoder of one of the storyworld models: of its residual stream on documents of the grammar."""

import time
from collections.abc import Iterable, Iterator
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from lrt_tl.artifacts import refuse_existing
from lrt_tl.errors import LrtError
from lrt_tl.models.capture import capture
from lrt_tl.models.hook_names import resolve_hook_name
from lrt_tl.models.loading import load_model
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.autoencoder import Autoencoder, as_stored, top
from lrt_tl.steering.handle import require_at_rest
from lrt_tl.storyworld.language import documents
from lrt_tl.storyworld.recipe import AutoencoderRecipe, read_recipe
from lrt_tl.text.batches import token_batches
from lrt_tl.text.documents import read_documents

_CHUNK = 1000  # documents whose tokens are shuffled together
_LONG_PRIME = 1_000_003
_SILENT_STEPS = 100  # after so many steps without being active, a latent counts as dead in training
_REVIVAL = 1 / 32  # weight of the loss that revives dead latents


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
    rounded: dict[str, Any] = {name: as_stored(tensor).float() for name, tensor in folded.items()}
    return Autoencoder(**rounded, k=recipe.k, hook_name=hook_name, model_name=model_name)


def _loss(
    weights: list[Tensor], states: Float[Tensor, "position d_in"], k: int, dead: Bool[Tensor, "d_sae"]
) -> tuple[Float[Tensor, ""], Bool[Tensor, "d_sae"]]:
    """The squared error, with that of the dead latents at what the others leave over, and which latents were active."""
    W_enc, b_enc, W_dec, b_dec = weights
    before = (states - b_dec) @ W_enc + b_enc
    latents = top(before, k)
    error = states - latents @ W_dec - b_dec
    loss = error.square().sum(-1).mean()
    if dead.any():
        revived = top(before[:, dead], min(int(dead.sum()), states.shape[-1] // 2))
        loss = loss + _REVIVAL * (error.detach() - revived @ W_dec[dead]).square().sum(-1).mean()
    return loss, (latents > 0).any(0)


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
