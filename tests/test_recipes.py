"""The snippets of docs/recipes.md, run as they stand."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lrt_tl.steering.autoencoder import Autoencoder
from lrt_tl.steering.interchange.gguf import load_gguf, save_gguf
from tests.steering.interchange.examples import vectors_of

RECIPES = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
SECTIONS = {part.split("\n")[0]: part for part in RECIPES.split("\n## ")[1:]}
NEEDED = {"A vector of steering-vectors, and back": "steering_vectors"}


@pytest.fixture
def workplace(folders: Any, bridges: Any, files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the snippets name."""
    (tmp_path / "large").symlink_to(folders[1])
    shutil.copy(files["contrast"], tmp_path / "contrast.jsonl")
    save_gguf(vectors_of(bridges[1], 1, 2), tmp_path / "happy.gguf", model_type="gpt2")
    weights = [torch.randn(shape) for shape in ((24, 40), (40,), (40, 24), (24,))]
    Autoencoder(*weights, k=3, hook_name="blocks.2.hook_resid_post", model_name="large").save(tmp_path / "sae")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("title", SECTIONS)
def test_the_recipe_runs(workplace: Path, title: str) -> None:
    if title in NEEDED:
        pytest.importorskip(NEEDED[title])
    (snippet,) = re.findall(r"```python\n(.*?)```", SECTIONS[title], flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(snippet, f"docs/recipes.md, {title}", "exec"), names)
    if title == "A vector for llama.cpp, or repeng":
        found = load_gguf(workplace / "mine.gguf", names["model"])
        assert all(map(torch.equal, [v.direction for v in found], [v.direction for v in names["vectors"]]))
    if title.startswith("A vector of steering-vectors"):
        assert torch.equal(names["ours"].direction, names["vector"].direction)
    if title.startswith("A target"):
        value = torch.tensor(names["interventions"]["blocks.2.hook_out"]["value"])
        torch.testing.assert_close(value, 3 * names["vector"].direction)


def test_what_hugging_face_returns_is_the_state_of_that_layer(workplace: Path) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", SECTIONS[list(SECTIONS)[-1]], flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(snippet, "docs/recipes.md", "exec"), names)
    model, tokens = names["model"], torch.tensor([names["tokenizer"]("word1 word2")["input_ids"]])
    _, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(
        names["state"]("word1 word2", 2), cache["blocks.2.hook_resid_post"][0, -1], atol=1e-4, rtol=1e-4
    )
