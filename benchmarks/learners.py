"""The models that `what_learning_does.py` compares: how each is trained."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from lrt_tl.storyworld.checkpoint import Progress
from lrt_tl.storyworld.packing import Data, Rows
from lrt_tl.storyworld.recipe import Recipe, read_recipe
from lrt_tl.storyworld.train import (
    Loss,
    loss_of,
    new_model,
    new_optimizers,
    next_tokens,
    prepare,
    save_model,
    take_step,
)

REFERENCE, EARLY = "reference 1", "reference, a quarter of the tokens 1"
Teaching = Literal["nothing", "text", "KL", "L2"]


@dataclass(frozen=True)
class Learner:
    """A model to train.

    Attributes:
        arm: in what it is unlike its reference.
        number: within the arm.
        recipe: its shape, seeds and length of training.
        order: seed of the order of the batches; 0 is the recipe's.
        teaching: by nothing; by the text; or, at the same text, by the reference: down KL(reference ‖ learner), or down
            the squared distance of the logits less their means over tokens.
        against: its reference: a learner's name, or a bundled model's.
    """

    arm: str
    number: int
    recipe: Recipe
    order: int = 0
    teaching: Teaching = "text"
    against: str = REFERENCE

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.arm} {self.number}"


def learners(tokens: int) -> Iterator[Learner]:
    """All that are trained. Those that are taught by the reference come last."""
    small = replace(read_recipe("small"), tokens=tokens)
    early, late = replace(small, tokens=tokens // 4), read_recipe("small")
    for seed in (2, 3):
        born = replace(late, seed=seed)
        yield Learner(
            f"other weights, {late.tokens / tokens:g} times the tokens", seed, born, against="storyworld-small"
        )
    yield Learner("reference", 1, small)
    yield Learner("reference, a quarter of the tokens", 1, early)
    yield Learner("the same again", 1, small)
    for seed in (2, 3, 4):
        born = replace(small, seed=seed)
        yield Learner("other order", seed, small, order=seed)
        yield Learner("other weights", seed, born)
        yield Learner("other weights and documents", seed, replace(born, data_seed=seed))
        yield Learner("other weights, a quarter of the tokens", seed, replace(early, seed=seed), against=EARLY)
        yield Learner("untrained", seed, born, teaching="nothing")
    sized = [(size, replace(small, d_model=size, d_mlp=size * small.d_mlp // small.d_model)) for size in (48, 96)]
    for size, recipe in sized:
        for seed in (2, 3):
            yield Learner(f"other weights, {size} wide", seed, replace(recipe, seed=seed))
    for teaching in ("KL", "L2"):
        for seed in (2, 3, 4):
            yield Learner(f"taught by {teaching}", seed, replace(small, seed=seed), teaching=teaching)
        for size, recipe in sized:
            for seed in (2, 3):
                taught = replace(recipe, seed=seed)
                yield Learner(f"taught by {teaching}, {size} wide", seed, taught, teaching=teaching)


@cache
def tokenizer_and_data() -> tuple[Any, Data]:
    """Of all learners, but for the seed of the documents."""
    return prepare(read_recipe("small"))


@cache
def chunk(seed: int, number: int) -> Rows:
    """Of the training documents of that seed."""
    return replace(tokenizer_and_data()[1], seed=seed).rows(number)


def batches(learner: Learner) -> list[Rows]:
    """Those of the recipe's training, in its order or another."""
    size, steps = learner.recipe.batch_tokens // tokenizer_and_data()[1].row_length, learner.recipe.steps
    found: list[Rows] = []
    for number in range(steps):
        rows = chunk(learner.recipe.data_seed, number)
        starts = range(0, len(rows.tokens) - size + 1, size)
        found += [Rows(rows.tokens[start : start + size], rows.document[start : start + size]) for start in starts]
        if len(found) >= steps:
            break
    order = np.random.default_rng(learner.order).permutation(steps) if learner.order else range(steps)
    return [found[place] for place in order]


def loss_for(learner: Learner, folder: Path) -> Loss:
    """What the learner's steps go down."""
    if learner.teaching not in ("KL", "L2"):
        return loss_of
    teacher = AutoModelForCausalLM.from_pretrained(
        folder / learner.against, dtype=torch.float32, attn_implementation="eager"
    )

    def distance(model: Any, batch: Rows) -> Tensor:
        with torch.no_grad():
            wanted, _ = next_tokens(teacher, batch)
        found, _ = next_tokens(model, batch)
        if learner.teaching == "KL":
            likely = wanted.log_softmax(1)
            return F.kl_div(found.log_softmax(1), likely, log_target=True, reduction="batchmean")
        apart = found - wanted
        return (apart - apart.mean(1, keepdim=True)).square().mean()

    return distance


def learn(learner: Learner, folder: Path) -> None:
    """Train it, and save it in the folder under its name."""
    tokenizer, _ = tokenizer_and_data()
    model, loss = new_model(learner.recipe, tokenizer), loss_for(learner, folder)
    optimizers = new_optimizers(model, learner.recipe)
    for step, batch in enumerate([] if learner.teaching == "nothing" else batches(learner)):
        take_step(model, optimizers, learner.recipe, batch, step, loss)
    save_model(folder / learner.name, learner.recipe, model, tokenizer, Progress())
