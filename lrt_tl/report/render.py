"""A page → one file of HTML, which fetches nothing and opens from a disk.

All text is escaped by the template. Were something to slip through, it would not run: the page's policy lets a browser
run its two scripts by their hashes and nothing else, and fetch nothing at all. Figures are data, not scripts.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from lrt_tl.report.page import Block, Figure, Page, Table, Texts
from lrt_tl.report.style import page_template
from lrt_tl.report.text import changed_words, shown, shown_name


def render(page: Page) -> str:
    """The page as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("lrt_tl", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {"name": shown_name, "marked": _marked}
    figures = [block for section in page.sections for block in section.blocks if isinstance(block, Figure)]
    program = _file("page.js")
    return environment.get_template("page.html.j2").render(
        page=page,
        kind=_kind,
        number_of=figures.index,
        style=_markup(_file("page.css")),
        plotly=_markup(get_plotlyjs()),
        program=_markup(program),
        hashes=_markup(" ".join(map(_hash, (get_plotlyjs(), program)))),
        data=_markup(_data(figures)),
    )


def _shown(value: Any) -> Any:
    """What a template prints: numbers and our own markup as they are, text as a reader can see it."""
    return shown(value) if type(value) is str else value


def _kind(block: Block) -> str:
    """Which part of the template shows a block."""
    if isinstance(block, Table) and not isinstance(block.rows, Mapping):
        return "Columns"
    return type(block).__name__


def _marked(texts: Texts) -> list[dict[str, Any]]:
    """The rows of the table, in which what differs from the column compared with is marked."""
    marked = []
    for row in texts.rows:
        cells, against = {}, None
        for name, text in row.items():
            text = shown(text)
            runs = [(text, False)] if against is None else changed_words(text, against)
            cells[name] = _markup("").join(_markup("<mark>%s</mark>" if new else "%s") % run for run, new in runs)
            against = text if name == texts.against else against
        marked.append(cells)
    return marked


def _data(figures: list[Figure]) -> str:
    """The figures and the templates, as JSON that cannot end the element that it stands in."""
    from plotly.utils import PlotlyJSONEncoder

    drawn = []
    for block in figures:
        figure = block.figure.to_plotly_json()
        figure["layout"] = {name: value for name, value in figure["layout"].items() if name != "template"}
        drawn.append(figure)
    templates = {"light": page_template(dark=False), "dark": page_template(dark=True)}
    written = json.dumps({"figures": drawn, "templates": templates}, cls=PlotlyJSONEncoder)
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _file(name: str) -> str:
    return (resources.files("lrt_tl.report") / name).read_text(encoding="utf-8")


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)
