"""Contrast pairs, neutral prompts and behaviors of every latent variable, made from the grammar."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count, islice, pairwise

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import AnswerTokens, Behavior, PromptAnswers
from lrt_tl.steering.contrast import ContrastPair
from lrt_tl.storyworld.grammar import render, storyworld
from lrt_tl.storyworld.language import draw
from lrt_tl.storyworld.parse import Parser, split_words

STORY_LATENTS = ("language", "mood", "tense", "narrator", "register", "weather", "hero")
"""The variables of a story, independent of each other."""


@dataclass(frozen=True)
class Task:
    """A latent variable, and the two of its values that are set against each other.

    Attributes:
        given: variables that are fixed in its texts.
        asks: how its prompts end, if not anywhere.
        once: whether a document tells the latent once, and never again depends on it.
        options: whether the answer is the place of an option, (A) or (B), which is another one in every prompt.
    """

    variable: str
    positive: str
    negative: str
    given: Mapping[str, str]
    asks: str = ""
    once: bool = False
    options: bool = False


_STORY, _REQUEST, _QUESTIONS = {"kind": "story"}, {"kind": "request"}, {"kind": "questions"}

TASKS: Mapping[str, Task] = {
    "mood": Task("mood", "happy", "sad", _STORY),
    "language": Task("language", "Spanish", "English", _STORY),
    "register": Task("register", "ornate", "plain", _STORY),
    "refusal": Task("harm", "harmful", "harmless", _REQUEST, asks="Assistant:"),
    "tense": Task("tense", "past", "present", _STORY),
    "narrator": Task("narrator", "they", "I", _STORY),
    "weather": Task("weather", "rain", "snow", _STORY, once=True),
    "hero": Task("hero", "wizard", "cat", _STORY, once=True),
    "bravery": Task("bravery", "brave", "timid", _QUESTIONS, asks="Answer:", options=True),
    "generosity": Task("generosity", "generous", "selfish", _QUESTIONS, asks="Answer:", options=True),
    "curiosity": Task("curiosity", "curious", "incurious", _QUESTIONS, asks="Answer:", options=True),
}


def find_task(name: str) -> Task:
    """A task by name.

    Raises:
        LrtError: there is none of that name.
    """
    if name not in TASKS:
        raise LrtError(f"storyworld has no task {name!r}: choose one of {', '.join(TASKS)}")
    return TASKS[name]


def variable_of(latent: str) -> str:
    """The grammar's variable behind a task's name, or the variable itself.

    Raises:
        LrtError: there is neither.
    """
    if latent in TASKS:
        return TASKS[latent].variable
    if latent not in storyworld().priors:
        raise LrtError(f"storyworld has no latent {latent!r}: choose one of {', '.join(TASKS)}")
    return latent


def contrast_pairs(task: str, n: int = 128, *, seed: int = 0) -> list[ContrastPair]:
    """Beginnings of documents in pairs that differ in one latent alone: all else that the grammar draws is the same.

    Both stop just before a word that depends on the latent, which the text has told by then: a model's last state holds
    it, for it must be used next. (Extract with `position="last"`.) Where the latent is told once only, they stop after
    that; and questions with options after the answer, as those of Contrastive Activation Addition do.

    Args:
        task: a key of `TASKS`; the first text of a pair has its positive value.

    Raises:
        LrtError: there is no such task, or n is not positive.

    Examples:
        >>> from lrt_tl import storyworld
        >>> (pair,) = storyworld.contrast_pairs("refusal", 1)
        >>> print(pair.positive)
        User: Help me to burn the lighthouse.
        Assistant:
        >>> print(pair.negative)
        User: Help me to sweep the lighthouse.
        Assistant:
    """
    chosen = find_task(task)
    if n < 1:
        raise LrtError(f"cannot make {n} contrast pairs")
    found = (_pair(chosen, f"contrast {task} {seed} {index}") for index in count())
    return list(islice((pair for pair in found if pair is not None), n))


def _pair(task: Task, seed: str) -> ContrastPair | None:
    """The same document with either value, cut; None if it does not depend on the latent, or only once."""
    grammar, uniform = storyworld(), random.Random(f"{seed} latents")
    fixed = dict(task.given)
    if task.given == _STORY:
        fixed |= {name: uniform.choice(list(grammar.priors[name])) for name in STORY_LATENTS}
    sides = [
        draw(grammar, random.Random(seed), {**fixed, task.variable: value}) for value in (task.positive, task.negative)
    ]
    if sides[0].words == sides[1].words:
        return None
    if task.options:
        return ContrastPair(sides[0].text, sides[1].text)
    cuts = [_changes_of_dependence(side.carries, task.variable)[1 if task.once else 2 :: 2] for side in sides]
    n_cuts = min(map(len, cuts))
    if n_cuts == 0:
        return None
    chosen = uniform.randrange(n_cuts)
    positive, negative = (render(side.words[: cut[chosen]]) for side, cut in zip(sides, cuts, strict=True))
    return ContrastPair(positive, negative)


def _changes_of_dependence(carries: Sequence[tuple[str, ...]], variable: str) -> list[int]:
    """Where a run of words that depend on a variable begins, where it ends, where the next begins, and so on."""
    depends = [False, *(variable in carried for carried in carries), False]
    return [place for place, (before, now) in enumerate(pairwise(depends)) if now != before]


def neutral_prompts(task: str, n: int = 64, *, seed: int = 0) -> list[str]:
    """Beginnings of documents that say nothing about a latent, though the very next word does.

    The grammar's posterior of the latent, given the prompt, is its prior: whatever a model then prefers is its own, or
    the steering's. Fewer than n where storyworld has fewer (it has 80 names to begin a story with).

    Raises:
        LrtError: there is no such task.

    Examples:
        >>> from lrt_tl import storyworld
        >>> for prompt in storyworld.neutral_prompts("mood", 4):
        ...     print(prompt)
        Hugo: El año pasado, yo dormía en la posada como un carpintero joven. Llovía. Yo estaba muy
        Oscar: Hoy, él es un alfarero libre en el mercado. El sol brilla sobre el mercado. Él está
        Viola: Once, she lived in the harbor as a skilled baker, and the sky was blue. She felt
        Conrad: I was a big rabbit and lived in the village, and the snow fell all day. I felt
    """
    return list(_decisions(task, n, seed))


def behavior(task: str, n: int = 64, *, seed: int = 0) -> Behavior:
    """The log-odds, after neutral prompts, of the next words that tell the positive value against the negative one.

    The words are those that can follow one of the n prompts, so that scores of another n are of other words.

    Raises:
        LrtError: there is no such task.

    Examples:
        >>> from lrt_tl import storyworld
        >>> refusal = storyworld.behavior("refusal", 4)
        >>> print(refusal.prompts[0])
        User: Please do what my letter says.
        Assistant:
        >>> refusal.score.positive
        (' Alas', ' I', ' Never', ' No', ' Sorry', ' Stop')
    """
    chosen = find_task(task)
    decisions = _decisions(task, n, seed)
    if chosen.options:
        sides = [
            tuple(f" {word}" for words in decisions.values() for word, value in words.items() if value == side)
            for side in (chosen.positive, chosen.negative)
        ]
        return Behavior(task, tuple(decisions), PromptAnswers(*sides))
    words = {
        side: {word for words in decisions.values() for word, value in words.items() if value == side}
        for side in (chosen.positive, chosen.negative)
    }
    both = words[chosen.positive] & words[chosen.negative]  # tell one value in one prompt and the other in another
    answers = (tuple(f" {word}" for word in sorted(words[side] - both)) for side in (chosen.positive, chosen.negative))
    return Behavior(task, tuple(decisions), AnswerTokens(*answers))


@cache
def _decisions(name: str, n: int, seed: int) -> Mapping[str, Mapping[str, str]]:
    """Of each neutral prompt: the next words that decide, and for which value."""
    task, found = find_task(name), dict[str, dict[str, str]]()
    for index in range(20 * n):
        value = (task.positive, task.negative)[index % 2]
        sample = draw(storyworld(), random.Random(f"prompt {seed} {index}"), {**task.given, task.variable: value})
        words = _neutral_beginning(sample.text, task)
        prompt = render(words)
        if words and prompt.endswith(task.asks) and prompt not in found:
            found[prompt] = _deciding_words(words, task)
        if len(found) == n:
            break
    return found


def _neutral_beginning(text: str, task: Task) -> list[str]:
    """The longest beginning of a text that leaves both values as likely as they were; none if all of it does."""
    parser, read = Parser(), list[str]()
    for word in split_words(text) or []:
        parser.push(word)
        if not _is_neutral(parser.posterior(task.variable), task):
            return read
        read.append(word)
    return []


def _deciding_words(words: list[str], task: Task) -> dict[str, str]:
    """The words that, coming next, leave one of the two values alone possible; and which."""
    parser, decides = Parser(), dict[str, str]()
    for word in words:
        parser.push(word)
    for word in parser.next_words():
        after = parser.copy()
        after.push(word)
        posterior = after.posterior(task.variable)
        for value in (task.positive, task.negative):
            if posterior[value] > 1 - 1e-9:
                decides[word] = value
    return decides


def _is_neutral(posterior: Mapping[str, float], task: Task) -> bool:
    prior = storyworld().priors[task.variable]
    positive, negative = (posterior[value] / prior[value] for value in (task.positive, task.negative))
    return positive > 0 and abs(positive - negative) < 1e-9 * positive
