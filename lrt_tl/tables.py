"""Names and values as a table of HTML."""

import html
from collections.abc import Mapping


def html_table(rows: Mapping[str, str], *, caption: str = "") -> str:
    """One row for each name and its value, all of it escaped."""
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    cells = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table style='text-align:left'>{title}{''.join(cells)}</table>"
