"""The files of `grammar/` → rules that a text can be drawn from, and judged by.

A grammar here is a set of rules without recursion. Each gives alternatives, and which of them are open may be guarded
by *variables*: what a document is about (its mood, its tense, its hero), drawn once, independently, when first needed.
So the probability of a text is a finite sum, and `lrt_tl.storyworld.parse` computes it exactly. `grammar/README.md`
describes the format of the files.
"""

import itertools
import re
from bisect import bisect
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from lrt_tl.errors import LrtError

FOLDER = Path(__file__).parent / "grammar"

START = "document"
"""The rule that every document is drawn from."""


@dataclass(frozen=True)
class Reference:
    """Stands for whatever a rule gives."""

    rule: str


@dataclass(frozen=True)
class Forget:
    """The variable is drawn anew when next needed."""

    variable: str


Symbol = str | Reference | Forget
"""A `str` is a word, or a punctuation mark, of the text."""


@dataclass(frozen=True)
class Option:
    """One thing that a rule can give, at given values of its variables; the options at these values sum to one."""

    probability: float
    symbols: tuple[Symbol, ...]


@dataclass(frozen=True)
class Rule:
    """What a symbol stands for. `variables` are those that its guards name; `options` has every combination of their
    values as a key, and `thresholds` the running sums of the probabilities there."""

    name: str
    variables: tuple[str, ...]
    options: Mapping[tuple[str, ...], tuple[Option, ...]]
    thresholds: Mapping[tuple[str, ...], tuple[float, ...]]

    def choose(self, values: tuple[str, ...], number: float) -> Option:
        """The option that a number from [0, 1) falls on."""
        return self.options[values][bisect(self.thresholds[values][:-1], number)]

    def alternatives(self) -> set[tuple[Symbol, ...]]:
        """All that the rule can give, whatever the values."""
        return {option.symbols for options in self.options.values() for option in options}


@dataclass(frozen=True)
class Table:
    """Rows that belong together, by field: (subject, answer), say. The rows held out are in no document."""

    rows: tuple[Mapping[str, str], ...]
    held_out: tuple[Mapping[str, str], ...]


@dataclass(frozen=True, eq=False)
class Grammar:
    """Rules, the priors of the variables, and the tables whose rows are variables."""

    rules: Mapping[str, Rule]
    priors: Mapping[str, Mapping[str, float]]
    tables: Mapping[str, Table]


@cache
def storyworld() -> Grammar:
    """The grammar of the files in `grammar/`."""
    return read_grammar(sorted(FOLDER.glob("*.yaml")))


def read_grammar(paths: Iterable[Path]) -> Grammar:
    """One grammar from several files.

    Raises:
        LrtError: a rule, variable or value is named twice, or is referred to and does not exist; a rule has no
            alternative for some combination of values, or one that is empty or no text; a table's row has too few
            cells or too many.
    """
    draft = _Draft()
    for path in paths:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        for name, values in content.get("variables", {}).items():
            if taken := [value for value in values if value in draft.variable_of]:
                raise LrtError(f"{path}: {name} has values that are of another variable: {', '.join(taken)}")
            draft.add_variable(name, values)
        for name, source in content.get("rules", {}).items():
            if name in draft.sources:
                raise LrtError(f"{path}: there is a rule {name!r} already")
            draft.sources[name] = source
    for name, source in draft.sources.items():
        if isinstance(source, dict) and source.get("variable"):
            draft.add_variable(name, [_row_name(row) for row in _rows(source) if not _is_held_out(row)])
    for name, source in draft.sources.items():
        draft.add_rule(name, source)
    rules = {name: _rule(name, found, draft.priors) for name, found in draft.alternatives.items()}
    _check_references(rules, draft.priors)
    return Grammar(rules, draft.priors, draft.tables)


class _Loader(yaml.SafeLoader):
    """Refuses a mapping with a key twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise LrtError(f"line {node.start_mark.line + 1} and on: {', '.join(twice)} is named twice")
        return super().construct_mapping(node, deep)


Guard = dict[str, tuple[str, ...]]
"""Variables, and the values that will do."""


@dataclass
class _Draft:
    priors: dict[str, dict[str, float]] = field(default_factory=dict)
    variable_of: dict[str, str] = field(default_factory=dict)
    sources: dict[str, Any] = field(default_factory=dict)
    alternatives: dict[str, list[tuple[Guard, float, str]]] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)

    def add_variable(self, name: str, values: list[str] | dict[str, int]) -> None:
        weights = values if isinstance(values, dict) else dict.fromkeys(values, 1)
        if name in self.priors or len(weights) != len(values):
            raise LrtError(f"the variable {name!r}, or one of its values, is named twice")
        total = sum(weights.values())
        self.priors[name] = {value: weight / total for value, weight in weights.items()}
        for value in weights:
            self.variable_of.setdefault(value, name)

    def add_rule(self, name: str, source: Any) -> None:
        if isinstance(source, dict) and "columns" in source:
            self._add_table(name, source)
        else:
            self._add(name, {}, source)

    def _add(self, name: str, guard: Guard, source: Any) -> None:
        """A list of templates; or a mapping of guards to more of the same."""
        if isinstance(source, dict):
            for key, inner in source.items():
                self._add(name, {**guard, **self._guard(str(key), name)}, inner)
            return
        for template in source:
            if not isinstance(template, str):
                raise LrtError(f"rule {name!r}: {template!r} is no text for YAML: put it in quotes")
            weight, text = re.fullmatch(r"(?:\((\d+)\) )?(.*)", template, re.DOTALL).groups()  # type: ignore[union-attr]
            self.alternatives.setdefault(name, []).append((guard, float(weight or 1), text))

    def _add_table(self, name: str, source: dict[str, Any]) -> None:
        columns, all_rows = source["columns"], _rows(source)
        rows = [row for row in all_rows if not _is_held_out(row)]
        for row in all_rows:
            if len(_cells(row)) != len(columns):
                raise LrtError(f"table {name!r}: {row} has {len(_cells(row))} cells, not {len(columns)}")
        for position, column in enumerate(columns):
            *fields, guard_text = column.split(" ", 1) if column.startswith(".") else ("", column)
            if column.startswith(".") and " " not in column:
                fields, guard_text = [column], ""
            target = name + "".join(fields)
            guard = self._guard(guard_text, target)
            for row in rows:
                own: Guard = {name: (_row_name(row),)} if source.get("variable") else {}
                self.alternatives.setdefault(target, []).append(({**own, **guard}, 1.0, _cells(row)[position]))
        if all(column.startswith(".") for column in columns):
            names = [column[1:] for column in columns]
            kept, held = ([row for row in all_rows if _is_held_out(row) == out] for out in (False, True))
            self.tables[name] = Table(
                *(tuple(dict(zip(names, _cells(row), strict=True)) for row in part) for part in (kept, held))
            )

    def _guard(self, text: str, rule: str) -> Guard:
        guard: Guard = {}
        for part in text.split():
            values = tuple(part.split("|"))
            variables = {self.variable_of.get(value) for value in values}
            if len(variables) != 1 or None in variables:
                raise LrtError(f"rule {rule!r}: {part!r} does not name values of one variable")
            guard[str(variables.pop())] = values
        return guard


def _rows(source: dict[str, Any]) -> list[list[str]]:
    rows = source["rows"]
    return [line.split() for line in rows.splitlines()] if isinstance(rows, str) else rows


def _is_held_out(row: list[str]) -> bool:
    return row[0] == "*"


def _cells(row: list[str]) -> list[str]:
    return [cell.replace("_", " ") for cell in row[_is_held_out(row) :]]


def _row_name(row: list[str]) -> str:
    return _cells(row)[0].replace(" ", "_")


def _rule(name: str, alternatives: list[tuple[Guard, float, str]], priors: Mapping[str, Mapping[str, float]]) -> Rule:
    variables = tuple(dict.fromkeys(variable for guard, _, _ in alternatives for variable in guard))
    options: dict[tuple[str, ...], list[tuple[float, tuple[Symbol, ...]]]] = {}
    for guard, weight, text in alternatives:
        symbols = symbols_of(text)
        for values in itertools.product(*(guard.get(variable, priors[variable]) for variable in variables)):
            options.setdefault(values, []).append((weight, symbols))
    for values in itertools.product(*(priors[variable] for variable in variables)):
        if values not in options:
            raise LrtError(f"rule {name!r} has no alternative for {values}")
    normalized = {values: _normalized(found) for values, found in options.items()}
    thresholds = {values: tuple(accumulate(o.probability for o in found)) for values, found in normalized.items()}
    return Rule(name, variables, normalized, thresholds)


def _normalized(found: list[tuple[float, tuple[Symbol, ...]]]) -> tuple[Option, ...]:
    total = sum(weight for weight, _ in found)
    return tuple(Option(weight / total, symbols) for weight, symbols in found)


WORD = re.compile(r"\n|\([A-Z]\)|[^\W\d_]+(?:'[^\W\d_]+)*|[^\w\s]")
"""A newline, an answer `(A)`, a word, or a punctuation mark."""

_SYMBOL = re.compile(rf"<(!?)([^<>]+)>|{WORD.pattern}")


def symbols_of(template: str) -> tuple[Symbol, ...]:
    """`the <hero> sings.` → the, what `hero` gives, sings, a full stop."""
    found: list[Symbol] = []
    for match in _SYMBOL.finditer(template.replace("¶", "\n")):
        forget, reference = match.group(1), match.group(2)
        if reference is None:
            found.append(match.group())
        else:
            found.append(Forget(reference) if forget else Reference(reference))
    return tuple(found)


def _check_references(rules: Mapping[str, Rule], priors: Mapping[str, Any]) -> None:
    for rule in rules.values():
        for symbols in rule.alternatives():
            if not any(not isinstance(symbol, Forget) for symbol in symbols):
                raise LrtError(f"rule {rule.name!r} has an empty alternative")
            for symbol in symbols:
                if isinstance(symbol, Reference) and symbol.rule not in rules:
                    raise LrtError(f"rule {rule.name!r} refers to {symbol.rule!r}, which does not exist")
                if isinstance(symbol, Forget) and symbol.variable not in priors:
                    raise LrtError(f"rule {rule.name!r} forgets {symbol.variable!r}, which is no variable")


SENTENCE_ENDS = frozenset(".?!:\n")


def rendered(word: str, *, starts: bool) -> str:
    """A word as it stands in a text: the first of a sentence has a capital."""
    return word[0].upper() + word[1:] if starts else word


def render(words: Iterable[str]) -> str:
    """Words of the grammar → text."""
    text, previous = "", "\n"
    for word in words:
        attached = word in ".,:;?!\n" or (previous == "\n" and word[0] != "(")
        text += ("" if attached else " ") + rendered(word, starts=previous in SENTENCE_ENDS)
        previous = word
    return text
