"""`storyworld` and `storyworld:mood` wherever a file of documents, contrast pairs or a behavior could stand."""

from typing import Any

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.capability import ChoiceQuestion
from lrt_tl.models.protocol import HookedModel
from lrt_tl.storyworld.language import documents
from lrt_tl.storyworld.questions import fact_questions
from lrt_tl.storyworld.tasks import behavior, contrast_pairs

NAME = "storyworld"
N_DOCUMENTS = 3000
"""About 150,000 words: many times what a map between the bundled models needs."""


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


def _task(source: Any) -> str | None:
    if isinstance(source, str) and source.startswith(f"{NAME}:"):
        return source.removeprefix(f"{NAME}:")
    return None
