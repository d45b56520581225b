"""Two tokenizers of one text, built on the spot: byte-level, SentencePiece-like, word-level and normalizing ones."""

import unicodedata
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lrt_tl.errors import LrtError
from lrt_tl.text.token_pairs import Tokens, pair_positions, paired_pieces, tokens_with_ends

TEXTS = [
    "The cat's hat is on the mat, and the café is closed.",
    "Zwei Straßen weiter: ein  doppelter   Zwischenraum\nund eine Zeile.",
    "naïve 😀👍🏽 emoji, 日本語 and tokens",
]


def byte_level() -> Tokenizer:
    """As GPT-2's: bytes, a space belongs to the word after it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    return made


def sentence_piece() -> Tokenizer:
    """As Llama's: ▁ for spaces and before the first word, bytes where a character is unknown."""
    vocabulary = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary += sorted({c for text in TEXTS[:2] for c in text.replace(" ", "▁") if c != "\n"})
    vocabulary += ["▁t", "▁th", "▁the"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    ids = {"<unk>": 0} | {token: number + 1 for number, token in enumerate(vocabulary)}
    made = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return made


def words() -> Tokenizer:
    made = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "cat": 2}, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def word_piece() -> Tokenizer:
    """As BERT's: lower-cased, without accents, words in pieces."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["<unk>"], show_progress=False)
    made.train_from_iterator([*TEXTS, "fine 1"], trainer)
    return made


def unigram() -> Tokenizer:
    """As T5's: likeliest pieces, ▁ for spaces, compatibility characters spelled out."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("...", "…")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    made.train_from_iterator([*TEXTS, "a fine 1 … fi é"], trainer)
    return made


def composing() -> Tokenizer:
    """As Qwen's: bytes of the composed text."""
    made = byte_level()
    made.normalizer = normalizers.NFC()
    return made


MADE = {"byte_level": byte_level(), "sentence_piece": sentence_piece(), "words": words()}
MADE |= {"word_piece": word_piece(), "unigram": unigram(), "composing": composing()}


TOKENIZERS = {name: PreTrainedTokenizerFast(tokenizer_object=made) for name, made in MADE.items()}


def ends(tokens: Tokens) -> list[int]:
    return [end for end, is_end in zip(tokens.ends, tokens.is_end, strict=True) if is_end]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("names", list(combinations(MADE, 2)))
def test_all_and_only_what_ends_on_one_character_pairs(names: tuple[str, str], text: str) -> None:
    one, other = (tokens_with_ends(TOKENIZERS[name], [text])[0] for name in names)
    pairs = pair_positions(one, other)
    assert [one.ends[i] for i, _ in pairs] == [other.ends[j] for _, j in pairs]
    assert {one.ends[i] for i, _ in pairs} == set(ends(one)) & set(ends(other))
    assert [i for i, _ in pairs] == sorted({i for i, _ in pairs})
    assert [j for _, j in pairs] == sorted({j for _, j in pairs})
    if "byte_level" in names and "words" in names and text is TEXTS[0]:
        assert len(pairs) == len(other.ids) - 1, "every word ends a byte-level token, but the ' of 's"


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_a_paired_byte_level_position_has_read_exactly_the_text_so_far(text: str) -> None:
    """The oracle is the tokenizer's decoder: tokens up to the paired one are the text up to its last character."""
    one, other = (tokens_with_ends(TOKENIZERS[name], [text])[0] for name in ("byte_level", "words"))
    for i, j in pair_positions(one, other):
        read = MADE["byte_level"].decode(one.ids[: i + 1])
        assert read == text[: other.ends[j]]


def test_a_token_that_ends_within_a_character_pairs_with_nothing() -> None:
    """The byte-level tokenizer has merged the first byte of ß to what stands before it."""
    text = "Straßen"
    one, other = (tokens_with_ends(TOKENIZERS[name], [text])[0] for name in ("byte_level", "sentence_piece"))
    read = [MADE["byte_level"].decode(one.ids[: i + 1]) for i, _ in pair_positions(one, other)]
    assert read == ["St", "Straßen"]
    assert [end for end, is_end in zip(one.ends, one.is_end, strict=True) if not is_end] == [5]


def read_so_far(name: str, text: str) -> list[str]:
    """The original text that each paired position has read, with a tokenizer that cuts text into its characters."""
    one = tokens_with_ends(TOKENIZERS[name], [text])[0]
    characters = Tokens(list(range(len(text))), list(range(1, len(text) + 1)), [True] * len(text))
    return [text[: characters.ends[j]] for _, j in pair_positions(one, characters)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("word_piece", "THE Cat", ["THE", "THE Cat"]),
        ("word_piece", "cafe\u0301 is", ["cafe\u0301", "cafe\u0301 is"]),
        ("unigram", "\ufb01", ["\ufb01"]),
        ("unigram", "\u2460", ["\u2460"]),
        ("unigram", "e\u0301 is", ["e\u0301", "e\u0301 ", "e\u0301 is"]),
        ("composing", "e\u0301", ["e\u0301"]),
        ("composing", "ae\u0301\u0323", ["a", "ae\u0301\u0323"]),  # the marks change places
        ("composing", "\u1100\u1161\u11a8", ["\u1100\u1161\u11a8"]),  # three letters, one Hangul syllable
        ("composing", "q\u0302", ["q\u0302"]),
        ("byte_level", "e\u0301", ["e\u0301"]),  # the other tokenizer may compose
    ],
    ids=ascii,
)
def test_a_token_ends_on_a_character_of_the_original_text(name: str, text: str, expected: list[str]) -> None:
    assert read_so_far(name, text) == expected


@pytest.mark.parametrize("form", ["NFC", "NFKC", "NFD", "NFKD"])
@given(
    text=st.text(st.sampled_from("aeq \u0301\u0302\u0323\u00e9\u1100\u1161\u11a8\uff76\uff9e\ufb01\u2460"), max_size=12)
)
@settings(max_examples=100, deadline=None)
def test_a_normalizing_position_has_read_the_normalized_text_so_far(form: str, text: str) -> None:
    """The oracle: what was read, decoded, is what the normalizer makes of the text up to there."""
    made = byte_level()
    made.normalizer = getattr(normalizers, form)()
    one = tokens_with_ends(PreTrainedTokenizerFast(tokenizer_object=made), [text])[0]
    for i, end in enumerate(one.ends):
        if one.is_end[i]:
            assert made.decode(one.ids[: i + 1]) == unicodedata.normalize(form, text[:end])


def test_what_is_no_text_pairs_with_nothing() -> None:
    one, other = Tokens([1, 2], [2, 4], [False, True]), Tokens([1, 2], [2, 4], [True, True])
    assert pair_positions(one, other) == [(1, 1)]


@pytest.mark.parametrize("rooms", [(4, 3), (7, 5), (100, 100)])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_fit_and_keep_every_pair_that_can_be_reached(text: str, rooms: tuple[int, int]) -> None:
    one, other = (tokens_with_ends(TOKENIZERS[name], [text])[0] for name in ("byte_level", "sentence_piece"))
    pieces = list(paired_pieces(one, other, rooms))
    assert all(len(piece.ids[side]) <= rooms[side] for piece in pieces for side in (0, 1))
    found = [(piece.ids[0][i], piece.ids[1][j]) for piece in pieces for i, j in zip(*piece.paired, strict=True)]
    wanted = [(one.ids[i], other.ids[j]) for i, j in pair_positions(one, other)]
    if rooms == (100, 100):
        assert found == wanted
        assert len(pieces) == 1
    remaining = iter(wanted)
    assert all(pair in remaining for pair in found), "in order, none twice"


def test_what_does_not_fit_between_two_pairs_is_left_out() -> None:
    one = Tokens([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [True] * 6)
    other = Tokens([1, 5, 6], [1, 5, 6], [True] * 3)
    pieces = list(paired_pieces(one, other, (2, 2)))
    assert [piece.ids for piece in pieces] == [([1], [1]), ([6], [6])]


def test_a_tokenizer_without_offsets_is_refused() -> None:
    with pytest.raises(LrtError, match="does not say which characters"):
        tokens_with_ends(SimpleNamespace(is_fast=False), ["text"])


def test_offsets_that_do_not_follow_the_text_are_refused() -> None:
    class Backwards:
        is_fast, all_special_ids, all_special_tokens = True, (), ()

        def __call__(self, texts: list[str], **options: Any) -> Any:
            return {"input_ids": [[1, 2]], "offset_mapping": [[(2, 4), (0, 2)]]}

    with pytest.raises(LrtError, match="do not follow the text 'text'"):
        tokens_with_ends(Backwards(), ["text"])
