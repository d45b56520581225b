"""Tokenizers: nothing is lost, and a word is one token wherever it stands, before and after a reload."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lrt_tl.storyworld.language import samples, vocabulary
from lrt_tl.storyworld.parse import split_words
from lrt_tl.storyworld.tokenizer import SPACE, letters_only, save_tokenizer


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def test_decoding_gives_back_the_text(tokenizer: Any, sampled: list[str]) -> None:
    for text in sampled:
        ids = ids_of(tokenizer, text)
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert ids_of(tokenizer, tokenizer.decode(ids[1:])) == ids


def test_special_tokens_come_first_and_are_never_text(tokenizer: Any, sampled: list[str]) -> None:
    special = [tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert special == [0, 1, 2, 3]
    assert tokenizer.convert_ids_to_tokens(special) == ["<unk>", "<s>", "</s>", "<pad>"]
    assert all(min(ids_of(tokenizer, text)[1:]) > 3 for text in sampled)


def test_offsets_cut_the_text_into_its_tokens(tokenizer: Any, sampled: list[str]) -> None:
    """Every character but spaces is in exactly one token, and a token's characters are what it says."""
    is_word = len(tokenizer) != 1500
    for text in sampled[:100]:
        encoding = tokenizer(text, return_offsets_mapping=True)
        spans = encoding["offset_mapping"][1:]
        assert "".join(text[start:end] for start, end in spans).replace(" ", "") == text.replace(" ", "")
        if is_word:
            tokens = tokenizer.convert_ids_to_tokens(encoding["input_ids"][1:])
            pieces = [text[start:end].strip(" ") for start, end in spans]
            assert pieces == [token.removeprefix(SPACE) for token in tokens]


def test_a_beginning_of_the_text_is_a_beginning_of_the_tokens(tokenizer: Any, sampled: list[str]) -> None:
    """What steering and questions rely on: prompt + answer are the prompt's tokens and then the answer's."""
    chance = random.Random(0)
    for text in sampled[:100]:
        cut = chance.choice([match.start() for match in re.finditer(" ", text)])
        beginning = ids_of(tokenizer, text[:cut])
        assert ids_of(tokenizer, text)[: len(beginning)] == beginning


def test_a_word_is_one_token(word: Any, sampled: list[str]) -> None:
    for text in sampled:
        tokens = word.convert_ids_to_tokens(ids_of(word, text)[1:])
        assert [token.removeprefix(SPACE) for token in tokens] == split_words(text)


def test_every_word_of_the_language_is_one_token_with_and_without_a_space(word: Any) -> None:
    for text in vocabulary():
        ids = word(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == 1
        assert ids[0] != word.unk_token_id
        if letters_only(text):
            assert word(" " + text, add_special_tokens=False)["input_ids"] == ids


def test_a_word_after_a_newline_has_a_token_of_its_own(word: Any) -> None:
    question = next(samples(1, seed=1, kind="questions")).text
    tokens = word.convert_ids_to_tokens(ids_of(word, question))
    assert tokens[1] == SPACE + "Question"
    assert {"Choices", "Answer", "\n", SPACE + "(A)"} < set(tokens)
    assert tokens.count("Question") == question.count("\nQuestion") == question.count("Question") - 1


def test_what_is_not_of_the_language_is_unknown_to_words_and_spelled_by_byte_pairs(word: Any, byte_pair: Any) -> None:
    text = "Mira: a Zweihänder 🦊, 3 of them\t!"
    assert byte_pair.decode(ids_of(byte_pair, text), skip_special_tokens=True) == text
    tokens = word.convert_ids_to_tokens(ids_of(word, text))
    assert tokens[:5] == ["<s>", "▁Mira", ":", "▁a", "<unk>"]


def test_there_are_1500_byte_pairs_and_they_save_room(byte_pair: Any, sampled: list[str]) -> None:
    assert len(byte_pair) == 1500
    n_tokens = sum(len(ids_of(byte_pair, text)) - 1 for text in sampled)
    n_words = sum(len(split_words(text) or []) for text in sampled)
    assert n_words < n_tokens < 0.5 * sum(len(text.encode()) for text in sampled)


@pytest.mark.parametrize(
    ("token", "is_word"),
    [("fox", True), ("▁fox", True), ("▁río", True), ("▁don't", True), ("I", True), ("▁", False), (".", False),
     ("▁(A)", False), ("\n", False), ("<s>", False), ("fox1", False), ("▁a▁b", False), ("", False)],
)  # fmt: skip
def test_words_are_of_letters(token: str, is_word: bool) -> None:
    assert letters_only(token) is is_word


@pytest.mark.parametrize("kind", ["word", "byte_pair"])
def test_a_saved_tokenizer_is_the_same_tokenizer(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, sampled: list[str]
) -> None:
    made = request.getfixturevalue(kind)
    save_tokenizer(made, tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == made.get_vocab()
    assert [ids_of(again, text) for text in sampled] == [ids_of(made, text) for text in sampled]
    batch = again(["Mira: Once", "Mira"], padding=True)
    assert batch["input_ids"][1][-1] == again.pad_token_id
    assert "PreTrainedTokenizerFast" in (tmp_path / "tokenizer_config.json").read_text(encoding="utf-8")
