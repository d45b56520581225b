"""Contrast pairs: two texts that differ in the property that a vector should carry, and the formats they come in."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrt_tl.errors import LrtError
from lrt_tl.text.chat import rendered, require_chat_template
from lrt_tl.text.documents import hash_of, no_file, parse_json_line, read_json, read_lines


@dataclass(frozen=True)
class ContrastPair:
    """A text with the property, and one without it.

    Examples:
        >>> import lrt_tl as lrt
        >>> pair = lrt.ContrastPair("I feel wonderful", "I feel awful")
        >>> pair.positive
        'I feel wonderful'
        >>> lrt.read_contrast_pairs([pair]) == [pair]
        True
    """

    positive: str
    negative: str


def read_contrast_pairs(source: Any, *, chat_template: Any = None) -> list[ContrastPair]:
    """Contrast pairs from a file or a list.

    Args:
        source: a `.jsonl` file of `{"positive": …, "negative": …}`, or with a `"prompt"` too, to which these are two
            answers; a `.json` file as in Contrastive Activation Addition (Rimsky et al. 2023, arXiv 2312.06681), a list
            of `{"question", "answer_matching_behavior", "answer_not_matching_behavior"}`; or an iterable of such
            mappings, of `(positive, negative)` or of pairs.
        chat_template: a tokenizer with a chat template, through which all is read. A prompt is then a message of the
            user, and its answers are the assistant's; any other text is one message of the user; and a side may be a
            list of messages, `{"role": "…", "content": "…"}`. The beginning of sequence is left out, with which texts
            begin anyway. Without a template, a prompt and an answer are joined by a space.

    Raises:
        LrtError: the file does not exist or is malformed (names the line), there is no pair, a side is missing or
            empty, the tokenizer has no chat template, or a side is messages and there is none.

    Examples:
        >>> import lrt_tl as lrt
        >>> lrt.read_contrast_pairs([("I feel wonderful", "I feel awful")])
        [ContrastPair(positive='I feel wonderful', negative='I feel awful')]
        >>> lrt.read_contrast_pairs([{"prompt": "Is it good?", "positive": "Yes", "negative": "No"}])
        [ContrastPair(positive='Is it good? Yes', negative='Is it good? No')]
    """
    if chat_template is not None:
        require_chat_template(chat_template)
    rows = _rows(source)
    pairs = [_pair(row, where, chat_template) for where, row in rows]
    if not pairs:
        where = f" in {source}" if isinstance(source, (str, Path)) else ""
        raise LrtError(f"there are no contrast pairs{where}")
    return pairs


def data_hash(pairs: Iterable[ContrastPair]) -> str:
    """A hash of the pairs, in order."""
    return f"{hash_of(json.dumps([(pair.positive, pair.negative) for pair in pairs])):016x}"


def _rows(source: Any) -> list[tuple[str, Any]]:
    if not isinstance(source, (str, Path)):
        if not isinstance(source, Iterable):
            raise LrtError(f"contrast pairs must be a file or a list of pairs, not {type(source).__name__}")
        return [(f"pair {number}", row) for number, row in enumerate(source)]
    path = Path(source)
    if not path.is_file():
        raise no_file(path)
    if path.suffix == ".jsonl":
        lines = read_lines(path)
        return [(f"{path.name}, line {n}", parse_json_line(path, n, line)) for n, line in lines]
    if path.suffix != ".json":
        raise LrtError(f"{path}: contrast pairs are read from .jsonl and .json files, not {path.suffix!r}")
    rows = read_json(path)
    if not isinstance(rows, list):
        raise LrtError(f"{path.name} must hold a list of pairs, not a {type(rows).__name__}")
    return [(f"{path.name}, entry {number}", row) for number, row in enumerate(rows)]


def _pair(row: Any, where: str, chat_template: Any) -> ContrastPair:
    prompt: str | None = None
    if isinstance(row, ContrastPair):
        sides: tuple[Any, ...] = (row.positive, row.negative)
    elif isinstance(row, Mapping):
        prompt, *sides_of_row = _parts_of_mapping(row, where)
        sides = tuple(sides_of_row)
    elif isinstance(row, (tuple, list)) and len(row) == 2:
        sides = tuple(row)
    else:
        raise LrtError(f"{where}: {row!r} is not a contrast pair: it needs a positive and a negative text")
    named = zip(("positive", "negative"), sides, strict=True)
    return ContrastPair(*(_text(prompt, side, chat_template, f"{where}: the {name} side") for name, side in named))


def _parts_of_mapping(row: Mapping[str, Any], where: str) -> tuple[str | None, Any, Any]:
    """A prompt, if there is one, and two texts or answers."""
    if "question" in row:
        answers = (row.get("answer_matching_behavior"), row.get("answer_not_matching_behavior"))
        if not all(isinstance(answer, str) for answer in (row["question"], *answers)):
            raise LrtError(f"{where}: needs answer_matching_behavior and answer_not_matching_behavior, both text")
        return row["question"], *answers
    if missing := [key for key in ("positive", "negative") if key not in row]:
        raise LrtError(
            f"{where}: no key {' and no key '.join(map(repr, missing))} among {sorted(map(str, row))}: a pair needs "
            "positive and negative; or question, answer_matching_behavior and answer_not_matching_behavior"
        )
    if "prompt" in row and (not isinstance(row["prompt"], str) or not row["prompt"].strip()):
        raise LrtError(f"{where}: the prompt is {row['prompt']!r}; it must be text")
    return row.get("prompt"), row.get("positive"), row.get("negative")


def _text(prompt: str | None, side: Any, chat_template: Any, where: str) -> str:
    if isinstance(side, (list, tuple)) and prompt is None:
        return rendered(side, chat_template, where)
    if not isinstance(side, str) or not side.strip():
        raise LrtError(f"{where} is {side!r}; both sides must be text")
    if chat_template is None:
        # the answers of the published files end the question's line: " (A)" and " (B)", or "(A)" and "(B)"
        return side if prompt is None else f"{prompt.rstrip()} {side.strip()}"
    user = {"role": "user", "content": side if prompt is None else prompt}
    answers = [] if prompt is None else [{"role": "assistant", "content": side.strip()}]
    return rendered([user, *answers], chat_template, where)
