"""The README's snippets and commands, run as they stand, and its picture."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from lrt_tl.cli import main
from tests.unchecked import without_type_checks

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_fifteen_lines(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("python")
    assert sum(1 for line in example.splitlines() if line.strip()) <= 15
    with without_type_checks():
        exec(compile(example, "README.md", "exec"), {})
    steered, recovery = capsys.readouterr().out.split("\nAssistant: ")[1].splitlines()
    assert f'"{steered}"' in README, "a harmless request, refused"
    estimate, said = (float(text.split(" [")[0]) for text in (recovery, README.split("carried one has: ")[1][:20]))
    assert estimate == pytest.approx(said, abs=0.02)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands but for the number of draws, of which it takes 64."""
    commands = [line for block in blocks("sh") for line in block.replace("\\\n", "").splitlines()]
    (command,) = (command for command in commands if command.startswith("lrt-tl"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [*shlex.split(command), "--draws", "19"])
    with without_type_checks(), pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    for name in ("report.html", "card.md", "summary.json", "map", "vectors"):
        assert (tmp_path / "run" / name).exists()


def test_the_targets_of_make_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {word for block in blocks("sh") for word in re.findall(r"^make (\w+)", block, re.MULTILINE)}
    assert named == {"demo", "test"}
    assert all(f"\n{name}: " in makefile for name in named)


def test_what_it_shows_and_links_to_is_there() -> None:
    for link in re.findall(r"\]\((?!https://)([^)#\s]+)", README):
        assert (ROOT / link).exists(), link
