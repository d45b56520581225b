"""The whole chain, in Python and from the command line, on small random models."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import lrt_tl as lrt
from lrt_tl.cli import main
from lrt_tl.text.documents import TEST, split_of
from lrt_tl.transfer import neutral_texts
from tests.checkpoints import PAIRS

FEW = {"coefficients": (-0.5, 0.0, 0.5), "n_draws": 19}


@pytest.fixture(scope="module")
def run(bridges: tuple[Any, Any], files: dict[str, Path]) -> lrt.TransferRun:
    tasks = [(files["contrast"], files["behavior"])]
    return lrt.transfer(*bridges, files["documents"], tasks, layers=(1, 2), **FEW)  # type: ignore[arg-type]


def test_the_chain_is_its_steps(run: lrt.TransferRun, bridges: tuple[Any, Any], files: dict[str, Path]) -> None:
    source, target = bridges
    affine_map = lrt.fit_affine_map(source, target, files["documents"], layers=(1, 2))
    torch.testing.assert_close(run.affine_map.weight, affine_map.weight)
    carried = affine_map.transport(lrt.mean_difference(source, files["contrast"], layer=1))
    native = lrt.mean_difference(target, files["contrast"], layer=2)
    found = run.behaviors[0]
    torch.testing.assert_close(found.transferred.direction, carried.direction)
    torch.testing.assert_close(found.native.direction, native.direction)
    again = lrt.evaluate_transfer(target, carried, files["behavior"], native=native, **FEW)  # type: ignore[arg-type]
    assert found.result.slope("transferred") == pytest.approx(again.slope("transferred"))


def test_a_run_is_saved_whole(run: lrt.TransferRun, tmp_path: Path) -> None:
    out = run.save(tmp_path / "run")
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    places = ["map", *(f"vectors/counting-up/{kind}" for kind in ("source", "transferred", "native"))]
    parts = ("config.json", "tensors.safetensors", "README.md")
    assert names == {
        "summary.json",
        "report.html",
        "card.md",
        *(f"{place}/{part}" for place in places for part in parts),
    }
    summary = json.loads((out / "summary.json").read_text())
    assert summary["map"]["tokens"] == run.affine_map.report.tokens
    assert {"test_r2", "cv_r2", "tokens", "tokens_per_dimension", "ridge"} <= set(summary["map"])
    assert summary["vector"]["cosine_with_native"] == summary["behaviors"][0]["cosine_with_native"]
    expected = {
        "name",
        "source_native_slope",
        "native_slope",
        "transferred_slope",
        "random_slope",
        "shuffled_map_slope",
    }
    assert expected | {"recovery", "coefficients", "curves"} <= set(summary["behaviors"][0])
    torch.testing.assert_close(lrt.AffineMap.load(out / "map").weight, run.affine_map.weight)
    loaded = lrt.SteeringVector.load(out / "vectors/counting-up/transferred")
    assert torch.equal(loaded.direction, run.behaviors[0].transferred.direction)
    with pytest.raises(lrt.ArtifactError, match="exists already"):
        run.save(out)


def test_an_interrupted_save_leaves_nothing(
    run: lrt.TransferRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: lrt.TransferRun) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(lrt.TransferRun, "report", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.save(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_documents_with_a_contrast_text_are_left_out(bridges: tuple[Any, Any], texts: list[str]) -> None:
    pair = ("word7 word8 word9 word10 word11", "word11 word10 word9 word8 word7")
    behavior = lrt.Behavior("b", ("word20 word21",), lrt.AnswerTokens(("word1",), ("word2",)))
    tainted = [*texts, f"word1 {pair[0].upper().lower()} word2", "word20  word21"]
    run = lrt.transfer(*bridges, tainted, [([pair], behavior)], layers=(1, 2), **FEW)  # type: ignore[arg-type]
    counts = run.affine_map.report.harvest
    assert (counts["documents"], counts["documents_excluded"]) == (len(texts), 2)


def test_neutral_texts_are_test_documents(texts: list[str]) -> None:
    found = neutral_texts(texts)
    assert len(found) == 8
    assert {split_of(text) for text in found} == {TEST}
    with pytest.raises(lrt.LrtError, match="no document is in the test split"):
        neutral_texts([text for text in texts if split_of(text) != TEST])


def test_too_few_draws_are_refused_before_the_models_run(bridges: tuple[Any, Any], files: dict[str, Path]) -> None:
    """They would be drawn and measured, and then no recovery could be judged."""
    tasks = [(files["contrast"], files["behavior"])]
    with pytest.raises(lrt.LrtError, match="n_draws=18: a recovery takes 19 random vectors or more"):
        lrt.transfer(*bridges, files["documents"], tasks, layers=(1, 2), n_draws=18)


def test_bad_tasks_are_refused_before_the_models_run(bridges: tuple[Any, Any], files: dict[str, Path]) -> None:
    unseen = lrt.Behavior("b", ("word1",), lrt.AnswerTokens(("word1 word2",), ("word3",)))
    cases: list[tuple[list[Any], str]] = [
        ([], "nothing to transfer"),
        ([(PAIRS, unseen)], "is 2 tokens"),
        ([(PAIRS, files["behavior"])] * 2, "different names"),
    ]
    for tasks, message in cases:
        with pytest.raises(lrt.LrtError, match=message):
            lrt.transfer(*bridges, ["not read"], tasks, layers=(1, 2))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `lrt-tl` in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["lrt-tl", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_the_command_line_from_transfer_to_the_steps(
    folders: tuple[Path, Path],
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, target = folders
    data = ("--documents", files["documents"])
    task = ("--contrast", files["contrast"], "--behavior", files["behavior"])
    few = ("--coefficients=-0.5,0,0.5", "--draws", 19)
    both = ("--source", source, "--target", target, "--layers", "1:2")
    assert command(monkeypatch, "transfer", *both, *data, *task, *few, "--out", tmp_path / "run") == 0
    shown = capsys.readouterr().out
    assert "recovery" in shown
    assert "report.html" in shown
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["arguments"]["command"].startswith("lrt-tl transfer --source")

    exclude = ("--exclude", files["contrast"], "--exclude", files["behavior"])
    assert command(monkeypatch, "fit", *both, *data, *exclude, "--out", tmp_path / "map") == 0
    vectors = {"small": (source, 1), "large": (target, 2)}
    for name, (model, layer) in vectors.items():
        place = ("--model", model, "--contrast", files["contrast"], "--layer", layer)
        assert command(monkeypatch, "extract", *place, "--out", tmp_path / name) == 0
    carry = ("--map", tmp_path / "map", "--vector", tmp_path / "small")
    assert command(monkeypatch, "transport", *carry, "--out", tmp_path / "carried") == 0
    stepwise = lrt.SteeringVector.load(tmp_path / "carried")
    whole = lrt.SteeringVector.load(tmp_path / "run/vectors/counting-up/transferred")
    torch.testing.assert_close(stepwise.direction, whole.direction)

    measured = ("--target", target, "--transferred", tmp_path / "carried", "--native", tmp_path / "large")
    rest = ("--behavior", files["behavior"], "--map", tmp_path / "map", "--neutral", files["documents"], *few)
    assert command(monkeypatch, "evaluate", *measured, *rest, "--json", tmp_path / "figures.json") == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["transferred_slope"] == pytest.approx(summary["behaviors"][0]["transferred_slope"], rel=1e-4)
    assert {"unrelated", "source_native", "prompt_only"} & set(figures["missing"])
    more = ("--source", source, "--source-vector", tmp_path / "small", "--contrast", files["contrast"])
    more += ("--unrelated", tmp_path / "large", "--baseline", tmp_path / "carried")
    assert command(monkeypatch, "evaluate", *measured, *rest, *more, "--json", tmp_path / "all.json") == 0
    assert json.loads((tmp_path / "all.json").read_text())["missing"] == {}

    capsys.readouterr()
    prompt = ("--prompt", "word1 word2", "--prompt", "word3", "--coefficient", 2, "--max-new-tokens", 3)
    steer = ("--model", target, "--vector", tmp_path / "carried", *prompt, "--scale", "residual")
    assert command(monkeypatch, "steer", *steer) == 0
    shown = capsys.readouterr().out
    assert "plain" in shown
    assert "steered" in shown

    texts = {}
    for coefficient in (-4, 4):
        steer = ("--model", target, "--vector", tmp_path / "carried", "--prompt", "word1 word2", "--temperature", 0)
        assert command(monkeypatch, "steer", *steer, "--scale", "residual", f"--coefficient={coefficient}") == 0
        texts[coefficient] = capsys.readouterr().out.replace(f"{coefficient} (residual)", "")
    assert texts[-4] != texts[4]


def test_the_command_line_fits_on_parts_of_the_text_from_several_layers(
    folders: tuple[Path, Path],
    texts: list[str],
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    both = ("--source", folders[0], "--target", folders[1])
    for name, part in (("one", texts[:100]), ("two", texts[100:]), ("all", texts)):
        (tmp_path / f"{name}.txt").write_text("\n".join(part))
        documents = ("--documents", tmp_path / f"{name}.txt", "--layers", "0,1:2")
        assert command(monkeypatch, "harvest", *both, *documents, "--out", tmp_path / name) == 0
    assert command(monkeypatch, "merge", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "merged") == 0
    for name in ("merged", "all"):
        solve = ("--moments", tmp_path / name, "--method", "reduced_rank", "--out", tmp_path / f"{name}-map")
        assert command(monkeypatch, "solve", *solve) == 0
    merged, whole = (lrt.AffineMap.load(tmp_path / f"{name}-map") for name in ("merged", "all"))
    torch.testing.assert_close(merged.weight, whole.weight, rtol=1e-3, atol=1e-4)
    assert whole.report.method == "reduced_rank"

    for layer in (0, 1):
        place = ("--model", folders[0], "--contrast", files["contrast"], "--layer", layer)
        assert command(monkeypatch, "extract", *place, "--out", tmp_path / f"vector-{layer}") == 0
    carry = ("--map", tmp_path / "all-map", "--vector", tmp_path / "vector-1", "--vector", tmp_path / "vector-0")
    assert command(monkeypatch, "transport", *carry, "--out", tmp_path / "carried") == 0
    vectors = [lrt.SteeringVector.load(tmp_path / f"vector-{layer}") for layer in (0, 1)]
    carried = lrt.SteeringVector.load(tmp_path / "carried")
    torch.testing.assert_close(carried.direction, whole.transport(vectors).direction)


@pytest.mark.parametrize("position", ["-1", '{"last": 2}'])
def test_the_command_line_finds_vectors_of_several_layers(
    folders: tuple[Path, Path],
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    position: str,
) -> None:
    place = ("--model", folders[0], "--contrast", files["contrast"], "--layer", "0,blocks.2.hook_resid_pre")
    how = ("--method", "linear_discriminant", "--position", position)
    assert command(monkeypatch, "extract", *place, *how, "--out", tmp_path / "vectors") == 0
    shown = capsys.readouterr().out
    assert shown.count("AUC on held-out pairs") == 2
    model, read = lrt.load_model(folders[0]), json.loads(position)
    names = ["blocks.0.hook_resid_post", "blocks.2.hook_resid_pre"]
    expected = lrt.linear_discriminant(model, files["contrast"], hook_name=names, position=read)
    for name, vector in zip(("blocks-0-resid_post", "blocks-2-resid_pre"), expected, strict=True):
        found = lrt.SteeringVector.load(tmp_path / "vectors" / name)
        assert torch.equal(found.direction, vector.direction)
        assert found.report == vector.report
    assert command(monkeypatch, "extract", *place, "--position", "first", "--out", tmp_path / "no") == 1
    assert not (tmp_path / "no").exists()


def test_the_command_line_reads_chats_through_the_targets_template(
    folders: tuple[Path, Path],
    texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chat = shutil.copytree(folders[1], tmp_path / "chat")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(chat)
    tokenizer.chat_template = "{{ bos_token }}{% for message in messages %}word0 {{ message['content'] }} {% endfor %}"
    tokenizer.save_pretrained(chat)
    rows = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fit = ("fit", "--source", folders[0], "--layers", "1:2", "--documents", tmp_path / "chats.jsonl", "--chat-template")
    assert command(monkeypatch, *fit, "--target", folders[1], "--out", tmp_path / "none") == 1
    assert "has no chat template" in capsys.readouterr().err
    assert command(monkeypatch, *fit, "--target", chat, "--out", tmp_path / "map") == 0
    shown = capsys.readouterr().out
    assert "The text that it was fitted on" in shown
    assert "special tokens left out" in shown
    by_hand = [f"word0 {text} " for text in texts]
    wanted = lrt.fit_affine_map(lrt.load_model(folders[0]), lrt.load_model(chat), by_hand, layers=(1, 2))
    found = lrt.AffineMap.load(tmp_path / "map")
    torch.testing.assert_close(found.weight, wanted.weight)
    assert found.report.harvest["special_dropped"] == len(texts)


def test_the_target_layer_is_chosen_on_prompts_that_nothing_else_uses(
    bridges: tuple[Any, Any], files: dict[str, Path], tmp_path: Path
) -> None:
    tasks = [(files["contrast"], files["behavior"])]
    run = lrt.transfer(*bridges, files["documents"], tasks, layers=(1, (1, 2)), random_weights=False, **FEW)  # type: ignore[arg-type]
    choosing, scoring = lrt.read_behavior(files["behavior"]).split(0)
    assert run.behaviors[0].result.prompts == scoring.prompts
    choice = run.layer_choice
    assert choice is not None
    assert choice.hook_names == tuple(f"blocks.{layer}.hook_resid_post" for layer in (1, 2))
    assert run.affine_map.target.hook_name == choice.hook_names[choice.chosen]
    exclude, slopes = lrt.texts_of(*tasks[0]), []
    for layer in (1, 2):
        affine_map = lrt.fit_affine_map(*bridges, files["documents"], layers=(1, layer), exclude=exclude)
        carried = affine_map.transport(lrt.mean_difference(bridges[0], files["contrast"], layer=1))
        native = lrt.mean_difference(bridges[1], files["contrast"], layer=layer)
        slopes.append(lrt.evaluate_transfer(bridges[1], carried, choosing, native=native, **FEW).slope("transferred"))  # type: ignore[arg-type]
    assert list(choice.transferred[choosing.name]) == pytest.approx(slopes, rel=1e-3, abs=1e-6)
    assert "baselines" in run.behaviors[0].result.missing
    summary = json.loads((run.save(tmp_path / "run") / "summary.json").read_text())
    assert summary["layer_choice"]["chosen"] == run.affine_map.target.hook_name
    assert "was chosen on prompts that nothing else uses" in (tmp_path / "run/report.html").read_text(encoding="utf-8")


def test_all_evidence_is_there(run: lrt.TransferRun) -> None:
    found = run.behaviors[0]
    assert all(part is not None for name, part in found.evidence().items() if name != "capability")
    assert {"random", "shuffled_map", "random_map", "mean_activation", "padded"} <= set(found.result.controls)
    assert set(found.result.missing) <= {"unrelated"}
    assert found.result.baselines["random_weights"].shape[0] == 1
    assert found.decision is not None
    assert found.decision.verdict == "no-go" or found.result.recovery.reason is None


def test_a_source_that_cannot_be_made_anew_is_named_as_missing(
    bridges: tuple[Any, Any], files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("quantized")

    monkeypatch.setattr("lrt_tl.models.reinitialized._bridge", refuse)
    tasks = [(files["contrast"], files["behavior"])]
    result = lrt.transfer(*bridges, files["documents"], tasks, layers=(1, 2), **FEW).behaviors[0].result  # type: ignore[arg-type]
    assert result.missing["baselines"] == "small cannot be made anew with random weights: quantized"
    assert not result.baselines


def test_questions_say_what_steering_does_to_ability(
    bridges: tuple[Any, Any], files: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"question": "word1 word2", "choices": ["word3", "word4"], "answer": place} for place in (0, 1)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tasks, questions = [(files["contrast"], files["behavior"])], tmp_path / "questions.jsonl"
    options: dict[str, Any] = {"layers": (1, 2), "random_weights": False, **FEW}
    measured = lrt.transfer(*bridges, files["documents"], tasks, questions=questions, **options).behaviors[0].capability
    assert measured is not None
    assert measured.n_questions == 2
    assert measured.accuracy("plain").estimate == 0.5  # one question, with either answer
    (tmp_path / "bad.jsonl").write_text('{"question": "word1"}')
    with pytest.raises(lrt.LrtError, match=r"bad\.jsonl"):
        lrt.transfer(*bridges, files["documents"], tasks, questions=tmp_path / "bad.jsonl", **options)


def test_the_command_line_searches_layers(
    folders: tuple[Path, Path],
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--source", folders[0], "--target", folders[1], "--documents", files["documents"], "--nulls", 2)
    assert command(monkeypatch, "search", *options, "--out", tmp_path / "search.html") == 0
    shown = capsys.readouterr().out
    assert "R² on test documents, of" in shown
    assert "best pair" in shown
    assert "plotly" in (tmp_path / "search.html").read_text(encoding="utf-8")


def test_a_transfer_from_several_layers_saves_a_vector_of_each(
    bridges: tuple[Any, Any], files: dict[str, Path], tmp_path: Path
) -> None:
    tasks = [(files["contrast"], files["behavior"])]
    options: dict[str, Any] = {"layers": ((0, 1), 2), "method": "whitened", **FEW}
    run = lrt.transfer(*bridges, files["documents"], tasks, **options)
    assert run.affine_map.report.method == "whitened"
    out = run.save(tmp_path / "run")
    place = out / "vectors" / "counting-up"
    assert {path.name for path in place.iterdir()} == {
        "source-0-resid_post",
        "source-1-resid_post",
        "transferred",
        "native",
    }
    vectors = [lrt.SteeringVector.load(place / f"source-{layer}-resid_post") for layer in (0, 1)]
    carried = lrt.AffineMap.load(out / "map").transport(vectors)
    torch.testing.assert_close(carried.direction, run.behaviors[0].transferred.direction)
    assert "From small L0 + L1 to large L2" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--layers": "0,,1:2"}, "give source and target layer"),
        ({"--layers": "0:1,"}, "or several source layers"),
        ({"--out": "."}, "exists already"),
        ({"--layers": "2"}, "give source and target layer"),
        ({"--layers": "1:9"}, "layer 9 is out of range: large has layers 0 to 3"),
        ({"--layers": "blocks.1.hook_nothing:2"}, "not a point of the residual stream"),
        ({"--coefficients": "1,two"}, "not a list of numbers"),
        ({"--source": "./nowhere"}, "is not a folder"),
        ({"--documents": "documents.doc"}, "documents are read from"),
        ({"--position": "middle"}, "use mean, last, answer, a number, or JSON"),
    ],
)
def test_what_the_command_line_refuses(
    folders: tuple[Path, Path],
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    message: str,
) -> None:
    options = {"--source": folders[0], "--target": folders[1], "--documents": files["documents"], "--layers": "1:2"}
    options |= {"--contrast": files["contrast"], "--behavior": files["behavior"], "--out": tmp_path / "run"}
    options |= change  # type: ignore[arg-type]
    arguments = [part for option in options.items() for part in option]
    assert command(monkeypatch, "transfer", *arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert list(tmp_path.iterdir()) == []
