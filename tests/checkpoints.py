"""Small random models of real architectures, saved as ordinary Hugging Face folders."""

from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

REVIEWS = Path(__file__).resolve().parents[2] / "shared" / "reviews"
needs_reviews = pytest.mark.skipif(not REVIEWS.is_dir(), reason="the shared review models are not here")

WORDS = ["<unk>", "<s>", "</s>", *(f"word{i}" for i in range(40))]
D_VOCAB = 48  # more rows than the tokenizer has words, as is usual

PAIRS = [(f"word{i} word{i + 1} word1", f"word{i} word{i + 2} word3") for i in range(4, 30)]
"""Contrast pairs."""
PROMPTS = ("word1 word2", "word3 word4 word5", "word6", "word7 word8 word9 word10")

has_hooked = not version("transformer-lens").startswith("4.")
hooked_only = pytest.mark.skipif(not has_hooked, reason="HookedTransformer is gone from TransformerLens 4")
CLASSES = [pytest.param("hooked", marks=hooked_only), "bridge"]


def save_checkpoint(config: PretrainedConfig, folder: Path, *, seed: int = 0) -> Path:
    """A model of this configuration in which no gain, bias or mean is trivial, and a word-level tokenizer."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(mean=1.0 if is_gain else 0.05, std=0.3)
    model.save_pretrained(folder)
    save_tokenizer(folder, WORDS)
    return folder


def save_tokenizer(folder: Path, words: list[str]) -> Path:
    """A tokenizer that splits at spaces and punctuation; `<s>` is its beginning of sequence."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder
