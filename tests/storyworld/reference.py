"""What a grammar means, spelled out: every derivation, one by one, and grammars at random to spell out."""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lrt_tl.storyworld.grammar import START, Forget, Grammar, Reference, Symbol, read_grammar, render

Values = Mapping[str, str]
Symbols = tuple[Symbol, ...]


@dataclass(frozen=True)
class Derivation:
    """One way to a document: its words, and the values known after each."""

    probability: float
    words: tuple[str, ...]
    known: tuple[Values, ...]

    def standing(self) -> tuple[str, ...]:
        """The words as they stand in the text."""
        pairs = zip(("\n", *self.words), self.words, strict=False)
        return tuple(word[0].upper() + word[1:] if before in ".?!:\n" else word for before, word in pairs)


def derivations(grammar: Grammar) -> Iterator[Derivation]:
    """All of them."""
    for probability, words, known in _expanded(grammar, (Reference(START),), {}):
        yield Derivation(probability, words, known)


def _expanded(
    grammar: Grammar, symbols: Symbols, values: Values
) -> Iterator[tuple[float, tuple[str, ...], tuple[Values, ...]]]:
    symbols, values = _after_forgetting(symbols, values)
    if not symbols:
        yield 1.0, (), ()
        return
    first, rest = symbols[0], symbols[1:]
    if isinstance(first, str):
        for p, words, known in _expanded(grammar, rest, values):
            yield p, (first, *words), (_after_forgetting(rest, values)[1], *known)
        return
    rule = grammar.rules[first.rule]
    missing = [variable for variable in rule.variables if variable not in values]
    if missing:
        for value, prior in grammar.priors[missing[0]].items():
            for p, words, known in _expanded(grammar, symbols, {**values, missing[0]: value}):
                yield prior * p, words, known
        return
    for option in rule.options[tuple(values[variable] for variable in rule.variables)]:
        for p, words, known in _expanded(grammar, option.symbols + rest, values):
            yield option.probability * p, words, known


def _after_forgetting(symbols: Symbols, values: Values) -> tuple[Symbols, Values]:
    while symbols and isinstance(symbols[0], Forget):
        values = {name: value for name, value in values.items() if name != symbols[0].variable}
        symbols = symbols[1:]
    return symbols, values


def texts_of(grammar: Grammar) -> dict[str, float]:
    """The probability of every document."""
    found: defaultdict[str, float] = defaultdict(float)
    for derivation in derivations(grammar):
        found[render(derivation.words)] += derivation.probability
    return dict(found)


def write_grammar(folder: Path, *contents: str) -> Grammar:
    """A grammar of files with these contents."""
    paths = [folder / f"{number}.yaml" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(content, encoding="utf-8")
    return read_grammar(paths)


def random_grammar(folder: Path, seed: int) -> Grammar:
    """Four layers of rules with guards, weights, a table, variables that are forgotten, and many ways to a text."""
    chance = random.Random(seed)
    guards = {"mood": ["happy", "sad"], "size": ["big", "small", "tiny"]}

    def template(below: list[str]) -> str:
        symbols = [chance.choice(["fox", "I", ".", ",", *below, *below]) for _ in range(chance.randint(1, 3))]
        if chance.random() < 0.4:
            symbols.insert(chance.randint(0, len(symbols)), chance.choice(["<!mood>", "<!size>", "<!land>"]))
        return f"({chance.randint(1, 3)}) " + " ".join(symbols)

    def body(below: list[str], free: list[str]) -> Any:
        if not free or chance.random() < 0.3:
            return sorted({template(below) for _ in range(chance.randint(1, 3))})
        variable = chance.choice(free)
        *values, last = chance.sample(guards[variable], k=len(guards[variable]))
        parts = ["|".join(values), last] if chance.random() < 0.5 else [*values, last]
        return {part: body(below, [name for name in free if name != variable]) for part in parts}

    table = {"variable": True, "columns": [".name", ".town"], "rows": "Norvia Velm\nOstria Velm\n* Quillon Ardeno"}
    rules = {"land": table}
    below = ["<land.name>", "<land.town>"]
    for layer in ("bottom", "low", "middle", "document"):
        rules[layer] = body(below, [*guards])
        below = [f"<{layer}>", *below[-3:]]
    weights = {"mood": {"happy": 3, "sad": 1}, "size": guards["size"]}
    return write_grammar(folder, yaml.safe_dump({"variables": weights, "rules": rules}, sort_keys=False))
