"""Which tokens two tokenizers share, and models that are compared on them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPTNeoXConfig, PreTrainedTokenizerFast

from lrt_tl import storyworld
from lrt_tl.errors import LrtError
from lrt_tl.identifiability.properties.facts import with_texts
from lrt_tl.identifiability.reading import read_predictors, shared_tokens
from lrt_tl.models.loading import load_model
from tests.checkpoints import D_VOCAB, save_checkpoint


def wrapped(tokenizer: Tokenizer) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


def byte_level() -> Any:
    """A space belongs to the word after it: `Ġcat` begins a word, and `cat` goes on with one."""
    vocabulary = ["<unk>", "<s>", "Ġ", *"acdhtgo.", "ca", "cat", "Ġca", "Ġcat", "Ġd", "Ġdo", "Ġdog", "th", "Ġth"]
    merges = [("c", "a"), ("ca", "t"), ("Ġ", "ca"), ("Ġca", "t"), ("Ġ", "d"), ("Ġd", "o"), ("Ġdo", "g"), ("t", "h")]
    made = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, [*merges, ("Ġ", "th")]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return wrapped(made)


def sentence_piece() -> Any:
    """▁ begins a word; two bytes at the beginning, of which one is a letter that has a token of its own."""
    vocabulary = ["<unk>", "<s>", "<0x61>", "<0xE2>", "▁", *"acdtog", "▁cat", "cat", "▁dog"]
    made = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, [], byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrapped(made)


def words() -> Any:
    made = Tokenizer(models.WordLevel({t: i for i, t in enumerate(["<unk>", "<s>", "dog", "bird", "cat"])}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return wrapped(made)


TOKENIZERS = {"bytes": byte_level, "pieces": sentence_piece, "words": words}
SHARED = {
    ("bytes", "pieces"): [("Ġ", "▁"), *((c, c) for c in "acdtgo"), ("cat", "cat"), ("Ġcat", "▁cat"), ("Ġdog", "▁dog")],
    ("bytes", "words"): [("Ġcat", "cat"), ("Ġdog", "dog")],
    ("pieces", "words"): [("▁cat", "cat"), ("▁dog", "dog")],
}


@pytest.mark.parametrize("names", SHARED, ids="-".join)
def test_tokens_that_add_the_same_text(names: tuple[str, str]) -> None:
    """A word-level `cat` is the byte-level ` cat`, not `cat`, which goes on with a word."""
    one, other = (TOKENIZERS[name]() for name in names)
    wanted = set(SHARED[names])
    for first, second, pairs in ((one, other, wanted), (other, one, {(b, a) for a, b in wanted})):
        ours, theirs = (
            tokenizer.convert_ids_to_tokens(ids.tolist())
            for tokenizer, ids in zip((first, second), shared_tokens(first, second), strict=True)
        )
        assert set(zip(ours, theirs, strict=True)) == pairs
        assert len(ours) == len(pairs)


def test_tokenizers_that_share_nothing() -> None:
    strange = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "x": 2, "y": 3}, "<unk>"))
    with pytest.raises(LrtError, match="the tokenizers share 0 tokens"):
        shared_tokens(words(), wrapped(strange))


def test_models_of_two_tokenizers(tmp_path: Path) -> None:
    tokens: dict[str, Any] = {"vocab_size": D_VOCAB, "bos_token_id": 1, "eos_token_id": 1}
    neox = GPTNeoXConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, **tokens)
    gpt2 = GPT2Config(n_embd=24, n_head=2, n_layer=1, n_positions=64, **tokens)
    folders = save_checkpoint(neox, tmp_path / "bytes", seed=1), save_checkpoint(gpt2, tmp_path / "words", seed=2)
    tokenizers = byte_level(), words()
    for tokenizer, folder in zip(tokenizers, folders, strict=True):
        tokenizer.save_pretrained(folder)
    loaded = [load_model(folder) for folder in folders]
    p, q = read_predictors(*loaded, ["cat dog cat", "dog cat"])
    assert (p.tokens, q.tokens) == (("Ġcat", "Ġdog"), ("cat", "dog"))
    assert len(p.f) == 5
    ids = ([[1, 7 + 4, 11, 0, 0, 0]], [[1, 4, 2, 4]])
    assert p.coverage is not None
    with torch.no_grad():
        logits = loaded[1](torch.tensor(ids[1]))[0, 1:].double()
    row = (q.documents == int(q.documents.bincount().argmax())).nonzero()[:, 0]
    torch.testing.assert_close(q.logits()[row], logits[:, [4, 2]], rtol=0, atol=1e-4)
    assert q.coverage is not None
    torch.testing.assert_close(q.coverage[row], logits.softmax(1)[:, [4, 2]].sum(1), rtol=0, atol=1e-5)

    texts = ["cat dog", "dog"]
    more = with_texts(q, loaded[1], texts)
    assert more.coverage is not None
    with torch.no_grad():
        last = [loaded[1](torch.tensor([ids]))[0, -1].double() for ids in ([1, 4, 2], [1, 2])]
    wanted = torch.stack([each.softmax(0)[[4, 2]].sum() for each in last])
    torch.testing.assert_close(more.coverage[5:], wanted, rtol=0, atol=1e-5)
    assert len(more.take(torch.arange(7)).coverage) == len(more.f)  # type: ignore[arg-type]


def test_storyworlds_words_and_byte_pairs() -> None:
    """72 tokens decode alike on their own; six times as many add the same text."""
    words_of, bytes_of = (storyworld.load(name).tokenizer for name in ("small", "large-alt"))
    ours, theirs = shared_tokens(words_of, bytes_of)
    assert len(ours) > 400
    named = dict(
        zip(words_of.convert_ids_to_tokens(ours.tolist()), bytes_of.convert_ids_to_tokens(theirs.tolist()), strict=True)
    )
    assert named["▁the"] == "Ġthe"
    assert named["."] == "."
    assert all(token.replace("▁", "Ġ") == other for token, other in named.items() if token.isascii() and token != "\n")
