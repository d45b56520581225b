"""Tutorial 7 and its script need a large GPU and a licence: here all their calls run on tiny Gemma-2 models."""

import json
import random
import re
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config

import lrt_tl as lrt
from lrt_tl.models.loading import load_model
from tests.checkpoints import WORDS, save_checkpoint, save_tokenizer

# what random weights carry may lie where their states do not vary, of which the map warns
pytestmark = pytest.mark.filterwarnings("ignore:only .* of the vector lies in directions:UserWarning")

TUTORIALS = Path(__file__).parents[1] / "tutorials"
NOTEBOOK = TUTORIALS / "7_gemma_2b_to_9b.ipynb"
VOCABULARY = [*WORDS, "<start_of_turn>", "<end_of_turn>", "user", "model", "(", ")", "A", "B", "Yes", "No", ":", "?"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message.role }}\n"
    "{{ message.content }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LAYER, LAYERS = 2, (1, 2)
TASKS = ("myopic-reward", "narcissism")
"""One of options (A) and (B), one of Yes and No."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of 3 and of 4 blocks, 16 and 24 wide, with soft caps, and a chat template."""
    root, found = tmp_path_factory.mktemp("gemma"), []
    for seed, (name, width, layers) in enumerate((("small", 16, 3), ("large", 24, 4))):
        config = Gemma2Config(
            vocab_size=128, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, head_dim=8,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=1024, sliding_window=16,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        folder = save_checkpoint(config, root / name, seed=seed)
        save_tokenizer(folder, VOCABULARY)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder)
        found.append(folder)
    return found[0], found[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, chats, two tasks and requests, in random words."""
    folder, numbers = tmp_path_factory.mktemp("data"), random.Random(0)

    def words(least: int, most: int) -> str:
        return " ".join(numbers.choices(WORDS[3:], k=numbers.randint(least, most)))

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    write("documents.jsonl", [{"text": words(8, 30)} for _ in range(260)])
    roles = ("user", "assistant")
    write(
        "chats.jsonl",
        [{"messages": [{"role": role, "content": words(4, 12)} for role in roles]} for _ in range(100)],
    )
    for name in ("harmful", "harmless"):
        write(f"refusal/{name}.jsonl", [{"text": words(5, 9)} for _ in range(24)])
    letters = [(" (A)", " (B)"), (" (B)", " (A)")]
    asked = [f"{words(4, 8)} ? \n\nChoices:\n (A) {words(2, 4)}\n (B) {words(2, 4)}" for _ in range(24)]
    said = [f"{words(6, 10)} ?" for _ in range(24)]
    for name, questions, answers in (
        (TASKS[0], asked, letters),
        (TASKS[1], said, [(" Yes", " No"), (" No", " Yes")]),
    ):
        rows = [(question, *answers[number % 2]) for number, question in enumerate(questions)]
        keys = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
        write(f"tasks/{name}.jsonl", [dict(zip(keys, row, strict=True)) for row in rows])
    return folder


def arguments(models: tuple[Path, Path], data: Path, out: Path, **changed: Any) -> list[str]:
    pair = [str(model) for model in models]
    given: dict[str, Any] = {
        "models": pair, "chat-models": pair, "documents": data / "documents.jsonl", "chats": data / "chats.jsonl",
        "tasks": data / "tasks", "refusal": data / "refusal", "answers": ["word3 word4", "word5"],
        "layers": f"{LAYER}:{LAYERS[0]},{LAYERS[1]}", "out": out, "tokens": 4000, "pairs": 12, "prompts": 6,
        "draws": 19, "device": "cpu", "dtype": "float32",
    } | changed  # fmt: skip
    words: list[str] = []
    for name, value in given.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def run_script(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, Any]]:
    """What it prints, and the last line of that as JSON."""
    runpy.run_path(str(TUTORIALS / "gemma_section_4.py"))["main"](argv)
    printed = capsys.readouterr().out
    return printed, json.loads(printed.splitlines()[-1])


def memory_of(models: tuple[Path, Path]) -> int:
    """Bytes of all matrices, those of the small model twice, and of seven sums of products for two maps."""
    small, large = (
        sum(weight.numel() for weight in AutoModelForCausalLM.from_pretrained(folder).parameters() if weight.ndim == 2)
        for folder in models
    )
    return 4 * (2 * small + large) + 7 * 8 * (16 * 16 + 2 * (16 * 24 + 24 * 24))


def steered_scores(model: Any, vector: lrt.SteeringVector, coefficient: float, file: Path) -> torch.Tensor:
    """Logit of the matching answer minus that of the other, of all questions of yes and no: a hook, and no more."""

    def add(states: torch.Tensor, hook: Any) -> torch.Tensor:
        return states + coefficient * vector.direction

    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    scores = []
    for row in rows[:6]:
        tokens = torch.tensor([[1, *model.tokenizer(row["question"], add_special_tokens=False).input_ids]])
        logits = model.run_with_hooks(tokens, fwd_hooks=[(vector.site.hook_name, add)])[0, -1]
        answers = [
            model.tokenizer(row[f"answer_{kind}_behavior"], add_special_tokens=False).input_ids[0]
            for kind in ("matching", "not_matching")
        ]
        scores.append(logits[answers[0]] - logits[answers[1]])
    return torch.stack(scores).detach().double()


def test_the_script_from_the_first_run_to_the_last(
    models: tuple[Path, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    printed, last = run_script(arguments(models, data, out), capsys)

    assert printed.count("At least") == 4  # memory and time, of either pair of models
    assert float(re.findall(r"At least (\S+) GB", printed)[0]) * 1e9 == pytest.approx(memory_of(models), rel=5e-3)
    expected = [(f"{LAYER}:{layer}", name) for layer in LAYERS for name in TASKS]
    expected += [(f"{LAYER}:{layer}", "refusal") for layer in LAYERS]
    assert [(row["layers"], row["task"]) for row in last["rows"]] == expected
    table = (out / "table.md").read_text(encoding="utf-8")
    assert table in printed
    assert len(table.splitlines()) == 2 + len(expected)
    for row in last["rows"]:
        folder = out / row["layers"].replace(":", "-") / row["task"]
        assert (folder / "report.html").is_file()
        found = lrt.read_run(folder).summary["behaviors"][0]
        nulls = {"random", "shuffled_map", "random_map", "mean_activation", "padded"}
        assert {f"{name}_slope" for name in nulls} <= set(found)
        assert all({"r", "r_random", "r_random_high"} <= set(each) for each in found["agreement"])
        assert -1 <= row["r_random"] <= row["r_random_q95"] <= 1
        assert row["prompts_moved_wrong_way"] >= 0
    of_tasks = last["r_of_tasks"]
    assert of_tasks["paper_20:20"] == {"mean": pytest.approx(0.884, abs=5e-4), "least": 0.728, "most": 0.981}
    # These models have random weights and nothing to share, and yet r is what the paper calls agreement.
    assert all(of_tasks[f"{LAYER}:{layer}"]["r"] > 0.884 for layer in LAYERS)
    assert all(of_tasks[f"{LAYER}:{layer}"]["r_random"] > 0.884 for layer in LAYERS)

    # r again, from the vectors that were saved and nothing else of ours
    folder, target = out / f"{LAYER}-{LAYERS[0]}" / TASKS[1], load_model(models[1])
    native, carried = (
        lrt.SteeringVector.load(folder / "vectors" / TASKS[1] / kind) for kind in ("native", "transferred")
    )
    pairs = [
        torch.stack([steered_scores(target, vector, c, data / "tasks" / f"{TASKS[1]}.jsonl") for vector in equal])
        for equal in ((native, carried.scaled_to(native.norm)),)
        for c in (-1.5, -1.0, -0.5, 0.5, 1.0, 1.5)
    ]
    r = sum(float(torch.corrcoef(pair)[0, 1]) for pair in pairs) / len(pairs)
    assert last["rows"][1]["r"] == pytest.approx(r, abs=1e-4)

    # a second run makes what is missing, and a third nothing
    shutil.rmtree(folder)
    again, found = run_script(arguments(models, data, out), capsys)
    assert re.findall(r"^layer .*", again, re.MULTILINE) == [
        f"layer {LAYER} → {LAYERS[0]}, {TASKS[1]} (2 of {len(TASKS)})"
    ]
    assert found == last
    again, found = run_script(arguments(models, data, out), capsys)
    assert "layer" not in again.splitlines()[0]
    assert "At least" not in again
    assert found == last
    with pytest.raises(SystemExit, match="other arguments"):
        run_script(arguments(models, data, out, pairs=11), capsys)


def test_to_itself_a_model_carries_everything(
    models: tuple[Path, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The map from a layer to itself is the identity, so r is 1 at any strength: in bfloat16, but for its rounding."""
    argv = arguments(
        (models[0], models[0]), data, tmp_path / "out", refusal=None, chats=None, layers="1:1", dtype="bfloat16"
    )
    _, last = run_script(argv, capsys)
    for row in last["rows"]:
        assert row["map_r2"] == pytest.approx(1, abs=1e-4)
        assert row["r"] == pytest.approx(1, abs=1e-3)
        assert row["r_random"] < row["r"]
        assert row["kl_over_native"] == pytest.approx(1, abs=1e-2)
        found = lrt.read_run(tmp_path / "out" / "1-1" / row["task"]).summary["behaviors"][0]
        assert found["transferred_slope"] == pytest.approx(found["native_slope"], rel=5e-2)


def test_the_script_refuses_what_it_cannot_do(
    models: tuple[Path, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_script(arguments(models, data, tmp_path / "out", chats=None), capsys)
    assert "--chats" in capsys.readouterr().err


def cells(kind: str) -> list[dict[str, Any]]:
    read = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in read if cell["cell_type"] == kind]


def code() -> Iterator[str]:
    """Of all cells but the one that installs; then of the solutions."""
    yield from (cell["source"] for cell in cells("code") if "%pip" not in cell["source"])
    for cell in cells("markdown"):
        yield from re.findall(r"<summary>Solution</summary>\n\n```python\n(.*?)^```", cell["source"], re.DOTALL | re.M)


def test_the_notebook_has_no_outputs_and_says_so_at_its_top() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells("code"))
    paragraphs = cells("markdown")[0]["source"].split("\n\n")
    assert paragraphs[2].startswith("**The question.**")
    said = paragraphs[3]
    assert said.startswith("**")
    assert said.endswith("**")
    assert all(words in said for words in ("without outputs", "has not been run", "GPU", "licence"))


def test_the_notebook_runs(
    models: tuple[Path, Path], data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On tiny models, with the cell of settings replaced as a whole."""
    monkeypatch.chdir(data)
    pair = tuple(map(str, models))
    settings = {
        "SOURCE": pair[0], "TARGET": pair[1], "CHAT_SOURCE": pair[0], "CHAT_TARGET": pair[1],
        "LAYER": LAYER, "LAYERS": LAYERS, "LOADING": {"device": "cpu", "dtype": torch.float32},
        "DOCUMENTS": "documents.jsonl", "CHATS": "chats.jsonl", "TASKS": Path("tasks"), "REFUSAL": Path("refusal"),
        "REFUSED": "word3 word4", "ANSWERED": "word5", "TOKENS": 4000, "PAIRS": 12, "PROMPTS": 6, "DRAWS": 19,
    }  # fmt: skip
    names = {"__name__": "__main__"}
    replaced = 0
    was_enabled = torch.is_grad_enabled()
    try:
        for text in code():
            if text.startswith("SOURCE, TARGET"):
                assert all(re.search(rf"\b{name}\b", text) for name in settings)
                names, replaced = names | settings, replaced + 1
            else:
                exec(compile(text, NOTEBOOK.name, "exec"), names)
    finally:
        torch.set_grad_enabled(was_enabled)
    assert replaced == 1
    printed = capsys.readouterr().out
    assert "0.884 on average, 0.728 to 0.981" in printed
    assert len(names["results"]) == len(TASKS) * len(LAYERS)
