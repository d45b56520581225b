"""Contrast pairs from every format, and what is wrong with a bad one, and where."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from lrt_tl.errors import LrtError
from lrt_tl.steering.contrast import ContrastPair, data_hash, read_contrast_pairs

PAIRS = [ContrastPair("good day", "bad day"), ContrastPair("Überraschung", "rien")]
CAA = [
    {"question": "Do you agree?\n (A) yes\n (B) no\n", "answer_matching_behavior": " (A)"},
    {"question": "And now?", "answer_matching_behavior": "(B)"},
]
for row, other in zip(CAA, [" (B)", "(A)"], strict=True):
    row["answer_not_matching_behavior"] = other


@pytest.mark.parametrize(
    "source",
    [
        PAIRS,
        [(pair.positive, pair.negative) for pair in PAIRS],
        [[pair.positive, pair.negative] for pair in PAIRS],
        [vars(pair) for pair in PAIRS],
        [PAIRS[0], (PAIRS[1].positive, PAIRS[1].negative)],
        tuple(PAIRS),
    ],
)
def test_lists_of_any_kind_and_their_iterators(source: Any) -> None:
    assert read_contrast_pairs(source) == PAIRS
    assert read_contrast_pairs(iter(source)) == PAIRS


@pytest.mark.parametrize("as_path", [str, Path])
def test_files(tmp_path: Path, as_path: Any) -> None:
    lines, whole = tmp_path / "pairs.jsonl", tmp_path / "pairs.json"
    lines.write_text("\n".join(json.dumps(vars(pair)) for pair in PAIRS) + "\n\n", encoding="utf-8")
    whole.write_text(json.dumps([vars(pair) for pair in PAIRS], ensure_ascii=False), encoding="utf-8")
    assert read_contrast_pairs(as_path(lines)) == PAIRS
    assert read_contrast_pairs(as_path(whole)) == PAIRS


def test_the_files_of_contrastive_activation_addition(tmp_path: Path) -> None:
    expected = [
        ContrastPair("Do you agree?\n (A) yes\n (B) no (A)", "Do you agree?\n (A) yes\n (B) no (B)"),
        ContrastPair("And now? (B)", "And now? (A)"),
    ]
    (tmp_path / "caa.json").write_text(json.dumps(CAA))
    assert read_contrast_pairs(tmp_path / "caa.json") == expected
    assert read_contrast_pairs(CAA) == expected


GOOD = '{"positive": "a", "negative": "b"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{GOOD}\n\n{{oops\n", r"pairs\.jsonl, line 3: not valid JSON"),
        (f'{GOOD}\n{{"positive": "a"}}\n', r"line 2: no key 'negative' among \['positive'\]"),
        ('{"positive": " ", "negative": "b"}\n', "line 1: the positive side is ' '"),
        ('{"positive": "a", "negative": 3}\n', "line 1: the negative side is 3"),
        ('["a", "b", "c"]\n', "line 1: .* is not a contrast pair"),
        ('"ab"\n', "line 1: 'ab' is not a contrast pair"),
        ('{"question": "q", "answer_matching_behavior": "a"}\n', "line 1: needs answer_matching_behavior and"),
        ("\n \n", "no contrast pairs"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pairs.jsonl").write_text(text)
    with pytest.raises(LrtError, match=message):
        read_contrast_pairs(tmp_path / "pairs.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pairs.json", b"[{]", "pairs.json is not valid JSON"),
        ("pairs.json", b'{"positive": "a", "negative": "b"}', "must hold a list of pairs, not a dict"),
        ("pairs.json", b'[["a", "b"], []]', r"pairs\.json, entry 1: \[\] is not a contrast pair"),
        ("pairs.json", b'["\xff"]', "pairs.json is not valid JSON"),
        ("pairs.jsonl", b'["a", "b"]\n["\xff", "b"]\n', "pairs.jsonl, after line .*: not UTF-8"),
        ("pairs.jsonl", b"\n", r"there are no contrast pairs in .*pairs\.jsonl$"),
        ("pairs.json", b"[]", r"there are no contrast pairs in .*pairs\.json$"),
        (
            "pairs.jsonl",
            b'["a", "b"]\n{"good": "a", "negative": "b"}',
            r"pairs\.jsonl, line 2: no key 'positive' among \['good', 'negative'\]: a pair needs positive and negative",
        ),
        (
            "pairs.jsonl",
            b'{"prompt": "a", "pos": "b"}',
            r"no key 'positive' and no key 'negative' among \['pos', 'prompt'",
        ),
        ("pairs.csv", b"a,b", "read from .jsonl and .json files"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LrtError, match=message):
        read_contrast_pairs(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "no contrast pairs$"),
        (3, "a file or a list of pairs, not int"),
        (["ab"], "pair 0: 'ab' is not a contrast pair"),
        ([("a", "b"), ("a", "")], "pair 1: the negative side is ''"),
        ("nowhere.jsonl", "there is no file nowhere.jsonl"),
    ],
)
def test_a_bad_source(source: Any, message: str) -> None:
    with pytest.raises(LrtError, match=message):
        read_contrast_pairs(source)


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}:{{ m['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture
def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>", chat_template=TEMPLATE)


QUESTION = {"prompt": "how are you", "positive": "well", "negative": "bad"}
MESSAGES = {
    side: [{"role": "system", "content": "be brief"}, {"role": "user", "content": side}]
    for side in ("positive", "negative")
}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (QUESTION, ("user:how are you;assistant:well;", "user:how are you;assistant:bad;")),
        (MESSAGES, ("system:be brief;user:positive;", "system:be brief;user:negative;")),
        (
            (MESSAGES["positive"], MESSAGES["negative"]),
            ("system:be brief;user:positive;", "system:be brief;user:negative;"),
        ),
        (("good day", "bad day"), ("user:good day;", "user:bad day;")),
        (PAIRS[0], ("user:good day;", "user:bad day;")),
        (CAA[1], ("user:And now?;assistant:(B);", "user:And now?;assistant:(A);")),
    ],
    ids=["a prompt with answers", "messages", "a pair of messages", "texts", "a pair", "CAA"],
)
def test_through_a_chat_template(row: Any, expected: tuple[str, str], tokenizer: Any) -> None:
    assert read_contrast_pairs([row], chat_template=tokenizer) == [ContrastPair(*expected)]


def test_a_prompt_and_its_answers_without_a_template_are_joined_by_a_space() -> None:
    assert read_contrast_pairs([QUESTION]) == [ContrastPair("how are you well", "how are you bad")]


def test_what_a_template_cannot_make_of_pairs(tokenizer: Any) -> None:
    with pytest.raises(LrtError, match="pair 0: the positive side: messages need a chat template"):
        read_contrast_pairs([MESSAGES])
    with pytest.raises(LrtError, match=r"pair 0: the positive side is \[.*; both sides must be text"):
        read_contrast_pairs([{**MESSAGES, "prompt": "so"}], chat_template=tokenizer)
    with pytest.raises(LrtError, match="pair 0: the prompt is ' '; it must be text"):
        read_contrast_pairs([{**QUESTION, "prompt": " "}], chat_template=tokenizer)
    with pytest.raises(LrtError, match="pair 0: the negative side: message 0 must have role and content"):
        read_contrast_pairs([{"positive": "well", "negative": [{"role": "user"}]}], chat_template=tokenizer)
    with pytest.raises(LrtError, match="has no chat template"):
        read_contrast_pairs([QUESTION], chat_template="{{ messages }}")


def test_the_hash_of_the_data() -> None:
    assert data_hash(PAIRS) == data_hash(list(PAIRS))
    others = [PAIRS[::-1], PAIRS[:1], [ContrastPair("good", "day bad day"), PAIRS[1]]]
    assert len({data_hash(pairs) for pairs in [PAIRS, *others]}) == 4
