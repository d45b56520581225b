"""The report in a browser: headless Chromium, where Playwright and a browser are installed."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lrt_tl.report.render import render
from lrt_tl.report.text import shown
from lrt_tl.runs.sections import page_of
from tests.report.hostile import HOSTILE, LONG
from tests.report.test_render import a_page
from tests.runs.synthetic import a_result, a_run

sync_api = pytest.importorskip("playwright.sync_api")
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip(f"no browser is installed: {', '.join(NAMES)}")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield launched
        launched.close()


@dataclass
class Visit:
    """A page that is open, and what happened on it."""

    page: Any
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def until(page: Any, expression: str) -> None:
    """Wait for it. (What Playwright itself offers is evaluated in the page, whose policy forbids that.)"""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"it never came to be: {expression}")


def visit(browser: Any, file: Path, **settings: Any) -> Visit:
    opened = Visit(browser.new_page(**settings))
    opened.page.on("console", lambda message: opened.messages.append(message.text))
    opened.page.on("pageerror", lambda error: opened.messages.append(str(error)))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.on("dialog", lambda dialog: (opened.dialogs.append(dialog.message), dialog.dismiss()))
    opened.page.goto(file.as_uri())
    until(opened.page, "plots.every(plot => plot.querySelector('.main-svg'))")
    return opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two behaviors, one of them with names and texts of an attacker."""
    samples = [{"prompt": HOSTILE, "plain": HOSTILE, "native": f"{HOSTILE} glad", "transferred": LONG}]
    run = a_run([a_result(), a_result(HOSTILE)], models=("small", HOSTILE), samples=samples)
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render(page_of(run)), encoding="utf-8")
    return file


def test_it_opens_from_a_disk_without_a_message_or_a_request(browser: Any, report: Path) -> None:
    opened = visit(browser, report)
    assert opened.requests == [report.as_uri()]
    assert (opened.messages, opened.dialogs) == ([], [])
    assert opened.page.locator(".main-svg .scatterlayer").count() == 3


def test_its_controls_work(browser: Any, report: Path) -> None:
    page = visit(browser, report).page
    page.get_by_role("link", name="What the vectors do").click()
    figure = page.locator("figure:has(input)").first
    visible = "plot => plot.data.filter(trace => trace.visible !== false).map(trace => trace.meta ?? trace.name)"
    plot = figure.locator("[data-figure]")
    assert plot.evaluate(visible) == ["nulls", "native", "transferred"]
    figure.get_by_label("show nulls").uncheck()
    assert plot.evaluate(visible) == ["native", "transferred"]
    figure.get_by_label("show nulls").check()
    assert plot.evaluate(visible) == ["nulls", "native", "transferred"]
    figure.locator(".legendtoggle").first.click()
    until(page, "plots.some(plot => plot.data.some(trace => trace.visible === 'legendonly'))")

    section = page.locator("details").first
    section.locator("summary").click()
    assert not section.evaluate("each => each.open")
    page.locator("nav a").first.click()
    until(page, "document.querySelector('details').open")


def test_a_folded_section_opens_for_its_link_with_figures_as_wide_as_it_is(browser: Any, report: Path) -> None:
    page = visit(browser, report, viewport={"width": 900, "height": 800}).page
    folded = page.locator("details:not([open]):has(figure)").first
    name = folded.get_attribute("id")
    page.set_viewport_size({"width": 700, "height": 800})
    page.evaluate(f"location.hash = '{name}'")
    until(page, f"document.getElementById('{name}').open")
    until(page, "plots.every(plot => !plot.closest('details').open || plot._fullLayout.width === plot.clientWidth)")
    page.goto(f"{report.as_uri()}#{name}")
    page.reload()
    until(page, f"document.getElementById('{name}').open")


def test_on_a_phone_no_table_is_wider_than_the_screen(browser: Any, report: Path) -> None:
    page = visit(browser, report, viewport={"width": 390, "height": 800}).page
    page.evaluate("document.querySelectorAll('details').forEach(section => section.open = true)")
    wider = "[...document.querySelectorAll('.wide')].filter(each => each.scrollWidth > each.clientWidth)"
    assert page.evaluate(f"{wider}.map(each => each.textContent)") == []
    label = page.locator(".answer td").nth(1).evaluate("each => getComputedStyle(each, '::before').content")
    assert "recovery" in label


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_the_color_scheme(browser: Any, report: Path, scheme: str) -> None:
    opened = visit(browser, report, viewport={"width": 390, "height": 800}, color_scheme=scheme)
    assert opened.fits
    color_of = "each => getComputedStyle(each).fill.match(/\\d+/g).reduce((sum, part) => sum + Number(part), 0)"
    tick = opened.page.locator(".xtick text").first
    paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (tick.evaluate(color_of) > 384) == (scheme == "dark") == (paper < 128)
    other = "light" if scheme == "dark" else "dark"
    opened.page.emulate_media(color_scheme=other)
    until(opened.page, f"plots.every(plot => plot.layout.template === templates.{other})")
    assert (opened.page.locator(".xtick text").first.evaluate(color_of) > 384) == (other == "dark")


def test_it_prints_light_and_whole(browser: Any, report: Path) -> None:
    page = visit(browser, report, color_scheme="dark").page
    folded = page.locator("details:not([open])").count()
    assert folded > 0
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("plots.every(plot => plot.layout.template === templates.light && plot.layout.width === PAPER)")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() == folded


def test_what_is_hostile_is_text(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "](javascript:alert(1)) <b>.html"
    file.write_text(render(a_page(HOSTILE)), encoding="utf-8")
    opened = visit(browser, file)
    text = shown(HOSTILE)
    assert (opened.messages, opened.dialogs) == ([], [])
    assert opened.page.locator("pre").text_content() == text
    assert opened.page.locator("td").first.text_content() == text
    assert opened.page.locator("main script, main img, .plot a").count() == 0
    drawn = opened.page.locator(".gtitle").text_content()
    assert drawn.startswith("</script></style><script>alert(1)</script><img src=x")
