"""How a model of the storyworld family, or an autoencoder of one, is made: its shape, data and training, by name."""

from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from lrt_tl.errors import LrtError

_RECIPES = Path(__file__).with_name("recipes.yaml")


@dataclass(frozen=True)
class Recipe:
    """All that decides what a model becomes.

    Attributes:
        name: the model is saved as `storyworld-<name>`.
        vocabulary: "permuted" trades the words of letters among themselves in the training data.
        seed: of the initial weights.
        data_seed: of the documents and their order.
        tokens: the length of the learning-rate schedule, padding (a few in a hundred) included.
        batch_tokens: tokens per step, padding included.
        muon_lr: for the matrices of the blocks, in AdamW's scale.
        adam_lr: for embeddings and norms.
        weight_decay: of the matrices of the blocks.
        warmup_share: share of the schedule in which the learning rates rise.
        decay_share: share of the schedule, at its end, in which they fall to 0.
        stop_at: share of the schedule after which training ends.
        sharpen: what the logits are multiplied by at the end (by the gain of the last norm). A small model leaves some
            thousandths of each word's probability to the words that cannot stand there, and a text of fifty words
            drawn from it would seldom be whole; sharpened a little, it trades some loss for that.
    """

    name: str
    d_model: int
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_mlp: int
    tokenizer: Literal["word", "byte_pair"]
    vocabulary: Literal["plain", "permuted"]
    seed: int
    data_seed: int
    tokens: int
    batch_tokens: int
    muon_lr: float
    adam_lr: float
    weight_decay: float = 0.1
    warmup_share: float = 0.02
    decay_share: float = 0.98
    stop_at: float = 1.0
    sharpen: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            LrtError: a number or a choice is out of range, or heads do not divide the width.
        """
        if self.tokenizer not in ("word", "byte_pair"):
            raise LrtError(f'{self.name}: tokenizer is "word" or "byte_pair", not {self.tokenizer!r}')
        if self.vocabulary not in ("plain", "permuted"):
            raise LrtError(f'{self.name}: vocabulary is "plain" or "permuted", not {self.vocabulary!r}')
        if self.vocabulary == "permuted" and self.tokenizer != "word":
            raise LrtError(f'{self.name}: only words can be permuted: use tokenizer "word" with "permuted"')
        for field in ("d_model", "n_layers", "n_heads", "n_key_value_heads", "d_mlp", "tokens", "batch_tokens"):
            if getattr(self, field) < 1:
                raise LrtError(f"{self.name}: {field} is {getattr(self, field)}, and must be 1 or more")
        if self.d_model % (2 * self.n_heads) or self.n_heads % self.n_key_value_heads:
            raise LrtError(
                f"{self.name}: {self.n_heads} heads of an even width must divide d_model={self.d_model}, and "
                f"{self.n_key_value_heads} key-value heads the heads"
            )
        if not self.sharpen > 0:
            raise LrtError(f"{self.name}: sharpen is {self.sharpen}, and must be above 0")
        if not 0 < self.stop_at <= 1 or self.warmup_share + self.decay_share > 1:
            raise LrtError(
                f"{self.name}: stop_at={self.stop_at} must be above 0 and at most 1, and warmup_share="
                f"{self.warmup_share} with decay_share={self.decay_share} at most 1"
            )

    @property
    def total_steps(self) -> int:
        """Steps of the whole schedule."""
        return max(1, self.tokens // self.batch_tokens)

    @property
    def steps(self) -> int:
        """Steps that are taken."""
        return max(1, round(self.stop_at * self.total_steps))

    def learning_rate_factor(self, step: int) -> float:
        """What the learning rates are multiplied by in step 0, 1, …: up to 1, level, and down to 0."""
        done = (step + 0.5) / self.total_steps
        rising = done / self.warmup_share if self.warmup_share else 1.0
        falling = (1 - done) / self.decay_share if self.decay_share else 1.0
        return min(1.0, rising, falling)

    def as_dict(self) -> dict[str, Any]:
        """The recipe for a JSON file."""
        return asdict(self)


@dataclass(frozen=True)
class AutoencoderRecipe:
    """All that decides what a sparse autoencoder of one of the models becomes.

    Attributes:
        name: the autoencoder is saved as `storyworld-<name>`.
        model: the recipe of the model whose residual stream it takes apart.
        layer: the block, counted from 0, after which it reads the residual stream.
        d_sae: latents.
        k: latents that can be active at one token.
        seed: of the initial weights, and of the order of the tokens.
        data_seed: of the documents.
        tokens: the length of the learning-rate schedule.
        batch_tokens: tokens per step.
        lr: the highest learning rate.
        warmup_share: share of the schedule in which the learning rate rises.
        decay_share: share of the schedule, at its end, in which it falls to 0.
    """

    name: str
    model: str
    layer: int
    d_sae: int
    k: int
    seed: int
    data_seed: int
    tokens: int
    batch_tokens: int
    lr: float
    warmup_share: float = 0.02
    decay_share: float = 0.4

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            LrtError: a number is out of range.
        """
        for field in ("d_sae", "k", "tokens", "batch_tokens"):
            if getattr(self, field) < 1:
                raise LrtError(f"{self.name}: {field} is {getattr(self, field)}, and must be 1 or more")
        for field in ("lr", "warmup_share", "decay_share"):
            if getattr(self, field) <= 0:
                raise LrtError(f"{self.name}: {field} is {getattr(self, field)}, and must be above 0")
        if self.k > self.d_sae:
            raise LrtError(f"{self.name}: k={self.k} of d_sae={self.d_sae} latents cannot be active: lower k")

    @property
    def steps(self) -> int:
        """Steps of the schedule."""
        return max(1, self.tokens // self.batch_tokens)

    def learning_rate_factor(self, step: int) -> float:
        """What the learning rate is multiplied by in step 0, 1, …: up to 1, level, and down to 0."""
        done = (step + 0.5) / self.steps
        return min(1.0, done / self.warmup_share, (1 - done) / self.decay_share)

    def as_dict(self) -> dict[str, Any]:
        """The recipe for a JSON file."""
        return asdict(self)


def recipe_names() -> list[str]:
    """The names of all language models' recipes, in the order of the file."""
    return [name for name in _read_file() if "model" not in _resolved(name)]


def autoencoder_names() -> list[str]:
    """The names of all autoencoders' recipes, in the order of the file."""
    return [name for name in _read_file() if "model" in _resolved(name)]


def read_recipe(name: str) -> Recipe:
    """The recipe of a shipped model.

    Raises:
        LrtError: there is none of that name, or it has a field too many or too few.
    """
    return Recipe(**_checked(name, Recipe))


def read_autoencoder_recipe(name: str) -> AutoencoderRecipe:
    """The recipe of a shipped autoencoder.

    Raises:
        LrtError: there is none of that name, or it has a field too many or too few.
    """
    return AutoencoderRecipe(**_checked(name, AutoencoderRecipe))


def _checked(name: str, kind: type[Recipe] | type[AutoencoderRecipe]) -> dict[str, Any]:
    """A recipe's values, which are those that its kind has."""
    known = {field.name: field.default is MISSING for field in fields(kind)}
    values = _resolved(name)
    if unknown := sorted(set(values) - set(known)):
        raise LrtError(f"{_RECIPES}: {name} has the unknown fields {', '.join(unknown)}; known are {sorted(known)}")
    if missing := [field for field, needed in known.items() if needed and field not in values]:
        raise LrtError(f"{_RECIPES}: {name} lacks {', '.join(missing)}: state them, or take them with `like`")
    return values


def _resolved(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    recipes = _read_file()
    if name not in recipes:
        raise LrtError(f"there is no recipe {name!r}: choose one of {', '.join(recipes)}")
    if name in seen:
        raise LrtError(f"{_RECIPES}: {' is like '.join((*seen, name))}: let one of them stand by itself")
    own = dict(recipes[name])
    other = own.pop("like", None)
    inherited = _resolved(other, (*seen, name)) if other else {}
    return {**inherited, **own, "name": name}


@cache
def _read_file() -> dict[str, dict[str, Any]]:
    recipes: dict[str, dict[str, Any]] = yaml.safe_load(_RECIPES.read_text(encoding="utf-8"))
    return recipes
