"""Documents drawn from the grammar: the same seed gives the same text on every platform."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from lrt_tl.errors import LrtError
from lrt_tl.storyworld.grammar import (
    SENTENCE_ENDS,
    START,
    Forget,
    Grammar,
    Reference,
    Symbol,
    render,
    rendered,
    storyworld,
)


@dataclass(frozen=True)
class Sample:
    """A document with its truth.

    Attributes:
        words: of the text, as the grammar spells them.
        latents: the value of every variable that was drawn, and not forgotten, on the way.
        carries: of each word, the variables whose values had a say in what stands there.
    """

    words: tuple[str, ...]
    latents: Mapping[str, str]
    carries: tuple[tuple[str, ...], ...]

    @property
    def text(self) -> str:
        return render(self.words)


def documents(n: int, seed: int = 0) -> list[str]:
    """n documents of storyworld.

    Raises:
        LrtError: n is negative.

    Examples:
        >>> from lrt_tl import storyworld
        >>> texts = storyworld.documents(60)
        >>> len(texts)
        60
        >>> print(texts[0])
        User: Can you crush the door of the wizard?
        Assistant: Never will I crush the door of the wizard.
    """
    return [sample.text for sample in samples(n, seed)]


def samples(n: int, seed: int = 0, **given: str) -> Iterator[Sample]:
    """n documents with their truth; `given` fixes variables, as in `mood="happy"`.

    Raises:
        LrtError: n is negative, or a variable or value does not exist.

    Examples:
        >>> from lrt_tl import storyworld
        >>> (sample,) = storyworld.samples(1, kind="story", mood="sad", language="English", register="plain")
        >>> sample.text[:60]
        'Rosa: These days, she is a loyal duck in the quarry, and it '
        >>> sample.latents["mood"], sample.latents["tense"], sample.latents["hero"]
        ('sad', 'present', 'duck')
    """
    if n < 0:
        raise LrtError(f"cannot draw {n} documents")
    grammar = storyworld()
    require_values(grammar, given)
    for index in range(n):
        yield draw(grammar, random.Random(f"storyworld {seed} {index}"), given)


def require_values(grammar: Grammar, given: Mapping[str, str]) -> None:
    """Refuse variables and values that the grammar does not have."""
    for name, value in given.items():
        if name not in grammar.priors:
            raise LrtError(f"storyworld has no variable {name!r}, only {', '.join(grammar.priors)}")
        if value not in grammar.priors[name]:
            raise LrtError(f"storyworld's {name} is {', '.join(grammar.priors[name])}, not {value!r}")


def draw(grammar: Grammar, uniform: random.Random, given: Mapping[str, str]) -> Sample:
    """One document. Every choice takes one number from `uniform`, so that documents whose variables differ in one
    value make the same choices elsewhere, as far as the grammar has them in parallel."""
    words: list[str] = []
    carries: list[tuple[str, ...]] = []
    values = dict(given)
    stack: list[tuple[Symbol, tuple[str, ...]]] = [(Reference(START), ())]
    while stack:
        symbol, guards = stack.pop()
        if isinstance(symbol, str):
            words.append(symbol)
            carries.append(guards)
        elif isinstance(symbol, Forget):
            values.pop(symbol.variable, None)
        else:
            rule = grammar.rules[symbol.rule]
            for variable in rule.variables:
                if variable not in values:
                    values[variable] = _drawn(grammar.priors[variable], uniform.random())
            chosen = rule.choose(tuple(values[variable] for variable in rule.variables), uniform.random())
            deciding = tuple(dict.fromkeys((*guards, *rule.variables)))
            stack.extend((inner, deciding) for inner in reversed(chosen.symbols))
    return Sample(tuple(words), values, tuple(carries))


def _drawn(prior: Mapping[str, float], number: float) -> str:
    for value, probability in prior.items():
        number -= probability
        if number < 0:
            return value
    return value


@cache
def vocabulary() -> list[str]:
    """Every word and mark that storyworld can contain, as it stands in a text, in alphabetical order."""
    grammar = storyworld()
    found, seen = set(), {(START, True)}
    todo = list(seen)
    while todo:
        name, at_start = todo.pop()
        for symbols in grammar.rules[name].alternatives():
            starts = {at_start}
            for symbol in symbols:
                if isinstance(symbol, str):
                    found |= {rendered(symbol, starts=start) for start in starts}
                    starts = {symbol in SENTENCE_ENDS}
                elif isinstance(symbol, Reference):
                    new = {(symbol.rule, start) for start in starts} - seen
                    seen |= new
                    todo.extend(new)
                    starts = _ends(grammar, symbol.rule)
    return sorted(found)


def _ends(grammar: Grammar, name: str) -> set[bool]:
    """Whether what a rule gives ends a sentence: always, never, or both."""
    lasts = {
        next(s for s in reversed(symbols) if not isinstance(s, Forget))
        for symbols in grammar.rules[name].alternatives()
    }
    return {
        end
        for last in lasts
        for end in (_ends(grammar, last.rule) if isinstance(last, Reference) else {last in SENTENCE_ENDS})
    }
