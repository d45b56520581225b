"""Conversations through chat templates, of tokenizers built on the spot: what is read, and that markers are no text."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lrt_tl.errors import LrtError
from lrt_tl.text.batches import BatchCounts, TokenRows, token_batches
from lrt_tl.text.documents import read_documents

CHATML = (
    "{% for message in messages %}{% if message['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|im_start|>{{ message['role'] }} {{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for message in messages %}<|start|>{{ message['role'] }}<|end|> {{ message['content'] }}<|eot|>"
    "{% endfor %}"
)
CHAT = [{"role": "user", "content": "how are you"}, {"role": "assistant", "content": "well and you"}]
AS_CHATML = "<|im_start|>user how are you<|im_end|><|im_start|>assistant well and you<|im_end|>"
AS_LLAMA = "<|start|>user<|end|> how are you<|eot|><|start|>assistant<|end|> well and you<|eot|>"


def tokenizer(template: str | None, markers: list[str]) -> Any:
    """Words and punctuation; markers are special to the vocabulary, and have no name, as in most chat models."""
    words = [
        "<unk>",
        "<s>",
        "user",
        "assistant",
        "how",
        "are",
        "you",
        "well",
        "and",
        "<|",
        "|>",
        "im_start",
        "im_end",
        "|><|",
    ]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([AddedToken(marker, special=True) for marker in markers])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", chat_template=template)


CHATML_TOKENIZER = tokenizer(CHATML, ["<|im_start|>", "<|im_end|>"])
LLAMA_TOKENIZER = tokenizer(LLAMA, ["<|start|>", "<|end|>", "<|eot|>"])
PLAIN = tokenizer(None, [])


def texts_of(source: Any, chat_template: Any = CHATML_TOKENIZER, **options: Any) -> list[str]:
    return [document.text for document in read_documents(source, chat_template=chat_template, **options)]


# What is read


def test_messages_are_what_the_template_writes() -> None:
    assert texts_of([{"messages": CHAT}]) == [AS_CHATML]
    assert texts_of([{"messages": CHAT}], LLAMA_TOKENIZER) == [AS_LLAMA], "without the beginning of sequence"


def test_text_is_one_message_of_a_user(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("how are you\n\nwell\n")
    expected = ["<|im_start|>user how are you<|im_end|>", "<|im_start|>user well<|im_end|>"]
    texts = ["how are you", "well"]
    for source in (path, texts, [{"text": text} for text in texts], read_documents(texts)):
        assert texts_of(source) == expected
    assert texts_of([{"body": "well"}], text_key="body") == expected[1:]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "datasets", "streamed"])
def test_chat_datasets_of_every_kind(tmp_path: Path, kind: str) -> None:
    rows = [{"id": 1, "messages": CHAT}, {"id": 2, "messages": CHAT[:1]}]
    path = tmp_path / f"chats.{kind}"
    source: Any = path
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        source = datasets.Dataset.from_list(rows)
        source = source.to_iterable_dataset() if kind == "streamed" else source
    assert texts_of(source) == [AS_CHATML, "<|im_start|>user how are you<|im_end|>"]


def test_rows_with_both_are_conversations_through_a_template_and_text_without(tmp_path: Path) -> None:
    rows = [{"text": "well", "messages": CHAT}, {"text": "well", "messages": None}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "both.parquet")
    for source in (rows, tmp_path / "both.parquet"):
        assert texts_of(source) == [AS_CHATML, "<|im_start|>user well<|im_end|>"]
        assert texts_of(source, None) == ["well", "well"]


def test_documents_are_the_same_tomorrow() -> None:
    dated = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}{{ messages[0]['content'] }}"
    assert texts_of(["well"], tokenizer(dated, [])) == ["26 Jul 2024well"]


# Markers are no text


def kept(rows: TokenRows, of: Any) -> list[str]:
    return of.convert_ids_to_tokens(rows.tokens[rows.content].tolist())


def batches(tokenizers: list[Any], documents: Any, counts: BatchCounts) -> Iterator[Any]:
    return token_batches(tokenizers, documents, batch_size=4, context_length=64, counts=counts)


@pytest.mark.parametrize("chat", [CHATML_TOKENIZER, LLAMA_TOKENIZER], ids=["chatml", "llama"])
def test_markers_are_special_and_the_beginning_of_sequence_stands_once(chat: Any) -> None:
    counts = BatchCounts()
    (batch,) = batches([chat], read_documents([{"messages": CHAT}], chat_template=chat), counts)
    assert kept(batch.source, chat) == ["user", "how", "are", "you", "assistant", "well", "and", "you"]
    tokens = chat.convert_ids_to_tokens(batch.source.tokens[0].tolist())
    assert (tokens[0], tokens.count("<s>")) == ("<s>", 1)
    markers = 4 if chat is CHATML_TOKENIZER else 6
    assert counts == BatchCounts(documents=1, special_dropped=1 + markers)


@pytest.mark.parametrize("pair", [(CHATML_TOKENIZER, PLAIN), (PLAIN, CHATML_TOKENIZER)], ids=["source", "target"])
def test_what_is_a_marker_to_one_and_text_to_the_other_pairs_with_nothing(pair: tuple[Any, Any]) -> None:
    """To the plain tokenizer a marker is `<|`, `im_start`, `|>`, and the last of these ends where the marker does."""
    counts = BatchCounts()
    documents = read_documents([{"messages": CHAT}], chat_template=CHATML_TOKENIZER)
    (batch,) = batches(list(pair), documents, counts)
    text = ["user", "how", "are", "you", "assistant", "well", "and", "you"]
    assert kept(batch.source, pair[0]) == kept(batch.target, pair[1]) == text
    special, plain = 1 + 4, 4 * 3 - 1  # two markers share one `|><|`
    wanted = (special, 0) if pair[0] is CHATML_TOKENIZER else (1, plain)
    assert (counts.special_dropped, counts.tokens_unpaired) == wanted


def test_markers_of_both_pair_with_nothing() -> None:
    counts = BatchCounts()
    other = tokenizer(CHATML, ["<|im_end|>", "<|im_start|>"])
    (batch,) = batches([CHATML_TOKENIZER, other], read_documents([{"messages": CHAT}], chat_template=other), counts)
    assert kept(batch.source, CHATML_TOKENIZER) == kept(batch.target, other)
    assert (counts.special_dropped, counts.tokens_unpaired) == (5, 0)


# Refusals


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("how are you", "messages must be a list, with one at least, not 'how are you'"),
        ([], "messages must be a list"),
        ({"role": ["user"], "content": ["well"]}, "messages must be a list"),
        (["well"], "message 0 must have role and content"),
        ([*CHAT, {"role": "user"}], "message 2 must have role and content"),
        ([{"content": "well"}], "message 0 must have role and content"),
        ([{"role": "user", "content": None}], "the content of message 0 is of type NoneType"),
        ([{"role": "user", "content": [{"type": "text"}]}], "the content of message 0 is of type list"),
        ([{"role": 1, "content": "well"}], "the role of message 0 is of type int"),
        ([{"role": "tool", "content": "well"}], "the chat template refuses the messages: no tools here"),
    ],
)
def test_bad_messages(tmp_path: Path, messages: Any, reason: str) -> None:
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, [{"messages": CHAT}, {"messages": messages}])))
    with pytest.raises(LrtError, match=rf"c\.jsonl, line 2: {reason}"):
        texts_of(tmp_path / "c.jsonl")


def test_what_cannot_be_rendered() -> None:
    with pytest.raises(LrtError, match=r"document 0: messages need a chat template: give chat_template=tok"):
        texts_of([{"messages": CHAT}], None)
    for bad in (PLAIN, "{{ messages }}"):
        with pytest.raises(LrtError, match="has no chat template: give the tokenizer of a model that was trained"):
            read_documents(["well"], chat_template=bad)
    with pytest.raises(LrtError, match="document 0: the chat template writes nothing"):
        texts_of(["well"], tokenizer("{{ bos_token }}", []))
    with pytest.raises(LrtError, match="document 0: no key 'text' among"):
        texts_of([{"body": "well"}])
