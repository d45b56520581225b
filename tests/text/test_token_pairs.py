"""Two tokenizers of one text, built on the spot: byte-level, SentencePiece-like, word-level and normalizing ones."""

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


MADE = {"byte_level": byte_level(), "sentence_piece": sentence_piece(), "words": words()}


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
