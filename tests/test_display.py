"""What a notebook shows: of every result a table and one line, of every module's public names those alone."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import lrt_tl as lrt
from lrt_tl import storyworld
from lrt_tl.alignment.activations import fit_activations

CLASSES = {
    name: of
    for module in (lrt, storyworld)
    for name in module.__all__
    if inspect.isclass(of := getattr(module, name)) and not issubclass(of, Exception)
}
SHORT = {"ChoiceQuestion", "ContrastPair", "Equality", "Fact", "SampleTest", "Score"}
"""Dataclasses of a few words or figures, whose own repr is a line."""
NO_RESULT = {
    **dict.fromkeys(["AnswerTokens", "Continuations", "PromptAnswers", "WrittenText"], "how a behavior is scored"),
    **dict.fromkeys(["ChoiceQuestion", "Contrast", "ContrastPair", "Fact", "Relation"], "texts that come in"),
    **dict.fromkeys(["SteeringHandle", "TextClassifier"], "for their methods"),
    "Score": "one mapping, which a notebook shows well",
}
"""Classes that need no table, and why."""


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_a_repr_of_its_own_and_a_table(name: str) -> None:
    written_by_dataclass = inspect.unwrap(CLASSES[name].__repr__).__code__.co_filename == "<string>"
    assert not written_by_dataclass or name in SHORT | {"WrittenText"}
    assert hasattr(CLASSES[name], "_repr_html_") != (name in NO_RESULT)


def shown() -> dict[str, Any]:
    """Large ones among them, whose values would fill the screen."""
    states = torch.randn(3000, 40, generator=torch.Generator().manual_seed(0))
    fitted = fit_activations(states, states[:, :30] + 1, torch.arange(3000) // 20)
    texts = tuple(f"text <b>{number}</b>" for number in range(500))
    return {
        "map": fitted,
        "report": fitted.report,
        "autoencoder": storyworld.load_autoencoder("small"),
        "predictor": lrt.Predictor.from_arrays(states, states[:50], name="<i>p</i>"),
        "recovery": lrt.Recovery(None, None, None, "the native <b>vector</b> does nothing"),
        "found": lrt.Recovery(0.5, 0.25, 0.75),
        "behavior": lrt.Behavior("mood", texts, lrt.PromptAnswers(texts, texts[::-1])),
        "said": lrt.Behavior("mood", texts, lrt.Continuations(texts, texts), instruction="be <b>happy</b>"),
        "contrast": lrt.Contrast(storyworld.contrast_pairs("mood", 300), texts, texts),
        "answers": storyworld.behavior("refusal").score,
        "relation": storyworld.relation("capital-of"),
    }


@pytest.mark.parametrize("name", shown())
def test_it_is_one_line_and_its_table_is_escaped(name: str) -> None:
    of = shown()[name]
    assert "\n" not in repr(of)
    assert len(repr(of)) < 250
    assert "tensor(" not in repr(of)
    if hasattr(of, "_repr_html_"):
        table = of._repr_html_()
        assert table.startswith("<table")
        assert "<b>" not in table
        assert "<i>" not in table


def test_what_the_lines_say() -> None:
    line = {name: repr(of) for name, of in shown().items()}
    assert line["found"] == "Recovery(0.50 [0.25, 0.75])"
    assert line["recovery"] == "Recovery(none: the native <b>vector</b> does nothing)"
    assert line["autoencoder"] == "Autoencoder(storyworld-small at blocks.1.hook_resid_post, 64 → 512 latents, topk 12)"
    assert line["behavior"].startswith("Behavior(mood, 500 prompts, PromptAnswers('text <b>0</b>', 'text <b>1</b>'")
    assert line["report"].endswith("R² 1.00 on test documents, 2,380 positions, 60 for each source dimension)")


def test_completion_shows_the_public_names_alone() -> None:
    for module in (lrt, storyworld):
        assert [name for name in dir(module) if not name.startswith("_")] == sorted(module.__all__)


def test_saved_runs_show_their_rows(tmp_path: Path) -> None:
    behavior = {
        "name": "mood<b>",
        "native_slope": 0.5,
        "transferred_slope": 0.25,
        "recovery": {"estimate": 0.5, "low": 0.25, "high": 0.75, "reason": None},
        "recovery_matched_kl": {"estimate": None, "low": None, "high": None, "reason": "no neutral text"},
    }
    run = lrt.SavedRun(tmp_path / "run", {"behaviors": [behavior]})
    assert "0.50 [0.25, 0.75]" in run._repr_html_()
    assert "<b>" not in run._repr_html_()
