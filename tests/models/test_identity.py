"""One identity for one residual stream, in both classes, however it was loaded; another for another."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.models.identity import (
    ModelIdentity,
    Site,
    identify,
    require_same_model,
    same_tokenizer,
    site_of,
    tokenizer_fingerprint,
)
from lrt_tl.models.loading import load_model
from tests.checkpoints import CLASSES, D_VOCAB, WORDS, has_hooked, save_checkpoint
from tests.models.test_loading import CONFIGS

ONE_EACH = ("gpt2", "neox", "llama-grouped-tied", "qwen2", "gemma2")


@pytest.fixture(scope="module", params=list(CONFIGS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(CONFIGS[request.param](), tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(CONFIGS["gpt2"](), tmp_path_factory.mktemp("models") / "gpt2")


def identities(folder: Path, **options: Any) -> list[ModelIdentity]:
    classes = ("hooked", "bridge") if has_hooked else ("bridge",)
    return [identify(load_model(folder, model_class=name, **options)) for name in classes]


def assert_same(one: ModelIdentity, other: ModelIdentity) -> None:
    require_same_model(one, other, what="a map")
    require_same_model(other, one, what="a map")


def test_an_identity_is_that_of_the_residual_stream(checkpoint: Path) -> None:
    raw, processed = identities(checkpoint), identities(checkpoint, processed=True)
    subtracts_mean = checkpoint.name.startswith(("gpt2", "neox"))
    assert {identity.basis for identity in raw} == {"raw"}
    assert {identity.basis for identity in processed} == {"centered" if subtracts_mean else "raw"}
    for same in (raw, processed):
        for identity in same:
            assert_same(same[0], identity)
    for one in processed:  # the fingerprint of the weights does not see the basis
        assert one.weights == pytest.approx(raw[0].weights, abs=1e-5)
        if subtracts_mean:
            with pytest.raises(MismatchError, match=r"differs: basis is centered, not raw\. Load"):
                require_same_model(raw[0], one, what="a map")
    assert raw[0].name == checkpoint.name
    assert (raw[0].n_layers, raw[0].d_model, raw[0].dtype, len(raw[0].weights)) == (3, 32, "float32", 7)


@pytest.mark.parametrize("name", ONE_EACH)
@pytest.mark.parametrize("processed", [False, True])
def test_rounding_is_no_difference(tmp_path: Path, name: str, processed: bool) -> None:
    folder = save_checkpoint(CONFIGS[name](), tmp_path)
    exact = identify(load_model(folder, processed=processed))
    for dtype in (torch.bfloat16, torch.float16):
        rounded = identities(folder, processed=processed, dtype=dtype)
        for one in rounded:
            assert one.dtype == str(dtype).removeprefix("torch.")
            assert_same(exact, one)
            assert_same(rounded[0], one)


@pytest.mark.parametrize("part", ["attn", "mlp"])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_change_of_one_percent_in_one_block_is_another_model(
    gpt2: Path, tmp_path: Path, block: int, part: str
) -> None:
    changed = AutoModelForCausalLM.from_pretrained(gpt2)
    weight = getattr(changed.transformer.h[block], part).c_proj.weight.data
    weight += 0.01 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(9 + block))
    shutil.copytree(gpt2, tmp_path / "gpt2")
    changed.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(MismatchError, match=rf"differs: the weights of blocks\.{block}\.{part} are others\.$"):
        require_same_model(identify(load_model(gpt2)), identify(load_model(tmp_path / "gpt2")), what="a map")


def test_another_seed_is_another_model(gpt2: Path, tmp_path: Path) -> None:
    other = save_checkpoint(CONFIGS["gpt2"](), tmp_path / "gpt2", seed=1)
    message = "a map belongs to gpt2; this model, gpt2, differs: the weights of embed, blocks.0.attn, blocks.0.mlp, "
    with pytest.raises(MismatchError, match=message):
        require_same_model(identify(load_model(gpt2)), identify(load_model(other)), what="a map")


IDENTITY = ModelIdentity("small", None, 2, 8, "a" * 64, "float32", "raw", {"embed": 0.1, "blocks.0.mlp": 0.2})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 16}, r"the vector belongs to small; this model, small, differs: d_model is 16, not 8\.$"),
        ({"n_layers": 3, "weights": {"embed": 0.1}}, r"differs: n_layers is 3, not 2\.$"),
        ({"tokenizer": "b" * 64}, r"differs: tokenizer is bbbbbbbbbbbb…, not aaaaaaaaaaaa…\.$"),
        ({"weights": {"embed": 0.1, "blocks.0.mlp": 0.21}}, r"differs: the weights of blocks.0.mlp are others\.$"),
        (
            {"name": "large", "d_model": 16, "basis": "centered"},
            "this model, large, differs: d_model is 16, not 8; basis",
        ),
    ],
)
def test_what_differs_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        require_same_model(IDENTITY, replace(IDENTITY, **changes), what="the vector")


def test_the_message_says_how_to_load_the_model() -> None:
    centered = replace(IDENTITY, basis="centered")
    with pytest.raises(MismatchError, match=r"not raw\. Load it without processing: .*from_pretrained_no_processing"):
        require_same_model(IDENTITY, centered, what="the map")
    with pytest.raises(
        MismatchError, match=r"not centered\. Load it with centered weights: .*enable_compatibility_mode"
    ):
        require_same_model(centered, IDENTITY, what="the map")


def test_names_and_revisions_are_for_people() -> None:
    assert_same(IDENTITY, replace(IDENTITY, name="other", revision="step1000"))


def test_sites(pair: tuple[Any, Any]) -> None:
    site = site_of(pair[0], layer=2)
    assert (site.hook_name, site.d_model, str(site)) == ("blocks.2.hook_resid_post", 16, "small L2")
    assert str(site_of(pair[1], hook_name="blocks.0.hook_resid_pre")) == "large L0 resid_pre"
    assert Site.from_json(site.to_json()) == site
    assert (str(Site("blocks.1.hook_resid_mid", 4)), str(Site("", 4))) == (
        "unknown model L1 resid_mid",
        "unknown model",
    )
    with pytest.raises(LrtError, match="layer 3 is out of range"):
        site_of(pair[0], layer=3)


def tokenizer(
    words: list[str] = WORDS,
    *,
    pieces: Callable[[], Any] = pre_tokenizers.Whitespace,
    lower: bool = False,
    **options: Any,
) -> PreTrainedTokenizerFast:
    whole = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    whole.pre_tokenizer = pieces()
    if lower:
        whole.normalizer = normalizers.Lowercase()
    settings = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", **options}
    return PreTrainedTokenizerFast(tokenizer_object=whole, **settings)


def test_both_classes_have_one_tokenizer(pair: tuple[Any, Any]) -> None:
    assert same_tokenizer(*(model.tokenizer for model in pair))
    assert tokenizer_fingerprint(pair[0].tokenizer) == tokenizer_fingerprint(tokenizer())


def test_special_tokens_and_padding_are_no_difference() -> None:
    changed = tokenizer(pad_token="<pad>", padding_side="left", bos_token="<bos>")
    changed.backend_tokenizer.enable_padding()
    changed.backend_tokenizer.enable_truncation(7)
    assert tokenizer_fingerprint(changed) == tokenizer_fingerprint(tokenizer())


@pytest.mark.parametrize(
    "other",
    [
        lambda: tokenizer([*WORDS, "more"]),
        lambda: tokenizer([*WORDS[:-1], "changed"]),
        lambda: tokenizer([*WORDS[:-2], *WORDS[:-3:-1]]),
        lambda: tokenizer(pieces=pre_tokenizers.WhitespaceSplit),
        lambda: tokenizer(lower=True),
        lambda: tokenizer(bos_token="word5"),
        lambda: tokenizer(extra_special_tokens=["<|user|>"]),
    ],
)
def test_other_tokenizers_are_told_apart(other: Callable[[], Any]) -> None:
    assert not same_tokenizer(tokenizer(), other())


def test_a_model_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(LrtError, match="no tokenizer: load it with one"):
        same_tokenizer(tokenizer(), None)


def test_an_added_word_is_a_difference() -> None:
    with_word = tokenizer()
    with_word.add_tokens(["word1 word2"])
    assert not same_tokenizer(tokenizer(), with_word)


def test_a_raw_model_whose_row_means_are_small_is_not_taken_for_a_centered_one(gpt2: Path) -> None:
    model = load_model(gpt2)
    with torch.no_grad():
        for weight in (model.W_E, *(block.mlp.W_out for block in model.blocks), *(b.attn.W_O for b in model.blocks)):
            weight -= 0.9 * weight.mean(-1, keepdim=True)
    assert identify(model).basis == "raw"


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_weight_that_is_changed_in_place_or_replaced_is_noticed(folders: Any, model_class: str) -> None:
    model = load_model(folders[1], model_class=model_class)
    before = identify(model)
    assert identify(model) == before
    inner = getattr(model, "original_model", model)
    weight = next(p for p in inner.parameters() if p.shape == (D_VOCAB, 24))  # the embedding
    with torch.no_grad():
        weight[0] *= 2
    changed = identify(model)
    assert changed.weights != before.weights
    with torch.no_grad():
        weight[0] /= 2
    assert identify(model).weights == pytest.approx(before.weights, abs=1e-5)
    weight.data = weight.detach() * torch.linspace(0.5, 2, weight.shape[-1])
    assert identify(model).weights != before.weights
