"""`lrt-tl report`, and a run whose every name is hostile."""

import json
import sys
from pathlib import Path

import pytest

import lrt_tl as lrt
from lrt_tl.cli import main
from lrt_tl.evaluation.recovery import Recovery
from tests.report.hostile import HOSTILE, LONG
from tests.runs.synthetic import a_result, a_run


def report(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `lrt-tl report` in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["lrt-tl", "report", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_one_run_is_shown_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run().save(tmp_path / "run")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert report(monkeypatch, run) == 0
    assert "mood kept least of the effect" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_several_are_compared_on_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = a_run().save(tmp_path / "one")
    two = a_run([a_result(recovery=Recovery(0.75, 0.7, 0.8))]).save(tmp_path / "two")
    assert report(monkeypatch, one, two, "--out", tmp_path / "page.html") == 0
    assert "Of 2 runs two carried most" in " ".join(capsys.readouterr().out.split())
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "2 runs compared" in page
    assert "0.75 [0.70, 0.80]" in page
    assert report(monkeypatch, one, "--out", tmp_path / "page.html") == 1
    assert "exists already" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(monkeypatch, tmp_path) == 1
    assert "holds no summary.json" in capsys.readouterr().err


@pytest.mark.parametrize("name", [HOSTILE, LONG], ids=["hostile", "long"])
def test_a_run_of_hostile_names_is_saved_and_read_whole(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [{"prompt": name, "plain": name, "native": f"{name} x"}]
    run = a_run([a_result(name)], models=(name, name), samples=samples, arguments={"command": name, name: name})
    folder = run.save(tmp_path / "run")
    assert list(lrt.read_run(folder).recoveries().values()) == [Recovery(0.5, 0.4, 0.6)]
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["behaviors"][0]["name"][:8] == name[:8]
    assert report(monkeypatch, folder, "--out", tmp_path / "page.html") == 0
    assert not {"\x00", "\x1b", "\u202e"} & set(capsys.readouterr().out)
    for page in (folder / "report.html", tmp_path / "page.html"):
        main_part = page.read_text(encoding="utf-8").split("<main>")[1].split("</main>")[0]
        assert "<script" not in main_part
        assert len(main_part) < 500_000
