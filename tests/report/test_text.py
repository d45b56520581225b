"""What may be shown of anybody's text."""

import html
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrt_tl.report.text import LONGEST, LONGEST_NAME, changed_words, figure_text, markdown_text, shown, shown_name
from tests.report.hostile import LONG

ANY_TEXT = st.text(st.characters(), max_size=60)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain – ünïcode 漢字 😀\n\ttext", "plain – ünïcode 漢字 😀\n\ttext"),
        ("a\ud800b", "a\ufffdb"),
        ("a\x00\x1b[31m\x7f", "a␀␛[31m[U+007F]"),
        ("\u202eevil\u202c", "[U+202E]evil[U+202C]"),
        ("\u05d0\u200f", "\u05d0[U+200F]"),
    ],
)
def test_what_cannot_be_seen_gets_a_stand_in(text: str, seen: str) -> None:
    assert shown(text) == seen


@given(ANY_TEXT)
def test_all_that_is_shown_can_be_written_and_seen(text: str) -> None:
    seen = shown(text)
    seen.encode("utf-8")
    assert not {unicodedata.bidirectional(character) for character in seen} & {"RLO", "LRO", "RLE", "LRE", "RLI", "LRI"}
    assert not [c for c in seen if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    assert shown(seen) == seen


def test_what_is_too_long_is_cut_and_says_so() -> None:
    assert shown(LONG) == f"{LONG[:LONGEST]} … [{len(LONG) - LONGEST:,} characters more]"
    assert len(shown_name(LONG)) < LONGEST_NAME + 40
    assert shown_name(" two\n lines ") == "two lines"


def test_a_figure_reads_no_tags() -> None:
    text = figure_text("<a href='javascript:alert(1)'>x</a> & <b>")
    assert "<" not in text
    assert html.unescape(text) == "<a href='javascript:alert(1)'>x</a> & <b>"


@given(ANY_TEXT)
def test_escaped_markdown_holds_no_mark_that_is_not_escaped(text: str) -> None:
    escaped = markdown_text(text)
    assert "\n" not in escaped
    assert re.sub(r"\\(.)", r"\1", escaped) == " ".join(shown(text).split())
    assert not re.search(r"[`*_\[\]<>#|~&@$]", re.sub(r"\\.", "", escaped))


@pytest.mark.parametrize(
    ("text", "against", "changed"),
    [
        ("she felt very glad today", "she felt sad today", ["very", "glad"]),
        ("the same", "the same", []),
        ("all new", "", ["all", "new"]),
        ("", "all gone", []),
    ],
)
def test_changed_words_are_those_that_the_other_text_lacks(text: str, against: str, changed: list[str]) -> None:
    runs = changed_words(text, against)
    assert "".join(run for run, _ in runs) == text
    assert [word for run, new in runs if new for word in run.split()] == changed


@given(ANY_TEXT, ANY_TEXT)
def test_runs_joined_are_the_text(text: str, against: str) -> None:
    runs = changed_words(text, against)
    assert "".join(run for run, _ in runs) == text
    assert all(run in against for run, new in runs if not new)
