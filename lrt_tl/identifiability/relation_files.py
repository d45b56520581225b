"""Relations in a file: a fact a line, each with the relation that it is of."""

from pathlib import Path
from typing import Any, NamedTuple

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.properties.facts import subject_end
from lrt_tl.text.documents import read_rows

_KEYS = ("relation", "subject", "prompt", "answer")


class StatedFact(NamedTuple):
    """A fact as a file states it: after the prompt, which names the subject, comes the answer, with its space."""

    subject: str
    prompt: str
    answer: str


def read_relations(source: Any) -> dict[str, list[StatedFact]]:
    """Facts by relation.

    Args:
        source: a `.jsonl` file of `{"relation": "capital-of", "subject": "France", "prompt": "The capital of France
            is", "answer": " Paris"}`, a `.json` list of such entries, or an iterable of such mappings.

    Raises:
        LrtError: the file does not exist or is malformed (names the line), an entry lacks a text, a prompt does not
            name its subject, there is no fact, or all facts of a relation have one answer.

    Examples:
        >>> import lrt_tl as lrt
        >>> countries = {"France": " Paris", "Japan": " Tokyo"}
        >>> entries = [
        ...     {"relation": "capital-of", "subject": each, "prompt": f"The capital of {each} is", "answer": capital}
        ...     for each, capital in countries.items()
        ... ]
        >>> lrt.read_relations(entries)["capital-of"][0]
        StatedFact(subject='France', prompt='The capital of France is', answer=' Paris')
    """
    found: dict[str, list[StatedFact]] = {}
    for where, row in read_rows(source, "fact"):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) and row[key].strip() for key in _KEYS):
            raise LrtError(f"{where}: {row!r:.100} is no fact: it needs {', '.join(_KEYS)}, all of them text")
        relation, *parts = (row[key] for key in _KEYS)
        fact = StatedFact(*parts)
        subject_end(fact)
        found.setdefault(relation, []).append(fact)
    if not found:
        raise LrtError("there are no facts" + (f" in {source}" if isinstance(source, (str, Path)) else ""))
    for relation, facts in found.items():
        if len({fact.answer for fact in facts}) < 2:
            raise LrtError(
                f"relation {relation!r}: every answer is {facts[0].answer!r}; two or more are needed to tell apart"
            )
    return found
