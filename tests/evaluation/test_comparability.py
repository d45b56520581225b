"""How alike two models predict, against one text and position at a time."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from transformers import GPT2Config

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.comparability import Comparability, comparability, effective_dimension, held_out_batches
from lrt_tl.models.identity import site_of
from lrt_tl.models.loading import load_model
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.text.documents import TEST, split_of
from tests.checkpoints import D_VOCAB, WORDS, save_checkpoint, save_tokenizer


def held_out(texts: list[str]) -> list[str]:
    return [text for text in texts if split_of(text) == TEST]


def test_a_model_agrees_with_itself(bridges: Any, texts: list[str]) -> None:
    model = bridges[0]
    found = comparability(model, model, held_out_batches(model, model, texts))
    assert found == Comparability(True, True, 1.0, 0.0)


@torch.no_grad()
def test_each_figure_against_a_loop(pair: Any, texts: list[str]) -> None:
    same, divergences = [], []
    for text in held_out(texts):
        ids = [1, *pair[0].tokenizer(text, add_special_tokens=False)["input_ids"]]
        one, other = (model(torch.tensor([ids]))[0, 1:].double().softmax(-1).numpy() for model in pair)
        same += (one.argmax(-1) == other.argmax(-1)).tolist()
        divergences += [jensenshannon(p, q) ** 2 for p, q in zip(one, other, strict=True)]
    found = comparability(*pair, held_out_batches(*pair, texts, batch_size=3))
    assert found.agreement == pytest.approx(sum(same) / len(same))
    assert found.divergence == pytest.approx(sum(divergences) / len(divergences), rel=1e-4)
    assert 0 < found.divergence < math.log(2)
    assert (found.same_architecture, found.same_tokenizer) == (False, True)


def test_two_tokenizers_have_no_agreement(bridges: Any, texts: list[str], tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=D_VOCAB, n_embd=8, n_head=2, n_layer=2, n_positions=64, bos_token_id=1)
    save_tokenizer(save_checkpoint(config, tmp_path / "other"), [*WORDS[:3], *reversed(WORDS[3:])])
    other = load_model(tmp_path / "other")
    found = comparability(bridges[1], other, held_out_batches(bridges[1], other, texts))
    assert found == Comparability(True, False, None, None)


def test_only_test_documents_are_read(bridges: Any, texts: list[str]) -> None:
    batches = held_out_batches(*bridges, texts, n_documents=3, batch_size=2)
    read = [
        bridges[0].tokenizer.decode(tokens[content])
        for batch in batches
        for tokens, content in zip(batch.source.tokens, batch.source.content, strict=True)
    ]
    assert sorted(read) == sorted(held_out(texts)[:3])


def test_what_is_refused(bridges: Any, texts: list[str]) -> None:
    fitted_on = [text for text in texts if split_of(text) != TEST]
    with pytest.raises(LrtError, match="no document is in the test split"):
        held_out_batches(*bridges, fitted_on)
    with pytest.raises(LrtError, match="hold special tokens only"):
        held_out_batches(*bridges, [f"<unk> {'<s> ' * n}" for n in range(30)])
    batches = held_out_batches(*bridges, texts)
    vector = SteeringVector(torch.ones(16), site_of(bridges[0], layer=1))
    with vector.apply(bridges[0]), pytest.raises(LrtError, match="steer"):
        comparability(*bridges, batches)


@pytest.mark.parametrize(
    ("variances", "dimension"), [([1.0, 1.0, 1.0], 3.0), ([5.0, 0.0, 0.0], 1.0), ([1.0, 2.0, 3.0], 36 / 14)]
)
def test_the_effective_dimension_counts_directions(variances: list[float], dimension: float) -> None:
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    covariance = rotation @ torch.diag(torch.tensor(variances)) @ rotation.T
    assert effective_dimension(covariance) == pytest.approx(dimension, rel=1e-5)
    with pytest.raises(LrtError, match="do not vary"):
        effective_dimension(torch.zeros(3, 3))
