"""A small language with a known truth, and a family of models that were trained on it.

Documents are drawn from a grammar (`grammar/*.yaml`) in which every latent variable is known; `score` tells, by the
grammar itself, what a text says about one. `load("small")` gives a model of the family: small, medium, large, large-b
(another seed), large-alt (another tokenizer), medium-early and medium-foreign (from which nothing should transfer).
"""

from pathlib import Path
from typing import Any

from lrt_tl.models.loading import load_model
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.autoencoder import Autoencoder
from lrt_tl.storyworld.judge import Score, score
from lrt_tl.storyworld.language import documents, samples
from lrt_tl.storyworld.questions import fact_questions
from lrt_tl.storyworld.relations import Fact, Relation, relation
from lrt_tl.storyworld.tasks import TASKS, behavior, contrast_pairs, neutral_prompts
from lrt_tl.storyworld.twins import widen
from lrt_tl.storyworld.written import written_behavior

__all__ = [
    "TASKS",
    "Autoencoder",
    "Fact",
    "Relation",
    "Score",
    "behavior",
    "contrast_pairs",
    "documents",
    "fact_questions",
    "load",
    "load_autoencoder",
    "neutral_prompts",
    "relation",
    "samples",
    "score",
    "widen",
    "written_behavior",
]


def __dir__() -> list[str]:
    return __all__


def load(name: str, **options: Any) -> HookedModel:
    """A model of the family, by its name without "storyworld-"; options as of `lrt_tl.load_model`.

    Raises:
        LrtError: there is none of that name.

    Examples:
        >>> from lrt_tl import storyworld
        >>> small, large = storyworld.load("small"), storyworld.load("large")
        >>> small.cfg.n_layers, small.cfg.d_model, large.cfg.n_layers, large.cfg.d_model
        (4, 64, 8, 192)
        >>> large.generate("The capital of Norvia is", max_new_tokens=1, temperature=0, verbose=False)
        'The capital of Norvia is Belmar'
    """
    return load_model(f"storyworld-{name}", **options)


def load_autoencoder(name: str) -> Autoencoder:
    """The sparse autoencoder of a model of the family, "small" or "large".

    Raises:
        ArtifactError: that model has none.

    Examples:
        >>> from lrt_tl import storyworld
        >>> autoencoder = storyworld.load_autoencoder("small")
        >>> autoencoder.hook_name, autoencoder.k, tuple(autoencoder.W_dec.shape)  # of each latent a direction of 64
        ('blocks.1.hook_resid_post', 12, (512, 64))
    """
    return Autoencoder.load(Path(__file__).parent / "weights" / f"storyworld-{name}-sae")
