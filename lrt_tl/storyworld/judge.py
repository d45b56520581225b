"""What a text says about a latent variable: the grammar's own posterior, so that no model judges another."""

import re
from dataclasses import dataclass

from lrt_tl.storyworld.grammar import START, WORD, render, storyworld
from lrt_tl.storyworld.parse import Parser, split_words
from lrt_tl.storyworld.tasks import variable_of

_SENTENCE = "sentence"
"""The rule that gives any one sentence of a story or an answer."""


@dataclass(frozen=True)
class Score:
    """What a text says about a latent variable.

    Attributes:
        probabilities: of each value, summing to one; the prior where nothing is said.
        exact: whether this is the posterior of the whole text as (the beginning of) a document. If not, it is the mean
            over the sentences that are grammatical by themselves.
        sentences: how many there are in the text.
        parsed: how many of them the probabilities rest on.

    Examples:
        >>> from lrt_tl import storyworld
        >>> found = storyworld.score("She felt very cheerful. Blorp.", "mood")
        >>> found
        Score(probabilities={'happy': 1.0, 'sad': 0.0}, exact=False, sentences=2, parsed=1)
        >>> found.value
        'happy'
    """

    probabilities: dict[str, float]
    exact: bool
    sentences: int
    parsed: int

    @property
    def value(self) -> str:
        """The most probable value."""
        return max(self.probabilities, key=self.probabilities.__getitem__)


def score(text: str, latent: str) -> Score:
    """The probability of each value of a latent variable, given a text.

    A text that is a document of storyworld, or the beginning of one, is judged by Bayes' rule over all its
    derivations: exactly. Another text, such as one that steering has bent, or a continuation without its beginning, is
    judged sentence by sentence. Each sentence's posterior is exact as that of a sentence of its own; their mean, which
    is given then, is no posterior, since the sentences of a document share their latents and do not factorise.

    Args:
        text: of storyworld, or like it. An unfinished last sentence counts with what there is of it.
        latent: a variable of the grammar ("mood", "tense", …), or a task's name ("refusal").

    Raises:
        LrtError: there is no such variable.

    Examples:
        >>> from lrt_tl import storyworld
        >>> storyworld.score("She felt very cheerful.", "mood").value
        'happy'
        >>> storyworld.score("The sky was blue.", "mood").probabilities  # which says nothing of the mood: the prior
        {'happy': 0.5, 'sad': 0.5}
    """
    variable = variable_of(latent)
    sentences = _sentences(text)
    whole = _posterior(text, variable, START)
    if whole is not None:
        return Score(whole, exact=True, sentences=len(sentences), parsed=len(sentences))
    found = [posterior for s in sentences if (posterior := _posterior(s, variable, _SENTENCE)) is not None]
    prior = dict(storyworld().priors[variable])
    mean = {value: sum(posterior[value] for posterior in found) / len(found) for value in prior} if found else prior
    return Score(mean, exact=False, sentences=len(sentences), parsed=len(found))


def _posterior(text: str, variable: str, start: str) -> dict[str, float] | None:
    """Of a text that a rule gives, or begins; None for another text."""
    words = split_words(text)
    if not words:
        return None
    parser = Parser(start)
    if all(parser.push(word) > 0 for word in words):
        return parser.posterior(variable)
    return None


def _sentences(text: str) -> list[str]:
    """Split after `.`, `?`, `!`, `:` and newlines; each as it would stand alone."""
    parts = re.split(r"(?<=[.?!:\n])", text)
    return [render(words) for part in parts if (words := [w for w in WORD.findall(part) if w != "\n"])]
