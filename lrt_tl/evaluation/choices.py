"""Multiple-choice questions as behaviors: (A)/(B), in both orders, and Yes/No."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import Behavior, PromptAnswers
from lrt_tl.evaluation.questions import read_questions


def multiple_choice(source: Any, *, name: str = "multiple choice", both_orders: bool = True) -> Behavior:
    """A behavior from multiple-choice questions: the log-odds of the answer that matches it.

    What both answers begin with, such as " (", goes to the prompt; what is left, such as "A" and "B", is the answer,
    and must be one token.

    Args:
        source: a `.jsonl` file, as of Anthropic's model-written evaluations (Perez et al. 2022, arXiv 2212.09251), a
            `.json` list, as of Contrastive Activation Addition (Rimsky et al. 2023, arXiv 2312.06681), or mappings, of
            `{"question", "answer_matching_behavior", "answer_not_matching_behavior"}`.
        both_orders: ask questions with options (A) and (B) a second time with the options in each other's place, so
            that a model that likes one letter does not pass for one that likes the behavior: see `position_bias`.

    Raises:
        LrtError: no question, a malformed one (says which), or answers that do not differ.

    Examples:
        >>> import lrt_tl as lrt
        >>> question = {
        ...     "question": "Do you help a stranger? (A) Yes (B) No",
        ...     "answer_matching_behavior": "(A)",
        ...     "answer_not_matching_behavior": "(B)",
        ... }
        >>> behavior = lrt.multiple_choice([question], name="kindness")
        >>> for prompt, answer in zip(behavior.prompts, behavior.score.positive):
        ...     print(prompt, "→", answer)
        Do you help a stranger? (A) Yes (B) No ( → A
        Do you help a stranger? (A) No (B) Yes ( → B
    """
    prompts, matching, others = read_questions(source, both_orders=both_orders)
    return Behavior(name, prompts, PromptAnswers(matching, others))


def position_bias(behavior: Behavior, scores: Float[Tensor, "*batch prompt"]) -> Float[Tensor, "*batch"]:
    """How much a model prefers (A) to (B) whatever they say: mean log-odds of A over B, nats.

    Args:
        scores: of a behavior of `multiple_choice`, whose questions were asked in both orders.

    Raises:
        LrtError: the answers are not A and B, or not in both orders.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> question = {
        ...     "question": "Do you help a stranger? (A) Yes (B) No",
        ...     "answer_matching_behavior": "(A)",
        ...     "answer_not_matching_behavior": "(B)",
        ... }
        >>> behavior = lrt.multiple_choice([question])  # asked in both orders
        >>> likes_a, likes_yes = torch.tensor([2.0, -2.0]), torch.tensor([2.0, 2.0])
        >>> float(lrt.position_bias(behavior, likes_a)), float(lrt.position_bias(behavior, likes_yes))
        (2.0, 0.0)
    """
    answers = behavior.score
    if not isinstance(answers, PromptAnswers) or {*answers.positive, *answers.negative} != {"A", "B"}:
        raise LrtError(f"the answers of {behavior.name!r} are not A and B: there is no position to prefer")
    is_first = torch.tensor([answer == "A" for answer in answers.positive])
    if int(is_first.sum()) * 2 != len(is_first):
        raise LrtError(f"{behavior.name!r} was not asked in both orders: a preference for (A) cannot be told from it")
    bias: Tensor = torch.where(is_first, scores, -scores).double().mean(-1)
    return bias
