"""Documents from every source, what is wrong with a bad one, and where; splits; exclusions."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from lrt_tl.errors import LrtError
from lrt_tl.text.documents import (
    N_FOLDS,
    N_SPLITS,
    TEST,
    VALIDATION,
    Document,
    Documents,
    Exclusion,
    hash_of,
    read_documents,
    split_of,
)

TEXTS = ["one two", "drei, vier?", "pięć — 六"]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts_of(source: Any, **options: Any) -> list[str]:
    documents = read_documents(source, **options)
    first, second = list(documents), list(documents)
    assert first == second, "documents can be read again"
    return [document.text for document in first]


# Sources


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a b\nc\n\nd\n", [(1, "a b\nc"), (4, "d")]),
        ("\n\n a\nb\n \t\n\nc", [(3, "a\nb"), (7, "c")]),
        ("a\nb\nc", [(1, "a"), (2, "b"), (3, "c")]),
        ("a\nb\n\n\n", [(1, "a"), (2, "b")]),
        ("\n\na\nb", [(3, "a"), (4, "b")]),
        ("a\r\nb\r\n\r\nc\r\n", [(1, "a\nb"), (4, "c")]),
        ("\ufeffa\n", [(1, "a")]),
    ],
    ids=ascii,
)
def test_paragraphs_or_else_lines_of_a_text_file(tmp_path: Path, content: str, expected: Any) -> None:
    path = write(tmp_path / "corpus.txt", content)
    found = [(document.name, document.text) for document in read_documents(str(path))]
    assert found == [(f"corpus.txt:{line}", text) for line, text in expected]


def test_lines_of_json(tmp_path: Path) -> None:
    rows = [json.dumps({"id": 1, "text": text}) for text in TEXTS]
    path = write(tmp_path / "corpus.jsonl", "\n\n".join(rows))
    assert texts_of(path) == TEXTS
    assert [document.name for document in read_documents(path)] == [f"corpus.jsonl:{line}" for line in (1, 3, 5)]
    write(path, "\ufeff" + json.dumps({"body": "x"}))
    assert texts_of(path, text_key="body") == ["x"]


def test_parquet(tmp_path: Path) -> None:
    many = [f"text {index}" for index in range(1000)]
    parquet.write_table(pa.table({"id": range(1000), "body": many}), tmp_path / "corpus.parquet", row_group_size=64)
    assert texts_of(tmp_path / "corpus.parquet", text_key="body") == many
    names = [document.name for document in read_documents(tmp_path / "corpus.parquet", text_key="body")]
    assert names == [f"corpus.parquet:{index}" for index in range(1000)]


def test_datasets_and_other_iterables() -> None:
    rows = [{"text": text, "id": 1} for text in TEXTS]
    dataset = datasets.Dataset.from_list(rows)
    for source in (dataset, dataset.to_iterable_dataset(), rows, TEXTS, tuple(TEXTS), iter(TEXTS), (t for t in TEXTS)):
        assert texts_of(source) == TEXTS
    assert texts_of(datasets.Dataset.from_dict({"body": TEXTS}), text_key="body") == TEXTS
    assert [document.name for document in read_documents(TEXTS)] == ["document 0", "document 1", "document 2"]


def test_documents_pass_through() -> None:
    documents = read_documents(TEXTS)
    assert read_documents(documents) is documents
    assert repr(documents) == "Documents(list)"


def test_a_file_is_read_one_document_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.jsonl", '{"text": "a"}\n{broken\n')
    stream = iter(read_documents(path))
    assert next(stream).text == "a"
    with pytest.raises(LrtError, match="line 2"):
        next(stream)


# What is wrong


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", '{"text": "a"}\n\n{"text": \n', r"c\.jsonl, line 3: not valid JSON"),
        ("c.jsonl", '{"text": "a"}\n{"body": "a", "id": 1}\n', r"line 2: no key 'text' among \['body', 'id'\]"),
        ("c.jsonl", '{"text": 3}\n', "line 1: the text is of type int"),
        ("c.jsonl", '{"text": null}\n', "line 1: the text is of type NoneType"),
        ("c.jsonl", '["a"]\n', "line 1: the text is of type list"),
        ("c.jsonl", '{"text": "a"}\n{"text": " \\n"}\n', "line 2: the text is empty"),
        ("c.jsonl", "\n\n", r"c\.jsonl holds no document"),
        ("c.txt", " \n\n", r"c\.txt holds no document"),
        ("c.txt", "", r"c\.txt holds no document"),
        ("c.txt", b"good\n\xff\xfe bad\n", r"c\.txt, after line \d: not UTF-8"),
        ("c.jsonl", b'{"text": "\xe9"}\n', r"c\.jsonl, after line 0: not UTF-8"),
        ("c.parquet", b"no parquet at all", r"c\.parquet is not a valid \.parquet file"),
        ("c.parquet", b"", r"c\.parquet is not a valid \.parquet file"),
        ("c.csv", "text\na", r"read from \.txt, \.jsonl, \.parquet files, not '\.csv'"),
    ],
)
def test_a_bad_file(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(LrtError, match=message):
        list(read_documents(write(tmp_path / name, content)))


def test_a_bad_column_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    parquet.write_table(pa.table({"text": ["a", None]}), path)
    with pytest.raises(LrtError, match=r"c\.parquet, row 1: the text is of type NoneType"):
        list(read_documents(path))
    with pytest.raises(LrtError, match=r"no column 'body': its columns are \['text'\]"):
        list(read_documents(path, text_key="body"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "list holds no document"),
        (iter([]), "list holds no document"),
        (["a", ""], "document 1: the text is empty"),
        (["a", 3], "document 1: the text is of type int"),
        ([{"text": "a"}, {"body": "b"}], "document 1: no key 'text'"),
        (3, "not int$"),
        ({"text": ["a", "b"]}, "not dict: choose one"),
        (datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a"]})), "not DatasetDict: choose one"),
        ("nowhere.txt", "there is no file nowhere.txt"),
        ("some text", r"^some text: documents are read .*, not ''; for a single text give a list: \[text\]$"),
        ("Hugo: Once.\nThen" + 900 * " more", r"^Hugo: Once\.\n.{1,200}; for a single text give a list"),
        ("texts.doc", r"files, not '\.doc'$"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_bad_source(source: Any, message: str) -> None:
    with pytest.raises(LrtError, match=message):
        list(read_documents(source))


def test_the_nearest_name_is_told_where_a_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("{}")
    (tmp_path / "text.jsonl").mkdir()
    for name, hint in (("text.jsonl", r": do you mean .*/texts\.jsonl\?"), ("behavior.jsonl", "")):
        with pytest.raises(LrtError, match=rf"there is no file .*{name}{hint}$".replace("/", r"[/\\]")):
            read_documents(tmp_path / name)
    with pytest.raises(LrtError, match=r"there is no file .*text\.jsonl$"):
        read_documents(tmp_path / "nowhere" / "text.jsonl")


# Splits


def test_a_split_is_a_hash_of_the_text() -> None:
    assert hash_of("ł") == int(hashlib.sha256("ł".encode()).hexdigest()[:16], 16)
    assert hash_of("\ud800") != hash_of("?")  # half of a surrogate pair, as JSON may hold
    # these may never change: maps that were saved say which documents they were tested on
    assert [split_of(text) for text in ("", "a", "b", "word1 word2", "ł")] == [0, 6, 4, 4, 1]


def test_the_proportions_of_the_splits() -> None:
    count = Counter(split_of(f"text {index}") for index in range(20_000))
    assert sorted(count) == list(range(N_SPLITS))
    for split in range(N_SPLITS):
        share = 0.1 if split in (TEST, VALIDATION) else 0.8 / N_FOLDS
        assert count[split] / 20_000 == pytest.approx(share, rel=0.1)


def test_a_document_stays_in_its_split_in_any_order_and_source(tmp_path: Path) -> None:
    texts = [f"text {index}" for index in range(50)]
    expected = {text: split_of(text) for text in texts}
    shuffled = random.Random(0).sample(texts, 50)
    path = write(tmp_path / "c.jsonl", "\n".join(json.dumps({"text": text}) for text in shuffled))
    assert {document.text: split_of(document.text) for document in read_documents(path)} == expected


# Exclusion


@pytest.mark.parametrize(
    "text",
    [
        "The cat sat on the mat.",
        "x y The cat sat on the mat. z",
        "x, the  CAT\n sat\ton the mat .",
        "yes",
        " Yes\n",
        "¡Olé!",
    ],
)
def test_documents_that_contain_a_text_are_excluded(text: str) -> None:
    assert text in Exclusion(["The cat sat on the mat.", "yes", "¡olé!"])


@pytest.mark.parametrize(
    "text",
    [
        "The cat sat on the mat",  # not the full stop
        "The cat sat on a mat.",
        "cat sat on the mat.",
        "he said yes",  # a short text is found in everything
        "yes yes",
        "thecat sat on the mat.",
    ],
)
def test_documents_that_do_not_are_kept(text: str) -> None:
    assert text not in Exclusion(["The cat sat on the mat.", "yes"])


def test_exclusion_against_a_search_at_every_place() -> None:
    generator = random.Random(0)
    wanted = [generator.choices("ab", k=generator.randint(1, 7)) for _ in range(12)]
    exclusion = Exclusion([" ".join(words) for words in wanted], min_words=4)
    answers = Counter()
    for _ in range(500):
        words = generator.choices("ab", k=generator.randint(1, 14))
        expected = any(
            words == text or (len(text) >= 4 and any(words[at : at + len(text)] == text for at in range(len(words))))
            for text in wanted
        )
        assert (" ".join(words) in exclusion) == expected
        answers[expected] += 1
    assert min(answers.values()) > 50


def test_nothing_is_excluded_by_nothing() -> None:
    assert "a b c d e f" not in Exclusion(())


def test_a_document_of_ones_own_making() -> None:
    """`Documents` is all that the harvest needs."""

    def read() -> Iterator[Document]:
        yield Document("mine", "text")

    assert list(read_documents(Documents("mine", read))) == [Document("mine", "text")]


@pytest.mark.parametrize("text", ["今天天气很好我们去公园散步吧", "きょうはいい天気ですね", "วันนี้อากาศดีมาก"])
def test_texts_without_spaces_are_found_inside_others(text: str) -> None:
    assert f"before {text} after" in Exclusion([text])
    assert f"前{text}後" in Exclusion([text])
    assert text[:-2] not in Exclusion([text])


def test_one_string_is_not_a_list_of_texts() -> None:
    with pytest.raises(LrtError, match="not the one string 'abc'"):
        Exclusion("abc")
