"""Both classes, from folders of every architecture that is converted, against Hugging Face's forward pass."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MptConfig,
    PretrainedConfig,
    Qwen2Config,
)

from lrt_tl.errors import LrtError
from lrt_tl.models.loading import load_model
from tests.checkpoints import CLASSES, D_VOCAB, REVIEWS, has_hooked, hooked_only, needs_reviews, save_checkpoint


def _gpt2(**changes: Any) -> GPT2Config:
    settings = {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 32, "n_inner": 40}
    return GPT2Config(vocab_size=D_VOCAB, bos_token_id=1, eos_token_id=2, **(settings | changes))


def _settings(**changes: Any) -> dict[str, Any]:
    shape = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
    tokens = {"vocab_size": D_VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return shape | tokens | {"max_position_embeddings": 64} | changes


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt2": _gpt2,
    "gpt2-scaled": lambda: _gpt2(activation_function="relu", scale_attn_by_inverse_layer_idx=True, n_inner=None),
    "neox": lambda: GPTNeoXConfig(**_settings(rotary_pct=0.5, rotary_emb_base=300)),
    "neox-sequential": lambda: GPTNeoXConfig(
        **_settings(use_parallel_residual=False, hidden_act="gelu_fast", layer_norm_eps=1e-3)
    ),
    "llama-grouped-tied": lambda: LlamaConfig(
        **_settings(num_key_value_heads=2, head_dim=12, tie_word_embeddings=True, rms_norm_eps=1e-3)
    ),
    "llama-scaled-rope": lambda: LlamaConfig(**_settings(rope_parameters=LLAMA3_ROPE)),
    "qwen2": lambda: Qwen2Config(**_settings(num_key_value_heads=2, rope_parameters={"rope_theta": 500.0})),
    "qwen2-windows": lambda: Qwen2Config(
        **_settings(num_key_value_heads=4, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    ),
    "gemma2": lambda: Gemma2Config(
        **_settings(
            num_key_value_heads=2,
            head_dim=16,
            sliding_window=4,
            query_pre_attn_scalar=24,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        )
    ),
    "gemma2-uncapped": lambda: Gemma2Config(
        **_settings(num_key_value_heads=4, head_dim=16, attn_logit_softcapping=None, final_logit_softcapping=None)
    ),
}


@dataclass(frozen=True)
class Checkpoint:
    """A folder, and what Hugging Face's model in it makes of some tokens."""

    name: str
    folder: Path
    tokens: Tensor
    logits: Tensor
    residuals: list[Tensor]
    """After each block but the last, of which Hugging Face shows only the normalized state."""


@torch.no_grad()
def reference(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Checkpoint:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    tokens = torch.randint(3, 43, (2, 24), generator=torch.Generator().manual_seed(1))
    output = model(tokens, output_hidden_states=True, use_cache=False)
    return Checkpoint(name, folder, tokens, output.logits, list(output.hidden_states[1:-1]))


@pytest.fixture(scope="module", params=list(CONFIGS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    name: str = request.param
    return reference(name, save_checkpoint(CONFIGS[name](), tmp_path_factory.mktemp("models") / name))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return reference("gpt2", save_checkpoint(_gpt2(), tmp_path_factory.mktemp("models") / "gpt2"))


@torch.no_grad()
def run(model: Any, checkpoint: Checkpoint) -> tuple[Tensor, list[Tensor]]:
    """The logits, and the residual stream after each block."""
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)]
    logits, cache = model.run_with_cache(checkpoint.tokens, names_filter=names, return_type="logits")
    return logits, [cache[name] for name in names]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("model_class", CLASSES)
def test_the_model_is_hugging_faces(checkpoint: Checkpoint, model_class: Any) -> None:
    model = load_model(checkpoint.folder, model_class=model_class)
    logits, residuals = run(model, checkpoint)
    assert_close(logits, checkpoint.logits)
    for actual, expected in zip(residuals, checkpoint.residuals, strict=False):
        assert_close(actual, expected)
    assert not model.training
    assert model.cfg.model_name == checkpoint.name
    assert model.cfg.d_vocab == D_VOCAB


@pytest.mark.parametrize("model_class", CLASSES)
def test_processing_changes_no_prediction(checkpoint: Checkpoint, model_class: Any) -> None:
    model = load_model(str(checkpoint.folder), model_class=model_class, processed=True)
    logits, residuals = run(model, checkpoint)
    assert_close(logits.log_softmax(-1), checkpoint.logits.log_softmax(-1))
    subtracts_mean = checkpoint.name.startswith(("gpt2", "neox"))
    for actual, raw in zip(residuals, checkpoint.residuals, strict=False):
        assert_close(actual, raw - raw.mean(-1, keepdim=True) if subtracts_mean else raw)
    if checkpoint.name == "gemma2":
        assert_close(logits, checkpoint.logits)  # capped, so that not even a constant may be added
    if model_class == "hooked":
        assert model.cfg.normalization_type == ("LNPre" if subtracts_mean else "RMSPre")
        assert not model.b_V.any()


@hooked_only
def test_words_in_the_path_say_nothing(gpt2: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "llama-gemma-2-" / "meta-llama" / "gemma-2-2b"
    shutil.copytree(gpt2.folder, folder)
    for model_class in ("hooked", "bridge"):
        logits, _ = run(load_model(folder, model_class=model_class), gpt2)
        assert_close(logits, gpt2.logits)


def test_unscaled_attention(tmp_path: Path) -> None:
    expected = reference("unscaled", save_checkpoint(_gpt2(scale_attn_weights=False), tmp_path))
    with pytest.raises(LrtError, match="Bridge ignores scale_attn_weights=False"):
        load_model(expected.folder)
    if has_hooked:
        assert_close(run(load_model(expected.folder, model_class="hooked"), expected)[0], expected.logits)


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_folder_goes_before_an_alias_of_transformer_lens(
    gpt2: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_class: Any
) -> None:
    shutil.copytree(gpt2.folder, tmp_path / "gpt2-small")
    monkeypatch.chdir(tmp_path)
    model = load_model("gpt2-small", model_class=model_class)
    assert_close(run(model, gpt2)[0], gpt2.logits)
    assert model.cfg.model_name == "gpt2-small"


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_and_device(gpt2: Checkpoint, model_class: Any, processed: bool, dtype: torch.dtype) -> None:
    model = load_model(gpt2.folder, model_class=model_class, processed=processed, dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert (model.cfg.dtype, str(model.cfg.device)) == (dtype, "cpu")
    logits, residuals = run(model, gpt2)
    assert logits.dtype == residuals[0].dtype == dtype
    if not processed and dtype == torch.float64:
        assert_close(logits, reference("gpt2", gpt2.folder, dtype).logits, 1e-9)


@pytest.mark.parametrize("model_class", CLASSES)
def test_the_tokenizer_is_the_folders(gpt2: Checkpoint, model_class: Any) -> None:
    tokenizer = load_model(gpt2.folder, model_class=model_class).tokenizer
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(gpt2.folder).get_vocab()
    text = "word3 word39 nothing word0"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == [6, 42, 0, 3]


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("size", ["small", "large"])
@needs_reviews
def test_the_review_models(size: str, model_class: Any) -> None:
    expected = reference(size, REVIEWS / size)
    logits, _ = run(load_model(expected.folder, model_class=model_class), expected)
    assert_close(logits, expected.logits)


@pytest.mark.skipif(has_hooked, reason="this TransformerLens has HookedTransformer")
@pytest.mark.parametrize("name", ["gpt2", "folder"])
def test_hooked_is_gone_from_transformer_lens_4(gpt2: Checkpoint, name: str) -> None:
    with pytest.raises(LrtError, match=r'gone from TransformerLens 4: use model_class="bridge"'):
        load_model(gpt2.folder if name == "folder" else name, model_class="hooked")


def _configured(config: PretrainedConfig, folder: Path) -> Path:
    """A folder that is complete at a glance; what is wrong with it is in its configuration."""
    config.save_pretrained(folder)
    (folder / "model.safetensors").touch()
    (folder / "tokenizer.json").touch()
    return folder


@hooked_only
def test_an_architecture_without_conversion_is_named(tmp_path: Path) -> None:
    folder = _configured(MptConfig(architectures=["MptForCausalLM"]), tmp_path)
    message = r'MptForCausalLM .* only GPT2LMHeadModel, .*Gemma2ForCausalLM: use model_class="bridge"'
    with pytest.raises(LrtError, match=message):
        load_model(folder, model_class="hooked")


YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 2.0, "original_max_position_embeddings": 32}
REFUSED: dict[str, tuple[str, Callable[[], PretrainedConfig]]] = {
    "attention_bias=True": ("LlamaForCausalLM", lambda: LlamaConfig(**_settings(attention_bias=True))),
    "mlp_bias=True": ("LlamaForCausalLM", lambda: LlamaConfig(**_settings(mlp_bias=True))),
    "'yarn'": ("LlamaForCausalLM", lambda: LlamaConfig(**_settings(rope_parameters=YARN))),
    "attention_bias=False": ("GPTNeoXForCausalLM", lambda: GPTNeoXConfig(**_settings(attention_bias=False))),
    "use_bidirectional_attention=True": (
        "Gemma2ForCausalLM",
        lambda: Gemma2Config(**_settings(use_bidirectional_attention=True)),
    ),
    "quantization_config=": ("GPT2LMHeadModel", lambda: _gpt2(quantization_config={"quant_method": "gptq"})),
    "'mish'": ("GPT2LMHeadModel", lambda: _gpt2(activation_function="mish")),
}


@hooked_only
@pytest.mark.parametrize("setting", list(REFUSED))
def test_a_setting_that_the_conversion_would_drop_is_refused(tmp_path: Path, setting: str) -> None:
    architecture, config = REFUSED[setting]
    folder = _configured(config(), tmp_path)
    config_json = folder / "config.json"
    config_json.write_text(config_json.read_text().replace("{", f'{{"architectures": ["{architecture}"],', 1))
    with pytest.raises(LrtError, match=f"{setting}.*: use model_class"):
        load_model(folder, model_class="hooked")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "a folder without config.json: save a model in it"),
        ("model.safetensors", "has no weights"),
        ("tokenizer*", "has no tokenizer"),
    ],
)
@pytest.mark.parametrize("model_class", CLASSES)
def test_what_a_folder_lacks_is_named(
    gpt2: Checkpoint, tmp_path: Path, model_class: Any, missing: str, message: str
) -> None:
    folder = tmp_path / "partial"
    shutil.copytree(gpt2.folder, folder, ignore=shutil.ignore_patterns(missing))
    with pytest.raises(LrtError, match=message):
        load_model(folder, model_class=model_class)


def test_what_can_only_be_a_path_is_not_looked_for_on_the_hub(gpt2: Checkpoint, tmp_path: Path) -> None:
    for path in (tmp_path / "absent", Path("owner/absent"), gpt2.folder / "config.json"):
        with pytest.raises(LrtError, match="is not a folder"):
            load_model(path)
    for name in ("./absent", "~/absent", "models/of/absent", str(tmp_path / "absent")):
        with pytest.raises(LrtError, match="is not a folder"):
            load_model(name)


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("processed", [False, True])
def test_a_revision_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_class: Any, processed: bool
) -> None:
    repository = tmp_path / "models--EleutherAI--pythia-70m"  # what a download leaves behind
    (repository / "refs").mkdir(parents=True)
    for seed, (revision, commit) in enumerate({"main": "a" * 40, "step1000": "b" * 40}.items()):
        (repository / "refs" / revision).write_text(commit)
        save_checkpoint(GPTNeoXConfig(**_settings()), repository / "snapshots" / commit, seed=seed)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    name = "EleutherAI/pythia-70m"
    model = load_model(name, model_class=model_class, processed=processed, revision="step1000")
    expected = reference(name, repository / "snapshots" / ("b" * 40))
    assert_close(run(model, expected)[0].log_softmax(-1), expected.logits.log_softmax(-1))
    assert model.cfg.revision == "step1000"
    assert name.endswith(model.cfg.model_name)


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("processed", [False, True])
def test_a_name_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch, model_class: Any, processed: bool) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LrtError, match=r"cannot load nobody/nothing from the hub") as caught:
        load_model("nobody/nothing", model_class=model_class, processed=processed, revision="main")
    assert type(caught.value.__cause__) in (OSError, ValueError)
    assert len(str(caught.value)) < 500


def test_damaged_weights_are_reported_with_the_folder(gpt2: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(gpt2.folder, folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(LrtError, match=r"cannot load .*damaged: SafetensorError"):
        load_model(folder)


def test_a_folder_has_no_revision(gpt2: Checkpoint) -> None:
    with pytest.raises(LrtError, match="leave out revision='main'"):
        load_model(gpt2.folder, revision="main")
