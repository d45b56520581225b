"""Text of anybody's as it may be shown: whole characters only, nothing invisible, not too long."""

import difflib
import html
import re

LONGEST, LONGEST_NAME = 10_000, 120
"""Characters of a text, and of a name, that are shown."""
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
_WORDS = re.compile(r"\s+|\S+")


def shown(text: str, longest: int = LONGEST) -> str:
    """The text as a reader can see it.

    Lone surrogates and control characters become visible stand-ins, and marks that hide or turn text (zero width,
    right to left) their names, as `[U+202E]`. What is longer than `longest` is cut, with a note of how much.
    """
    seen = _HIDDEN.sub(_stand_in, text[:longest])
    return seen if len(text) <= longest else f"{seen} … [{len(text) - longest:,} characters more]"


def shown_name(text: str) -> str:
    """A name, a title or a label, on one line."""
    return " ".join(shown(text, LONGEST_NAME).split())


def figure_text(text: str) -> str:
    """A name for a figure's title, legend or axis: plotly reads these as HTML, but knows few entities."""
    return html.escape(shown_name(text), quote=False)


def markdown_text(text: str) -> str:
    """Text on one line of markdown, where nothing in it is read as markdown, a link or HTML; it must not begin a line,
    where dashes and numbers mean something."""
    return re.sub(r"([\\`*_\[\]<>#|~&@$])", r"\\\1", " ".join(shown(text).split()))


def changed_words(text: str, against: str) -> list[tuple[str, bool]]:
    """The text in runs of words, each with whether it differs from `against`. Runs joined are the text."""
    old, new = _WORDS.findall(against), _WORDS.findall(text)
    runs = []
    for what, _, _, start, end in difflib.SequenceMatcher(None, old, new).get_opcodes():
        if end > start:
            runs.append(("".join(new[start:end]), what != "equal"))
    return runs


def _stand_in(match: re.Match[str]) -> str:
    character = match[0]
    if "\ud800" <= character <= "\udfff":
        return "\ufffd"
    if character < " ":
        return chr(0x2400 + ord(character))  # the picture of a control character
    return f"[U+{ord(character):04X}]"
