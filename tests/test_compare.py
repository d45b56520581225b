"""`lrt-tl compare` and `lrt_tl.compare`, on models with random weights."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import lrt_tl as lrt
from tests.test_transfer import command

FACTS = [
    {"relation": "next", "subject": f"word{i}", "prompt": f"word1 word{i} word2", "answer": f" word{i + 20}"}
    for i in range(5, 17)
]


def test_the_command(
    folders: tuple[Path, Path],
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small, out = folders[0], tmp_path / "run"
    facts = tmp_path / "facts.jsonl"
    facts.write_text("\n".join(map(json.dumps, FACTS)))
    given = ("--documents", files["documents"], "--relations", facts, "--contexts", 900, "--out", out)
    assert command(monkeypatch, "compare", small, small, *given) == 0
    shown = capsys.readouterr().out
    assert "small and small are one distribution, to ε = 0.01" in shown
    assert "next: relational linearity" in shown
    saved = json.loads((out / "summary.json").read_text())
    assert saved["verdict"]["premise"] is True
    assert saved["verdict"]["distances"]["kl"] == 0.0
    assert saved["arguments"]["command"].startswith("lrt-tl compare ")
    assert "<h1>small and small</h1>" in (out / "report.html").read_text()
    assert command(monkeypatch, "compare", small, small, *given) == 1
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "documents must be given"),
        (("--documents", "storyworld", "--epsilon", "0"), "--epsilon 0: it must be positive"),
        (("--documents", "storyworld", "--relations", "nowhere.jsonl"), "there is no file nowhere.jsonl"),
    ],
)
def test_what_the_command_refuses(
    arguments: tuple[str, ...],
    message: str,
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(monkeypatch, "compare", *folders, *arguments, "--out", tmp_path / "run") == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_in_a_notebook(bridges: tuple[Any, Any], texts: list[str]) -> None:
    model = bridges[0]
    contrast = lrt.Contrast([lrt.ContrastPair("word1 word2", "word3 word4")] * 3, ["word5"], ["word6"])
    run = lrt.compare(model, model, texts, relations=FACTS, contrasts={"side": contrast}, n_contexts=900)
    assert run.verdict.premise
    assert list(run.verdict.properties)[-1] == "side: steering"
    assert run.verdict.steering_mismatch["side"] == pytest.approx((0, 0), abs=1e-4)
    assert run.models[0] == run.models[1]
    assert set(run.data) == {"documents", "relations", "contrasts"}
    assert "<table" in run._repr_html_()
    assert repr(run).startswith("ComparisonRun(Verdict(small and small: ")


def test_the_example_of_the_docs(
    folders: tuple[Path, Path],
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "small").symlink_to(folders[0])
    (tmp_path / "texts.jsonl").write_bytes(files["documents"].read_bytes())
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, FACTS)))
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "one_distribution.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(compile(example, "docs/one_distribution.md", "exec"), {})
    assert "are one distribution, to ε = 0.01" in capsys.readouterr().out
    assert (tmp_path / "comparison" / "report.html").is_file()
