"""The notebooks are fit to be read as they are kept. Whether they run, CI tries."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lrt_tl

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
NOT_RUN = "7_gemma_2b_to_9b.ipynb"  # takes a large GPU; tests/test_gemma_tutorial.py runs its code on small models
LONGEST_CELL, LARGEST_FILE = 40, 400_000
BADGE = "https://colab.research.google.com/github/lrt-tl/lrt_tl/blob/main/tutorials/"
ABSOLUTE = re.compile(r"/(?:home|root|work|tmp|Users|usr|opt|content)/|[A-Z]:\\\\")


@pytest.fixture(params=TUTORIALS, ids=lambda path: path.stem)
def tutorial(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture(params=[path for path in TUTORIALS if path.name != NOT_RUN], ids=lambda path: path.stem)
def kept(request: pytest.FixtureRequest) -> Path:
    """One that is kept with what it showed."""
    path: Path = request.param
    return path


def cells(tutorial: Path, kind: str) -> list[dict[str, Any]]:
    read = json.loads(tutorial.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in read if cell["cell_type"] == kind]


def code(tutorial: Path) -> Iterator[str]:
    """Of the cells, without the one that installs, and of the solutions."""
    yield from (cell["source"] for cell in cells(tutorial, "code") if "%pip" not in cell["source"])
    for cell in cells(tutorial, "markdown"):
        yield from re.findall(r"^```python\n(.*?)^```", cell["source"], re.DOTALL | re.MULTILINE)


def test_it_begins_with_a_badge_and_installs_the_package(tutorial: Path) -> None:
    first = cells(tutorial, "markdown")[0]["source"]
    assert f"({BADGE}{tutorial.name})" in first.splitlines()[0]
    install = cells(tutorial, "code")[0]
    assert 'find_spec("lrt_tl") is None' in install["source"]
    assert "%pip install -q lrt-tl" in install["source"]
    assert install["outputs"] == []


def test_it_was_run_from_top_to_bottom(kept: Path) -> None:
    run = cells(kept, "code")
    assert [cell["execution_count"] for cell in run] == list(range(1, len(run) + 1))
    outputs = [output for cell in run for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert "stderr" not in {output.get("name") for output in outputs}


def test_ci_compares_what_is_the_same_everywhere(kept: Path) -> None:
    """No pictures, which nobody compares, and no tables of floats, whose last digits differ."""
    compared = [cell for cell in cells(kept, "code") if "nbval-check-output" in cell["metadata"].get("tags", ())]
    kinds = {kind for cell in compared for output in cell["outputs"] for kind in output.get("data", ())}
    assert len(compared) >= 3
    assert all(cell["outputs"] for cell in compared)
    assert kinds <= {"text/plain", "text/markdown"}


def test_its_pictures_show_where_nothing_runs(kept: Path) -> None:
    kinds = {kind for cell in cells(kept, "code") for output in cell["outputs"] for kind in output.get("data", {})}
    assert "image/png" in kinds
    assert kinds <= {"image/png", "text/html", "text/markdown", "text/plain"}
    assert kept.stat().st_size < LARGEST_FILE


def test_no_cell_is_longer_than_a_screen(tutorial: Path) -> None:
    assert max(len(text.splitlines()) for text in code(tutorial)) <= LONGEST_CELL


def test_it_asks_before_it_answers_and_ends_with_exercises(tutorial: Path) -> None:
    prose = "\n".join(cell["source"] for cell in cells(tutorial, "markdown"))
    assert prose.count("**What do you expect?**") >= 3
    assert "## Exercises" in prose
    assert prose.count("<details><summary>Solution</summary>") == prose.count("</details>") >= 3


def test_it_uses_public_names_and_no_path_of_a_machine(tutorial: Path) -> None:
    for text in code(tutorial):
        used = {
            node.attr
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lrt"
        }
        assert used <= set(lrt_tl.__all__)
    written = [re.sub(r'"image/png": "[^"]*"', "", json.dumps(cell)) for cell in cells(tutorial, "code")]
    written += [cell["source"] for cell in cells(tutorial, "markdown")]
    assert not any(map(ABSOLUTE.search, written))


def test_what_it_links_to_is_there(tutorial: Path) -> None:
    for cell in cells(tutorial, "markdown"):
        for link in re.findall(r"\]\((?!https://)([^)#]+)", cell["source"]):
            assert (tutorial.parent / link).exists(), link
