"""The card: metadata that the hub reads, and text in which names stay names."""

import re

import pytest
import yaml
from huggingface_hub import ModelCard

from lrt_tl.evaluation.recovery import Recovery
from lrt_tl.runs.card import card_of
from tests.report.hostile import HOSTILE, LONG
from tests.runs.synthetic import a_result, a_run


def test_the_metadata_say_what_was_measured() -> None:
    runs = [a_result("mood"), a_result("tense", Recovery(None, None, None, "why"))]
    data = ModelCard(card_of(a_run(runs))).data
    assert (data.library_name, data.base_model) == ("lrt_tl", ["small", "large"])
    (only,) = data.eval_results
    assert (only.dataset_name, only.metric_type, only.metric_value) == ("mood", "recovery", 0.5)


def test_every_behavior_has_a_result_of_its_own() -> None:
    runs = [a_result("mood"), a_result("tense", Recovery(0.25, 0.2, 0.3))]
    found = ModelCard(card_of(a_run(runs))).data.eval_results
    assert {(each.dataset_name, each.metric_value) for each in found} == {("mood", 0.5), ("tense", 0.25)}


def test_the_text_says_what_a_stranger_has_to_know() -> None:
    text = card_of(a_run(arguments={"command": "lrt-tl transfer --seed 3"}))
    parts = [
        "50 % \\[40, 60\\]",
        "nothing was decided",
        "random (20)",
        "## Limits",
        "vectors/mood/transferred",
        "```sh\nlrt-tl transfer --seed 3\n```",
        "torch ",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "name", [HOSTILE, LONG, "](javascript:alert(1))\n---\nlicense: mine", "# a\n\n- b: [c](d)", "`| x"]
)
def test_names_of_an_attacker_stay_names(name: str) -> None:
    calm = card_of(a_run([a_result("calm")], models=("calm", "calm")))
    text = card_of(a_run([a_result(name)], models=(name, name), arguments={"command": f"```\n{name}"}))
    text.encode("utf-8")
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    assert "license" not in yaml.safe_load(front)
    headings = [line for line in body.partition("## Reproduce")[0].splitlines() if line.startswith("#")]
    assert len(headings) == len(re.findall("^#", calm.partition("## Reproduce")[0], re.MULTILINE))
    unescaped = re.sub(r"\\.", "", body.partition("## Reproduce")[0])
    assert "](" not in unescaped.replace("import lrt_tl", "")
    assert "<script" not in unescaped
    assert len(text) < len(calm) + 40_000
    assert "````" in body.partition("## Reproduce")[2]
