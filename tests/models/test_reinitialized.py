"""A copy with random weights: as its libraries draw them, a model of its own, and the given one untouched."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from lrt_tl.errors import MismatchError
from lrt_tl.models.identity import identify, require_same_model, site_of
from lrt_tl.models.loading import BUNDLED, load_model
from lrt_tl.models.reinitialized import reinitialized
from lrt_tl.steering.vector import SteeringVector
from tests.checkpoints import CLASSES, D_VOCAB, save_checkpoint

TOKENS = torch.tensor([[1, 5, 6, 7, 8]])


@torch.no_grad()
def test_the_copy_is_another_model_and_the_given_one_as_it_was(pair: tuple[Any, Any]) -> None:
    for model in pair:
        before, weights, rng = model(TOKENS), identify(model), torch.random.get_rng_state()
        drawn = reinitialized(model)
        assert torch.equal(torch.random.get_rng_state(), rng)
        assert torch.equal(model(TOKENS), before)
        assert identify(model) == weights
        assert identify(drawn).name == f"{weights.name} (random weights)"
        assert identify(drawn).tokenizer == weights.tokenizer
        with pytest.raises(MismatchError, match="weights of embed"):
            require_same_model(weights, identify(drawn), what="the map")
        assert type(drawn) is type(model)
        assert not drawn.training
        assert (drawn(TOKENS) - before).abs().max() > 0.1


@torch.no_grad()
def test_draws_are_seeded(pair: tuple[Any, Any]) -> None:
    logits = [reinitialized(pair[1], seed=seed)(TOKENS) for seed in (0, 0, 1)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.isclose(logits[0], logits[2]).all()


@torch.no_grad()
def test_nothing_learned_is_left(pair: tuple[Any, Any]) -> None:
    """No gain, bias or mean of the test's models is trivial; all gains and biases are drawn as 1 and 0."""
    for model in pair:
        learned = dict(model.named_parameters())
        for name, parameter in reinitialized(model).named_parameters():
            if parameter.unique().tolist() not in ([0.0], [1.0]):
                assert parameter.ndim > 1, name
                assert not (parameter == learned[name]).any(), name


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_a_bridge_is_drawn_as_hugging_face_draws(tmp_path: Path, tied: bool) -> None:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=D_VOCAB,
        bos_token_id=1, eos_token_id=2, max_position_embeddings=64, tie_word_embeddings=tied,
    )  # fmt: skip
    drawn = reinitialized(load_model(save_checkpoint(config, tmp_path / "llama")), seed=3)
    torch.manual_seed(3)
    fresh = AutoModelForCausalLM.from_config(config)
    torch.testing.assert_close(drawn(TOKENS), fresh(TOKENS).logits, rtol=1e-4, atol=1e-5)
    assert (drawn.W_E.data_ptr() == drawn.original_model.lm_head.weight.data_ptr()) == tied


@torch.no_grad()
def test_storyworld_is_drawn_as_hugging_face_draws() -> None:
    drawn = reinitialized(load_model("storyworld-medium"))
    torch.manual_seed(0)
    fresh = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(BUNDLED / "storyworld-medium"), dtype=torch.float32
    )
    torch.testing.assert_close(drawn(TOKENS), fresh(TOKENS).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_copy_is_steered_and_read_on_its_own(pair: tuple[Any, Any]) -> None:
    model = pair[1]
    drawn = reinitialized(model)
    before, plain = model(TOKENS), drawn(TOKENS)
    vector = SteeringVector(torch.ones(24), site_of(drawn, layer=2))
    with vector.apply(drawn, 3.0):
        assert not torch.isclose(drawn(TOKENS), plain).all()
        assert torch.equal(model(TOKENS), before)
    state = drawn.run_with_cache(TOKENS)[1]["blocks.2.hook_resid_post"]
    assert not torch.isclose(state, model.run_with_cache(TOKENS)[1]["blocks.2.hook_resid_post"]).all()


@torch.no_grad()
def test_hooks_are_left_behind(bridges: tuple[Any, Any]) -> None:
    model = bridges[1]
    with SteeringVector(torch.ones(24), site_of(model, layer=2)).apply(model, 3.0):
        steered = reinitialized(model)(TOKENS)
    assert torch.equal(steered, reinitialized(model)(TOKENS))


@torch.no_grad()
@pytest.mark.parametrize("model_class", CLASSES)
def test_a_processed_model(folders: tuple[Path, Path], model_class: Literal["bridge", "hooked"]) -> None:
    model = load_model(folders[1], model_class=model_class, processed=True)
    drawn = reinitialized(model)
    assert identify(drawn).weights.keys() == identify(model).weights.keys()
    assert not set(identify(drawn).weights.values()) & set(identify(model).weights.values())
    assert torch.isfinite(drawn(TOKENS)).all()
