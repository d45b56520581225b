"""Text files and iterables → documents, and the part that each document plays.

Which split a document belongs to is a hash of its text: the same document is always in the same one, in any order, in
any file, on any machine, and copies of it never end up on both sides.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from lrt_tl.errors import LrtError
from lrt_tl.text.chat import rendered, require_chat_template

_MESSAGES = "messages"
N_FOLDS = 5
VALIDATION, TEST = N_FOLDS, N_FOLDS + 1
N_SPLITS = N_FOLDS + 2
"""Splits 0 … 4 are the folds of the cross-validation; 5 is validation, 6 is test, of about a tenth of the text each."""


@dataclass(frozen=True)
class Document:
    """One text, and where it came from (`texts.jsonl:12`)."""

    name: str
    text: str


@dataclass(frozen=True)
class Documents:
    """Documents that can be read again and again, one at a time: files are never held in memory."""

    name: str
    open: Callable[[], Iterator[Document]]

    def __iter__(self) -> Iterator[Document]:
        return self.open()

    def __repr__(self) -> str:
        return f"Documents({self.name})"


def read_documents(source: Any, *, text_key: str = "text", chat_template: Any = None) -> Documents:
    """Documents from a file or from anything that yields them.

    Args:
        source: a `.txt` file (a document per paragraph; where no blank line parts the text, per line), a `.jsonl` or
            `.parquet` file with a `text_key`, a `datasets` object, or an iterable of strings or of mappings with a
            `text_key`. An iterator, which can be read only once, is read into a list.
        chat_template: a tokenizer with a chat template, through which all is read: the `messages` of a mapping, a list
            of `{"role": "…", "content": "…"}`, and any other text as one message of a user. What the template writes
            is the document, but for the beginning of sequence, with which rows begin anyway.

    Raises:
        LrtError: the file does not exist or is of another kind, or the tokenizer has no chat template. While reading: a
            malformed line (with its number), a missing or empty text, messages that are malformed or that the template
            refuses, or no document at all.

    Examples:
        >>> import lrt_tl as lrt
        >>> documents = lrt.read_documents(["A text.", {"text": "Another one."}])
        >>> for document in documents:
        ...     print(document.name, "is", repr(document.text))
        document 0 is 'A text.'
        document 1 is 'Another one.'
    """
    if chat_template is not None:
        require_chat_template(chat_template)
    if isinstance(source, Documents):
        return source if chat_template is None else Documents(source.name, partial(_as_chats, source, chat_template))
    if isinstance(source, (str, Path)):
        path = Path(source)
        reader = _READERS.get(path.suffix)
        if reader is None:
            shown, hint = str(source), ""
            if re.search(r"\s", shown):
                shown, hint = f"{shown:.120}", "; for a single text give a list: [text]"
            suffixes = ", ".join(_READERS)
            raise LrtError(f"{shown}: documents are read from {suffixes} files, not {path.suffix[:20]!r}{hint}")
        if not path.is_file():
            raise no_file(path)
        return Documents(path.name, partial(_not_empty, path.name, partial(reader, path, text_key, chat_template)))
    if isinstance(source, Iterator):
        source = list(source)
    name = type(source).__name__
    if not isinstance(source, Iterable) or isinstance(source, Mapping):
        hint = ": choose one of its splits, or one list of texts" if isinstance(source, Mapping) else ""
        raise LrtError(f"documents must be a file or an iterable of strings, not {name}{hint}")
    return Documents(name, partial(_not_empty, name, partial(_from_iterable, source, text_key, chat_template)))


def split_of(text: str) -> int:
    """The split of a document, 0 to `N_SPLITS` − 1, from the SHA-256 of its text."""
    number = hash_of(text)
    tenth, rest = number % 10, number // 10
    return {0: TEST, 1: VALIDATION}.get(tenth, rest % N_FOLDS)


def hash_of(text: str) -> int:
    """A 64-bit hash of a text, the same everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


class Exclusion:
    """Finds documents that contain one of a set of texts, whatever their case and spacing.

    Maps must not be fitted on the texts that they are tried on. A text of fewer than `min_words` words ("it is a") is
    found in everything, so it excludes only documents that consist of it.
    """

    def __init__(self, texts: Iterable[str], *, min_words: int = 5) -> None:
        if isinstance(texts, str):
            raise LrtError(
                f"the texts to exclude must be a list, not the one string {texts[:40]!r}: see lrt_tl.texts_of"
            )
        texts = list(texts)
        self.fingerprint = hash_of("\0".join(sorted(texts)))
        """The same for the same texts, in any order."""
        self._size = min_words
        self._whole: set[tuple[str, ...]] = set()
        self._by_start: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for text in texts:
            words = _words(text)
            self._whole.add(words)
            if len(words) >= min_words:
                self._by_start.setdefault(words[:min_words], []).append(words)

    def __contains__(self, text: str) -> bool:
        words = _words(text)
        if words in self._whole:
            return True
        return any(
            words[start : start + len(wanted)] == wanted
            for start in range(len(words) - self._size + 1)
            for wanted in self._by_start.get(words[start : start + self._size], ())
        )


_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"  # Thai to Khmer, Japanese, Chinese
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")


def _words(text: str) -> tuple[str, ...]:
    """Words and punctuation marks; in scripts that put no spaces between words, characters."""
    return tuple(_WORD.findall(text.lower()))


def parse_json_line(path: Path, number: int, line: str) -> Any:
    """One line of a `.jsonl` file.

    Raises:
        LrtError: it is not JSON; names the line.
    """
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise LrtError(f"{path.name}, line {number}: not valid JSON ({error})") from error


def no_file(path: Path) -> LrtError:
    """That there is no such file, and what the nearest name in its folder is."""
    try:
        names = [each.name for each in path.parent.iterdir() if each.is_file()]
    except OSError:
        names = []
    nearest = get_close_matches(path.name, names, n=1)
    hint = f": do you mean {path.parent / nearest[0]}?" if nearest else ""
    return LrtError(f"there is no file {path}{hint}")


def read_json(path: Path) -> Any:
    """A `.json` file.

    Raises:
        LrtError: it does not exist, or is not JSON in UTF-8.
    """
    if not path.is_file():
        raise no_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise LrtError(f"{path} is not valid JSON: {error}") from error


def read_rows(source: Any, what: str) -> Iterator[tuple[str, Any]]:
    """The lines of a `.jsonl` file, the entries of a `.json` list or the items of an iterable, each after what to call
    it in a complaint: "tasks.jsonl, line 3".

    Raises:
        LrtError: the file does not exist, is of another kind, or is malformed (names the line).
    """
    if not isinstance(source, (str, Path)):
        yield from ((f"{what} {number}", row) for number, row in enumerate(source))
        return
    path = Path(source)
    if path.suffix == ".jsonl":
        if not path.is_file():
            raise no_file(path)
        yield from (
            (f"{path.name}, line {number}", parse_json_line(path, number, line)) for number, line in read_lines(path)
        )
    elif path.suffix == ".json":
        rows = read_json(path)
        if not isinstance(rows, list):
            raise LrtError(
                f"{path.name} must hold a list, of which each entry is a {what}, not a {type(rows).__name__}"
            )
        yield from ((f"{path.name}, entry {number}", row) for number, row in enumerate(rows))
    else:
        raise LrtError(f"{path}: a {what} is read from .jsonl and .json files, not {path.suffix!r}")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, with their numbers from 1.

    Raises:
        LrtError: the file is not UTF-8; names the line.
    """
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as lines:  # a byte order mark is no text
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise LrtError(f"{path.name}, after line {number}: not UTF-8 text ({error})") from error


def _read_text(path: Path, text_key: str, chat_template: Any) -> Iterator[Document]:
    for name, text in _paragraphs(path):
        yield Document(name, _text(text, text_key, chat_template, name))


def _paragraphs(path: Path) -> Iterator[tuple[str, str]]:
    numbers = (number for number, _ in read_lines(path))
    paragraphs = any(number > before + 1 for before, number in pairwise(numbers))
    start, block, last = 0, "", 0
    for number, line in read_lines(path):
        if block and (not paragraphs or number > last + 1):
            yield f"{path.name}:{start}", block.strip()
            block = ""
        start = number if not block else start
        block, last = block + line, number
    if block:
        yield f"{path.name}:{start}", block.strip()


def _read_jsonl(path: Path, text_key: str, chat_template: Any) -> Iterator[Document]:
    for number, line in read_lines(path):
        row = parse_json_line(path, number, line)
        text = _text(row, text_key, chat_template, f"{path.name}, line {number}")
        yield Document(f"{path.name}:{number}", text)


def _read_parquet(path: Path, text_key: str, chat_template: Any) -> Iterator[Document]:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        opened = ParquetFile(path)
    except ArrowInvalid as error:
        raise LrtError(f"{path.name} is not a valid .parquet file: {error}") from error
    with opened as file:
        columns = [name for name in (text_key, _MESSAGES) if name in file.schema_arrow.names]
        if not columns:
            raise LrtError(f"{path.name} has no column {text_key!r}: its columns are {file.schema_arrow.names}")
        number = 0
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                text = _text(row, text_key, chat_template, f"{path.name}, row {number}")
                yield Document(f"{path.name}:{number}", text)
                number += 1


_READERS: dict[str, Callable[[Path, str, Any], Iterator[Document]]] = {
    ".txt": _read_text,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _from_iterable(source: Iterable[Any], text_key: str, chat_template: Any) -> Iterator[Document]:
    for number, row in enumerate(source):
        yield Document(f"document {number}", _text(row, text_key, chat_template, f"document {number}"))


def _as_chats(documents: Documents, chat_template: Any) -> Iterator[Document]:
    for document in documents:
        yield Document(document.name, _text(document.text, "", chat_template, document.name))


def _text(row: Any, text_key: str, chat_template: Any, where: str) -> str:
    if isinstance(row, Mapping):
        if row.get(_MESSAGES) is not None and (chat_template is not None or text_key not in row):
            return rendered(row[_MESSAGES], chat_template, where)
        if text_key not in row:
            raise LrtError(f"{where}: no key {text_key!r} among {sorted(map(str, row))}")
        row = row[text_key]
    if not isinstance(row, str):
        raise LrtError(f"{where}: the text is of type {type(row).__name__}, not a string")
    if not row.strip():
        raise LrtError(f"{where}: the text is empty: remove it")
    return row if chat_template is None else rendered([{"role": "user", "content": row}], chat_template, where)


def _not_empty(name: str, read: Callable[[], Iterator[Document]]) -> Iterator[Document]:
    empty = True
    for document in read():
        empty = False
        yield document
    if empty:
        raise LrtError(f"{name} holds no document")
