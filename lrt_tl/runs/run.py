"""What one transfer found: the map, the vectors, what they do, and the folder that holds it all."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.layer_search import LayerSearch
from lrt_tl.artifacts import new_folder, write_json, write_text
from lrt_tl.evaluation.capability import Capability
from lrt_tl.evaluation.decide import Decision
from lrt_tl.evaluation.forecast import Forecast
from lrt_tl.evaluation.layer_choice import LayerChoice
from lrt_tl.evaluation.off_target import OffTarget
from lrt_tl.evaluation.pareto import Pareto
from lrt_tl.evaluation.result import TransferResult
from lrt_tl.evaluation.side_effects import SideEffects
from lrt_tl.identifiability.verdict import Verdict
from lrt_tl.report.page import Answer
from lrt_tl.report.render import render
from lrt_tl.runs.answer import answer_of
from lrt_tl.runs.provenance import digest, versions
from lrt_tl.runs.summary import SUMMARY_VERSION, check_summary
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.tables import html_columns


@dataclass(frozen=True, eq=False)
class BehaviorTransfer:
    """One behavior's vectors, in the source, carried over, and found in the target itself, and what they do.

    What was not measured is None. Each part that was has `to_json()`, `rows()` or `table()`, and perhaps `figure()`.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model, behavior = storyworld.load("small"), storyworld.behavior("refusal", 8)
        >>> vector = lrt.mean_difference(model, storyworld.contrast_pairs("refusal", 8), layer=2, position="last")
        >>> result = lrt.evaluate_transfer(model, vector, behavior, native=vector, coefficients=(-0.5, 0.0, 0.5))
        >>> lrt.BehaviorTransfer((vector,), vector, vector, result, [], 0.5)
        BehaviorTransfer(refusal: recovery 1.00 [1.00, 1.00])
    """

    source_vectors: tuple[SteeringVector, ...]
    """One at each site that the map begins at."""
    transferred: SteeringVector
    native: SteeringVector
    result: TransferResult
    samples: list[dict[str, str]]
    sample_coefficient: float
    side_effects: SideEffects | None = None
    pareto: Pareto | None = None
    """Effect against KL, of native and transferred."""
    capability: Capability | None = None
    forecast: Forecast | None = None
    """Made before the target was steered."""
    decision: Decision | None = None

    def __repr__(self) -> str:
        verdict = "" if self.decision is None else f", {self.decision.verdict}"
        return f"BehaviorTransfer({self.result.behavior}: recovery {self.result.recovery}{verdict})"

    def _repr_html_(self) -> str:
        return self.result._repr_html_()

    def evidence(self) -> dict[str, Any]:
        """The parts beside the result, by name."""
        names = ("side_effects", "pareto", "capability", "forecast", "decision")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, eq=False)
class TransferRun:
    """Everything that one `transfer` found.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> source, target, documents = storyworld.load("medium"), storyworld.load("small"), storyworld.documents(60)
        >>> tasks = [(storyworld.contrast_pairs("refusal", 8), storyworld.behavior("refusal", 2))]
        >>> options = {"n_draws": 19, "random_weights": False, "questions": storyworld.fact_questions(4)}
        >>> run = lrt.transfer(source, target, documents, tasks, layers=(3, 2), **options)
        >>> run.answer().verdict
        'refusal: no-go'
        >>> with TemporaryDirectory() as folder:
        ...     sorted(path.name for path in run.save(Path(folder) / "run").iterdir())
        ['card.md', 'map', 'report.html', 'summary.json', 'vectors']
    """

    affine_map: AffineMap
    behaviors: list[BehaviorTransfer]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    off_target: OffTarget | None = None
    """What each vector does to the other behaviors."""
    search: LayerSearch | None = None
    comparison: Verdict | None = None
    """What the two models share as predictors, where they were compared."""
    layer_choice: LayerChoice | None = None
    """Where the target's layer was chosen: the effects at each, on prompts on which nothing else was measured."""
    data: Mapping[str, str] = field(default_factory=dict)
    """`digest` of what was read, by name, such as the documents. Prompts and contrast pairs are added."""

    @property
    def target_name(self) -> str:
        """Of the target model."""
        model = self.affine_map.target.model
        return "the target" if model is None else model.name

    def answer(self) -> Answer:
        """The answer in one sentence, and one number."""
        decided = {b.result.behavior: b.decision.verdict for b in self.behaviors if b.decision is not None}
        return answer_of([behavior.result for behavior in self.behaviors], self.target_name, decided)

    def digests(self) -> dict[str, str]:
        """What the texts that went into the run are recognized by."""
        found = dict(self.data)
        for behavior in self.behaviors:
            found[f"prompts of {behavior.result.behavior}"] = digest(behavior.result.prompts)
            if "data" in behavior.native.provenance:
                found[f"contrast pairs of {behavior.result.behavior}"] = str(behavior.native.provenance["data"])
        return found

    def summary(self) -> dict[str, Any]:
        """All figures, ready for JSON: `summary.schema.json` says what each key holds."""
        first, answer = self.behaviors[0].result, self.answer()
        return {
            "format_version": SUMMARY_VERSION,
            "answer": {name: getattr(answer, name) for name in ("sentence", "number", "interval", "verdict")},
            "versions": versions(),
            "arguments": dict(self.arguments),
            "data": self.digests(),
            "sources": [site.to_json() for site in self.affine_map.sources],
            "target": self.affine_map.target.to_json(),
            "map": self.affine_map.report.to_json(),
            "vector": {"cosine_with_native": first.cosine_with_native, "norm_over_native": first.norm_over_native},
            "behaviors": [{**b.result.summary(), **_as_json(b.evidence())} for b in self.behaviors],
            **_as_json({"off_target": self.off_target, "search": self.search, "layer_choice": self.layer_choice}),
            **_as_json({"comparison": self.comparison}),
        }

    def save(self, out: str | Path) -> Path:
        """Write `map/`, `vectors/BEHAVIOR/{source,transferred,native}/`, `summary.json`, `report.html` and `card.md` to
        a new folder.

        Raises:
            ArtifactError: the folder exists, or a figure of the summary is NaN or infinite.
        """
        from lrt_tl.runs.card import card_of

        with new_folder(out) as folder:
            self.affine_map.save(folder / "map")
            for behavior in self.behaviors:
                place = folder / "vectors" / folder_name(behavior.result.behavior)
                for vector in behavior.source_vectors:
                    many = len(behavior.source_vectors) > 1
                    _, layer, point = vector.site.hook_name.split(".")
                    vector.save(place / (f"source-{layer}-{point.removeprefix('hook_')}" if many else "source"))
                behavior.transferred.save(place / "transferred")
                behavior.native.save(place / "native")
            write_json(folder / "summary.json", check_summary(self.summary()))
            write_text(folder / "report.html", self.report())
            write_text(folder / "card.md", card_of(self))
        return Path(out)

    def report(self) -> str:
        """The run as a page of HTML."""
        from lrt_tl.runs.sections import page_of

        return render(page_of(self))

    def __repr__(self) -> str:
        return f"TransferRun({self.affine_map!r}; {'; '.join(repr(b.result) for b in self.behaviors)})"

    def _repr_html_(self) -> str:
        from lrt_tl.runs.sections import recovery_rows

        return html_columns(recovery_rows(self))


def folder_name(behavior: str) -> str:
    """A behavior's name as the name of a folder: letters, digits, `-` and `_` only, and no more than 200 of them. A
    name that has none of these becomes a digest of it."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", behavior).strip("-")[:200] or f"behavior-{digest([behavior])[7:15]}"


def _as_json(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if part is None else part.to_json() for name, part in parts.items()}
