"""Facts from files, and what is no fact."""

import json
from pathlib import Path
from typing import Any

import pytest

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.relation_files import StatedFact, read_relations

ROWS = [
    {"relation": "capital-of", "subject": "France", "prompt": "The capital of France is", "answer": " Paris"},
    {"relation": "capital-of", "subject": "Italy", "prompt": "The capital of Italy is", "answer": " Rome"},
    {"relation": "young-of", "subject": "cow", "prompt": "A young cow is a", "answer": " calf"},
    {"relation": "young-of", "subject": "cat", "prompt": "A young cat is a", "answer": " kitten"},
]


def test_facts_by_relation(tmp_path: Path) -> None:
    lines, whole = tmp_path / "facts.jsonl", tmp_path / "facts.json"
    lines.write_text("\n".join(map(json.dumps, ROWS)))
    whole.write_text(json.dumps(ROWS))
    found = read_relations(lines)
    assert found == read_relations(whole) == read_relations(ROWS)
    assert list(found) == ["capital-of", "young-of"]
    assert found["young-of"][0] == StatedFact("cow", "A young cow is a", " calf")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no facts"),
        ([{**ROWS[0], "answer": 3}], "fact 0: .* is no fact: it needs relation, subject, prompt, answer"),
        ([{"relation": "capital-of"}], "fact 0: .* is no fact"),
        (["France"], "fact 0: 'France' is no fact"),
        ([{**ROWS[0], "subject": "Spain"}], "does not name its subject 'Spain'"),
        (ROWS[:1], "relation 'capital-of': every answer is ' Paris'"),
    ],
)
def test_what_is_no_relation(rows: list[Any], message: str) -> None:
    with pytest.raises(LrtError, match=message):
        read_relations(rows)
