"""A local Hugging Face folder → `HookedTransformer`, for the architectures below.

What a model is comes from the folder's `config.json` alone: TransformerLens goes by words in the path, and
takes a GPT-2 under `llama/` for a Llama. Here one function an architecture says what it is in the terms of
TransformerLens, which renames the weights. What either cannot express is refused, never approximated.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lrt_tl.errors import LrtError

Fields = dict[str, Any]
"""Arguments of `HookedTransformerConfig`."""


def hooked_from_folder(folder: Path, *, processed: bool, device: str | None, dtype: torch.dtype) -> Any:
    """A `HookedTransformer` with the weights and the tokenizer of a folder.

    Raises:
        LrtError: the architecture, or a setting of it, cannot be converted.
    """
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions
    from transformer_lens.utilities.devices import get_device
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    architecture, fields = hooked_fields(AutoConfig.from_pretrained(folder))
    # On the CPU to the end: the weights are loaded there, and some conversions put zeros on config.device.
    config = HookedTransformerConfig(
        **fields,
        model_name=folder.name,
        original_architecture=architecture,
        device="cpu",
        dtype=dtype,
        init_weights=False,
    )
    huggingface = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).requires_grad_(False)
    convert = getattr(weight_conversions, _ARCHITECTURES[architecture][1])
    model = HookedTransformer(config, AutoTokenizer.from_pretrained(folder))
    model.load_and_process_state_dict(
        convert(huggingface, config),
        fold_ln=processed,
        center_writing_weights=processed,  # left out by TransformerLens where RMSNorm would see the mean
        center_unembed=processed and config.output_logits_soft_cap <= 0,  # tanh(x + c) is not tanh(x) + c
        fold_value_biases=processed,
    )
    return model.to(device or get_device(), print_details=False)


def hooked_fields(config: Any) -> tuple[str, Fields]:
    """The architecture that a Transformers configuration names, and its `HookedTransformerConfig` arguments.

    Raises:
        LrtError: the architecture, or a setting of it, cannot be converted.
    """
    from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS

    architecture = (config.architectures or ["none"])[0]
    if architecture not in _ARCHITECTURES:
        raise LrtError(
            f"cannot convert the architecture {architecture} to HookedTransformer, only "
            f"{', '.join(_ARCHITECTURES)}: {_USE_BRIDGE}"
        )
    _require(config, quantization_config=None)
    fields = _ARCHITECTURES[architecture][0](config)
    if fields["act_fn"] not in SUPPORTED_ACTIVATIONS:
        raise LrtError(f"HookedTransformer has no activation function {fields['act_fn']!r}: {_USE_BRIDGE}")
    return architecture, {"d_vocab": config.vocab_size, **fields}


_USE_BRIDGE = 'use model_class="bridge", which runs the Hugging Face model itself'


def _gpt2(config: Any) -> Fields:
    return {
        "d_model": config.n_embd,
        "d_head": config.n_embd // config.n_head,
        "n_heads": config.n_head,
        "d_mlp": config.n_inner or 4 * config.n_embd,
        "n_layers": config.n_layer,
        "n_ctx": config.n_positions,
        "eps": config.layer_norm_epsilon,
        "act_fn": config.activation_function,
        "use_attn_scale": config.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
        "normalization_type": "LN",
    }


def _neox(config: Any) -> Fields:
    _require(config, attention_bias=True)
    d_head = config.hidden_size // config.num_attention_heads
    return {
        "d_model": config.hidden_size,
        "d_head": d_head,
        "n_heads": config.num_attention_heads,
        "d_mlp": config.intermediate_size,
        "n_layers": config.num_hidden_layers,
        "n_ctx": config.max_position_embeddings,
        "eps": config.layer_norm_eps,
        "act_fn": config.hidden_act,
        "parallel_attn_mlp": config.use_parallel_residual,
        "normalization_type": "LN",
        "default_prepend_bos": False,  # as TransformerLens has it: Pythia was trained without
        **_rotary(config, int(d_head * config.rope_parameters.get("partial_rotary_factor", 1.0))),
    }


def _llama(config: Any) -> Fields:
    _require(config, attention_bias=False, mlp_bias=False)  # the weight conversion would drop these
    return _gated_rms(config, config.hidden_act, config.head_dim)


def _qwen2(config: Any) -> Fields:
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        **_gated_rms(config, config.hidden_act, d_head),
        **_windows(config),
        "default_prepend_bos": False,  # Qwen has no beginning-of-sequence token
    }


def _gemma2(config: Any) -> Fields:
    _require(config, attention_bias=False, use_bidirectional_attention=False)
    return {
        **_gated_rms(config, config.hidden_activation, config.head_dim),
        **_windows(config),
        "attn_scale": config.query_pre_attn_scalar**0.5,
        "attn_scores_soft_cap": config.attn_logit_softcapping or -1.0,
        "output_logits_soft_cap": config.final_logit_softcapping or -1.0,
        "use_normalization_before_and_after": True,
    }


def _gated_rms(config: Any, activation: str, d_head: int) -> Fields:
    """What Llama and those after it have in common: RMSNorm, a gated MLP, rotated queries and keys."""
    return {
        "d_model": config.hidden_size,
        "d_head": d_head,
        "n_heads": config.num_attention_heads,
        "n_key_value_heads": config.num_key_value_heads,
        "d_mlp": config.intermediate_size,
        "n_layers": config.num_hidden_layers,
        "n_ctx": config.max_position_embeddings,
        "eps": config.rms_norm_eps,
        "act_fn": activation,
        "gated_mlp": True,
        "normalization_type": "RMS",
        "final_rms": True,
        **_rotary(config, d_head),
    }


def _rotary(config: Any, rotary_dim: int) -> Fields:
    rope = config.rope_parameters
    fields = {
        "positional_embedding_type": "rotary",
        "rotary_dim": rotary_dim,
        "rotary_base": rope["rope_theta"],
    }
    if rope["rope_type"] == "llama3":
        fields |= {
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": rope["factor"],
            "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
            "NTK_original_ctx_len": rope["original_max_position_embeddings"],
        }
    elif rope["rope_type"] != "default":
        raise LrtError(f"cannot convert rotary embeddings of type {rope['rope_type']!r}: {_USE_BRIDGE}")
    return fields


def _windows(config: Any) -> Fields:
    """Which layers look back only so far."""
    kinds = {"sliding_attention": "local", "full_attention": "global"}
    layers = [kinds[kind] for kind in config.layer_types]
    if "local" not in layers:
        return {}
    return {"use_local_attn": True, "attn_types": layers, "window_size": config.sliding_window}


def _require(config: Any, **settings: Any) -> None:
    """Refuse a configuration in which one of the settings is there and another than this."""
    for name, value in settings.items():
        actual = getattr(config, name, None)
        if actual is not None and actual != value:
            raise LrtError(f"cannot convert a {config.model_type} model with {name}={actual}: {_USE_BRIDGE}")


_ARCHITECTURES: dict[str, tuple[Callable[[Any], Fields], str]] = {
    "GPT2LMHeadModel": (_gpt2, "convert_gpt2_weights"),
    "GPTNeoXForCausalLM": (_neox, "convert_neox_weights"),
    "LlamaForCausalLM": (_llama, "convert_llama_weights"),
    "Qwen2ForCausalLM": (_qwen2, "convert_qwen2_weights"),
    "Gemma2ForCausalLM": (_gemma2, "convert_gemma_weights"),
}
