"""A text → its exact probability under the grammar, and the posterior of every variable.

The grammar has no recursion, so at any place in a text there are finitely many ways in which it can have come about:
what is still to come (a stack of symbols), and the values of the variables drawn so far. A `Parser` carries all of them
along with their probabilities. A variable that no choice has asked for yet is not summed over: it is at its prior.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from lrt_tl.errors import LrtError
from lrt_tl.storyworld.grammar import (
    SENTENCE_ENDS,
    START,
    WORD,
    Forget,
    Grammar,
    Reference,
    Symbol,
    render,
    rendered,
    storyworld,
)


@dataclass(frozen=True)
class Unset:
    """Forget, with the place of the variable."""

    place: int


Values = tuple[str | None, ...]
"""The value of each variable of the grammar, in its order; None for one that was not drawn."""

Item = str | Reference | Unset
Stack = tuple[Item, Any] | None
"""What is still to come: its first symbol, and the stack of the rest."""


class Parser:
    """All derivations of the words read so far.

    Args:
        start: the rule that the text is drawn from, by default a whole document.
        grammar: by default storyworld's.
    """

    def __init__(self, start: str = START, grammar: Grammar | None = None) -> None:
        self._grammar = grammar or storyworld()
        self._expansions = _expansions(self._grammar)
        nothing: Values = (None,) * len(self._grammar.priors)
        self._states: dict[tuple[Stack, Values], float] = {((Reference(start), None), nothing): 1.0}
        self._starts_sentence = True

    def push(self, word: str) -> float:
        """Read one word, as it stands in the text; the probability that it comes next. Zero: no derivation is left."""
        found: defaultdict[tuple[Stack, Values], float] = defaultdict(float)
        for spelled in {word, word[0].lower() + word[1:]}:
            if rendered(spelled, starts=self._starts_sentence) == word:
                for (stack, values), probability in self._states.items():
                    self._advance(stack, values, probability, spelled, found)
        total = sum(found.values(), 0.0)
        self._states = {state: probability / total for state, probability in found.items()}
        self._starts_sentence = word in SENTENCE_ENDS
        return total

    def copy(self) -> "Parser":
        """Another parser that has read the same words."""
        other = Parser.__new__(Parser)
        other.__dict__.update(self.__dict__)  # `push` replaces the states, and does not change them
        return other

    def next_words(self) -> dict[str, float]:
        """The probability of every word that can come next, as it would stand in the text."""
        firsts: set[str] = set()
        for stack, _ in self._states:
            if stack is not None:
                first = stack[0]
                firsts |= self._expansions[first.rule].keys() if isinstance(first, Reference) else {str(first)}
        words = {rendered(word, starts=self._starts_sentence) for word in firsts}
        found = {word: self.copy().push(word) for word in sorted(words)}
        return {word: probability for word, probability in found.items() if probability > 0}

    def end(self) -> float:
        """The probability that the text ends here."""
        return sum((probability for (stack, _), probability in self._states.items() if stack is None), 0.0)

    def posterior(self, variable: str) -> dict[str, float]:
        """The probability of each value, given the words read: the prior where they do not depend on it.

        Raises:
            LrtError: no derivation is left.
        """
        if not self._states:
            raise LrtError("the text is not of the grammar, so that it says nothing about its variables")
        prior = self._grammar.priors[variable]
        place = list(self._grammar.priors).index(variable)
        found = dict.fromkeys(prior, 0.0)
        for (_, values), probability in self._states.items():
            value = values[place]
            if value is not None:
                found[value] += probability
        undrawn = 1 - sum(found.values())
        return {value: found[value] + undrawn * prior[value] for value in prior}

    def _advance(
        self, stack: Stack, values: Values, probability: float, word: str, found: dict[tuple[Stack, Values], float]
    ) -> None:
        """Add to `found` the states that follow when the next word is `word`."""
        if stack is None:
            return
        symbol, rest = stack
        if not isinstance(symbol, Reference):  # and not an Unset either: see _settled
            if symbol == word:
                found[_settled(rest, values)] += probability
            return
        for expansion in self._expansions[symbol.rule].get(word, ()):
            factor, drawn = expansion.probability, list(values)
            for place, value, prior in expansion.needs:
                if drawn[place] is None:
                    drawn[place], factor = value, factor * prior
                elif drawn[place] != value:
                    break
            else:
                inner, known = _settled(_pushed(expansion.symbols, rest), tuple(drawn))
                self._advance(inner, known, probability * factor, word, found)


@dataclass(frozen=True)
class _Expansion:
    """An option of a rule: the variables (place, value, prior) that it needs, and what it gives."""

    needs: tuple[tuple[int, str, float], ...]
    probability: float
    symbols: tuple[Item, ...]


@cache
def _expansions(grammar: Grammar) -> Mapping[str, Mapping[str, tuple[_Expansion, ...]]]:
    """Of each rule, by the first word: the options that can begin with it."""
    places = {variable: place for place, variable in enumerate(grammar.priors)}
    firsts: dict[str, set[str]] = {}

    def first_words(symbols: tuple[Symbol, ...]) -> set[str]:
        first = next(symbol for symbol in symbols if not isinstance(symbol, Forget))
        if isinstance(first, str):
            return {first}
        if first.rule not in firsts:
            firsts[first.rule] = set().union(*map(first_words, grammar.rules[first.rule].alternatives()))
        return firsts[first.rule]

    found: dict[str, defaultdict[str, list[_Expansion]]] = {}
    for rule in grammar.rules.values():
        by_word = found.setdefault(rule.name, defaultdict(list))
        for key, options in rule.options.items():
            needs = tuple(
                (places[variable], value, grammar.priors[variable][value])
                for variable, value in zip(rule.variables, key, strict=True)
            )
            for option in options:
                symbols = tuple(Unset(places[s.variable]) if isinstance(s, Forget) else s for s in option.symbols)
                for word in first_words(option.symbols):
                    by_word[word].append(_Expansion(needs, option.probability, symbols))
    return {name: {word: tuple(expansions) for word, expansions in by.items()} for name, by in found.items()}


def _pushed(symbols: tuple[Item, ...], stack: Stack) -> Stack:
    for symbol in reversed(symbols):
        stack = (symbol, stack)
    return stack


def _settled(stack: Stack, values: Values) -> tuple[Stack, Values]:
    """Forget at once what is to be forgotten next, so that equal states are seen to be equal."""
    while stack is not None and isinstance(stack[0], Unset):
        place = stack[0].place
        values = (*values[:place], None, *values[place + 1 :])
        stack = stack[1]
    return stack, values


def split_words(text: str) -> list[str] | None:
    """The words of a text as they stand in it; None if no document is spaced like it."""
    words = WORD.findall(text)
    return words if render(words) == text else None


def log_probabilities(text: str) -> list[float]:
    """The log-probability, in nats, of each word of a document given those before it, and last of its end.

    Exact: all derivations are summed over.

    Raises:
        LrtError: the text is not a document of the grammar; says how far it is one.
    """
    words = split_words(text)
    if not words:
        raise LrtError(f"not spaced like a document of storyworld: {text[:60]!r}")
    parser, found = Parser(), []
    for number, word in enumerate(words):
        probability = parser.push(word)
        if probability == 0:
            raise LrtError(f"not a document of storyworld from word {number + 1}, {word!r}, on: {text[:80]!r}")
        found.append(math.log(probability))
    if parser.end() == 0:
        raise LrtError(f"a document of storyworld does not end after {words[-1]!r}: {text[-60:]!r}")
    return [*found, math.log(parser.end())]


def is_grammatical(text: str) -> bool:
    """Whether a text is a whole document of storyworld."""
    try:
        log_probabilities(text)
    except LrtError:
        return False
    return True
