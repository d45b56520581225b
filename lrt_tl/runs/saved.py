"""Runs read back from their folders, and compared."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lrt_tl.artifacts import CONFIG, TENSORS, reading
from lrt_tl.errors import ArtifactError
from lrt_tl.evaluation.figures import recovery_figure
from lrt_tl.evaluation.recovery import Recovery
from lrt_tl.report.page import Answer, Figure, Page, Section, Table
from lrt_tl.report.text import shown, shown_name
from lrt_tl.runs.run import folder_name
from lrt_tl.runs.summary import check_summary
from lrt_tl.tables import flattened, html_columns

SUMMARY = "summary.json"


@dataclass(frozen=True)
class SavedRun:
    """What the folder of a run says: its `summary.json`, checked.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> source, target, documents = storyworld.load("medium"), storyworld.load("small"), storyworld.documents(60)
        >>> tasks = [(storyworld.contrast_pairs("refusal", 8), storyworld.behavior("refusal", 2))]
        >>> options = {"n_draws": 19, "random_weights": False, "questions": storyworld.fact_questions(4)}
        >>> run = lrt.transfer(source, target, documents, tasks, layers=(3, 2), **options)
        >>> with TemporaryDirectory() as folder:
        ...     saved = lrt.read_run(run.save(Path(folder) / "run"))
        >>> saved.conditions()["source"]
        'storyworld-medium blocks.3.hook_resid_post'
        >>> list(saved.recoveries())
        ['refusal']
    """

    folder: Path
    summary: dict[str, Any]

    def recoveries(self, key: str = "recovery") -> dict[str, Recovery]:
        """By behavior: at matched norm, or with `recovery_matched_kl` at matched KL."""
        fields = ("estimate", "low", "high", "reason")
        return {
            behavior["name"]: Recovery(*(behavior[key][field] for field in fields))
            for behavior in self.summary["behaviors"]
        }

    def rows(self) -> list[dict[str, str]]:
        """For a table, a row a behavior."""
        found, at_kl = self.recoveries(), self.recoveries("recovery_matched_kl")
        return [
            {
                "run": shown_name(self.folder.name),
                "behavior": shown_name(behavior["name"]),
                "recovery": shown(str(found[behavior["name"]])),
                "at matched KL": shown(str(at_kl[behavior["name"]])),
                "own vector's slope": f"{behavior['native_slope']:+.3f}",
                "transferred": f"{behavior['transferred_slope']:+.3f}",
                "verdict": shown_name((behavior.get("decision") or {}).get("verdict", "none")),
            }
            for behavior in self.summary["behaviors"]
        ]

    def conditions(self) -> dict[str, str]:
        """Under what the run was made, by name: models, map, arguments, versions and data."""
        read = self.summary
        told = {"map": {name: read["map"][name] for name in ("method", "test_r2", "tokens")}}
        sites = {"source": " + ".join(map(_place, read["sources"])), "target": _place(read["target"])}
        rest = {name: read.get(name, {}) for name in ("arguments", "versions", "data")}
        return sites | flattened({**told, **rest})

    def __repr__(self) -> str:
        found = "; ".join(f"{name}: recovery {each}" for name, each in self.recoveries().items())
        return f"SavedRun({self.folder.name}: {found})"

    def _repr_html_(self) -> str:
        return html_columns(self.rows())


def read_run(folder: str | Path) -> SavedRun:
    """Read the folder that `TransferRun.save` wrote. The map and the vectors are looked for, not loaded.

    Raises:
        ArtifactError: there is no such folder; it holds a comparison of two models; a part of it is missing; or its
            summary is of another version, not JSON, or not as its schema says.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> source, target, documents = storyworld.load("medium"), storyworld.load("small"), storyworld.documents(60)
        >>> tasks = [(storyworld.contrast_pairs("refusal", 8), storyworld.behavior("refusal", 2))]
        >>> options = {"n_draws": 19, "random_weights": False, "questions": storyworld.fact_questions(4)}
        >>> run = lrt.transfer(source, target, documents, tasks, layers=(3, 2), **options)
        >>> with TemporaryDirectory() as folder:
        ...     saved = lrt.read_run(run.save(Path(folder) / "run"))
        >>> saved.recoveries()["refusal"] == run.behaviors[0].result.recovery
        True
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(f"there is no folder {folder}")
    path = folder / SUMMARY
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no {SUMMARY}: it is not a run of lrt_tl, or it is incomplete")
    with reading(path, "the summary of a run"):
        read = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refused, parse_float=_finite)
    if not isinstance(read, dict):
        raise ArtifactError(f"{path} holds no mapping: it is not the summary of a run")
    if read.get("kind") == "comparison":
        raise ArtifactError(f"{folder} compares two models, and carries no vector: its report.html shows what it found")
    summary = check_summary(read, str(path))
    vectors = [f"vectors/{folder_name(behavior['name'])}" for behavior in summary["behaviors"]]
    places = ["map", *(f"{place}/{kind}" for place in vectors for kind in ("transferred", "native"))]
    parts = [f"{place}/{name}" for place in places for name in (CONFIG, TENSORS)]
    missing = [part for part in parts if not (folder / part).is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ArtifactError(f"{folder} is incomplete: it lacks {', '.join(missing[:3])}{more}")
    return SavedRun(folder, summary)


def compare(runs: Sequence[SavedRun]) -> Page:
    """A page on one run or several: each behavior's recovery in each, and in what the runs differ."""
    names = _names(runs)
    recoveries = {name: run.recoveries() for name, run in zip(names, runs, strict=True)}
    at_kl = {name: run.recoveries("recovery_matched_kl") for name, run in zip(names, runs, strict=True)}
    rows = [{**row, "run": name} for name, run in zip(names, runs, strict=True) for row in run.rows()]
    conditions = [run.conditions() for run in runs]
    keys = list(dict.fromkeys(key for each in conditions for key in each))
    table = [{"": key} | dict(zip(names, (each.get(key, "–") for each in conditions), strict=True)) for key in keys]
    differ = [row for row in table if len(set(list(row.values())[1:])) > 1]
    alike = [row for row in table if row not in differ]
    sections = [
        Section("Recovery", [Figure(recovery_figure(recoveries), "At matched norm."), Table(rows)]),
        Section("At matched KL", [Figure(recovery_figure(at_kl), "Every vector at the native one's KL.")]),
        Section("In what they differ", [Table(differ)] if differ else []),
        Section("What they have in common", [Table({row[""]: row[names[0]] for row in alike})] if alike else []),
    ]
    title = f"{len(runs)} runs compared" if len(runs) > 1 else f"The run {names[0]}"
    return Page(title, _answer(names, runs), [section for section in sections if section.blocks])


def _answer(names: Sequence[str], runs: Sequence[SavedRun]) -> Answer:
    """The run whose lowest recovery is highest, over the behaviors for which all runs state one."""
    stated = [{name for name, each in run.recoveries().items() if each.estimate is not None} for run in runs]
    shared = sorted(set.intersection(*stated))
    if not shared:
        return Answer("There is no behavior for which a recovery can be stated in every run.", None, None)
    lowest = [min((run.recoveries()[name].estimate or 0.0, name) for name in shared) for run in runs]
    place = max(range(len(runs)), key=lambda each: lowest[each][0])
    found = runs[place].recoveries()[lowest[place][1]]
    name, behavior = shown_name(names[place]), shown_name(lowest[place][1])
    sentence = f"Of what {name} carried, {behavior} kept least of the effect of the target's own vector."
    if len(runs) > 1:
        sentence = (
            f"Of {len(runs)} runs {name} carried most: of the behaviors for which all of them state a recovery, "
            f"{behavior} is its lowest."
        )
    interval = None if found.low is None or found.high is None else (found.low, found.high)
    return Answer(sentence, found.estimate, interval, what=f"recovery of {behavior} in {name}")


def _names(runs: Sequence[SavedRun]) -> list[str]:
    """The folders' names, or their whole paths where two are the same."""
    names = [run.folder.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _place(site: dict[str, Any]) -> str:
    model = "unknown model" if site["model"] is None else site["model"]["name"]
    return f"{model} {site['hook_name']}"


def _refused(constant: str) -> NoReturn:
    raise ArtifactError(f"{SUMMARY} holds {constant}, which no figure of a run is: it was edited or damaged")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refused(text)
