"""A pair of small models with one tokenizer, in both of TransformerLens's classes, and text for them."""

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import GPT2Config, GPTNeoXConfig

from lrt_tl.models.loading import load_model
from tests.checkpoints import CLASSES, D_VOCAB, PAIRS, PROMPTS, WORDS, save_checkpoint


@pytest.fixture(scope="session", autouse=True)
def _imports_are_no_garbage() -> None:
    """Hundreds of thousands of objects would be looked through each time that memory is searched for models."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A GPTNeoX of 3 layers and 16 dimensions, and a GPT-2 of 4 layers and 24 dimensions."""
    root = tmp_path_factory.mktemp("pair")
    tokens: dict[str, Any] = {"vocab_size": D_VOCAB, "bos_token_id": 1, "eos_token_id": 2}
    small = GPTNeoXConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=64, **tokens,
    )  # fmt: skip
    large = GPT2Config(n_embd=24, n_head=2, n_layer=4, n_positions=64, **tokens)
    return save_checkpoint(small, root / "small", seed=1), save_checkpoint(large, root / "large", seed=2)


@pytest.fixture(scope="session", params=CLASSES)
def pair(request: pytest.FixtureRequest, folders: tuple[Path, Path]) -> tuple[Any, Any]:
    """Source and target, unprocessed, both `HookedTransformer` and then both `TransformerBridge`."""
    return load_model(folders[0], model_class=request.param), load_model(folders[1], model_class=request.param)


@pytest.fixture(scope="session")
def bridges(folders: tuple[Path, Path]) -> tuple[Any, Any]:
    """Source and target as `TransformerBridge`, where the class makes no difference."""
    return load_model(folders[0]), load_model(folders[1])


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """200 texts of 4 to 29 random words, enough for all splits."""
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(WORDS[3:], size=generator.integers(4, 30))) for _ in range(200)]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> dict[str, Path]:
    """Documents, contrast pairs and a behavior as files."""
    folder = tmp_path_factory.mktemp("data")
    pairs = [{"positive": positive, "negative": negative} for positive, negative in PAIRS]
    answers = {"positive_tokens": ["word1", "word2"], "negative_tokens": ["word3", "word4"]}
    contents = {
        "documents.jsonl": "\n".join(json.dumps({"text": text}) for text in texts),
        "contrast.jsonl": "\n".join(map(json.dumps, pairs)),
        "behavior.json": json.dumps({"name": "counting/../up", "prompts": PROMPTS, **answers}),
    }
    for name, content in contents.items():
        (folder / name).write_text(content)
    return {Path(name).stem: folder / name for name in contents}
