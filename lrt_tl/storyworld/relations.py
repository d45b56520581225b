"""The facts of storyworld: what is asked, and what was never told."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from lrt_tl.errors import LrtError
from lrt_tl.storyworld.grammar import Forget, Reference, render, storyworld


@dataclass(frozen=True)
class Fact:
    """A question about a subject; `prompt + answer` is the beginning of a document.

    Attributes:
        subject: as in "Norvia".
        prompt: as in "The capital of Norvia is".
        answer: with its space, as in " Belmar".

    Examples:
        >>> from lrt_tl import storyworld
        >>> fact = storyworld.relation("capital-of").seen[0]
        >>> fact
        Fact(subject='Norvia', prompt='In the land of Norvia, the capital is named', answer=' Belmar')
        >>> fact.prompt + fact.answer
        'In the land of Norvia, the capital is named Belmar'
    """

    subject: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Relation:
    """A relation between words.

    Attributes:
        seen: its facts in all their phrasings, as they are in the training documents.
        held_out: those of the subjects whose answer no document tells.

    Examples:
        >>> from lrt_tl import storyworld
        >>> relation = storyworld.relation("capital-of")
        >>> relation
        Relation(capital-of: 31 subjects, 3 held out)
        >>> relation.held_out[0].subject in {fact.subject for fact in relation.seen}
        False
    """

    name: str
    seen: tuple[Fact, ...]
    held_out: tuple[Fact, ...]

    def __repr__(self) -> str:
        subjects = [len({fact.subject for fact in facts}) for facts in (self.seen, self.held_out)]
        return f"Relation({self.name}: {subjects[0]} subjects, {subjects[1]} held out)"


def relation_names() -> list[str]:
    """The relations that documents tell facts of."""
    grammar = storyworld()
    return [name for name in grammar.tables if f"{name}-fact" in grammar.rules]


def relation(name: str) -> Relation:
    """A relation by name.

    Raises:
        LrtError: there is none of that name.

    Examples:
        >>> from lrt_tl import storyworld
        >>> storyworld.relation("sound-of").seen[0]
        Fact(subject='owl', prompt='How does the owl sound?', answer=' Hoot')
        >>> storyworld.relation("opposite")
        Relation(opposite: 31 subjects, 3 held out)
    """
    if name not in relation_names():
        raise LrtError(f"storyworld has no relation {name!r}: choose one of {', '.join(relation_names())}")
    return _relation(name)


@cache
def _relation(name: str) -> Relation:
    table = storyworld().tables[name]
    seen, held_out = (
        tuple(fact for row in rows for fact in _facts(name, row)) for rows in (table.rows, table.held_out)
    )
    return Relation(name, seen, held_out)


def _facts(name: str, row: Mapping[str, str]) -> list[Fact]:
    """A row in every phrasing."""
    found = []
    for symbols in sorted(storyworld().rules[f"{name}-fact"].alternatives(), key=str):
        words: list[str] = []
        for symbol in symbols:
            if symbol == Reference(f"{name}.answer"):
                break
            if isinstance(symbol, Reference):
                words.append(row[symbol.rule.removeprefix(f"{name}.")])
            elif not isinstance(symbol, Forget):
                words.append(symbol)
        prompt = render(words)
        found.append(Fact(row["subject"], prompt, render([*words, row["answer"]])[len(prompt) :]))
    return found
