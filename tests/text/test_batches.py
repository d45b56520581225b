"""No token is lost, doubled or counted as text where it is none, whatever the layout."""

from collections import Counter
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lrt_tl.errors import LrtError
from lrt_tl.text.batches import BatchCounts, TokenBatch, pad, token_batches, tokenize
from lrt_tl.text.documents import Document, split_of
from tests.checkpoints import WORDS
from tests.unchecked import without_type_checks

BOS, PAD = 1, 2
LAYOUTS = ["split", "truncate", "pack"]


@pytest.fixture(scope="module")
def tokenizer(bridges: Any) -> Any:
    return bridges[0].tokenizer


@pytest.fixture(scope="module")
def documents(texts: list[str]) -> list[Document]:
    return [Document(f"d{index}", text) for index, text in enumerate(texts)]


def batches_of(tokenizer: Any, documents: list[Document], **options: Any) -> tuple[list[TokenBatch], BatchCounts]:
    counts = BatchCounts()
    options = {"batch_size": 4, "context_length": 10} | options
    return list(token_batches([tokenizer], documents, counts=counts, **options)), counts


def ids_of(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def rows_of(batches: list[TokenBatch]) -> list[tuple[list[int], str, int]]:
    """Token ids without padding, name, split."""
    return [
        (batch.source.tokens[row][batch.source.mask[row]].tolist(), batch.names[row], int(batch.splits[row]))
        for batch in batches
        for row in range(len(batch.names))
    ]


def pieces_of(ids: list[int], room: int) -> list[tuple[int, ...]]:
    return [tuple(ids[start : start + room]) for start in range(0, len(ids), room)]


# Single functions


def test_tokenize_prepends_the_bos_and_nothing_else(tokenizer: Any) -> None:
    texts = ["word1 word3", "word2", "nothing known"]
    assert tokenize(tokenizer, texts) == [[BOS, 4, 6], [BOS, 5], [BOS, 0, 0]]
    assert tokenize(tokenizer, texts, prepend_bos=False) == [[4, 6], [5], [0, 0]]
    assert tokenize(tokenizer, []) == []


def test_a_tokenizer_without_bos_gets_none(tokenizer: Any) -> None:
    class Plain:
        bos_token_id = None

        def __call__(self, texts: list[str], **options: Any) -> Any:
            return tokenizer(texts, **options)

    assert tokenize(Plain(), ["word1"]) == [[4]]


def test_padding_is_on_the_right_and_special_tokens_are_no_content(tokenizer: Any) -> None:
    rows = [[BOS, 4, 6], [BOS, 5, BOS, 8, PAD], [7]]
    tokens, mask, content = pad(tokenizer, rows)
    assert tokens.shape == (3, 5)
    for row, ids in enumerate(rows):
        assert tokens[row, : len(ids)].tolist() == ids
        assert mask[row].tolist() == [column < len(ids) for column in range(5)]
        assert content[row].tolist() == [column < len(ids) and ids[column] > 2 for column in range(5)]


# Layouts


@pytest.mark.parametrize("prepend_bos", [True, False])
@pytest.mark.parametrize("context_length", [2, 7, 64])
def test_split_keeps_every_token_exactly_once(
    tokenizer: Any, documents: list[Document], context_length: int, prepend_bos: bool
) -> None:
    room, start = context_length - prepend_bos, [BOS] * prepend_bos
    batches, counts = batches_of(tokenizer, documents, context_length=context_length, prepend_bos=prepend_bos)
    expected = Counter(
        (tuple(start) + piece, document.name, split_of(document.text))
        for document in documents
        for piece in pieces_of(ids_of(document.text), room)
    )
    assert Counter((tuple(ids), name, split) for ids, name, split in rows_of(batches)) == expected
    assert counts == BatchCounts(documents=200, special_dropped=expected.total() * prepend_bos)


@pytest.mark.parametrize("context_length", [2, 7, 64])
def test_truncate_keeps_the_beginning_and_counts_the_rest(
    tokenizer: Any, documents: list[Document], context_length: int
) -> None:
    batches, counts = batches_of(tokenizer, documents, context_length=context_length, layout="truncate")
    found = {name: ids for ids, name, _ in rows_of(batches)}
    assert found == {d.name: [BOS, *ids_of(d.text)[: context_length - 1]] for d in documents}
    lost = sum(max(0, len(ids_of(d.text)) - context_length + 1) for d in documents)
    assert counts == BatchCounts(documents=200, tokens_truncated=lost, special_dropped=200)
    assert (lost > 0) == (context_length < 30)


@pytest.mark.parametrize("prepend_bos", [True, False])
@pytest.mark.parametrize("context_length", [7, 40])
def test_pack_joins_whole_pieces_of_one_split(
    tokenizer: Any, documents: list[Document], context_length: int, prepend_bos: bool
) -> None:
    options = {"context_length": context_length, "layout": "pack", "prepend_bos": prepend_bos}
    batches, counts = batches_of(tokenizer, documents, **options)
    rows, waiting = rows_of(batches), {}
    for ids, _, split in rows:  # what each split's pieces read one after the other, row by row
        assert len(ids) <= context_length
        waiting.setdefault(split, []).append(tuple(ids))
    room, start = context_length - prepend_bos, (BOS,) * prepend_bos
    for split, packed in waiting.items():
        pieces = [
            start + piece
            for document in documents
            if split_of(document.text) == split
            for piece in pieces_of(ids_of(document.text), room)
        ]
        expected, row = [], ()
        for piece in pieces:
            if row and len(row) + len(piece) > context_length:
                expected.append(row)
                row = ()
            row += piece
        assert Counter(packed) == Counter([*expected, row])
    assert set(waiting) == {split_of(document.text) for document in documents}
    n_pieces = sum(len(list(pieces_of(ids_of(document.text), room))) for document in documents)
    assert counts == BatchCounts(documents=200, special_dropped=n_pieces * prepend_bos)


def test_a_packed_row_names_its_documents(tokenizer: Any) -> None:
    same_split = [f"word{index} word1" for index in range(40) if split_of(f"word{index} word1") == 0][:3]
    documents = [Document(f"d{index}", text) for index, text in enumerate(same_split)]
    batches, _ = batches_of(tokenizer, documents, context_length=6, layout="pack")
    assert sorted(name for _, name, _ in rows_of(batches)) == ["d0 … d1", "d2"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch_size", [1, 3, 500])
def test_masks_and_shapes(tokenizer: Any, documents: list[Document], layout: Any, batch_size: int) -> None:
    batches, _ = batches_of(tokenizer, documents, layout=layout, batch_size=batch_size)
    for batch in batches:
        assert batch.target is batch.source
        rows, width = batch.source.tokens.shape
        assert rows == len(batch.names) == len(batch.splits) <= batch_size
        assert width == int(batch.source.mask.sum(1).max()) <= 10
        assert bool((batch.source.mask.long().diff(dim=1) <= 0).all()), "padding is on the right"
        assert torch.equal(batch.source.content, batch.source.mask & (batch.source.tokens > 2))
    assert sum(len(batch.names) < batch_size for batch in batches) <= len(documents) // batch_size + 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_special_tokens_inside_a_document_are_no_content(tokenizer: Any, layout: Any) -> None:
    batches, _ = batches_of(tokenizer, [Document("d", "word1 <s> word2 </s> word3")], layout=layout)
    (batch,) = (batch.source for batch in batches)
    assert batch.tokens.tolist() == [[BOS, 4, BOS, 5, PAD, 6]]
    assert batch.mask.all()
    assert batch.content.tolist() == [[False, True, False, True, False, True]]


def test_batches_come_as_documents_do(tokenizer: Any) -> None:
    """A corpus need not end, nor fit into memory."""

    def endless() -> Any:
        number = 0
        while True:
            yield Document(f"d{number}", "word1 word2")
            number += 1

    stream = token_batches([tokenizer], endless(), batch_size=2, context_length=8)
    assert [next(stream).source.tokens.shape for _ in range(3)] == [(2, 3)] * 3


def test_rows_of_like_length_share_a_batch(tokenizer: Any, documents: list[Document]) -> None:
    batches, _ = batches_of(tokenizer, documents, context_length=64)
    mask = torch.cat([batch.source.mask.flatten() for batch in batches])
    assert float(mask.float().mean()) > 0.9


# Two tokenizers


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("context_length", [7, 64])
def test_two_tokenizers_read_the_same_pieces(
    tokenizer: Any, documents: list[Document], layout: Any, context_length: int
) -> None:
    """The other one cuts words into characters: a word's state is there after its last character."""
    ids = {"<unk>": 0, "<s>": 1, **{character: i + 2 for i, character in enumerate("word0123456789")}}
    characters = Tokenizer(models.WordLevel(ids))
    characters.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    spelling = PreTrainedTokenizerFast(tokenizer_object=characters, unk_token="<unk>", bos_token="<s>")
    counts = BatchCounts()
    options = {"batch_size": 4, "context_length": context_length, "layout": layout, "counts": counts}
    seen = 0
    for batch in token_batches([tokenizer, spelling], documents[:50], **options):
        for row in range(len(batch.names)):
            words = batch.source.tokens[row][batch.source.content[row]].tolist()
            assert words == [i for i in batch.source.tokens[row].tolist() if i > 2], "every word ends a spelling"
            letters = spelling.convert_ids_to_tokens(batch.target.tokens[row].tolist())
            last = [letters[i] for i in batch.target.content[row].nonzero().squeeze(1).tolist()]
            assert last == [WORDS[word][-1] for word in words]
            spelled = [c for c, kept in zip(letters, batch.target.mask[row].tolist(), strict=True) if kept]
            assert "".join(spelled).replace("<s>", "") == "".join(WORDS[word] for word in words)
            seen += len(words)
        assert batch.source.tokens.shape[1] <= context_length
        assert batch.target.tokens.shape[1] <= context_length
    n_words = sum(len(ids_of(document.text)) for document in documents[:50])
    if layout == "truncate":
        assert seen + counts.tokens_truncated == n_words
    else:
        assert (seen, counts.tokens_unpaired) == (n_words, 0)


# Refusals


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_document_without_a_token_is_named(tokenizer: Any, layout: Any) -> None:
    with pytest.raises(LrtError, match=r"here\.txt:7 tokenizes to nothing \(' '\)"):
        batches_of(tokenizer, [Document("a", "word1"), Document("here.txt:7", " ")], layout=layout)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_length": 1}, "context_length=1 leaves no room for text"),
        ({"context_length": 0}, "context_length=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"layout": "packed"}, "'packed' is none of split, truncate, pack"),
    ],
)
def test_settings_that_cannot_be(tokenizer: Any, options: dict[str, Any], message: str) -> None:
    with without_type_checks(), pytest.raises(LrtError, match=message):
        batches_of(tokenizer, [Document("d", "word1")], **options)


def test_a_filler_for_tokenizers_without_padding() -> None:
    class Bare:
        pad_token_id = eos_token_id = None
        all_special_ids = all_special_tokens = ()

    tokens, mask, content = pad(Bare(), [[5, 6], [7]])
    assert (tokens.tolist(), mask.tolist()) == ([[5, 6], [7, 0]], [[True, True], [True, False]])
    assert isinstance(content, Tensor)
    assert torch.equal(content, mask)
