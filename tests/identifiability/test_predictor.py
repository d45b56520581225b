"""(f, g) of models against the models' own logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma2Config, GPT2Config

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.distribution import distances
from lrt_tl.identifiability.equivalence import equivalence
from lrt_tl.identifiability.predictor import Predictor, check_reproduces, soft_cap
from lrt_tl.identifiability.reading import read_predictor, read_predictors
from lrt_tl.identifiability.subspaces import subspaces
from lrt_tl.models.loading import load_model
from lrt_tl.steering.extraction import from_directions
from lrt_tl.steering.vector import SteeringVector
from tests.checkpoints import CLASSES, D_VOCAB, WORDS, hooked_only, save_checkpoint
from tests.identifiability.planted import log_probabilities, normal
from tests.unchecked import without_type_checks

TOKENS = {"vocab_size": D_VOCAB, "bos_token_id": 1, "eos_token_id": 2}


@torch.no_grad()
def logits_one_by_one(model: Any, texts: list[str], n_contexts: int) -> Tensor:
    """After every word of each text, in order of the texts."""
    rows = [torch.tensor([[1, *(WORDS.index(word) for word in text.split())]]) for text in texts]
    return torch.cat([model(row)[0, 1:] for row in rows])[:n_contexts]


def in_order(p: Predictor, texts: list[str]) -> Tensor:
    """Where each context of the texts, document by document, is among the predictor's: shorter rows come first."""
    lengths = [len(text.split()) for text in texts]
    return torch.cat(
        [(p.documents == document).nonzero()[:, 0] for document in torch.tensor(lengths).argsort(stable=True).argsort()]
    )


def test_the_models_own_logits(pair: tuple[Any, Any], texts: list[str]) -> None:
    some = texts[:16]
    n = sum(len(text.split()) for text in some)
    for model, p in zip(pair, read_predictors(*pair, some), strict=True):
        assert len(p.f) == n
        assert p.n_documents == 16
        wanted = logits_one_by_one(model, some, n)
        found = p.logits()[in_order(p, some)]
        assert float((found - wanted).abs().max()) < 1e-3 * float(wanted.std())
        assert p.tokens[:5] == ("<unk>", "<s>", "</s>", "word0", "word1")
        assert p.tokens[-1] == f"<{D_VOCAB - 1}>"
        assert p.note == ""


def test_no_more_contexts_than_asked_for(bridges: tuple[Any, Any], texts: list[str]) -> None:
    p = read_predictor(bridges[0], texts, n_contexts=37, batch_size=4)
    assert (len(p.f), len(p.documents)) == (37, 37)
    with pytest.raises(LrtError, match="n_contexts=0"):
        read_predictor(bridges[0], texts, n_contexts=0)


@hooked_only
def test_in_float64_folding_and_centering_change_nothing(folders: tuple[Path, Path], texts: list[str]) -> None:
    """Case 7: the same probabilities; a bias of the unembedding more once folded, and as many effective dimensions.
    (TransformerLens folds in float32, whatever the model is.)"""
    raw, folded = (
        load_model(folders[1], model_class="hooked", processed=processed, dtype=torch.float64)
        for processed in (False, True)
    )
    p, q = read_predictor(raw, texts[:40]), read_predictor(folded, texts[:40])
    assert p.f.dtype == torch.float64
    wanted = logits_one_by_one(raw, texts[:16], 100)
    found = read_predictor(raw, texts[:16]).logits()[in_order(read_predictor(raw, texts[:16]), texts[:16])][:100]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(log_probabilities(p), log_probabilities(q), rtol=0, atol=1e-5)
    assert (p.d_model, q.d_model) == (24, 25)
    assert subspaces(p).k == subspaces(q).k
    differences = torch.linalg.svdvals(p.f - p.f[0])
    assert float(differences[23]) < 1e-9 < float(differences[22])  # LayerNorm: d − 1


def test_a_norm_that_is_folded_by_hand() -> None:
    """Case 7, exactly: f = γ x̂ + β against [x̂; 1], with γ and β in the unembedding."""
    x, g, gain, shift = normal(90, 8), normal(40, 8, seed=2), 1 + normal(8, seed=3) / 3, normal(8, seed=4)
    x = x - x.mean(1, keepdim=True)
    x = x / x.std(1, keepdim=True)
    p, q = Predictor.from_arrays(x * gain + shift, g), Predictor.from_arrays(x, g * gain, g @ shift)
    assert distances(p, q).mean("kl") < 1e-13
    assert (p.d_model, q.d_model) == (8, 9)
    assert subspaces(p).k == subspaces(q).k == 8
    found = equivalence(p, q)
    assert min(found.of_contexts.worst, found.of_tokens.worst) > 1 - 1e-12
    assert found.duality_residual < 1e-12


def test_a_bridge_in_compatibility_mode_is_the_same_to_float32(folders: tuple[Path, Path], texts: list[str]) -> None:
    p, q = (read_predictor(load_model(folders[1], processed=processed), texts[:40]) for processed in (False, True))
    assert distances(p, q).mean("total_variation") < 1e-5


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_soft_cap_is_taken_off_and_named(model_class: str, tmp_path: Path, texts: list[str]) -> None:
    config = Gemma2Config(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        head_dim=16, final_logit_softcapping=3.0, query_pre_attn_scalar=24, max_position_embeddings=64, **TOKENS,
    )  # fmt: skip
    model = load_model(save_checkpoint(config, tmp_path / "gemma"), model_class=model_class)
    p = read_predictor(model, texts[:8])
    assert soft_cap(model) == 3
    assert p.note == "its logits are softly capped at 3: compared before the cap"
    wanted = logits_one_by_one(model, texts[:8], len(p.f))
    found = p.logits()[in_order(p, texts[:8])]
    assert float(found.abs().max()) > 3 > float(wanted.abs().max())
    torch.testing.assert_close(3 * (found / 3).tanh(), wanted.double(), rtol=0, atol=1e-4)


def test_logits_that_are_not_the_unembeddings_are_refused(bridges: tuple[Any, Any]) -> None:
    model = bridges[0]
    f = normal(5, model.cfg.d_model).float()
    logits = f @ model.W_U.detach()
    check_reproduces(f, model, logits, "it")
    with pytest.raises(LrtError, match="something after it changes them"):
        check_reproduces(f, model, logits.tanh(), "it")
    with pytest.raises(LrtError, match="something after it changes them"):
        check_reproduces(f, model, logits * torch.nan, "it")


def test_a_steered_model_is_refused(bridges: tuple[Any, Any], texts: list[str]) -> None:
    vector = from_directions(bridges[1], normal(24).float(), layer=1)
    assert isinstance(vector, SteeringVector)
    with vector.apply(bridges[1], coefficient=1.0), pytest.raises(LrtError, match="is being steered"):
        read_predictors(*bridges, texts)


def test_models_that_pad_their_vocabulary_differently(folders: tuple[Path, Path], tmp_path: Path) -> None:
    wide = GPT2Config(n_embd=24, n_head=2, n_layer=1, n_positions=64, **{**TOKENS, "vocab_size": 60})
    models = load_model(folders[0]), load_model(save_checkpoint(wide, tmp_path / "wide"))
    p, q = read_predictors(*models, ["word1 word2 word3", "word4 word5"])
    assert (len(p.g), len(q.g)) == (D_VOCAB, D_VOCAB)
    assert p.coverage is None
    whole = read_predictor(models[1], ["word1 word2 word3", "word4 word5"]).logits().softmax(1)
    assert q.coverage is not None
    torch.testing.assert_close(q.coverage, whole[:, :D_VOCAB].sum(1))
    torch.testing.assert_close(q.logits().softmax(1) * q.coverage[:, None], whole[:, :D_VOCAB])


def test_a_bias_is_one_more_dimension() -> None:
    f, g, bias = normal(7, 3, seed=1), normal(5, 3, seed=2), normal(5, seed=3)
    p = Predictor.from_arrays(f, g, bias)
    torch.testing.assert_close(p.logits(), f @ g.T + bias)
    assert p.d_model == 4
    assert Predictor.from_arrays(f, g, torch.zeros(5)).d_model == 3


def test_some_contexts_and_some_tokens() -> None:
    p = Predictor.from_arrays(
        normal(7, 3), normal(5, 3, seed=2), documents=torch.tensor([0, 0, 1, 1, 1, 2, 2]), tokens=tuple("abcde")
    )
    some = p.take(torch.tensor([1, 5])).among(torch.tensor([4, 0]))
    assert (some.documents.tolist(), some.tokens) == ([0, 2], ("e", "a"))
    torch.testing.assert_close(some.logits(), p.logits()[[1, 5]][:, [4, 0]])
    assert some.coverage is not None
    torch.testing.assert_close(some.coverage, p.logits().softmax(1)[[1, 5]][:, [4, 0]].sum(1))
    assert repr(p) == "Predictor(predictor, 7 contexts of 3 documents, 5 tokens, d 3)"


NAN_AT_3 = torch.ones(5, 1).where(torch.arange(5)[:, None] != 3, torch.nan)


@pytest.mark.parametrize(
    ("f", "g", "documents", "tokens", "message"),
    [
        (normal(4, 3), normal(5, 2), None, (), "need one dimension"),
        (normal(4, 3), normal(1, 3), None, (), "two tokens or more"),
        (normal(0, 3), normal(5, 3), None, (), "a context or more"),
        (normal(4, 3), normal(5, 3), torch.arange(3), (), "every context needs a document"),
        (normal(4, 3), normal(5, 3), None, ("a",), "every token a name"),
        (normal(4, 3) / 0, normal(5, 3), None, (), "4 of 4 representations of contexts are not finite"),
        (normal(4, 3) * 1e16, normal(5, 3), None, (), "of contexts are not finite, or over 1e"),
        (normal(4, 3), normal(5, 3) * NAN_AT_3, None, (), "1 of 5 representations of tokens .* the first is number 3"),
    ],
)
def test_what_is_no_predictor(f: Tensor, g: Tensor, documents: Tensor | None, tokens: Any, message: str) -> None:
    with without_type_checks(), pytest.raises(LrtError, match=message):
        Predictor.from_arrays(f, g, documents=documents, tokens=tokens)
