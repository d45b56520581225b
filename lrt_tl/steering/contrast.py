"""Contrast pairs: two texts that differ in the property that a vector should carry, and the formats they come in."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrt_tl.errors import LrtError
from lrt_tl.text.documents import hash_of, parse_json_line, read_json, read_lines


@dataclass(frozen=True)
class ContrastPair:
    """A text with the property, and one without it."""

    positive: str
    negative: str


def read_contrast_pairs(source: Any) -> list[ContrastPair]:
    """Contrast pairs from a file or a list.

    Args:
        source: a `.jsonl` file of `{"positive": …, "negative": …}`; a `.json` file as in Contrastive Activation
            Addition (Rimsky et al. 2023, arXiv 2312.06681), a list of `{"question", "answer_matching_behavior",
            "answer_not_matching_behavior"}`; or an iterable of such mappings, of `(positive, negative)` or of pairs.

    Raises:
        LrtError: the file does not exist or is malformed (names the line), there is no pair, or a side is missing or
            empty.
    """
    rows = _rows(source)
    pairs = [_pair(row, where) for where, row in rows]
    if not pairs:
        raise LrtError("there are no contrast pairs")
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
        raise LrtError(f"there is no file {path}")
    if path.suffix == ".jsonl":
        lines = read_lines(path)
        return [(f"{path.name}, line {n}", parse_json_line(path, n, line)) for n, line in lines]
    if path.suffix != ".json":
        raise LrtError(f"{path}: contrast pairs are read from .jsonl and .json files, not {path.suffix!r}")
    rows = read_json(path)
    if not isinstance(rows, list):
        raise LrtError(f"{path.name} must hold a list of pairs, not a {type(rows).__name__}")
    return [(f"{path.name}, entry {number}", row) for number, row in enumerate(rows)]


def _pair(row: Any, where: str) -> ContrastPair:
    if isinstance(row, ContrastPair):
        sides: tuple[Any, ...] = (row.positive, row.negative)
    elif isinstance(row, Mapping):
        sides = _sides_of_mapping(row, where)
    elif isinstance(row, (tuple, list)) and len(row) == 2:
        sides = tuple(row)
    else:
        raise LrtError(f"{where}: {row!r} is not a contrast pair: it needs a positive and a negative text")
    for side, text in zip(("positive", "negative"), sides, strict=True):
        if not isinstance(text, str) or not text.strip():
            raise LrtError(f"{where}: the {side} side is {text!r}; both sides must be text")
    return ContrastPair(*sides)


def _sides_of_mapping(row: Mapping[str, Any], where: str) -> tuple[Any, Any]:
    if "question" in row:
        answers = (row.get("answer_matching_behavior"), row.get("answer_not_matching_behavior"))
        if not all(isinstance(answer, str) for answer in (row["question"], *answers)):
            raise LrtError(f"{where}: needs answer_matching_behavior and answer_not_matching_behavior, both text")
        # the answers of the published files end the question's line: " (A)" and " (B)", or "(A)" and "(B)"
        return tuple(f"{row['question'].rstrip()} {str(answer).strip()}" for answer in answers)  # type: ignore[return-value]
    return row.get("positive"), row.get("negative")
