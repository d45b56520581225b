"""The snippets of the documentation, page by page, run as they stand (those of the recipes have tests of their own)."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SNIPPETS = {
    str(page.relative_to(DOCS)): snippets
    for page in sorted(DOCS.rglob("*.md"))
    if page.name not in ("recipes.md", "one_distribution.md")
    and (snippets := re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))
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
