"""The page: whole, self-contained, and no text of a model or a user becomes markup."""

from html.parser import HTMLParser

import pytest
import torch

from lrt_tl.evaluation.evaluate import TransferResult
from lrt_tl.evaluation.figures import effect_figure
from lrt_tl.evaluation.recovery import Recovery
from lrt_tl.evaluation.report import BehaviorSection, headline, render_report

HOSTILE = "</script></style><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\ud800"


def a_result(name: str = "mood", recovery: Recovery | None = None) -> TransferResult:
    scores = torch.arange(6, dtype=torch.float64).reshape(3, 2)
    return TransferResult(
        behavior=name,
        prompts=("one", "two"),
        coefficients=(-1.0, 0.0, 1.0),
        native=scores,
        transferred=scores / 2,
        controls={"random": torch.randn(20, 3, 2, generator=torch.Generator().manual_seed(0)).double()},
        source_native=None,
        recovery=recovery or Recovery(0.5, 0.4, 0.6),
        recovery_matched_kl=Recovery(None, None, None, "no neutral text was given"),
        cosine_with_native=0.9,
        norm_over_native=0.8,
    )


class Page(HTMLParser):
    """Counts what a browser would run or fetch, and gathers what it would show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts, self.addresses, self.handlers, self.text = 0, list[str](), list[str](), list[str]()
        self._silent = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self._silent = tag in ("script", "style")
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.text.append(data)


def render(name: str, text: str) -> str:
    section = BehaviorSection(a_result(name), [{"prompt": text, "plain": text, text: "x"}], 8.0)
    rows = {text: text}
    return render_report(
        text, [section], target=text, map_table=rows, harvest_table=rows, versions=rows, reproduce=text
    )


def test_hostile_text_is_shown_and_never_run() -> None:
    harmless, hostile = Page(render("mood", "calm")), Page(render(HOSTILE, HOSTILE))
    assert hostile.scripts == harmless.scripts == 2 + 0 * harmless.scripts
    assert hostile.addresses == hostile.handlers == []
    assert "".join(hostile.text).count("<script>alert(1)</script>") >= 10


def test_the_page_shows_the_answer_first_and_then_the_figures() -> None:
    text = "".join(Page(render("mood", "calm")).text)
    order = ["mood: the transferred vector has 50 % [40, 60]", "slope, native vector", "The map", "How to reproduce"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("recovery", "said"),
    [
        (Recovery(0.5, 0.4, 0.6), "has 50 % [40, 60] of the effect of large's own vector"),
        (Recovery(None, None, None, "the native slope is low"), "no recovery can be stated on large, for the native"),
    ],
)
def test_the_headline(recovery: Recovery, said: str) -> None:
    assert said in headline(a_result(recovery=recovery), "large")


def test_the_figure_holds_the_means_and_the_null() -> None:
    result = a_result()
    traces = {trace.name: trace for trace in effect_figure(result).data}
    assert list(traces["native"].y) == [0.5, 2.5, 4.5]
    assert list(traces["transferred"].y) == [0.25, 1.25, 2.25]
    band = traces["random (90 % of draws)"]
    upper = result.controls["random"].mean(-1).quantile(0.95, dim=0)
    assert list(band.y[:3]) == pytest.approx(upper.tolist())
