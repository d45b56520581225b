"""`storyworld` and `storyworld:mood` wherever a file of documents, contrast pairs or a behavior could stand; and what
stands there for models of the family when nothing is given."""

from typing import Any

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import AnswerTokens
from lrt_tl.evaluation.capability import ChoiceQuestion
from lrt_tl.identifiability.comparison import Contrast
from lrt_tl.models.protocol import HookedModel
from lrt_tl.storyworld.language import documents
from lrt_tl.storyworld.questions import fact_questions
from lrt_tl.storyworld.relations import Fact, relation, relation_names
from lrt_tl.storyworld.tasks import behavior, contrast_pairs

NAME = "storyworld"
N_DOCUMENTS = 3000
"""About 150,000 words: many times what a map between the bundled models needs."""
CONTRASTS = ("mood", "register", "language", "refusal")
"""Whose steering vectors two models of the family are compared by."""
_N_PAIRS = 64


def named_documents(source: Any) -> Any:
    """`"storyworld"` → documents of it; anything else as it is."""
    return documents(N_DOCUMENTS) if source == NAME else source


def named_contrast_pairs(source: Any) -> Any:
    """`"storyworld:mood"` → the contrast pairs of that task; anything else as it is.

    Raises:
        LrtError: there is no such task.
    """
    task = _task(source)
    return source if task is None else contrast_pairs(task)


def named_behavior(source: Any) -> Any:
    """`"storyworld:mood"` → the behavior of that task; anything else as it is.

    Raises:
        LrtError: there is no such task.
    """
    task = _task(source)
    return source if task is None else behavior(task)


def is_storyworld(model: HookedModel | str) -> bool:
    """Whether a model, or the name of one, is one of the bundled family."""
    name = model if isinstance(model, str) else str(model.cfg.model_name)
    return name.startswith(f"{NAME}-")


def default_documents(*models: HookedModel | str) -> str:
    """`"storyworld"`, for models that are all storyworld's.

    Raises:
        LrtError: one is not, so that there is no default.
    """
    if all(map(is_storyworld, models)):
        return NAME
    names = [model if isinstance(model, str) else model.cfg.model_name for model in models]
    raise LrtError(f"documents must be given: only models of storyworld have their own, not all of {', '.join(names)}")


def default_questions(target: HookedModel) -> list[ChoiceQuestion]:
    """Questions about storyworld's facts, for a model of the family; none for another."""
    return fact_questions() if is_storyworld(target) else []


def statements(name: str) -> list[Fact]:
    """A relation's facts in the phrasings that leave the answer in the middle of a sentence. After a question it has a
    capital, and is another token."""
    return [fact for fact in relation(name).seen if not fact.prompt.endswith("?")]


def default_relations(*models: HookedModel) -> dict[str, list[Fact]]:
    """All relations of storyworld, by name, for models that are all of the family; none for others."""
    return {name: statements(name) for name in relation_names()} if all(map(is_storyworld, models)) else {}


def default_contrasts(*models: HookedModel) -> dict[str, Contrast]:
    """Contrasts of storyworld, by name, for models that are all of the family; none for others."""
    if not all(map(is_storyworld, models)):
        return {}
    scores = {task: behavior(task).score for task in CONTRASTS}
    return {
        task: Contrast(contrast_pairs(task, _N_PAIRS), score.positive, score.negative)
        for task, score in scores.items()
        if isinstance(score, AnswerTokens)
    }


def _task(source: Any) -> str | None:
    if isinstance(source, str) and source.startswith(f"{NAME}:"):
        return source.removeprefix(f"{NAME}:")
    return None
