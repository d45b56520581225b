"""The README's snippets and commands, run as they stand in a folder that has the files that they name."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from lrt_tl.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def workplace(
    folders: tuple[Path, Path], files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    for folder, name in zip(folders, ("small", "large"), strict=True):
        (tmp_path / name).symlink_to(folder)
    for name in ("documents.jsonl", "contrast.jsonl", "behavior.json"):
        shutil.copy(files[Path(name).stem], tmp_path / name.replace("documents", "texts"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_example(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example, _, _ = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "AffineMap(small L0 + L1 + L2 → large L3" in shown
    assert "SteeringHandle" in shown


def test_the_steering_example(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, example, _ = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "AUC" in shown
    assert "'projection before'" in shown


def test_the_storyworld_example(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, example = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "Relation(capital-of" in shown
    assert "'happy': 1.0" in shown


def test_the_shell_examples(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [line for block in blocks("sh") for line in block.replace("\\\n", "").splitlines()]
    ours = [command for command in commands if command.startswith("lrt-tl")]
    assert len(ours) == 7
    for command in ours:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code, command
    assert (workplace / "run" / "report.html").is_file()
