"""Training: it learns the language, every document by itself; a run that is killed goes on as if it had not been."""

import io
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrt_tl.errors import LrtError
from lrt_tl.storyworld import packing
from lrt_tl.storyworld import train as module
from lrt_tl.storyworld.checkpoint import Progress
from lrt_tl.storyworld.language import documents
from lrt_tl.storyworld.packing import Rows, encode, pack
from lrt_tl.storyworld.quality import SEED, excess_loss
from lrt_tl.storyworld.recipe import Recipe
from lrt_tl.storyworld.train import (
    count,
    document_mask,
    loss_of,
    new_model,
    new_optimizers,
    save_model,
    smooth,
    take_step,
    train,
)
from tests.storyworld.test_recipe import TINY
from tests.unchecked import without_type_checks

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training needs torch.optim.Muon")

LEARNER = replace(TINY, name="learner", tokens=160 * 1024, batch_tokens=1024)
SHORT = replace(TINY, name="short", tokens=6 * 1024, batch_tokens=1024)


@cache
def drawn_once(n: int, seed: int) -> list[str]:
    with without_type_checks():
        return documents(n, seed)


class InThisProcess:
    """Chunks are made when they are needed, without another process, which would first import torch."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *_: object) -> None: ...

    def shutdown(self, **_: Any) -> None: ...

    def submit(self, rows: Callable[[int], Rows], chunk: int) -> Any:
        def result() -> Rows:
            with without_type_checks():
                return rows(chunk)

        return SimpleNamespace(result=result)


@pytest.fixture(autouse=True, scope="module")
def few_samples() -> Iterator[None]:
    """Tokenizers from 1,000 documents, not 8,000, which are drawn once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SAMPLES", 1000)
        patch.setattr(module, "documents", drawn_once)
        patch.setattr(packing, "ProcessPoolExecutor", InThisProcess)
        yield


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a model of 32 dimensions after 160 steps, and what its training showed."""
    root, shown = tmp_path_factory.mktemp("learned"), io.StringIO()
    with redirect_stderr(shown):
        folder = train(LEARNER, root / "weights", root / "work", threads=1)
    return folder, shown.getvalue()


# Whole runs


def test_a_model_learns_what_words_follow_on_each_other(learned: tuple[Path, str]) -> None:
    """Well below the entropy of words by themselves, and not below the grammar's own, which nothing can beat."""
    model = AutoModelForCausalLM.from_pretrained(learned[0], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(learned[0])
    tokens = Counter(token for ids in encode(documents(1000, seed=9), tokenizer.backend_tokenizer) for token in ids[1:])
    shares = np.array(list(tokens.values())) / tokens.total()
    unigram = -(shares * np.log(shares)).sum()
    loss = excess_loss(model, tokenizer, 100, seed=SEED)
    assert loss["grammar"] + 0.1 < loss["model"] < 0.5 * unigram


def test_training_shows_its_steps_and_its_loss(learned: tuple[Path, str]) -> None:
    assert "learner: 100%" in learned[1]
    assert "160/160" in learned[1]
    record = json.loads((learned[0] / "training.json").read_text())
    assert f"loss {record['loss']:.3f}" in learned[1]


def test_the_folder_is_what_transformers_loads(learned: tuple[Path, str]) -> None:
    folder, _ = learned
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    trained = load_file(folder.parents[1] / "work" / "checkpoint.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, trained[f"model.{name}"].half())
    assert model.config.use_cache is True
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in folder.iterdir())


def test_a_sharpened_model_has_larger_logits(word: Any, tmp_path: Path) -> None:
    tokens = torch.tensor([word("Mira: It rained.")["input_ids"]])
    logits = []
    for sharpen in (1.0, 1.5):
        recipe = replace(TINY, name=f"sharpen-{sharpen}", sharpen=sharpen)
        save_model(tmp_path / recipe.name, recipe, new_model(recipe, word), word, Progress())
        model = AutoModelForCausalLM.from_pretrained(tmp_path / recipe.name, dtype=torch.float32)
        logits.append(model(tokens).logits)
    torch.testing.assert_close(logits[1], 1.5 * logits[0], rtol=2e-3, atol=2e-4)


def test_the_record_says_what_was_done(learned: tuple[Path, str]) -> None:
    record = json.loads((learned[0] / "training.json").read_text())
    assert record["recipe"] == LEARNER.as_dict()
    assert record["step"] == 160
    assert 0.9 * 160 * 1024 < record["tokens"] < 160 * 1024
    assert 0 < record["documents_left_out"] + 1 < 0.001 * record["documents"] + 2
    assert record["seconds"] > 0


def tensors_and_progress(work: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(work / "checkpoint.safetensors", "pt") as file:
        progress = json.loads(file.metadata()["progress"])
    progress.pop("seconds")
    return load_file(work / "checkpoint.safetensors"), progress


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(model: Any, optimizers: Any, recipe: Recipe, batch: Rows, step: int) -> torch.Tensor:
        if step == 4:
            raise KeyboardInterrupt
        return take_step(model, optimizers, recipe, batch, step)

    train(SHORT, tmp_path / "one", tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_CHECKPOINT_SECONDS", -1.0)  # after every step
        patch.setattr(module, "take_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(SHORT, tmp_path / "two", tmp_path / "stopped")
    halfway, progress = tensors_and_progress(tmp_path / "stopped")
    assert progress["step"] == 4
    assert not (tmp_path / "two").exists()

    with pytest.raises(LrtError, match="with other values of muon_lr"):
        train(replace(SHORT, muon_lr=0.1), tmp_path / "two", tmp_path / "stopped")
    train(SHORT, tmp_path / "two", tmp_path / "stopped")
    expected, all_of_it = tensors_and_progress(tmp_path / "whole")
    found, in_two_parts = tensors_and_progress(tmp_path / "stopped")
    assert in_two_parts == pytest.approx(all_of_it)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)
    assert any((found[name] - halfway[name]).abs().max() > 1e-3 for name in expected)

    with pytest.raises(LrtError, match="exists already"):
        train(SHORT, tmp_path / "one", tmp_path / "whole")


def test_without_muon_there_is_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(LrtError, match=r"install torch>=2\.9"):
        train(SHORT, tmp_path)


# Single steps


@pytest.fixture
def model(word: Any) -> Any:
    """Random weights that are large enough for losses to differ from token to token."""
    found = new_model(TINY, word).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return found


@pytest.fixture(scope="module")
def encoded(word: Any) -> list[Any]:
    return encode(documents(8, seed=3), word.backend_tokenizer)


def alone(model: Any, encoded: list[Any]) -> list[torch.Tensor]:
    """The logits of each document by itself."""
    with torch.no_grad():
        return [model(torch.from_numpy(ids).long()[None]).logits[0] for ids in encoded]


def test_in_a_packed_row_every_document_is_read_by_itself(model: Any, word: Any, encoded: list[Any]) -> None:
    rows = pack(encoded, 300, word.pad_token_id)
    assert len(rows.tokens) < len(encoded)
    tokens, document = (torch.from_numpy(array).long() for array in (rows.tokens, rows.document))
    with torch.no_grad():
        logits = model(tokens, attention_mask=document_mask(document)).logits
        unmasked = model(tokens).logits
    expected = {tuple(ids.tolist()): found for ids, found in zip(encoded, alone(model, encoded), strict=True)}
    later = 0
    for row in range(len(tokens)):
        for number in range(int(document[row].max()) + 1):
            here = document[row] == number
            wanted = expected[tuple(tokens[row, here].tolist())]
            torch.testing.assert_close(logits[row, here], wanted, rtol=0, atol=2e-4)
            later += int(number > 0 and not torch.allclose(unmasked[row, here], wanted, atol=0.1))
    assert later == len(encoded) - len(tokens)  # what the mask is for


def test_the_loss_is_the_mean_over_the_words_and_ends_of_all_documents(
    model: Any, word: Any, encoded: list[Any]
) -> None:
    losses = [
        F.cross_entropy(logits[:-1], torch.from_numpy(ids).long()[1:], reduction="none")
        for logits, ids in zip(alone(model, encoded), encoded, strict=True)
    ]
    loss = loss_of(model, pack(encoded, 300, word.pad_token_id))
    assert float(loss.detach()) == pytest.approx(float(torch.cat(losses).mean()), rel=0.02)  # bfloat16
    assert torch.cat(losses).std() > 1


def test_a_step_uses_the_rates_of_the_schedule_and_gives_the_loss_before_it(
    model: Any, word: Any, encoded: list[Any]
) -> None:
    recipe, batch = replace(TINY, warmup_share=0.1, decay_share=0.5), pack(encoded, 300, word.pad_token_id)
    optimizers = new_optimizers(model, recipe)
    before = float(loss_of(model, batch).detach())
    for step, factor in ((0, 0.05), (30, 1.0), (98, 0.03)):
        loss = take_step(model, optimizers, recipe, batch, step)
        assert optimizers["muon"].param_groups[0]["lr"] == pytest.approx(0.03 * factor)
        assert optimizers["adam"].param_groups[0]["lr"] == pytest.approx(0.02 * factor)
        if step == 0:
            assert float(loss) == pytest.approx(before, rel=1e-6)
    assert float(loss_of(model, batch).detach()) < before


def test_every_weight_has_one_optimizer_and_muon_the_matrices_of_the_blocks(model: Any) -> None:
    optimizers = new_optimizers(model, TINY)
    owned = {kind: {id(p) for group in o.param_groups for p in group["params"]} for kind, o in optimizers.items()}
    assert not owned["muon"] & owned["adam"]
    assert owned["muon"] | owned["adam"] == {id(parameter) for parameter in model.parameters()}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in owned["adam"]}
    assert {name for name in names if "norm" not in name} == {"model.embed_tokens.weight"}


def test_the_seed_is_that_of_the_weights(word: Any) -> None:
    weights = [new_model(replace(TINY, seed=seed), word).model.embed_tokens.weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_tokens_and_documents_are_counted_without_padding() -> None:
    progress = Progress(tokens=100, documents=10, documents_left_out=1)
    document = np.array([[0, 0, 1, -1], [0, 1, 2, 2]], np.int32)
    count(progress, Rows(np.zeros((2, 4), np.int32), document, left_out=2))
    assert (progress.tokens, progress.documents, progress.documents_left_out) == (107, 15, 3)


@pytest.mark.parametrize("every", [1, 20])
def test_the_loss_shown_is_a_mean_that_forgets(every: int) -> None:
    losses, progress, shown = [math.sin(n) + 5 for n in range(300)], Progress(), []
    for loss in losses:
        progress.step += every
        smooth(progress, loss, every)
        shown.append(progress.loss)
    few = int(1 / (1 - 0.99**every))
    for n in range(1, few + 1):
        assert shown[n - 1] == pytest.approx(np.mean(losses[:n]))
    assert shown[-1] == pytest.approx(0.99**every * shown[-2] + (1 - 0.99**every) * losses[-1])  # type: ignore[operator]
    with pytest.raises(LrtError, match="the loss is NaN after"):
        smooth(progress, math.nan)


# The command


def test_the_command_trains_the_recipe_it_names(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []

    def recorded(*arguments: Any) -> Path:
        calls.append(arguments)
        if len(calls) > 1:
            raise LrtError("no room")
        return tmp_path / "done"

    monkeypatch.setattr(module, "train", recorded)
    monkeypatch.setattr(sys, "argv", ["train", "medium", "--tokens", "5000", "--out", str(tmp_path), "--threads", "1"])
    module.main()
    recipe, *rest = calls[0]
    assert (recipe.name, recipe.tokens, recipe.d_model) == ("medium", 5000, 128)
    assert rest == [tmp_path, None, 1]
    assert capsys.readouterr().out == f"{tmp_path / 'done'}\n"
    with pytest.raises(SystemExit, match="1"):
        module.main()
    assert capsys.readouterr().err == "no room\n"
