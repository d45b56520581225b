"""The parts of `benchmarks/learners.py` and `benchmarks/what_learning_does.py`, on two steps of training; and what the
whole of it left."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lrt_tl.models.loading import bundled_models
from lrt_tl.storyworld.packing import Data
from lrt_tl.storyworld.recipe import Recipe
from lrt_tl.storyworld.train import new_model, next_tokens
from tests.campaigns import BENCHMARKS, RESULTS, campaign
from tests.storyworld.test_recipe import TINY

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training needs torch.optim.Muon")

TWO_STEPS = replace(TINY, tokens=2 * 512, batch_tokens=512)


@pytest.fixture(scope="module")
def learners(word: Any) -> Iterator[Any]:
    """The script, with chunks of 100 documents."""
    module = campaign("learners")
    data = Data(1, word.backend_tokenizer.to_str(), 128, chunk=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "tokenizer_and_data", lambda: (word, data))
        yield module
    module.chunk.cache_clear()


@pytest.fixture(scope="module")
def script() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return campaign("what_learning_does")


@pytest.fixture(scope="module")
def learned(learners: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of some learners after two steps."""
    folder: Path = tmp_path_factory.mktemp("learned")
    other = replace(TWO_STEPS, seed=2)
    for learner in (
        learners.Learner("reference", 1, TWO_STEPS),
        learners.Learner("again", 1, TWO_STEPS),
        learners.Learner("untrained", 1, TWO_STEPS, teaching="nothing"),
        learners.Learner("taught", 2, other, teaching="KL"),
    ):
        learners.learn(learner, folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# What is trained


def test_every_learner_has_a_reference_that_is_there_before_it(learners: Any) -> None:
    known = set(bundled_models())
    for learner in learners.learners(800_000):
        assert learner.name not in known
        known.add(learner.name)
        assert learner.against in known
        assert isinstance(learner.recipe, Recipe)


def test_another_order_is_of_the_same_batches(learners: Any) -> None:
    recipe = replace(TWO_STEPS, tokens=20 * 512)
    plain, seeded, ordered, others = (
        [batch.tokens.tobytes() for batch in learners.batches(learner)]
        for learner in (
            learners.Learner("plain", 1, recipe),
            learners.Learner("other weights", 2, replace(recipe, seed=2)),
            learners.Learner("other order", 2, recipe, order=2),
            learners.Learner("other documents", 2, replace(recipe, data_seed=2)),
        )
    )
    assert len(plain) == 20
    assert plain == seeded
    assert ordered != plain
    assert sorted(ordered) == sorted(plain)
    assert not set(others) & set(plain)


def test_the_same_training_gives_the_same_weights(learned: Path) -> None:
    reference, again, untrained = (weights(learned / name) for name in ("reference 1", "again 1", "untrained 1"))
    assert all(torch.equal(again[name], weight) for name, weight in reference.items())
    assert not any(torch.equal(untrained[name], weight) for name, weight in reference.items() if weight.ndim == 2)


@torch.no_grad()
def test_distances_from_a_teacher_are_those_by_hand(learners: Any, learned: Path, word: Any) -> None:
    model = new_model(replace(TINY, seed=3), word)
    (batch, _) = learners.batches(learners.Learner("any", 1, TWO_STEPS))
    losses = {
        teaching: learners.loss_for(learners.Learner("any", 1, TWO_STEPS, teaching=teaching), learned)
        for teaching in ("KL", "L2")
    }
    teacher = learners.AutoModelForCausalLM.from_pretrained(
        learned / "reference 1", dtype=torch.float32, attn_implementation="eager"
    )
    ours, theirs = (next_tokens(each, batch)[0].double() for each in (model, teacher))
    kl = (theirs.softmax(1) * (theirs.log_softmax(1) - ours.log_softmax(1))).sum(1).mean()
    apart = (ours - ours.mean(1, keepdim=True)) - (theirs - theirs.mean(1, keepdim=True))
    assert float(losses["KL"](model, batch)) == pytest.approx(float(kl), rel=1e-3)
    assert float(losses["L2"](model, batch)) == pytest.approx(float((apart**2).mean()), rel=1e-3)
    assert float(losses["L2"](teacher, batch)) == float(losses["KL"](teacher, batch)) == 0


# What is measured


@pytest.fixture
def few(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("N_COMPARED", "N_FITTED", "N_LOSS"):
        monkeypatch.setattr(script, name, 20)


@pytest.mark.usefixtures("few")
def test_the_same_again_is_its_reference_and_another_is_not(script: Any, learned: Path) -> None:
    again, taught = (script.compare((name, "reference 1"), learned) for name in ("again 1", "taught 2"))
    assert again["identical"]
    assert max(again["kl"], again["js"]) < 1e-12
    assert min(again[name] for name in ("context_worst_r2", "token_worst_r2", "middle_r2")) > 1 - 1e-4
    assert again["duality_residual"] < 1e-6
    assert not taught["identical"]
    assert taught["context_worst_r2"] < taught["context_r2"] < 1
    shown = [script.row("arm", [again, taught]), script.row("arm", [again])]
    assert shown[0]["equal"].endswith("of 2")
    assert shown[1]["R², contexts"] == "1.00"


def test_what_is_said_is_what_was_measured(script: Any) -> None:
    held = json.loads((RESULTS / "what_learning_does.json").read_text())
    assert held["command"] == script.COMMAND
    assert held["conclusions"] == script.conclusions(held["arms"])
    assert held["conclusions"][0] == "Exactly its reference: the same again."
