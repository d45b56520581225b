"""The page: whole, self-contained, and no text becomes markup."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import plotly.graph_objects as go

from lrt_tl.report.page import Answer, Code, Figure, Note, Page, Section, Table, Texts
from lrt_tl.report.render import render
from lrt_tl.report.text import figure_text, shown
from tests.report.hostile import HOSTILE, LONG

ANSWER = Answer("Half of it.", 0.5, (0.4, 0.6), "go", "a share")


class Read(HTMLParser):
    """Counts what a browser would run or fetch, and gathers what it would show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.addresses, self.handlers = list[str](), list[str](), list[str]()
        self.shown, self.scripts, self.policy = "", list[str](), ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts.append(data)
        elif self.tags and self.tags[-1] != "style":
            self.shown += data

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(f"/{tag}")


def a_page(text: str) -> Page:
    figure = go.Figure(go.Scatter(x=[0, 1], y=[0, 1], name=figure_text(text), meta="nulls"))
    figure.update_layout(title=figure_text(text), template="plotly_white")
    blocks = [
        Table({text: text}, text),
        Table([{text: text}], text),
        Figure(figure, text, optional=text),
        Texts([{"prompt": text, "plain": text, text: text}], caption=text),
        Code(text),
        Note(text),
    ]
    answer = Answer(text, 0.5, (0.4, 0.6), text, text, [{text: text}])
    return Page(text, answer, [Section(text, blocks, text)])


def test_hostile_text_is_shown_and_adds_no_element() -> None:
    calm, hostile = Read(render(a_page("calm"))), Read(render(a_page(HOSTILE)))
    assert hostile.tags == calm.tags
    assert hostile.addresses == calm.addresses == ["#section-1"]
    assert hostile.handlers == []
    assert hostile.shown.count(shown(HOSTILE)) >= 9
    assert "49" not in hostile.shown


def test_a_megabyte_is_cut_and_says_by_how_much() -> None:
    page, calm = render(a_page(LONG)), render(a_page("calm"))
    assert len(page) < len(calm) + 200_000
    assert "[990,000 characters more]" in page


def test_the_policy_lets_only_the_two_scripts_run_and_nothing_be_fetched() -> None:
    read = Read(render(a_page("calm")))
    data, *scripts = read.scripts
    policy = dict(part.strip().split(" ", 1) for part in read.policy.split(";"))
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert policy["script-src"].split() == [f"'sha256-{each}'" for each in hashes]
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert not re.search(r"https?:|\*", read.policy)
    held = json.loads(data)
    assert held["figures"][0]["data"][0]["y"] == [0, 1]
    assert "template" not in held["figures"][0]["layout"]


def test_the_answer_comes_first_and_then_the_sections_in_order() -> None:
    page = Page("Title", ANSWER, [Section("One", [Note("first")], "a remark"), Section("Two", [])])
    text = Read(render(page)).shown
    places = [text.index(part) for part in ("Half of it.", "0.50", "[0.40, 0.60]", "go", "first", "a remark")]
    assert places == sorted(places)
    assert text.rindex("One") < text.rindex("Two")


def test_without_a_number_none_is_shown() -> None:
    page = Page("Title", Answer("There is none.", None, None), [])
    assert "95 %" not in Read(render(page)).shown


def test_a_section_is_open_unless_it_is_folded() -> None:
    page = render(Page("Title", ANSWER, [Section("One", [Note("first")]), Section("Two", [Note("last")], folded=True)]))
    assert re.findall("<details.*?>", page) == ['<details open id="section-1">', '<details id="section-2">']


def test_of_several_answers_each_has_its_row() -> None:
    rows = [{"behavior": "mood", "recovery": "0.62"}, {"behavior": "refusal", "recovery": "0.92"}]
    page = render(Page("Title", replace(ANSWER, number=None, each=rows), []))
    box = page.split('<div class="answer">')[1].split("</header>")[0]
    assert re.findall('<td data-name="(.*?)"><bdi>(.*?)</bdi>', box) == [cell for row in rows for cell in row.items()]


def test_words_that_differ_are_marked_after_the_column_compared_with() -> None:
    rows = [{"prompt": "He", "plain": "felt <sad> today", "steered": "felt <glad> today"}]
    page = render(Page("Title", ANSWER, [Section("Texts", [Texts(rows)])]))
    assert re.findall("<mark>(.*?)</mark>", page.split("<main>")[1].split("</main>")[0]) == ["&lt;glad&gt;"]
