"""The snippets of the documentation, page by page, run as they stand (those of the recipes have tests of their own)."""

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lrt_tl
from lrt_tl.cli import main

DOCS = Path(__file__).parents[1] / "docs"
hooks = SimpleNamespace(**runpy.run_path(str(DOCS / "hooks.py")))
SNIPPETS = {
    str(page.relative_to(DOCS)): snippets
    for page in sorted(DOCS.rglob("*.md"))
    if page.name not in ("recipes.md", "one_distribution.md")
    and (snippets := re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))
}

COMMANDS = {
    page.name: commands
    for page in sorted((DOCS / "guides").glob("*.md"))
    for blocks in [re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)]
    for lines in ["".join(blocks).replace("\\\n", "").splitlines()]
    if (commands := [line for line in lines if line.startswith("lrt-tl ")])
}


@pytest.fixture
def workplace(
    folders: tuple[Path, Path], files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The models and files that the snippets name."""
    for folder, name in zip(folders, ("small", "large"), strict=True):
        (tmp_path / name).symlink_to(folder)
    for name in ("documents.jsonl", "contrast.jsonl", "behavior.json"):
        shutil.copy(files[Path(name).stem], tmp_path / name.replace("documents", "texts"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", SNIPPETS)
def test_the_snippets_of_a_page_run(workplace: Path, page: str) -> None:
    """One after another, with the names that those before have made."""
    names: dict[str, Any] = {}
    for number, snippet in enumerate(SNIPPETS[page]):
        exec(compile(snippet, f"docs/{page}, snippet {number}", "exec"), names)


@pytest.mark.parametrize("page", COMMANDS)
def test_the_commands_of_a_guide_run(workplace: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    texts = (workplace / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    for number, part in enumerate((texts[:100], texts[100:]), start=1):
        (workplace / f"part-{number}.jsonl").write_text("\n".join(part), encoding="utf-8")
    for command in COMMANDS[page]:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code, command


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("[a](docs/recipes.md#numpy)", "[a](../recipes.md#numpy)"),
        ("[a](CONTRIBUTING.md)", "[a](index.md)"),
        ("its [schema](lrt_tl/runs/summary.schema.json)", "its schema"),
        ("[a](#there), [b](https://example.org/README.md)", "[a](#there), [b](https://example.org/README.md)"),
        ("[a](docs/nowhere.md), [b](nowhere.md)", "[a](../nowhere.md), [b](nowhere.md)"),
        (
            "```python\nsolvers[name](LICENSE)\n```\n[the license](LICENSE)",
            "```python\nsolvers[name](LICENSE)\n```\nthe license",
        ),
    ],
)
def test_links_of_the_repository_become_those_of_the_site(written: str, shown: str) -> None:
    assert hooks.relinked(written, ".", "contributing/index.md") == shown


def test_a_notebook_becomes_a_page() -> None:
    badge = "[![Open in Colab](badge.svg)](https://example.org/colab)"
    text = "\n\n# A title\n\n[Another](2_fitting_the_map.ipynb) and [a script](gemma_section_4.py)"
    formulas = r"With $v_\text{large} = A\, v$, $$\frac{\text{a} - b}{\lambda \lVert A \rVert^2}$$"
    solution = "<details><summary>Solution</summary>\n\n```python\nf(x)  # $x$ of $x$\n```\n</details>"
    displays = [
        {"name": "stdout", "text": ["printed\n"]},
        {"data": {"text/plain": "a handle"}},
        {"data": {"text/plain": "", "text/html": "<table></table>"}},
        {"data": {"text/plain": "", "text/markdown": "**said**"}},
        {"data": {"image/png": "iVBO\nRw0K"}},
    ]
    cells = [
        {"cell_type": "markdown", "source": [badge, text]},
        {"cell_type": "code", "source": "%pip install -q lrt-tl", "outputs": []},
        {"cell_type": "code", "source": ["x = 1\n", "x"], "outputs": displays},
        {"cell_type": "markdown", "source": formulas},
        {"cell_type": "markdown", "source": solution},
    ]
    assert hooks.notebook({"cells": cells}, "tutorials/1_from_small_to_large.md").split("\n\n") == [
        "# A title",
        "[Open in Colab](https://example.org/colab)",
        "[Another](2_fitting_the_map.md) and a script",
        "```python\nx = 1\nx\n```",
        "```text\nprinted\na handle\n```",
        "<div><table></table></div>",
        "**said**",
        '<img alt="What the code above draws" src="data:image/png;base64,iVBORw0K">',
        "With `v_large = A v`, ```text\n(a − b) / (λ ‖A‖²)\n```",
        '<details markdown="1"><summary>Solution</summary>',
        "```python\nf(x)  # $x$ of $x$\n```\n</details>\n",
    ]


def test_the_reference_holds_every_public_name() -> None:
    pages = [page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md")]
    named = [name for page in pages for name in re.findall(r"^::: lrt_tl\.(?:\w+\.)*(\w+)$", page, re.MULTILINE)]
    assert set(lrt_tl.__all__) <= set(named)
