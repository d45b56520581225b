"""Grammar files: what every part of their format means, and what is refused; and what storyworld's must have."""

import re
from pathlib import Path

import pytest

from lrt_tl.errors import LrtError
from lrt_tl.storyworld.grammar import START, WORD, Reference, Rule, render, storyworld
from tests.storyworld.reference import texts_of, write_grammar

LANGUAGES = "variables: {language: {English: 3, Spanish: 1}, mood: [happy, sad], number: [one, many]}\n"
LAND = """
  land:
    variable: true
    columns: [.name, .town]
    rows: |
      Norvia Belmar
      * Quillon Ardeno
      Ostria Port_Velm
"""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("rules: {document: [a fox, an owl]}", {"A fox": 1 / 2, "An owl": 1 / 2}),
        ("rules: {document: [(3) a fox, an owl]}", {"A fox": 3 / 4, "An owl": 1 / 4}),
        ("rules: {document: [<a>., <a> (A)¶<a>], a: [(2) yes, sí]}", {
            "Yes.": 1 / 3, "Sí.": 1 / 6, "Yes (A)\nYes": 2 / 9, "Yes (A)\nSí": 1 / 9, "Sí (A)\nYes": 1 / 9,
            "Sí (A)\nSí": 1 / 18,
        }),
        (LANGUAGES + "rules: {document: {English: {happy: [glad], sad: [(2) blue, grey]}, Spanish: [azul]}}", {
            "Glad": 3 / 8, "Blue": 1 / 4, "Grey": 1 / 8, "Azul": 1 / 4,
        }),
        (LANGUAGES + "rules: {document: {happy: [a], happy|sad: [b]}}", {"A": 1 / 4, "B": 3 / 4}),
        (LANGUAGES + "rules: {document: [<a> <a>], a: {happy: [a], sad: [b]}}", {"A a": 1 / 2, "B b": 1 / 2}),
        (LANGUAGES + "rules: {document: [<a><!mood> <a>], a: {happy: [a], sad: [b]}}", {
            "A a": 1 / 4, "A b": 1 / 4, "B a": 1 / 4, "B b": 1 / 4,
        }),
        (LANGUAGES + """
rules:
  document: [the <animal>]
  animal:
    columns: [English one, English many, Spanish one|many]
    rows: |
      fox foxes zorro
      red_owl red_owls búho
""", {"The fox": 3 / 16, "The foxes": 3 / 16, "The red owl": 3 / 16, "The red owls": 3 / 16, "The zorro": 1 / 8,
      "The búho": 1 / 8}),
        (LANGUAGES + """
rules:
  document: ["<hero>, <hero>"]
  hero: {variable: true, columns: [English, Spanish], rows: [[a fox, un zorro], [an owl, un búho]]}
""", {"A fox, a fox": 3 / 8, "An owl, an owl": 3 / 8, "Un zorro, un zorro": 1 / 8, "Un búho, un búho": 1 / 8}),
        ("rules:\n  document: [<land.town> of <land.name>]" + LAND, {
            "Belmar of Norvia": 1 / 2, "Port Velm of Ostria": 1 / 2,
        }),
        ("rules:\n  document: [<land.town><!land> of <land.name>]" + LAND, {
            f"{town} of {name}": 1 / 4 for town in ("Belmar", "Port Velm") for name in ("Norvia", "Ostria")
        }),
        (LANGUAGES + """
rules:
  document: [<c.word> <c.sign>]
  c: {variable: true, columns: [.sign, .word English, .word Spanish], rows: [["!", aye, sí], ["?", nay, jamás]]}
""", {"Aye!": 3 / 8, "Sí!": 1 / 8, "Nay?": 3 / 8, "Jamás?": 1 / 8}),
        ("rules: {document: [<c.a> <c.b>], c: {columns: [.a, .b], rows: [[x, u], [y, v]]}}", {
            "X u": 1 / 4, "X v": 1 / 4, "Y u": 1 / 4, "Y v": 1 / 4,  # without `variable` no row is remembered
        }),
        ("rules: {document: [<c>], c: {columns: [''], rows: [[x], ['*', y]]}}", {"X": 1}),
    ],
)  # fmt: skip
def test_what_a_grammar_gives(tmp_path: Path, content: str, expected: dict[str, float]) -> None:
    assert texts_of(write_grammar(tmp_path, content)) == pytest.approx(expected)


def test_files_make_one_grammar(tmp_path: Path) -> None:
    grammar = write_grammar(tmp_path, "rules: {document: {happy: [<a>], sad: [b]}}", LANGUAGES, "rules: {a: [c]}")
    assert texts_of(grammar) == pytest.approx({"C": 1 / 2, "B": 1 / 2})
    assert grammar.priors["language"] == pytest.approx({"English": 3 / 4, "Spanish": 1 / 4})


def test_rows_held_out_are_kept_apart(tmp_path: Path) -> None:
    grammar = write_grammar(tmp_path, "rules:\n  document: [<land.town>]" + LAND)
    norvia, ostria = {"name": "Norvia", "town": "Belmar"}, {"name": "Ostria", "town": "Port Velm"}
    assert grammar.tables["land"].rows == (norvia, ostria)
    assert grammar.tables["land"].held_out == ({"name": "Quillon", "town": "Ardeno"},)
    assert grammar.priors["land"] == {"Norvia": 0.5, "Ostria": 0.5}


MOOD = "variables: {mood: [happy, sad]}\n"


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (["variables: {mood: [happy, happy]}"], "'mood', or one of its values, is named twice"),
        ([MOOD, "variables: {mood: [up, down]}"], "'mood', or one of its values, is named twice"),
        ([MOOD + "rules: {mood: {variable: true, columns: [.a], rows: x}}"], "'mood', .* is named twice"),
        ([MOOD, "variables: {weather: [fair, sad]}"], "weather has values that are of another variable: sad"),
        (["rules: {a: [b]}", "rules: {a: [c]}"], "there is a rule 'a' already"),
        (["rules: {a: [b], a: [c]}"], "line 1 and on: a is named twice"),
        ([MOOD + "rules: {a: {happy: [x], happy: [y], sad: [z]}}"], "line 2 and on: happy is named twice"),
        ([MOOD + "rules: {a: {happy: [b], glum: [c]}}"], "'a': 'glum' does not name values of one variable"),
        (["variables: {x: [u, v], y: [s, t]}\nrules: {a: {u|s: [b]}}"], r"'u\|s' does not name values of one"),
        ([MOOD + "rules: {a: {columns: [happy, glum], rows: x y}}"], "'a': 'glum' does not name values"),
        ([MOOD + "rules: {a: {happy: [b]}}"], r"'a' has no alternative for \('sad',\)"),
        (["variables: {x: [u, v], y: [s, t]}\nrules: {a: {u: [b], v: {s: [c]}}}"], r"no alternative for \('v', 't'\)"),
        ([MOOD + "rules: {a: {columns: [happy], rows: x}}"], r"'a' has no alternative for \('sad',\)"),
        (["rules: {a: [b <c>]}"], "'a' refers to 'c', which does not exist"),
        (["rules: {a: [b <!c>], c: [d]}"], "'a' forgets 'c', which is no variable"),
        (["rules: {a: [b, '']}"], "'a' has an empty alternative"),
        ([MOOD + "rules: {a: [<!mood>]}"], "'a' has an empty alternative"),
        (["rules: {a: [no]}"], "'a': False is no text for YAML"),
        (["rules: {a: {columns: [.x, .y], rows: u v w}}"], "table 'a': .* has 3 cells, not 2"),
        (["rules: {a: {columns: [.x, .y], rows: [[u, v], [w]]}}"], "table 'a': .* has 1 cells, not 2"),
        (["rules: {a: {columns: [.x, .y], rows: '* u'}}"], "table 'a': .* has 1 cells, not 2"),
    ],
)
def test_what_is_refused(tmp_path: Path, contents: list[str], message: str) -> None:
    with pytest.raises(LrtError, match=message):
        write_grammar(tmp_path, *contents)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["Mira", ":", "yes", ",", "I", "sang", ".", "why", "?", "never", "!", "ana", ";", "olga"],
         "Mira: Yes, I sang. Why? Never! Ana; olga"),
        (["ask", ":", "\n", "(A)", "run", "\n", "(B)", "stay", "\n", "answer", ":", "(A)"],
         "Ask:\n (A) run\n (B) stay\nAnswer: (A)"),
        (["(A)", "río", "\n", "\n", "él", "don't"], " (A) río\n\nÉl don't"),
        ([], ""),
    ],
)  # fmt: skip
def test_spaces_and_capitals(words: list[str], text: str) -> None:
    assert render(words) == text


# Storyworld's own grammar


def test_storyworld_has_eight_relations_of_thirty_rows_that_are_told() -> None:
    grammar = storyworld()
    relations = {name: table for name, table in grammar.tables.items() if f"{name}-fact" in grammar.rules}
    assert len(relations) >= 8
    for table in relations.values():
        rows = [*table.rows, *table.held_out]
        assert len(table.rows) >= 30 <= len(rows) - len(table.held_out)
        assert len({row["subject"] for row in rows}) == len(rows)  # a subject has one answer
        assert all(WORD.fullmatch(word) for row in rows for word in row.values())  # of one token


def test_storyworld_has_1500_words() -> None:
    rules = storyworld().rules.values()
    words = {symbol.lower() for rule in rules for symbols in rule.alternatives() for symbol in symbols
             if isinstance(symbol, str) and symbol[0].isalpha()}  # fmt: skip
    assert len(words) >= 1500


def test_storyworld_uses_letters_and_known_punctuation_only() -> None:
    """YAML's values (False for `no`) and forgotten brackets would end up in the text."""
    for path in (Path(__file__).parents[2] / "lrt_tl" / "storyworld" / "grammar").glob("*.yaml"):
        assert not re.search(r"[“”¿¡«»]", path.read_text(encoding="utf-8"))
    found = {symbol for rule in storyworld().rules.values() for symbols in rule.alternatives() for symbol in symbols
             if isinstance(symbol, str)}  # fmt: skip
    assert {symbol for symbol in found if not re.fullmatch(r"[^\W\d_]+('[^\W\d_]+)*", symbol)} <= {
        ".", ",", ":", ";", "?", "!", "(A)", "(B)", "\n",
    }  # fmt: skip
    assert not found & {"True", "False", "None"}


def test_every_rule_of_storyworld_is_used_and_none_calls_itself() -> None:
    rules = storyworld().rules

    def called_by(rule: Rule, above: tuple[str, ...] = ()) -> set[str]:
        assert rule.name not in above
        names = {s.rule for symbols in rule.alternatives() for s in symbols if isinstance(s, Reference)}
        return names.union(*(called_by(rules[name], (*above, rule.name)) for name in names))

    called = called_by(rules[START]) | called_by(rules["sentence"]) | {START, "sentence"}
    tables = {name.partition(".")[0] for name in called}
    assert {name for name in rules if name.partition(".")[0] not in tables} == set()


def test_no_alternative_of_storyworld_is_given_twice() -> None:
    for rule in storyworld().rules.values():
        for options in rule.options.values():
            assert len({option.symbols for option in options}) == len(options), rule.name
            assert sum(option.probability for option in options) == pytest.approx(1)
