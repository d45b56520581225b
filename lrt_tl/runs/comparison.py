"""Two models compared, and the folder that holds what was found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrt_tl.artifacts import new_folder, write_json, write_text
from lrt_tl.identifiability.distribution import shown_measure
from lrt_tl.identifiability.verdict import Verdict
from lrt_tl.models.identity import ModelIdentity
from lrt_tl.report.page import Answer, Block, Code, Page, Section, Table
from lrt_tl.report.render import render
from lrt_tl.runs.premise import premise_sections
from lrt_tl.runs.provenance import call_of, model_rows, versions
from lrt_tl.runs.summary import COMPARISON_VERSION, check_summary


@dataclass(frozen=True, eq=False)
class ComparisonRun:
    """What two models share, and all that is needed to find it again.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> models, facts = map(storyworld.load, ("small", "medium")), storyworld.relation("capital-of").seen
        >>> options = {"relations": {"capital-of": facts[:40]}, "contrasts": {}, "n_contexts": 500}
        >>> run = lrt.compare(*models, storyworld.documents(20), **options)
        >>> run.answer().verdict
        'not shown to be one distribution'
        >>> with TemporaryDirectory() as folder:
        ...     sorted(path.name for path in run.save(Path(folder) / "run").iterdir())
        ['report.html', 'summary.json']
    """

    verdict: Verdict
    models: tuple[ModelIdentity, ModelIdentity]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    """`digest` of what was read, by name."""

    def answer(self) -> Answer:
        """The answer in one sentence, and one number."""
        found = self.verdict.equality
        upper = f"at most {found.upper:.3g} with 95 % confidence, against ε = {found.epsilon:g}"
        what = f"mean {shown_measure(found.measure)} from the first to the second; {upper}"
        verdict = "one distribution" if self.verdict.premise else "not shown to be one distribution"
        return Answer(self.verdict.sentence(), found.estimate, None, verdict, what)

    def summary(self) -> dict[str, Any]:
        """All figures, ready for JSON: `comparison.schema.json` says what each key holds."""
        answer = self.answer()
        return {
            "format_version": COMPARISON_VERSION,
            "kind": "comparison",
            "answer": {name: getattr(answer, name) for name in ("sentence", "number", "verdict")},
            "versions": versions(),
            "arguments": dict(self.arguments),
            "data": dict(self.data),
            "models": [model.to_json() for model in self.models],
            "verdict": self.verdict.to_json(),
        }

    def page(self) -> Page:
        """What the report shows."""
        sections = [*premise_sections(self.verdict), self._reproduction()]
        return Page(f"{self.verdict.names[0]} and {self.verdict.names[1]}", self.answer(), sections)

    def report(self) -> str:
        """The comparison as a page of HTML."""
        return render(self.page())

    def save(self, out: str | Path) -> Path:
        """Write `summary.json` and `report.html` to a new folder.

        Raises:
            ArtifactError: the folder exists, or a figure of the summary is NaN or infinite.
        """
        with new_folder(out) as folder:
            write_json(folder / "summary.json", check_summary(self.summary(), kind="comparison"))
            write_text(folder / "report.html", self.report())
        return Path(out)

    def _reproduction(self) -> Section:
        blocks: list[Block] = [Code(call_of(self.arguments, "compare(\n    model_a, model_b, documents"))]
        blocks += [Table(versions(), "Versions"), Table(model_rows(self.models), "Models")]
        if self.data:
            blocks.append(Table(self.data, "Data"))
        return Section("How to reproduce this", blocks)

    def __repr__(self) -> str:
        return f"ComparisonRun({self.verdict!r})"

    def _repr_html_(self) -> str:
        return self.verdict._repr_html_()
