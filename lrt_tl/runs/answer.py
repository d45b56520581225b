"""The answer in one sentence, and one number."""

from collections.abc import Mapping, Sequence

from lrt_tl.evaluation.recovery import Recovery
from lrt_tl.evaluation.result import TransferResult
from lrt_tl.report.page import Answer
from lrt_tl.report.text import shown_name


def headline(result: TransferResult, target: str) -> str:
    """What came of one behavior, in one sentence."""
    name, found = shown_name(result.behavior), result.recovery
    if found.estimate is None:
        return f"{name}: no recovery can be stated on {shown_name(target)}, for {found.reason}."
    return (
        f"{name}: the transferred vector has {_percent(found)} of the effect of {shown_name(target)}'s own vector, "
        "over that of random vectors of the same length."
    )


def answer_of(results: Sequence[TransferResult], target: str, verdicts: Mapping[str, str]) -> Answer:
    """The answer of a run. Of several behaviors it is the one that kept least: the others did at least as well.

    Args:
        verdicts: what was decided, by behavior, where anything was.
    """
    verdict = "; ".join(f"{shown_name(name)}: {each}" for name, each in verdicts.items())
    stated = {result.recovery.estimate: result for result in results if result.recovery.estimate is not None}
    if not stated:
        return Answer(" ".join(headline(result, target) for result in results), None, None, verdict)
    least = stated[min(stated)]
    found, name = least.recovery, shown_name(least.behavior)
    sentence = headline(least, target)
    if len(results) > 1:
        sentence = (
            f"{len(results)} vectors were carried to {shown_name(target)}; the one that kept least, {name}, has "
            f"{_percent(found)} of the effect of the target's own vector, over that of random vectors of the same "
            "length."
        )
    if none := [shown_name(result.behavior) for result in results if result.recovery.estimate is None]:
        sentence += f" No recovery can be stated for {', '.join(none)}."
    interval = None if found.low is None or found.high is None else (found.low, found.high)
    what = f"recovery of {name}: 0 is what random vectors do, 1 what the target's own vector does"
    return Answer(sentence, found.estimate, interval, verdict, what)


def _percent(found: Recovery) -> str:
    estimate, low, high = (round(100 * (value or 0)) for value in (found.estimate, found.low, found.high))
    return f"{estimate} % [{low}, {high}]"
