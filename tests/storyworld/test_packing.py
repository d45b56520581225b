"""Packing: every document once, where it leaves the least room; and the same batches after a stop."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from lrt_tl.errors import LrtError
from lrt_tl.storyworld.language import documents
from lrt_tl.storyworld.packing import Data, Rows, Tokens, batches, encode, pack, permuted_words, row_length_for

PAD = 3
LONG_PRIME = 1_000_003


def arrays(seed: int, n: int = 150, longest: int = 40) -> list[Tokens]:
    """Documents of 1 to 40 tokens, none of them padding, each told from the others by its tokens."""
    chance = np.random.default_rng(seed)
    return [np.full(chance.integers(1, longest + 1), 10 + number, np.int32) for number in range(n)]


def documents_of(rows: Rows) -> list[tuple[int, ...]]:
    return [
        tuple(tokens[numbers == number].tolist())
        for tokens, numbers in zip(rows.tokens, rows.document, strict=True)
        for number in range(numbers.max() + 1)
    ]


def room_by_best_fit(lengths: list[int], row_length: int) -> list[int]:
    """The room left in each row: the plain algorithm, that looks at all rows for every document."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [(left, row) for row, left in enumerate(room) if left >= length]
        if fitting:
            room[min(fitting)[1]] -= length
        else:
            room.append(row_length - length)
    return sorted(room)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("row_length", [32, 40, 64])
def test_every_document_is_packed_once_and_padding_is_told_from_it(row_length: int, seed: int) -> None:
    encoded = arrays(seed)
    rows = pack(encoded, row_length, PAD)
    fitting = [tuple(document.tolist()) for document in encoded if len(document) <= row_length]
    assert Counter(documents_of(rows)) == Counter(fitting)
    assert rows.left_out == len(encoded) - len(fitting)
    assert (rows.left_out > 0) == (row_length == 32)
    np.testing.assert_array_equal(rows.tokens == PAD, rows.document == -1)
    for numbers in rows.document:  # 0, 1, …, and then only padding
        used = numbers[numbers >= 0]
        assert (np.diff(used) >= 0).all()
        assert set(used.tolist()) == set(range(numbers.max() + 1))
        assert (numbers[len(used) :] == -1).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_document_goes_where_it_fits_best(seed: int) -> None:
    encoded = arrays(seed)
    rows = pack(encoded, 64, PAD)
    assert sorted((rows.tokens == PAD).sum(1).tolist()) == room_by_best_fit([len(d) for d in encoded], 64)


def test_nothing_packs_into_no_rows() -> None:
    rows = pack(arrays(0, n=3, longest=1), 0, PAD)
    assert rows.tokens.shape == (0, 0)
    assert rows.left_out == 3


@pytest.mark.parametrize(("longest", "length"), [(1, 128), (128, 128), (129, 160), (160, 160), (161, 192)])
def test_rows_are_as_long_as_the_longest_document_needs(longest: int, length: int) -> None:
    assert row_length_for([np.zeros(n, np.int32) for n in (longest, 1)]) == length


def test_a_document_is_encoded_between_its_start_and_its_end(word: Any) -> None:
    texts = documents(20, seed=2)
    for ids, text in zip(encode(texts, word.backend_tokenizer), texts, strict=True):
        assert ids.tolist() == [*word(text)["input_ids"], word.eos_token_id]


def test_permuting_trades_words_for_words_of_their_kind(word: Any) -> None:
    vocabulary = word.get_vocab()
    permutation = permuted_words(vocabulary)
    assert sorted(permutation) == list(range(len(vocabulary)))
    names = word.convert_ids_to_tokens(list(range(len(vocabulary))))
    for number, name in enumerate(names):
        other = names[permutation[number]]
        if name.strip("▁").replace("'", "").isalpha():
            assert other.strip("▁").replace("'", "").isalpha()
            assert other.startswith("▁") is name.startswith("▁")
        else:
            assert other == name
    assert sum(permutation == np.arange(len(vocabulary))) < 40
    np.testing.assert_array_equal(permutation, permuted_words(vocabulary))
    assert (permutation != permuted_words(vocabulary, seed=8)).any()


# Batches


@pytest.fixture(scope="module")
def data(word: Any) -> Data:
    return Data(seed=5, tokenizer=word.backend_tokenizer.to_str(), row_length=160, chunk=50)


def test_a_chunk_holds_its_documents_shuffled(data: Data, word: Any) -> None:
    for number in range(2):
        rows = data.rows(number)
        expected = encode(documents(50, seed=5 * LONG_PRIME + number), Tokenizer.from_str(data.tokenizer))
        short = [tuple(ids.tolist()) for ids in expected if len(ids) <= 160]
        assert Counter(documents_of(rows)) == Counter(short)
        assert rows.left_out == len(expected) - len(short)
        assert rows.tokens.tolist() != pack(expected, 160, word.pad_token_id).tokens.tolist()


def test_a_permuted_chunk_is_the_chunk_with_its_tokens_traded(data: Data, word: Any) -> None:
    permutation = permuted_words(word.get_vocab())
    plain, permuted = data.rows(0), Data(5, data.tokenizer, 160, permutation, 50).rows(0)
    np.testing.assert_array_equal(permuted.tokens, permutation[plain.tokens])
    np.testing.assert_array_equal(permuted.document, plain.document)


def test_batches_go_on_where_they_stopped(data: Data) -> None:
    """Three rows a batch, and three chunks: against the chunks themselves, cut by hand."""
    chunks = [data.rows(number) for number in range(3)]
    expected = [
        (number, batch + 1, rows.tokens[3 * batch : 3 * batch + 3], rows.document[3 * batch : 3 * batch + 3])
        for number, rows in enumerate(chunks)
        for batch in range(len(rows.tokens) // 3)
    ]
    whole = batches(data, 3)
    found = [next(whole) for _ in expected]
    whole.close()
    stop = len(chunks[0].tokens) // 3 + 2
    later = batches(data, 3, chunk=found[stop - 1][0], batch=found[stop - 1][1])
    resumed = [next(later) for _ in expected[stop:]]
    later.close()
    for actual, wanted in ((found, expected), (resumed, expected[stop:])):
        for (chunk, batch, rows), (chunk_, batch_, tokens, document) in zip(actual, wanted, strict=True):
            assert (chunk, batch) == (chunk_, batch_)
            np.testing.assert_array_equal(rows.tokens, tokens)
            np.testing.assert_array_equal(rows.document, document)
    assert sum(rows.left_out for _, _, rows in found) == sum(rows.left_out for rows in chunks)


def test_a_batch_of_more_than_a_chunk_is_refused(data: Data) -> None:
    with pytest.raises(LrtError, match=r"a batch of 1000 rows is more than the \d+ of a chunk"):
        next(batches(data, 1000))
