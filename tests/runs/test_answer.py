"""The answer in words and as a number."""

import pytest

from lrt_tl.evaluation.recovery import Recovery
from lrt_tl.runs.answer import answer_of, headline
from tests.runs.synthetic import a_result

NONE = Recovery(None, None, None, "the native slope is low")


@pytest.mark.parametrize(
    ("recovery", "said"),
    [
        (Recovery(0.5, 0.4, 0.6), "has 50 % [40, 60] of the effect of large's own vector"),
        (NONE, "no recovery can be stated on large, for the native slope is low"),
    ],
)
def test_the_headline(recovery: Recovery, said: str) -> None:
    assert said in headline(a_result(recovery=recovery), "large")


def test_one_behavior_is_its_headline() -> None:
    result = a_result()
    answer = answer_of([result], "large", {"mood": "go"})
    assert answer.sentence == headline(result, "large")
    assert (answer.number, answer.interval, answer.verdict) == (0.5, (0.4, 0.6), "mood: go")


def test_of_several_it_is_the_one_that_kept_least() -> None:
    results = [a_result("a", Recovery(0.9, 0.8, 1.0)), a_result("b", Recovery(-0.1, -0.2, 0.1)), a_result("c", NONE)]
    answer = answer_of(results, "large", {})
    assert (answer.number, answer.interval, answer.verdict) == (-0.1, (-0.2, 0.1), "")
    assert "kept least, b, has -10 % [-20, 10]" in answer.sentence
    assert "No recovery can be stated for c." in answer.sentence


def test_where_there_is_none_the_reason_is_the_answer() -> None:
    answer = answer_of([a_result("a", NONE), a_result("b", NONE)], "large", {})
    assert (answer.number, answer.interval) == (None, None)
    assert answer.sentence.count("the native slope is low") == 2
