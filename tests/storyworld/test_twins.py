"""A twin says what its model says, in every token, from a residual stream that is turned."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lrt_tl import storyworld
from lrt_tl.errors import LrtError
from lrt_tl.models.capture import capture
from lrt_tl.models.identity import identify
from lrt_tl.models.loading import load_model
from lrt_tl.storyworld.twins import rotation
from lrt_tl.text.batches import pad, tokenize
from tests.checkpoints import D_VOCAB, WORDS, save_checkpoint

TEXTS = ["Mira: Once, she was a young fox in the valley. It rained. She felt", "Omar:"]


def batch(model: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    return pad(model.tokenizer, tokenize(model.tokenizer, texts))[:2]


@torch.no_grad()
def logits(model: Any, texts: list[str]) -> torch.Tensor:
    tokens, mask = batch(model, texts)
    return model(tokens, attention_mask=mask.long())[mask]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two key heads for four, an untied unembedding, and gains that differ; its 24 dimensions are not its heads'."""
    config = LlamaConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, max_position_embeddings=64, vocab_size=D_VOCAB, bos_token_id=1, eos_token_id=2, rms_norm_eps=0.05,
        tie_word_embeddings=False,
    )  # fmt: skip
    return save_checkpoint(config, tmp_path_factory.mktemp("twins") / "llama")


@pytest.mark.parametrize("width", [64, 80, 150])
def test_a_twin_of_a_bundled_model_predicts_the_same(width: int) -> None:
    model = storyworld.load("small")
    twin = storyworld.widen(model, width, seed=3)
    assert twin.cfg.d_model == width
    assert twin.cfg.model_name == "storyworld-small-twin"
    torch.testing.assert_close(logits(twin, TEXTS), logits(model, TEXTS), atol=1e-4, rtol=0)


def test_the_residual_stream_of_a_twin_is_the_model_s_turned() -> None:
    model = storyworld.load("small")
    twin, turn = storyworld.widen(model, 100, seed=1), rotation(100, 64, seed=1).float()
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(4))]
    own, wide = (capture(each, *batch(each, TEXTS), names) for each in (model, twin))
    mask = batch(model, TEXTS)[1]
    for name in names:
        torch.testing.assert_close(wide[name][mask], own[name][mask] @ turn.T, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("width", [24, 36, 60])
def test_a_twin_is_exact(llama: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With untied weights and gains that differ, to 1e-9 in float64 (in which Transformers' norm rounds to float32)."""

    def norm(self: Any, states: torch.Tensor) -> torch.Tensor:
        return self.weight * states / (states.square().mean(-1, keepdim=True) + self.variance_epsilon).sqrt()

    model = load_model(llama, dtype=torch.float64)
    twin = storyworld.widen(model, width)
    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    texts = [" ".join(WORDS[3:20]), "word7 word1"]
    expected = logits(model, texts)
    assert expected.std() > 0.5
    torch.testing.assert_close(logits(twin, texts), expected, atol=1e-9, rtol=0)


def test_a_rotation_has_orthonormal_columns() -> None:
    turn = rotation(30, 20, seed=2)
    torch.testing.assert_close(turn.T @ turn, torch.eye(20).double())
    assert not torch.equal(turn, rotation(30, 20, seed=3))
    mean = torch.stack([rotation(3, 2, seed=seed) for seed in range(400)]).mean(0)
    assert mean.abs().max() < 0.15  # uniform: no sign is favoured (standard error 0.03)


def test_a_twin_of_a_twin() -> None:
    model = storyworld.load("small")
    twin = storyworld.widen(storyworld.widen(model, 70, seed=1), 90, seed=2)
    torch.testing.assert_close(logits(twin, TEXTS), logits(model, TEXTS), atol=1e-4, rtol=0)
    assert identify(twin).weights != identify(model).weights


def test_what_has_no_twin_is_refused(bridges: tuple[Any, Any], llama: Path) -> None:
    with pytest.raises(LrtError, match="only a Llama without biases, loaded as a Bridge, has a twin; not small"):
        storyworld.widen(bridges[0], 100)
    for width in (20, 30):
        with pytest.raises(LrtError, match=f"d_model={width}: .* the 24 dimensions .* of its 4 heads"):
            storyworld.widen(load_model(llama), width)
    with pytest.raises(LrtError, match="were processed"):
        storyworld.widen(load_model(llama, processed=True), 32)
