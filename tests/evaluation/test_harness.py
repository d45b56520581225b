"""lm-eval's tasks, from disk, against our own accuracy and the model's own log-probabilities."""

import json
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.capability import ChoiceQuestion, capability
from lrt_tl.evaluation.harness import HarnessResult, Metric, _as_lm, _metrics, _written, lm_eval_tasks
from lrt_tl.models.identity import site_of
from lrt_tl.steering.vector import SteeringVector

needs_lm_eval = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")

QUESTIONS = [
    ChoiceQuestion(f"word{i} word{i + 1}", tuple(f"word{j} word{j + 2}" for j in range(i % 5, i % 5 + 4)), i % 4)
    for i in range(24)
]
CHOICES = """
task: local_choices
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/questions.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
PERPLEXITY = """
task: local_text
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/questions.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}]
"""
GENERATION = """
task: local_answers
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/questions.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["word3"], max_gen_toks: 5, do_sample: false}
metric_list: [{metric: exact_match}]
"""


def steering(model: Any) -> Any:
    direction = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(3))
    return SteeringVector(direction, site_of(model, layer=1)).add(3.0)


@pytest.fixture
def task_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "questions.jsonl").write_text("\n".join(json.dumps(vars(question)) for question in QUESTIONS))
    for name, task in (("choices", CHOICES), ("text", PERPLEXITY), ("answers", GENERATION)):
        (tmp_path / f"{name}.yaml").write_text(task.replace("FOLDER", str(tmp_path)))
    return tmp_path


@needs_lm_eval
def test_accuracy_is_ours_plain_and_steered(bridges: Any, task_folder: Path) -> None:
    model, arms = bridges[1], {"native": steering(bridges[1])}
    expected = capability(model, arms, QUESTIONS)
    assert expected.acc["plain"].tolist() != expected.acc["native"].tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lm-eval's own dependencies
        found = lm_eval_tasks(model, arms, ["local_choices", "local_text", "local_answers"], task_folder=task_folder)
    for name in ("plain", "native"):
        metrics = found.metrics[name]["local_choices"]
        assert metrics["acc"].value == pytest.approx(expected.accuracy(name).estimate)
        assert metrics["acc_norm"].value == pytest.approx(expected.accuracy(name, normalized=True).estimate)
        assert metrics["acc"].stderr is not None
    plain, native = (found.metrics[name]["local_text"]["word_perplexity"].value for name in ("plain", "native"))
    assert plain == pytest.approx(perplexity(model), rel=1e-3)
    assert abs(plain - native) > 1e-3 * plain
    assert set(found.to_json()) == {"plain", "native"}


@torch.no_grad()
def perplexity(model: Any) -> float:
    """Of the questions, a word."""
    loss = 0.0
    for question in QUESTIONS:
        ids = torch.tensor([[1, *model.tokenizer(question.question, add_special_tokens=False)["input_ids"]]])
        loss -= float(model(ids)[0, :-1].double().log_softmax(-1).gather(-1, ids[0, 1:, None]).sum())
    return float(torch.tensor(loss / sum(len(question.question.split()) for question in QUESTIONS)).exp())


@needs_lm_eval
@torch.no_grad()
def test_a_long_text_is_read_in_windows_and_each_token_once(bridges: Any) -> None:
    from lm_eval.api.instance import Instance

    model = bridges[1]
    text = " ".join(f"word{i % 40}" for i in range(100))  # the model reads 64
    found = _as_lm(model, 8, True).loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    ids = [1, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
    first = model(torch.tensor([ids[:64]]))[0].double().log_softmax(-1)
    last = model(torch.tensor([ids[-65:-1]]))[0].double().log_softmax(-1)
    expected = sum(float(first[i, ids[i + 1]]) for i in range(64))
    expected += sum(float(last[i, ids[-64 + i]]) for i in range(64 - 36, 64))
    assert found == pytest.approx([expected], rel=1e-4)


def test_what_is_written_is_greedy_and_ends_where_it_should(bridges: Any) -> None:
    model = bridges[1]
    ids = [1, *model.tokenizer("word1 word2", add_special_tokens=False)["input_ids"]]
    tokens = list(ids)
    with torch.no_grad():
        for _ in range(5):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    said = _written(model, ids, max_gen_toks=5)
    assert said.split() == model.tokenizer.decode(tokens[3:], skip_special_tokens=True).split()
    word = said.split()[-1]
    assert _written(model, ids, max_gen_toks=5, until=[word, "none"]) == said.split(word)[0]
    with pytest.raises(LrtError, match="asks to generate with top_p"):
        _written(model, ids, top_p=0.9)


def test_its_results_are_read() -> None:
    found = _metrics({"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.1, "em,strict": 1, "em_stderr,strict": "N/A"})
    assert found == {"acc": Metric(0.5, 0.1), "em,strict": Metric(1.0, None)}
    result = HarnessResult({"plain": {"<task>": found}, "native": {"<task>": found}})
    assert result.rows()[0] == {"task": "<task>", "metric": "acc", "plain": "0.5 ± 0.1", "native": "0.5 ± 0.1"}
    assert "&lt;task&gt;" in result._repr_html_()
    assert repr(result) == "HarnessResult(<task>; plain, native)"


def test_without_it_the_error_says_what_to_install(bridges: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(LrtError, match=r"pip install 'lrt-tl\[evals\]'"):
        lm_eval_tasks(bridges[1], {}, ["hellaswag"])
    with pytest.raises(LrtError, match="cannot be named 'plain'"):
        lm_eval_tasks(bridges[1], {"plain": steering(bridges[1])}, ["hellaswag"])


@needs_lm_eval
def test_an_unknown_task_is_refused(bridges: Any) -> None:
    with pytest.raises(LrtError, match="lm-eval has no task no_such_task"):
        lm_eval_tasks(bridges[1], {}, ["no_such_task"])
