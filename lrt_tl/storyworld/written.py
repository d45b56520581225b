"""Behaviors of storyworld that are scored on what the model writes, by the grammar's posterior."""

import math
from collections.abc import Sequence
from functools import partial

from lrt_tl.evaluation.behavior import Behavior
from lrt_tl.evaluation.written import WrittenText
from lrt_tl.storyworld.judge import score
from lrt_tl.storyworld.tasks import find_task, neutral_prompts

MOST_NATS = math.log(1e3)
_IMPOSSIBLE = 1e-12
"""A posterior of 0 is one only up to rounding."""


def written_behavior(
    task: str, n: int = 32, *, max_new_tokens: int = 40, temperature: float = 0.8, n_samples: int = 1, seed: int = 0
) -> Behavior:
    """What the model writes after neutral prompts, judged by `posterior_log_odds`.

    Raises:
        LrtError: there is no such task, or an option cannot be: see `WrittenText`.

    Examples:
        >>> from lrt_tl import storyworld
        >>> behavior = storyworld.written_behavior("mood", 4, max_new_tokens=20)
        >>> behavior.prompts[3]
        'Conrad: I was a big rabbit and lived in the village, and the snow fell all day. I felt'
        >>> happy, sad = behavior.score.judge([behavior.prompts[3]] * 2, [" very cheerful.", " very sad."])
        >>> happy > 0 > sad
        True
    """
    judge = partial(posterior_log_odds, task)
    how = WrittenText(judge, max_new_tokens, temperature, n_samples, seed)
    return Behavior(task, tuple(neutral_prompts(task, n, seed=seed)), how)


def posterior_log_odds(task: str, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Log-odds, nats, of a task's positive value against its negative one, given each prompt and what follows it: by
    the grammar's posterior (see `score`), and no further from 0 than log 1000, since a text often decides.

    Raises:
        LrtError: there is no such task.
    """
    chosen = find_task(task)
    found = [score(prompt + text, task).probabilities for prompt, text in zip(prompts, texts, strict=True)]
    return [_log_odds(of[chosen.positive], of[chosen.negative]) for of in found]


def _log_odds(one: float, other: float) -> float:
    nats = math.log(max(one, _IMPOSSIBLE) / max(other, _IMPOSSIBLE))  # 0 where both are
    return max(-MOST_NATS, min(MOST_NATS, nats))
