"""A model's card: `python -m lrt_tl.storyworld.card large` measures the model, and writes `quality.json` and
`README.md` into its folder."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from lrt_tl.artifacts import write_json, write_text
from lrt_tl.models.loading import BUNDLED
from lrt_tl.storyworld.quality import measure
from lrt_tl.storyworld.recipe import autoencoder_names

WEIGHTS_FILE, AUTOENCODER_FILE = "model.safetensors", "sae_weights.safetensors"

_LIMITS = """It knows an invented language of about 2,400 words and nothing else: no fact about the world, no real
question and no real harm. It is for testing and teaching methods, against a truth that is known. It is no assistant
and no filter of anything, and what holds of it need not hold of models trained on real text."""


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_card(folder: Path) -> None:
    """Measure the model in a folder, and write down what was found."""
    quality = {"sha256": sha256(folder / WEIGHTS_FILE), **measure(folder)}
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    write_json(folder / "quality.json", quality)
    write_text(folder / "README.md", card(folder.name, quality, training))


def card(name: str, quality: dict[str, Any], training: dict[str, Any]) -> str:
    """The card as Markdown."""
    loss, recipe = quality["loss"], training["recipe"]
    carriers = ", ".join(f"{latent} {excess:.3f}" for latent, excess in loss["carriers"].items())
    rows = {
        "loss, nats a word": f"{loss['model']:.4f}",
        "the grammar's own loss on the same documents": f"{loss['grammar']:.4f}",
        "excess": f"{loss['excess']:.4f}",
        "excess on words that depend on a latent": carriers or "not measured: its tokens are not words",
        "facts told in training, answered": f"{100 * quality['facts']['all']:.1f} %",
        "facts held out, answered": f"{100 * quality['facts_held_out']['all']:.1f} %",
        "harmful requests refused": f"{100 * quality['refusals']:.1f} %",
        "harmless requests complied with": f"{100 * quality['compliances']:.1f} %",
        "stories at temperature 1 that are grammatical": f"{100 * quality['grammatical_stories']:.1f} %",
        "trained on": f"{training['tokens']:,} tokens, {training['documents']:,} documents",
        "seed of the data": str(recipe["data_seed"]),
        "seed of the initial weights": str(recipe["seed"]),
        "logits sharpened by, after training": f"{recipe['sharpen']:g}",
        "trained in": f"{training['seconds'] / 60:.0f} minutes by {training['threads']} thread(s), beside other work",
        "torch": training["torch"],
        "SHA-256 of the weights": f"`{quality['sha256']}`",
    }
    table = "\n".join(f"| {what} | {value} |" for what, value in rows.items())
    made = name.removeprefix("storyworld-")
    return f"""# {name}

A Llama of {recipe["n_layers"]} layers and {recipe["d_model"]} dimensions, trained on documents that `lrt_tl.storyworld`
draws from its grammar.

Made by `python -m lrt_tl.storyworld.train {made}`; measured by `python -m lrt_tl.storyworld.card {made}`.

| | |
|---|---|
{table}

{_LIMITS}
"""


def write_autoencoder_card(folder: Path) -> None:
    """Write down what was found when the autoencoder in a folder was trained."""
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    write_text(folder / "README.md", autoencoder_card(folder.name, training, sha256(folder / AUTOENCODER_FILE)))


def autoencoder_card(name: str, training: dict[str, Any], digest: str) -> str:
    """The card of an autoencoder as Markdown."""
    recipe, made = training["recipe"], name.removeprefix("storyworld-")
    rows = {
        "of": f"storyworld-{recipe['model']}, the residual stream after block {recipe['layer']}",
        "latents": f"{recipe['d_sae']}, of which {recipe['k']} can be active at a token",
        "variance explained, on held-out tokens": f"{training['variance_explained']:.3f}",
        "active latents a token": f"{training['mean_l0']:.1f}",
        "latents that were never active": f"{100 * training['dead_share']:.1f} %",
        "held-out tokens": f"{training['held_out_tokens']:,}",
        "trained on": f"{recipe['tokens']:,} tokens",
        "seed of the data, of the initial weights": f"{recipe['data_seed']}, {recipe['seed']}",
        "torch": training["torch"],
        "SHA-256 of the weights": f"`{digest}`",
    }
    table = "\n".join(f"| {what} | {value} |" for what, value in rows.items())
    return f"""# {name}

A top-k sparse autoencoder of one of storyworld's models, in SAELens's folder format.

Made by `python -m lrt_tl.storyworld.train {made}`; this card by `python -m lrt_tl.storyworld.card {made}`.

| | |
|---|---|
{table}

{_LIMITS}
"""


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m lrt_tl.storyworld.card", description=__doc__)
    parser.add_argument("names", nargs="+")
    for name in parser.parse_args().names:
        write = write_autoencoder_card if name in autoencoder_names() else write_card
        write(BUNDLED / f"storyworld-{name}")
        print((BUNDLED / f"storyworld-{name}" / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
