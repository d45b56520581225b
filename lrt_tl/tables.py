"""Names and values as a table: of HTML, or in the terminal."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def html_table(rows: Mapping[str, str], *, caption: str = "") -> str:
    """One row for each name and its value, all of it escaped."""
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    cells = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table style='text-align:left'>{title}{''.join(cells)}</table>"


def html_columns(rows: Iterable[Mapping[str, str]]) -> str:
    """One row for each mapping, of one column a key, all of it escaped."""
    lines = []
    for number, row in enumerate(rows):
        if number == 0:
            lines.append("".join(f"<th>{html.escape(name)}</th>" for name in row))
        lines.append("".join(f"<td>{html.escape(value)}</td>" for value in row.values()))
    rows_of_table = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table style='text-align:left;border-spacing:1em 0'>{rows_of_table}</table>"


def few(texts: Sequence[str]) -> str:
    """The first of them, and how many more there are, in one line."""
    more = [f"and {len(texts) - 2} more"] if len(texts) > 3 else []
    return ", ".join([*map(repr, texts[: 2 if more else 3]), *more])


def flattened(values: Mapping[str, Any]) -> dict[str, str]:
    """Values as they are shown, those within others after their name: `{"fit": {"auc": 0.75}}` is `fit auc`, 0.75."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        shown = f"{value:.3g}" if isinstance(value, float) else str(value)
        inner = flattened(value) if isinstance(value, Mapping) else {"": shown}
        flat |= {f"{name} {key}".strip().replace("_", " "): figure for key, figure in inner.items()}
    return flat


def print_table(title: str, rows: Mapping[str, str]) -> None:
    """The same in the terminal. Nothing in it is read as markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    Console().print(table)


def print_columns(title: str, rows: Iterable[Mapping[str, str]]) -> None:
    """Rows of one column a key, in the terminal. Nothing in them is read as markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", show_lines=True)
    for number, row in enumerate(rows):
        if number == 0:
            for column in row:
                table.add_column(column, overflow="fold")
        table.add_row(*map(Text, row.values()))
    Console().print(table)
