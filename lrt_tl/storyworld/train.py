"""Train one model of the storyworld family: `python -m lrt_tl.storyworld.train small`.

A run that was killed goes on from its last checkpoint, with the documents that it would have read next. The model
is saved as an ordinary Hugging Face folder.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from lrt_tl.artifacts import new_folder, refuse_existing, write_json
from lrt_tl.errors import LrtError
from lrt_tl.storyworld.autoencoder_training import make_autoencoder
from lrt_tl.storyworld.checkpoint import Progress, load_checkpoint, save_checkpoint
from lrt_tl.storyworld.language import documents, vocabulary
from lrt_tl.storyworld.packing import Data, Rows, batches, encode, permuted_words, row_length_for
from lrt_tl.storyworld.recipe import Recipe, autoencoder_names, read_autoencoder_recipe, read_recipe, recipe_names
from lrt_tl.storyworld.tokenizer import byte_pair_tokenizer, save_tokenizer, word_tokenizer

WEIGHTS = Path(__file__).with_name("weights")
_SAMPLES, _SAMPLE_SEED = 8000, 999_983  # what the tokenizers are made from: the same for every model
_CHECKPOINT_SECONDS = 120.0
_SMOOTHING = 0.99
Loss = Callable[[Any, Rows], Tensor]
"""Of a model on a batch: what a step goes down."""


def train(recipe: Recipe, out: Path = WEIGHTS, work: Path | None = None, threads: int | None = None) -> Path:
    """Train a model and save it as `storyworld-<name>` in `out`, where nothing may stand yet.

    Args:
        work: where checkpoints are kept, to go on from; by default `.storyworld-<name>` in the current folder.
        threads: of the CPU; by default what torch takes.

    Raises:
        LrtError: torch lacks the optimizer, the model exists already, or `work` holds another recipe's run.
    """
    if not hasattr(torch.optim, "Muon"):
        raise LrtError(f"training needs torch.optim.Muon, which torch {torch.__version__} lacks: install torch>=2.9")
    folder = refuse_existing(out / f"storyworld-{recipe.name}")
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer, data = prepare(recipe)
    model = new_model(recipe, tokenizer).to(device)
    optimizers = new_optimizers(model, recipe)
    checkpoint = (work or Path(f".storyworld-{recipe.name}")) / "checkpoint.safetensors"
    progress = load_checkpoint(checkpoint, recipe, model, optimizers)
    run(recipe, data, model, optimizers, progress, checkpoint)
    save_model(folder, recipe, model, tokenizer, progress)
    return folder


def prepare(recipe: Recipe) -> tuple[Any, Data]:
    """The recipe's tokenizer and data."""
    samples = documents(_SAMPLES, seed=_SAMPLE_SEED)
    word = recipe.tokenizer == "word"
    tokenizer = word_tokenizer(vocabulary(), samples) if word else byte_pair_tokenizer(samples)
    backend = tokenizer.backend_tokenizer
    row_length = row_length_for(encode(samples[:2000], backend))
    permutation = permuted_words(tokenizer.get_vocab()) if recipe.vocabulary == "permuted" else None
    return tokenizer, Data(recipe.data_seed, backend.to_str(), row_length, permutation)


def new_model(recipe: Recipe, tokenizer: Any) -> Any:
    """A `LlamaForCausalLM` with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_key_value_heads,
        head_dim=recipe.d_model // recipe.n_heads,
        max_position_embeddings=512,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=False,
        attn_implementation="eager",  # twice as fast as "sdpa" on CPUs at this size
    )
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(config).train()


def new_optimizers(model: Any, recipe: Recipe) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or ".layers." not in name]
    decay = recipe.weight_decay
    muon = torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return {"muon": muon, "adam": adam}


def run(
    recipe: Recipe,
    data: Data,
    model: Any,
    optimizers: Mapping[str, torch.optim.Optimizer],
    progress: Progress,
    checkpoint: Path,
) -> None:
    """Take the steps that are left, with a checkpoint every two minutes and at the end."""
    device = next(model.parameters()).device
    workers = 8 if device.type == "cuda" else 1
    rows = max(1, recipe.batch_tokens // data.row_length)
    stream = batches(data, rows, chunk=progress.chunk, batch=progress.batch, workers=workers)
    started, saved = time.monotonic() - progress.seconds, time.monotonic()
    bar = tqdm(total=recipe.steps, initial=progress.step, desc=recipe.name, unit="step", mininterval=2)
    with closing(stream), bar:
        while progress.step < recipe.steps:
            progress.chunk, progress.batch, batch = next(stream)
            loss = take_step(model, optimizers, recipe, batch, progress.step)
            progress.step += 1
            count(progress, batch)
            every = 1 if device.type == "cpu" else 20  # reading the loss waits for a GPU
            if progress.step % every == 0 or progress.step == recipe.steps:
                smooth(progress, loss.item(), every)
                progress.seconds = time.monotonic() - started
                bar.set_postfix_str(f"loss {progress.loss:.3f}, {progress.tokens / progress.seconds:,.0f} tokens/s")
            bar.update()
            if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                save_checkpoint(checkpoint, recipe, model, optimizers, progress)
                saved = time.monotonic()
    save_checkpoint(checkpoint, recipe, model, optimizers, progress)


def loss_of(model: Any, batch: Rows) -> Tensor:
    """Mean cross-entropy of every next token within a document."""
    return F.cross_entropy(*next_tokens(model, batch))


def next_tokens(model: Any, batch: Rows) -> tuple[Float[Tensor, "position token"], Int[Tensor, "position"]]:
    """Logits wherever a document goes on, each document seeing only itself, and the token that comes next there."""
    device = next(model.parameters()).device
    tokens, document = (torch.from_numpy(array).to(device, torch.long) for array in (batch.tokens, batch.document))
    with torch.autocast(device.type, torch.bfloat16):
        hidden = model.model(input_ids=tokens, attention_mask=document_mask(document), use_cache=False)[0]
        predicts = (document[:, 1:] == document[:, :-1]) & (document[:, 1:] >= 0)
        logits = model.lm_head(hidden[:, :-1][predicts])
    return logits.float(), tokens[:, 1:][predicts]


def take_step(
    model: Any,
    optimizers: Mapping[str, torch.optim.Optimizer],
    recipe: Recipe,
    batch: Rows,
    step: int,
    loss: Loss = loss_of,
) -> Tensor:
    """One step of both optimizers; gives the loss before it."""
    factor = recipe.learning_rate_factor(step)
    for optimizer, rate in ((optimizers["muon"], recipe.muon_lr), (optimizers["adam"], recipe.adam_lr)):
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
    found = loss(model, batch)
    torch.autograd.backward(found)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers.values():
        optimizer.step()
    return found.detach()


def document_mask(document: Tensor) -> Tensor:
    """[batch, 1, query, key] to add to attention scores: 0 at what stands before in the document, else lowest."""
    length = document.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=document.device).tril()
    seen = (document[:, :, None] == document[:, None, :]) & causal
    hidden = torch.finfo(torch.bfloat16).min
    return torch.zeros(seen.shape, dtype=torch.bfloat16, device=seen.device).masked_fill_(~seen, hidden)[:, None]


def count(progress: Progress, batch: Rows) -> None:
    """Add a batch's tokens, padding aside, and documents."""
    progress.tokens += int((batch.document >= 0).sum())
    progress.documents += int((batch.document.max(axis=1) + 1).sum())
    progress.documents_left_out += batch.left_out


def smooth(progress: Progress, loss: float, every: int = 1) -> None:
    """Follow the loss, known every so many steps, with an exponential mean: the plain mean as long as few are known.

    Raises:
        LrtError: the loss is no number.
    """
    if loss != loss:
        raise LrtError(f"the loss is NaN after {progress.step} steps: lower muon_lr and adam_lr in the recipe")
    keep = min(_SMOOTHING**every, 1 - every / progress.step)
    progress.loss = loss if progress.loss is None else keep * progress.loss + (1 - keep) * loss


def save_model(folder: Path, recipe: Recipe, model: Any, tokenizer: Any, progress: Progress) -> None:
    """Write the folder that Transformers and TransformerLens load, in float16, with `training.json`."""
    with torch.no_grad():
        model.model.norm.weight.mul_(recipe.sharpen)
    model = model.to("cpu", torch.float16).eval()
    model.config.use_cache = True
    with new_folder(folder) as scratch:
        model.save_pretrained(scratch)
        save_tokenizer(tokenizer, scratch)
        setting = {"threads": torch.get_num_threads(), "torch": torch.__version__, "cuda": torch.version.cuda}
        write_json(scratch / "training.json", {"recipe": recipe.as_dict(), **vars(progress), **setting})
        for file in scratch.iterdir():
            file.chmod(0o644)  # safetensors makes files that nobody else may read


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m lrt_tl.storyworld.train", description=__doc__)
    parser.add_argument("name", choices=[*recipe_names(), *autoencoder_names()])
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder that the model's folder is put in")
    parser.add_argument("--work", type=Path, help="folder of the checkpoints (default: .storyworld-NAME)")
    parser.add_argument("--tokens", type=int, help="length of the schedule, instead of the recipe's")
    parser.add_argument("--threads", type=int, help="threads of the CPU")
    given = parser.parse_args()
    try:
        changes = {} if given.tokens is None else {"tokens": given.tokens}
        if given.name in autoencoder_names():
            recipe_of_autoencoder = replace(read_autoencoder_recipe(given.name), **changes)
            print(make_autoencoder(recipe_of_autoencoder, given.out, given.threads))
        else:
            print(train(replace(read_recipe(given.name), **changes), given.out, given.work, given.threads))
    except LrtError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
