"""What a report is made of: a title, the answer, and sections of tables, figures and texts. All text is plain text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Row: TypeAlias = Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """What the reader came for: one sentence, and one number with its 95 % interval."""

    sentence: str
    number: float | None
    """None where there is none to state, for which the sentence gives the reason."""
    interval: tuple[float, float] | None
    verdict: str = ""
    """Such as go, caution or no-go; empty where nothing was decided."""
    what: str = ""
    """Of what the number is."""
    each: Sequence[Row] = ()
    """Of several answers a short row each."""


@dataclass(frozen=True)
class Table:
    """Names and values, or rows of one column a key."""

    rows: Row | Sequence[Row]
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Figure:
    """A plotly figure. The page sets its template, so that it fits light and dark."""

    figure: Any
    caption: str = ""
    optional: str = ""
    """The `meta` of traces that a box above the figure shows and hides."""


@dataclass(frozen=True)
class Texts:
    """Texts side by side, a column each. In the columns after `against`, words that differ from its own are marked."""

    rows: Sequence[Row]
    against: str = "plain"
    caption: str = ""


@dataclass(frozen=True)
class Code:
    """Text as it is, line by line."""

    text: str


@dataclass(frozen=True)
class Note:
    """A remark."""

    text: str


Block: TypeAlias = Table | Figure | Texts | Code | Note


@dataclass(frozen=True)
class Section:
    """A heading, what stands under it, and a remark at its end."""

    title: str
    blocks: Sequence[Block]
    note: str = ""
    folded: bool = False
    """Whether it is shown only once it is opened, or printed."""


@dataclass(frozen=True)
class Page:
    """A report."""

    title: str
    answer: Answer
    sections: Sequence[Section]
