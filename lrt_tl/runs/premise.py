"""The sections of a report on two models as predictors of the next token, and what theory says they share."""

from collections.abc import Iterator

from lrt_tl.evaluation.middle import worth_in_the_middle
from lrt_tl.identifiability.equality import ENOUGH, documents_needed
from lrt_tl.identifiability.figures import direction_figure, distance_figure, spectrum_figure
from lrt_tl.identifiability.verdict import Verdict
from lrt_tl.report.page import Block, Figure, Note, Section, Table

_PREMISE = (
    "Two predictors are called one distribution only if their mean distance is shown to be under ε, every canonical "
    "direction of either is linear in the other on contexts and tokens that were held out, and contexts and tokens are "
    "turned alike. That no difference was found would be no evidence."
)
_EQUIVALENCE = (
    "The theorem is about what the unembedding reads, where the distribution depends on it. A model that is near in "
    "distribution can have single directions that are lost, while R² of all together stays high: the worst one counts. "
    "Where the effective dimensions differ the two cannot be one distribution, and the larger cannot be had from the "
    "smaller: its worst direction is 0, and the duality's residual may be large."
)
_PROPERTIES = (
    "1 is what holds exactly, 0 what does not hold; a score has to be above its null. Effective: measured on "
    "log-ratios, which the distribution fixes; raw: on the representations as they are. Shared is said only where the "
    "premise holds; 'holds in' is what the figures say by themselves."
)
_STEERING = (
    "A vector between the means of two sets of texts, at the last state of a model, moves every log-ratio by a fixed "
    "amount. Carried to the other model it should do the same there. 0: it does. 1: it is no better than no vector."
)


def premise_sections(verdict: Verdict) -> list[Section]:
    """What a report says of two models as predictors of the next token."""
    found = [
        Section("Are they one distribution?", list(_distribution(verdict)), _PREMISE),
        Section("Where are they linearly the same?", list(_equivalence(verdict)), _EQUIVALENCE),
        Section("Which linear properties do they have?", list(_properties(verdict)), _PROPERTIES),
        Section("Steering at the output", list(_steering(verdict)), _STEERING),
        Section("What this says of the middle", [Note(_middle())]),
        Section("What was left out", list(_left_out(verdict))),
    ]
    return [section for section in found if section.blocks]


def _distribution(verdict: Verdict) -> Iterator[Block]:
    yield Figure(distance_figure(verdict))
    yield Table(verdict.equality.summary(), "Equality")
    yield Table(verdict.distances.summary(), "Distances, mean over contexts; nats where they are divergences")
    needed = documents_needed(verdict.distances, verdict.equality.epsilon, measure=verdict.equality.measure)
    yield Note(
        f"By the scatter here about {needed} documents would find them equal in four of five tests, to an order of "
        f"magnitude; under {ENOUGH} the bound is not to be relied on."
        if needed is not None
        else "The mean distance is not under ε: no number of documents would find them equal."
    )
    if verdict.against:
        yield Table([{"against the premise": each} for each in verdict.against])


def _equivalence(verdict: Verdict) -> Iterator[Block]:
    yield Figure(direction_figure(verdict))
    there, back = (each.summary() for each in verdict.equivalences)
    yield Table([{"": name, "first from second": there[name], "second from first": back[name]} for name in there])
    yield Figure(spectrum_figure(verdict))
    first, second = (found.summary() for found in verdict.equivalences[0].subspaces)
    yield Table([{"": name, "first": first[name], "second": second[name]} for name in first], "Subspaces")


def _properties(verdict: Verdict) -> Iterator[Block]:
    if verdict.properties:
        first, second = verdict.names
        yield Figure(verdict.figure(), f"First: {first}; second: {second}. Raw scores: choose them in the legend.")
        yield Table(verdict.rows())


def _steering(verdict: Verdict) -> Iterator[Block]:
    if verdict.steering_mismatch:
        yield Table(
            [
                {"vector": name, "first to second": f"{there:.3f}", "second to first": f"{back:.3f}"}
                for name, (there, back) in verdict.steering_mismatch.items()
            ],
            "Mismatch of what a carried vector does, over all tokens",
        )


def _middle() -> str:
    """How recovery between middle layers, of which the theorem says nothing, went along with these distances."""
    worth = worth_in_the_middle(trained_apart=True)

    def said(name: str) -> str:
        return worth[name].shown()

    return (
        "The theorem is about the last state alone. Whether vectors carried between middle layers recover their effect "
        f"was measured: over {worth['kl'].n_pairs} pairs of small models that were trained apart, recovery had a rank "
        f"correlation of {said('kl')} with the KL divergence, {said('context_r2_back')} with R² of the target's "
        f"contexts from the source's, {said('context_worst_r2')} with that of the worst direction, and "
        f"{said('duality_residual')} with the duality's residual. Better is what a forecast reads off the middle "
        f"itself: the cosine that the map predicts, {said('predicted_cosine')}, and the loss that the target keeps on "
        f"mapped states, {said('stitched')} (benchmarks/middle.py)."
    )


def _left_out(verdict: Verdict) -> Iterator[Block]:
    for note in verdict.notes:
        yield Note(note)
    if verdict.missing:
        yield Table(dict(verdict.missing), "Not measured")
