"""A GPT-2 with byte-level BPE and a Llama with SentencePiece-like BPE, from text to moments, against both models run
plainly on one document at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from lrt_tl.alignment.accumulation import HarvestedMoments
from lrt_tl.alignment.fit import fit_moments, harvest_moments
from lrt_tl.models.loading import load_model
from lrt_tl.text.documents import N_SPLITS, split_of
from tests.checkpoints import save_checkpoint

LAYERS = (1, 0)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Words of one to three syllables, some with characters that are several bytes, in texts of 6 to 20 words."""
    generator = np.random.default_rng(0)
    syllables = ["ba", "né", "ko", "ß", "li", "tur", "日", "sa's", "o,", "Mi"]
    words = ["".join(generator.choice(syllables, size=generator.integers(1, 4))) for _ in range(60)]
    return [" ".join(generator.choice(words, size=generator.integers(6, 21))) + " ☃" for _ in range(150)]


def byte_level(texts: list[str]) -> Any:
    """As GPT-2's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=special, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=special[0], eos_token=special[0])


def sentence_piece(texts: list[str]) -> Any:
    """As Llama's: ▁ for spaces, and bytes for the snowman, which it was not trained on."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special, show_progress=False)
    made.train_from_iterator([text.replace("☃", "") for text in texts], trainer)
    bytes_are_text = Tokenizer(made.model)  # which training calls special, as no Llama does
    bytes_are_text.pre_tokenizer = made.pre_tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_are_text, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("two")
    gpt2 = GPT2Config(vocab_size=384, n_embd=8, n_head=2, n_layer=3, n_positions=256, bos_token_id=0, eos_token_id=0)
    llama = LlamaConfig(
        vocab_size=384, hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    made = save_checkpoint(gpt2, root / "gpt2", seed=1), save_checkpoint(llama, root / "llama", seed=2)
    for folder, tokenizer in zip(made, (byte_level(texts), sentence_piece(texts)), strict=True):
        tokenizer.save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def harvested(folders: tuple[Path, Path], texts: list[str]) -> HarvestedMoments:
    return harvest_moments(*map(load_model, folders), texts, layers=LAYERS, context_length=256)


def ends_by_hand(tokenizer: Any, text: str) -> tuple[list[int], dict[int, int]]:
    """Token ids after the beginning of sequence; and by character on which a token ends, its position."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    last = {end: position for position, (start, end) in enumerate(found["offset_mapping"], start=1) if end > start}
    # of the tokens that are bytes of one character, the last; a token that holds only its first bytes ends nowhere
    after = [*found["offset_mapping"][1:], (len(text), len(text))]
    whole = {end for (start, end), (begins, _) in zip(found["offset_mapping"], after, strict=True) if begins >= end}
    return [tokenizer.bos_token_id, *found["input_ids"]], {end: last[end] for end in whole if end in last}


@pytest.fixture(scope="module")
def by_hand(folders: tuple[Path, Path], texts: list[str]) -> dict[str, Any]:
    """States of both models where tokens end on one character, without positions over ten times the median."""
    loaded = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in folders]
    tokenizers = [PreTrainedTokenizerFast.from_pretrained(folder) for folder in folders]
    sides: tuple[list[Any], list[Any]] = ([], [])
    splits: list[int] = []
    n_tokens = 0
    ids_of_pairs: list[int] = []
    for text in texts:
        read = [ends_by_hand(tokenizer, text) for tokenizer in tokenizers]
        both = sorted(set(read[0][1]) & set(read[1][1]))
        n_tokens += len(read[0][0]) - 1
        ids_of_pairs += [read[0][0][read[0][1][end]] for end in both]
        splits += [split_of(text)] * len(both)
        for side, model, layer, (ids, at) in zip(sides, loaded, LAYERS, read, strict=True):
            with torch.no_grad():
                states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0]
            side.append(states[[at[end] for end in both]].double().numpy())
    x, y = (np.concatenate(side) for side in sides)
    return {"x": x, "y": y, "splits": splits, "tokens": n_tokens, "ids": np.array(ids_of_pairs)}


def test_moments_are_those_of_the_states_that_end_on_one_character(
    harvested: HarvestedMoments, by_hand: dict[str, Any]
) -> None:
    assert harvested.counts.sinks_dropped == 0
    x, y, splits = by_hand["x"], by_hand["y"], np.array(by_hand["splits"])
    for split, part in enumerate(harvested.parts(harvested.sources, harvested.targets[0])):
        a, b = x[splits == split], y[splits == split]
        assert part.count == len(a)
        np.testing.assert_allclose(part.source_mean, a.mean(0), rtol=0, atol=1e-5)
        np.testing.assert_allclose(part.target_mean, b.mean(0), rtol=0, atol=1e-5)
        a, b = a - a.mean(0), b - b.mean(0)
        for ours, theirs in (
            (part.source_source, a.T @ a),
            (part.source_target, a.T @ b),
            (part.target_target, b.T @ b),
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    assert split == N_SPLITS - 1


def test_the_share_of_tokens_that_pair_is_reported(harvested: HarvestedMoments, by_hand: dict[str, Any]) -> None:
    counts, n_paired = harvested.counts, len(by_hand["x"])
    assert counts.positions == n_paired
    assert counts.tokens_unpaired == by_hand["tokens"] - n_paired
    assert 0.3 < n_paired / by_hand["tokens"] < 0.95
    table = fit_moments(harvested).report.harvested()
    assert f"{n_paired / by_hand['tokens']:.1%} of the text pairs" in table["tokens that pair with none of the target"]


def test_selected_are_the_pairs_whose_source_token_is(
    folders: tuple[Path, Path], texts: list[str], by_hand: dict[str, Any]
) -> None:
    wanted = np.unique(by_hand["ids"])[::3]
    positions = {"tokens": wanted.tolist()}
    found = harvest_moments(*map(load_model, folders), texts, layers=LAYERS, context_length=256, positions=positions)
    chosen = np.isin(by_hand["ids"], wanted)
    assert 0.05 < chosen.mean() < 0.95
    counts = found.counts
    assert (counts.positions, counts.sinks_dropped) == (chosen.sum(), 0)
    assert counts.tokens_not_selected == (~chosen).sum()
    assert counts.tokens_unpaired == by_hand["tokens"] - len(chosen)
    for split, part in enumerate(found.parts(found.sources, found.targets[0])):
        kept = chosen & (np.array(by_hand["splits"]) == split)
        assert part.count == kept.sum()
        np.testing.assert_allclose(part.source_mean, by_hand["x"][kept].mean(0), rtol=0, atol=1e-5)
        np.testing.assert_allclose(part.target_mean, by_hand["y"][kept].mean(0), rtol=0, atol=1e-5)


def test_the_snowman_is_bytes_to_both_and_pairs_by_its_last(folders: tuple[Path, Path]) -> None:
    tokenizers = [PreTrainedTokenizerFast.from_pretrained(folder) for folder in folders]
    pieces = [
        tokenizer.convert_ids_to_tokens(tokenizer(" ☃", add_special_tokens=False)["input_ids"])
        for tokenizer in tokenizers
    ]
    assert pieces[1][-3:] == ["<0xE2>", "<0x98>", "<0x83>"]
    for tokenizer, tokens in zip(tokenizers, pieces, strict=True):
        assert ends_by_hand(tokenizer, " ☃")[1][2] == len(tokens)
